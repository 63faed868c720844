"""The marketplace, end to end: a scripted https source, the real daemon, latticectl. T-numbers: index_attacks.json."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import re
import time

import pytest

from tests.house import bundles, daemons, faults, index_servers, indexes, processes
from tests.house.market_sites import ACME, SOURCE, STRANGER, Site, settings, trading

pytestmark = pytest.mark.daemon

SOURCES = 80


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    directory = tmp_path_factory.mktemp("web")
    with index_servers.serving(directory) as found:
        yield found


@pytest.fixture(scope="module")
def shop(web):
    with trading(web, [f"s{number}" for number in range(SOURCES)]) as place, place.running() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def numbers():
    return itertools.count()


@pytest.fixture
def site(shop, web, numbers, tmp_path):
    return Site(daemon=shop, web=web, name=f"s{next(numbers)}", parent=tmp_path)


def test_operator_finds_a_plugin_and_takes_exactly_what_was_signed(site):
    """Search, show, install by latticectl: it lands verified, granted and started nothing."""
    bundle = site.bundle(v2=True, capabilities=["kv:read", "http:egress"], egress={"hosts": ["api.example.org:443"]})
    entry = site.offer(bundle, summary="Counts sheep", changelog_url="https://plugins.example.org/changes")
    entry["releases"][0]["artifact_bytes"] = len(bundles.ARTIFACT)
    site.publish(entry)
    ctl = site.daemon.ctl
    assert ctl("market", "refresh", site.name).returncode == 0
    assert bundle.id in ctl("market", "search", "SHEEP").stdout
    shown = ctl("market", "show", bundle.id)
    assert "host=api.example.org:443" in shown.stdout
    for words in ("http:egress (host)", "https://plugins.example.org/changes", f"{len(bundles.ARTIFACT)} bytes", "now"):
        assert words in " ".join(shown.stdout.split()), shown.stdout
    refused = ctl("market", "install", bundle.id)
    assert (refused.returncode, "--accept http:egress" in refused.stderr) == (1, True)
    assert site.path(bundle) not in site.web.asked
    taken = ctl("market", "install", bundle.id, "--accept", "http:egress", "--accept-host", "api.example.org:443")
    assert taken.returncode == 0, taken.stderr
    for step in ("index", "publisher", "manifest", "consent", "artifact", "sandbox", "placed"):
        assert f"\n{step} " in f"\n{taken.stdout}"
    record = site.daemon.until(lambda: site.daemon.plugin(bundle.id), "the record")
    assert (record["status"], record["granted"], record["artifact_sha256"]) == (
        "verified",
        ["kv:read"],
        bundle.raw["digest_sha256"],
    )
    assert site.leftovers() == []
    assert site.events("market.installed")[0]["detail"]["accepted"] == "http:egress host=api.example.org:443"
    assert ctl("market", "sources").returncode == 0
    horizon = ctl("trust", "horizon")
    assert (horizon.returncode, site.name in horizon.stdout) == (0, True), horizon


def test_newer_release_becomes_the_candidate_in_one_step(site):
    first = site.bundle(version="1.0.0")
    site.refreshed(site.offer(first))
    assert site.install(first).status == 200
    site.daemon.until(lambda: site.daemon.plugin(first.id), "the record")
    assert site.daemon.set_status("installed", first.id).status == 200
    second = site.bundle(first.id, version="1.1.0", artifact=bundles.ARTIFACT + b"# newer\n")
    old = indexes.release(first, f"{site.base}{first.id}/1.0.0/")
    site.refreshed(indexes.entry(second, f"{site.base}{first.id}/1.1.0/", old))
    behind = json.loads(site.daemon.ctl("market", "outdated", "--format", "json").stdout)
    assert [(one["id"], one["offered"]) for one in behind if one["id"] == first.id] == [(first.id, "1.1.0")]
    assert site.install(second).status == 200
    record = site.daemon.until(
        lambda: (found := site.daemon.plugin(first.id)) and found.get("candidate") and found, "a candidate"
    )
    assert (record["version"], record["candidate"]["version"], site.placed(first)) == ("1.0.0", "1.1.0", "1.1.0")
    assert site.leftovers() == []
    # T12: back to what is lower than the highest accepted takes an override by name.
    assert site.daemon.post(f"/api/plugins/by-id/{first.id}/upgrade", {}).status == 200
    assert site.code(site.install(second, version="1.0.0")) == "version_downgrade"
    assert site.install(second, version="1.0.0", allow_downgrade=True).status == 200


def test_fetch_writes_a_verified_bundle_elsewhere(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    to = site.daemon.place.home / "elsewhere"
    to.mkdir()
    site.daemon.place.own(to)
    fetched = site.daemon.ctl("market", "fetch", bundle.id, "--to", str(to))
    assert fetched.returncode == 0, fetched.stderr
    for file in ("manifest.json", "artifact"):
        assert (to / bundle.id / file).read_bytes() == (bundle.path / file).read_bytes()
    assert site.placed(bundle) is None
    again = site.daemon.ctl("market", "fetch", bundle.id, "--to", str(to))
    assert (again.returncode, "exists" in again.stderr or "not to exist" in again.stderr) == (1, True)
    assert site.leftovers() == []


def test_held_plugin_is_left_alone_until_named(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    assert site.daemon.ctl("market", "hold", bundle.id).returncode == 0
    assert "already" in site.daemon.ctl("market", "hold", bundle.id).stdout
    assert site.code(site.install(bundle)) == "held"
    assert site.install(bundle, accept_held=True).status == 200
    assert site.events("market.installed")[0]["detail"]["accept_held"] is True
    assert site.daemon.ctl("market", "hold", "--off", bundle.id).returncode == 0
    assert site.install(bundle).status == 200


# What the index may be.


@pytest.mark.parametrize(
    ("attack", "make", "code"),
    [
        ("T01 unknown key", lambda raw: indexes.sign(raw, STRANGER), "index_signature_invalid"),
        ("T01 other bytes", lambda raw: {**raw, "publishers": [{"id": "x"}]}, "index_signature_invalid"),
        ("T43 official, unsigned", lambda raw: {**raw, "signatures": []}, "index_unsigned"),
        ("T01 draft after signed", lambda raw: {**raw, "signatures": [], "status": "draft"}, "index_unsigned"),
        ("T08 a manifest", lambda _: bundles.manifest_v2(), "index_invalid"),
        ("T38", lambda raw: indexes.encoded(raw).replace(b'"status"', b'"status": "x", "status"', 1), "index_invalid"),
        ("T09", lambda raw: indexes.sign({**raw, "generated_at": "2020-01-01T00:00:00Z"}, SOURCE), "index_rolled_back"),
        ("T10", lambda raw: indexes.sign({**raw, "plugins": []}, SOURCE), "index_changed"),
        (
            "T45",
            lambda raw: indexes.sign({**raw, "generated_at": indexes.moment(time.time() + 3600)}, SOURCE),
            "index_from_future",
        ),
        ("T16", lambda raw: indexes.sign({**raw, "generated_at": "9999-12-31T23:59:59Z"}, SOURCE), "index_from_future"),
        ("too large", lambda raw: b" " * 300_001, "fetch_too_large"),
        ("bytes", lambda raw: b"\xff\x00", "index_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_index_that_may_not_be_taken_leaves_the_last_one(site, attack, make, code):
    bundle = site.bundle()
    raw = site.refreshed(site.offer(bundle))
    site.serve(make(raw))
    answer = site.refresh()
    assert site.code(answer) == code, answer
    row = site.row()
    assert (row["usable"], row["generated_at"], code in row["trouble"]) == (True, raw["generated_at"], True)
    denied = site.events("market.refreshed")[0]
    assert (denied["decision"], denied["code"], denied["target"]) == ("deny", code, site.name)
    assert site.install(bundle).status == 200
    assert site.leftovers() == []


# T17, T24, T25, T26
@pytest.mark.parametrize("file", ["plugins.json", "manifest.json", "artifact"])
@pytest.mark.parametrize(
    ("attack", "code"),
    [("endless", "fetch_too_large"), ("drip", "fetch_failed"), ("huge", "fetch_too_large"), ("short", "fetch_failed"),
     ("longer", "fetch_failed"), ("gzip", "fetch_failed"), ("404", "fetch_missing"), ("304", "fetch_failed")],
)  # fmt: skip
def test_source_that_lies_or_stalls_is_given_up(site, file, attack, code):
    bundle = site.bundle()
    raw = site.refreshed(site.offer(bundle))
    path = f"/{site.name}/plugins.json" if file == "plugins.json" else site.path(bundle, file)
    good = site.web.files[path]
    site.web.answers[path] = {
        "endless": index_servers.endless(site.web),
        "drip": index_servers.drip(site.web),
        "huge": index_servers.body(b"x", length=1 << 40),
        "short": index_servers.body(good[:10], length=len(good)),
        "longer": index_servers.body(good + b"junk", length=len(good)),
        "gzip": index_servers.body(gzip.compress(good), "Content-Encoding: gzip"),
        "404": index_servers.status(404),
        "304": index_servers.status(304),
    }[attack]
    answer = site.refresh() if file == "plugins.json" else site.install(bundle)
    assert site.code(answer) == code, answer
    assert (site.placed(bundle), site.leftovers()) == (None, [])
    assert site.row()["generated_at"] == raw["generated_at"]


def test_object_store_that_says_403_for_what_it_lacks_has_taken_nothing_back(site):
    """As one that says 404; once it had the file, either answer is a problem."""
    bundle = site.bundle()
    lacks = f"/{site.name}/revocations.json"
    site.web.answers[lacks] = index_servers.status(403)
    site.refreshed(site.offer(bundle))
    assert site.row()["trouble"] == ""
    assert site.install(bundle).status == 200
    del site.web.answers[lacks]
    site.take_back()
    assert site.refresh().status == 200
    site.web.answers[lacks] = index_servers.status(403)
    assert site.code(site.refresh()) == "fetch_missing"
    site.web.answers[site.path(bundle)] = index_servers.status(403)
    assert site.code(site.install(bundle)) == "fetch_missing"


# What may be taken by it.


def changed_release(raw, **fields):
    (plugin,) = raw["plugins"]
    (release,) = plugin["releases"]
    return {**raw, "plugins": [{**plugin, "releases": [{**release, **fields}]}]}


def test_artifact_that_was_replaced_is_refused(site):
    """T03, T44: of the same length, at the first install and at one over what is here already."""
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    assert site.install(bundle).status == 200
    good = site.web.files[site.path(bundle)]
    site.web.files[site.path(bundle)] = good[:-2] + b"#\n"
    assert site.code(site.install(bundle)) == "digest_mismatch"
    assert (site.state / "bundles" / bundle.id / "artifact").read_bytes() == good
    assert site.leftovers() == []


@pytest.mark.parametrize(
    ("attack", "fields"),
    [
        ("T07 version", {"version": "1.2.0"}),
        ("T07 capabilities", {"capabilities": ["kv:read"]}),
        ("T23 digest", {"artifact_sha256": "a" * 64}),
        ("T22 signature", {"signature_ed25519": ACME.sign(b"something else")}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_index_that_does_not_fit_the_manifest_is_refused(site, attack, fields):
    bundle = site.bundle()
    raw = changed_release(site.publish(site.offer(bundle)), **fields)
    raw["plugins"][0]["channels"] = {"stable": raw["plugins"][0]["releases"][0]["version"]}
    site.serve(indexes.sign(raw, SOURCE))
    assert site.refresh().status == 200
    assert site.code(site.install(bundle)) == "index_mismatch"
    assert site.path(bundle) not in site.web.asked  # T41
    assert site.placed(bundle) is None


def test_manifest_of_another_plugin_or_release_is_refused(site):
    """T06, T22, T08: validly signed by the same publisher; an index in the manifest's place."""
    one, other = site.bundle(), site.bundle()
    site.refreshed(site.offer(one))
    for path in (site.path(other, "manifest.json"),):
        site.web.files[site.path(one, "manifest.json")] = site.web.files[path]
        assert site.code(site.install(one)) == "index_mismatch"
    site.web.files[site.path(one, "manifest.json")] = site.web.files[f"/{site.name}/plugins.json"]
    assert site.code(site.install(one)) == "manifest_invalid"
    assert site.path(one) not in site.web.asked


def test_publisher_has_to_be_the_policys(site):
    """T05: known to the index alone, whose keys mean nothing; and one whose key is another."""
    stranger = site.bundle(author=STRANGER)
    site.refreshed(site.offer(stranger), publishers=[{"id": "stranger", "public_key_ed25519": STRANGER.public}])
    assert site.code(site.install(stranger)) == "publisher_untrusted"
    forger = bundles.author("acme")
    forged = site.bundle(author=forger)
    site.refreshed(site.offer(forged))
    assert site.code(site.install(forged)) == "signature_invalid"
    assert (site.placed(stranger), site.placed(forged)) == (None, None)


@pytest.mark.parametrize(
    "url", ["http://{host}/x", "https://127.0.0.1:{port}/x", "https://localhost:{port}/x", "https://10.0.0.1/x",
            "https://169.254.169.254/x", "file:///etc/passwd"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["named", "redirected"])
def test_addresses_that_no_source_may_lead_to(site, url, how):
    """T40: named by the index, or reached by a redirect; nothing is connected to."""
    bundle = site.bundle()
    where = url.format(host=index_servers.HOST, port=site.web.port)
    raw = site.publish(site.offer(bundle))
    if how == "named":
        site.serve(indexes.sign(changed_release(raw, manifest_url=where), SOURCE))
    else:
        site.web.answers[site.path(bundle, "manifest.json")] = index_servers.redirect(where)
    assert site.refresh().status == 200
    assert site.code(site.install(bundle)) in {"fetch_blocked", "unsupported"}
    assert "/x" not in site.web.asked


def test_redirects_are_followed_within_the_mirror_five_times(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    path = site.path(bundle)
    site.web.answers[path] = index_servers.redirect(f"/{site.name}/1?token=a")
    for number in range(1, 5):
        site.web.answers[f"/{site.name}/{number}?token=a"] = index_servers.redirect(f"{number + 1}?token=a")
    site.web.files[f"/{site.name}/5?token=a"] = site.web.files[path]
    assert site.install(bundle).status == 200
    site.web.answers[f"/{site.name}/5?token=a"] = index_servers.redirect("6")
    assert site.code(site.install(bundle)) == "fetch_blocked"


def test_release_that_is_gone_or_of_another_format_spoils_nothing_else(site):
    """T11, and entries that this version cannot take."""
    bundle, other = site.bundle(), site.bundle()
    site.refreshed(site.offer(bundle), site.offer(other))
    assert site.install(bundle).status == 200
    site.daemon.until(lambda: site.daemon.plugin(bundle.id), "the record")
    foreign = site.offer(other, capabilities=["rpc:call"])
    foreign["releases"][0]["capabilities"] = ["rpc:call"]
    site.refreshed(foreign, {"id": "../x"}, 7)
    assert site.code(site.install(bundle)) == "not_found"
    assert site.code(site.install(other)) == "unsupported"
    assert len(site.row()["refused"]) == 2
    behind = json.loads(site.daemon.get("/api/market/outdated").body)["plugins"]
    assert [one["gone"] for one in behind if one["id"] == bundle.id] == [True]
    assert site.daemon.plugin(bundle.id)["available"] is True


def test_draft_can_be_looked_at_only(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle), status="draft", signers=())
    assert site.row()["code"] == "index_browse_only"
    assert site.code(site.install(bundle)) == "index_browse_only"
    assert bundle.id in site.daemon.ctl("market", "search", bundle.id).stdout


def test_one_install_of_an_id_at_a_time(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    site.web.answers[site.path(bundle)] = index_servers.drip(site.web)
    with processes.spawned(site.daemon.ctl_command("market", "install", bundle.id), user=site.daemon.place.user,
                           env=site.daemon.place.environment()) as slow:  # fmt: skip
        index_servers.until_asked(site.web, site.path(bundle))
        assert site.code(site.install(bundle)) == "busy"
        taking = json.loads(site.daemon.get("/api/market").body)["taking"]
        assert [(one["id"], one["file"]) for one in taking] == [(bundle.id, "artifact")]
        assert [one["step"] for one in taking[0]["steps"]] == ["index", "publisher", "manifest", "consent"]
        assert slow.wait(timeout=daemons.START_S) == 1
    del site.web.answers[site.path(bundle)]
    assert site.install(bundle).status == 200


def test_release_that_is_taken_back_while_it_is_fetched_is_not_placed(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    path = site.path(bundle)

    def answer(peer):
        site.take_back({"plugin": f"{bundle.id}@1.0.0", "action": "freeze", "reason": "leaks"})
        assert site.refresh().status == 200
        index_servers.body(site.web.files[path])(peer)

    site.web.answers[path] = answer
    assert site.code(site.install(bundle)) == "release_revoked"
    assert (site.placed(bundle), site.leftovers()) == (None, [])


def test_hold_that_is_set_while_a_bundle_is_fetched_holds(site):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    path = site.path(bundle)

    def answer(peer):
        assert site.daemon.ctl("market", "hold", bundle.id).returncode == 0
        index_servers.body(site.web.files[path])(peer)

    site.web.answers[path] = answer
    assert site.code(site.install(bundle)) == "held"
    assert (site.placed(bundle), site.leftovers()) == (None, [])
    assert site.install(bundle, accept_held=True).status == 200


def test_age_of_a_release_begins_anew_with_another_manifest(site):
    """Of the same version and artifact, signed by the publisher's key: that may be in other hands since yesterday."""
    bundle = site.bundle()

    def first_seen():
        site.refreshed(site.offer(bundle))
        url = f"/api/market/plugins/{bundle.id}?source={site.name}"
        return json.loads(site.daemon.get(url).body)["releases"][0]["first_seen"]

    before = first_seen()
    assert first_seen() == before
    digest = bundle.raw["digest_sha256"]
    bundle = site.bundle(bundle.id, capabilities=["kv:read", "kv:write"])
    assert (bundle.raw["digest_sha256"], bundle.raw["version"]) == (digest, "1.0.0")
    assert first_seen() > before


def upgraded(site):
    """A plugin that went from 1.0.0 to 1.1.0, both of the source."""
    first = site.bundle(version="1.0.0")
    second = site.bundle(first.id, version="1.1.0", artifact=bundles.ARTIFACT + b"# newer\n")
    old = indexes.release(first, f"{site.base}{first.id}/1.0.0/")
    site.refreshed(indexes.entry(second, f"{site.base}{first.id}/1.1.0/", old))
    assert site.install(first, version="1.0.0").status == 200
    site.daemon.until(lambda: site.daemon.plugin(first.id), "the record")
    assert site.daemon.set_status("installed", first.id).status == 200
    assert site.install(second).status == 200
    site.daemon.until(lambda: site.daemon.plugin(first.id).get("candidate"), "a candidate")
    assert site.daemon.post(f"/api/plugins/by-id/{first.id}/upgrade", {}).status == 200
    return second


def test_kept_version_that_is_taken_back_is_not_returned_to(site):
    """What runs is a later one, and the last that was taken, too."""
    bundle = upgraded(site)
    site.take_back({"plugin": f"{bundle.id}@1.0.0", "action": "freeze"})
    assert site.refresh().status == 200
    answer = site.daemon.post(f"/api/plugins/by-id/{bundle.id}/rollback", {})
    assert site.code(answer) == "plugin_revoked"
    assert site.daemon.plugin(bundle.id)["version"] == "1.1.0"


def test_version_that_was_left_is_offered_no_more_unless_it_is_named(site):
    bundle = upgraded(site)
    assert site.daemon.post(f"/api/plugins/by-id/{bundle.id}/rollback", {}).status == 200
    behind = json.loads(site.daemon.get("/api/market/outdated").body)["plugins"]
    assert [one for one in behind if one["id"] == bundle.id] == []
    site.web.asked.clear()
    refused = site.daemon.ctl("market", "install", bundle.id, "--source", site.name)
    assert (refused.returncode, "--version 1.1.0" in refused.stderr) == (1, True), refused
    assert site.path(bundle) not in site.web.asked
    assert site.install(bundle, version="1.1.0").status == 200
    again = site.daemon.post(f"/api/plugins/by-id/{bundle.id}/upgrade", {})
    assert site.code(again) == "candidate_bad"


def test_anti_rollback_and_index_outlive_a_restart_without_network(web, tmp_path):
    """T14, T15, T17, T13: an expired index installs nothing; what runs keeps running, also over a restart."""
    with trading(web, ["keep"]) as place:
        with place.running() as daemon:
            site = Site(daemon=daemon, web=web, name="keep", parent=tmp_path)
            bundle, other = site.bundle(v2=True), site.bundle()
            site.take_back({"plugin": "acme.elsewhere@*", "action": "freeze"}, at=time.time() - 15 * 86_400)
            raw = site.refreshed(site.offer(bundle), site.offer(other), at=time.time() - 20 * 86_400)
            assert site.install(bundle).status == 200
            daemon.activate(bundle.id)
            far = json.loads(daemon.ctl("trust", "horizon", "--format", "json").stdout)
            dated = [(one["what"], one["name"]) for one in far if one["when"]]
            assert dated == [("index", "keep"), ("revocations", "keep")]
            assert {one["what"] for one in far if not one["when"]} == {"index key", "publisher key"}
            metrics = daemon.get("/metrics").body.decode()
            ends = re.findall(
                r'^latticed_source_ends_seconds\{source="keep",document="(\w+)"\} (\d+)$', metrics, re.MULTILINE
            )
            assert {one for one, _ in ends} == {"index", "revocations"}
            # It was generated 20 days ago, so the 30 days of the settings end in 10.
            assert 9 * 86_400 < int(dict(ends)["index"]) - time.time() < 11 * 86_400
            assert daemon.ctl("trust", "horizon").returncode == 3
        web.answers["/keep/plugins.json"] = index_servers.status(503)
        place.set(settings(web, ["keep"]) + "\nmax_age_days = 10")
        index = place.state / "market" / "keep" / "plugins.json"
        with place.running() as daemon:
            site.daemon = daemon
            daemon.until_state("armed", bundle.id)
            assert (site.row()["code"], site.code(site.refresh())) == ("index_expired", "fetch_failed")
            assert site.code(site.install(other)) == "index_expired"
            assert daemon.plugin(bundle.id)["runtime"]["state"] == "armed"
            del web.answers["/keep/plugins.json"]
            site.serve(indexes.sign({**raw, "generated_at": indexes.moment(time.time() - 30 * 86_400)}, SOURCE))
            assert site.code(site.refresh()) == "index_rolled_back"
            # T13: what was remembered is in the signed floors too; a file put in the index's place is refused.
            index.write_bytes(web.files["/keep/plugins.json"])
            assert site.row()["code"] == "index_rolled_back"
            # T18
            site.refreshed(site.offer(bundle), site.offer(other))
            # Of what is taken back nothing newer was seen for 15 days: somebody may withhold it.
            assert site.row()["code"] == "revocations_expired"
            assert site.code(site.install(other)) == "revocations_expired"
            assert daemon.plugin(bundle.id)["runtime"]["state"] == "armed"
            noted = json.loads(daemon.ctl("health", "--format", "json").stdout)["notes"]
            assert [one["code"] for one in noted] == ["revocations_expired"]
            assert daemon.ctl("trust", "horizon").returncode == 3
            site.take_back()
            assert site.refresh().status == 200
            assert site.install(other).status == 200
            assert json.loads(daemon.get("/api/health").body)["notes"] == []


# Faults, and what a source takes back: in a daemon of its own, which is killed and started again.


@pytest.fixture(scope="module")
def shaky(web, tmp_path_factory):
    """A place whose system calls can be made to fail, and its faults."""
    with trading(web, ["fault", "back"]) as place:
        library = faults.compiled(tmp_path_factory.mktemp("shim"))
        with faults.attached(place, library) as sick:
            yield place, sick


def test_full_disk_or_kill_leaves_the_old_or_the_new_bundle(shaky, web, tmp_path):
    """T42: never a mixture, and nothing is left behind."""
    place, sick = shaky
    with place.running() as daemon:
        site = Site(daemon=daemon, web=web, name="fault", parent=tmp_path)
        first = site.bundle(version="1.0.0")
        site.refreshed(site.offer(first))
        assert site.install(first).status == 200
        second = site.bundle(first.id, version="1.1.0", artifact=bundles.ARTIFACT + b"# newer\n")
        base, market = f"{site.base}{first.id}/1.1.0/", place.state / "market" / "fault"
        with sick.failing(errno.ENOSPC, faults.WRITES, below=market):
            site.publish(indexes.entry(second, base))
            assert site.code(site.refresh()) == "store_unavailable"
        assert site.row()["usable"] is True
        assert site.refresh().status == 200
        for calls in (faults.MKDIR, faults.OPEN_WRITE, faults.WRITE, faults.SYNC, faults.RENAME):
            with sick.failing(errno.ENOSPC, calls, below=place.state / "bundles"):
                assert site.code(site.install(second)) == "store_unavailable", calls
            assert (site.placed(second), site.leftovers()) == ("1.0.0", [])
        # kill -9 while the artifact comes.
        path = site.path(second)
        web.answers[path] = index_servers.drip(web)
        web.asked.clear()
        with processes.spawned(daemon.ctl_command("market", "install", second.id), user=place.user,
                               env=place.environment()) as asking:  # fmt: skip
            index_servers.until_asked(web, path)
            daemon.process.kill()
            daemon.process.wait()
            assert asking.wait(timeout=daemons.START_S) != 0
        del web.answers[path]
    with place.running() as daemon:
        site.daemon = daemon
        assert (site.placed(second), site.leftovers()) == ("1.0.0", [])
        # T45, T15: a clock two years off, either way, installs nothing; what is here stays.
        for years, codes in ((-2, {"index_from_future"}), (2, {"index_expired"})):
            sick.shift_clock(years * 365 * 86_400)
            assert site.code(site.install(second)) in {*codes, "index_expired"}
            assert site.row()["usable"] is False
        # T19: one that is set back while the index comes is not looked at again.
        sick.shift_clock(0)
        path = f"/{site.name}/plugins.json"
        web.answers[path] = index_servers.after(lambda: sick.shift_clock(-2 * 365 * 86_400), web.files[path])
        assert site.refresh().status == 200
        sick.shift_clock(0)
        del web.answers[path]
        assert site.install(second).status == 200
        assert site.placed(second) == "1.1.0"
        assert daemon.plugin(second.id)["available"] is True


def test_what_a_source_takes_back_stops_for_good(shaky, web, tmp_path):
    """T29, T30: also after a restart, listed no more, and when its bundle is dropped again; a fix may come."""
    place, _ = shaky
    with place.running() as daemon:
        site = Site(daemon=daemon, web=web, name="back", parent=tmp_path)
        frozen, killed, kept = (site.bundle(v2=True, artifact=bundles.ARTIFACT + f"# {n}\n".encode()) for n in range(3))
        site.refreshed(site.offer(frozen), site.offer(killed), site.offer(kept))
        for one in (frozen, killed, kept):
            assert site.install(one).status == 200
            daemon.activate(one.id)
        site.take_back({"plugin": f"{frozen.id}@1.0.0", "action": "kill"}, signers=(STRANGER,))
        assert site.code(site.refresh()) == "revocations_unsigned"
        assert daemon.plugin(frozen.id)["runtime"]["state"] == "armed"
        site.take_back(
            {"plugin": f"{frozen.id}@1.0.0", "action": "freeze", "reason": "leaks"},
            {"artifact_sha256": killed.raw["digest_sha256"], "action": "kill"},
            {"plugin": f"{kept.id}@*", "action": "block-install"},
            {"plugin": "acme.elsewhere@*", "action": "kill"},
            {"action": "unknown"},
        )
        assert site.refresh().status == 200
        daemon.until_state("failed", frozen.id, code="plugin_revoked")
        daemon.until_state("failed", killed.id)
        assert daemon.plugin(kept.id)["runtime"]["state"] == "armed"
        assert (site.placed(frozen), site.placed(killed), site.leftovers()) == ("1.0.0", None, [])
        for one in (frozen, killed, kept):
            assert site.code(site.install(one)) == "release_revoked"
        site.take_back()
        assert site.refresh().status == 200
        assert site.code(site.install(frozen)) == "release_revoked"
        daemon.process.kill()
        daemon.process.wait()
    with place.running() as daemon:
        site.daemon = daemon
        daemon.until_state("failed", frozen.id, code="plugin_revoked")
        site.state.joinpath("bundles", killed.id).mkdir()
        for file in ("manifest.json", "artifact"):
            target = site.state / "bundles" / killed.id / file
            target.write_bytes((killed.path / file).read_bytes())
            place.own(target)
        place.own(site.state / "bundles" / killed.id)
        daemon.until_rejected(killed.id, "digest_revoked")
        fix = site.bundle(frozen.id, v2=True, version="1.0.1", artifact=bundles.ARTIFACT + b"# mended\n")
        site.refreshed(site.offer(fix))
        assert site.install(fix).status == 200
        daemon.until(lambda: daemon.plugin(fix.id).get("candidate"), "the fix to be a candidate")
        assert daemon.post(f"/api/plugins/by-id/{fix.id}/upgrade", {}).status == 200
        assert daemon.until_state("armed", fix.id)["version"] == "1.0.1"
        del web.files["/back/revocations.json"]
        assert site.code(site.refresh()) == "fetch_missing"


def test_directory_of_this_host_is_a_source_and_leads_nowhere_else(web, tmp_path):
    """`file:`; no link is followed out of it, no FIFO waited for; settings of sources take effect at a reload."""
    with trading(web, []) as place, place.running() as daemon:
        shelf = place.home / "shelf"
        shelf.mkdir()
        site = Site(daemon=daemon, web=web, name="local", parent=tmp_path)
        young, linked, fifo, outside = (
            bundles.drop(shelf, f"p{n}", author=ACME, id=f"acme.local{n}") for n in range(4)
        )
        (linked.artifact_path).unlink()
        linked.artifact_path.symlink_to(young.artifact_path)
        (fifo.artifact_path).unlink()
        os.mkfifo(fifo.artifact_path)
        entries = [indexes.entry(one, f"file://{one.path}/") for one in (young, linked, fifo)]
        away = indexes.entry(outside, f"file://{place.home}/elsewhere/")
        (shelf / "plugins.json").write_bytes(indexes.encoded(indexes.index(*entries, away, signers=[SOURCE])))
        local = f'[market.sources.local]\nurl = "file://{shelf}/plugins.json"\nkeys = ["{SOURCE.public}"]'
        place.set(f"[market]\nmin_release_age_days = 1\n{local}")
        daemon.until(lambda: json.loads(daemon.get("/api/market").body)["sources"], "the source to be known")
        assert site.refresh().status == 200, site.refresh()
        assert [site.code(site.install(one)) for one in (linked, fifo, outside)] == ["too_young"] * 3
        codes = [site.code(site.install(one, accept_age="1.0.0")) for one in (linked, fifo, outside)]
        assert codes == ["fetch_failed", "digest_mismatch", "fetch_blocked"]
        # The age counts from when this host saw it, and is overridden by the version's name, on record.
        assert site.code(site.install(young)) == "too_young"
        assert site.code(site.install(young, accept_age="1.0.1")) == "too_young"
        fetched = daemon.ctl("market", "fetch", young.id, "--to", str(place.home))
        assert (fetched.returncode, "first seen" in fetched.stderr) == (1, True)
        assert site.install(young, accept_age="1.0.0").status == 200
        assert site.events("market.installed")[0]["detail"]["accept_age"] == "1.0.0"
        # T28: its key signs on, and counts for nothing.
        place.trust_us(ACME, revoked={"keys": [ACME.public]})
        daemon.until(lambda: json.loads(daemon.get("/api/trust").body)["revoked"]["keys"], "the key to be revoked")
        assert site.code(site.install(young, accept_age="1.0.0")) == "key_revoked"
        place.set(f"[market]\n{local.replace(SOURCE.public, 'AAAA')}")
        daemon.until(lambda: site.row()["code"] == "source_invalid", "the bad key to be seen")  # T02, T35
        assert site.code(site.refresh()) == "source_invalid"

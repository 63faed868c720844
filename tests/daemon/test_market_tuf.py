"""Sources of the format `tuf`, end to end: a repository on a scripted https server, the real daemon, latticectl.

T-numbers: index_attacks.json. What the roles of a repository may be is in tests/unit/market/test_tuf_metadata.py.
"""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import shutil
import subprocess
import sys
import time

import pytest

from tests.house import bundles, daemons, faults, index_servers, indexes, pages, processes
from tests.house.market_sites import ACME, STRANGER, TufSite, trading
from tests.house.tuf_repositories import DAY_S, KEYS, ROLES, signer

pytestmark = pytest.mark.daemon
SOURCES = 60


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    with index_servers.serving(tmp_path_factory.mktemp("web")) as found:
        yield found


@pytest.fixture(scope="module")
def shop(web):
    with trading(web, [], tuf=[f"t{number}" for number in range(SOURCES)]) as place, place.running() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def numbers():
    return itertools.count()


@pytest.fixture
def site(shop, web, numbers, tmp_path):
    return TufSite(daemon=shop, web=web, name=f"t{next(numbers)}", parent=tmp_path)


def test_operator_takes_exactly_what_was_signed(site):
    """Search, install and fetch by latticectl; a role of its own signs the plugin, and is asked when it is taken."""
    bundle = site.bundle(v2=True)
    site.repository.delegate(bundle.id, f"{bundle.id}/1.0.0/*", signer())
    again = bundles.drop(site.parent, "again", author=ACME, id=bundle.id, v2=True)
    for file in ("manifest.json", "artifact"):
        del site.repository.targets.targets[f"{bundle.id}/1.0.0/{file}"]
        site.put(f"{bundle.id}/1.0.0/{file}", (again.path / file).read_bytes())
    site.publish(site.offer(again))
    ctl = site.daemon.ctl
    assert ctl("market", "refresh", site.name).returncode == 0
    assert f"/{site.name}/metadata/1.{bundle.id}.json" not in site.web.asked
    taken = ctl("market", "install", bundle.id, "--source", site.name)
    assert taken.returncode == 0, taken.stderr
    assert f"/{site.name}/metadata/1.{bundle.id}.json" in site.web.asked
    record = site.daemon.until(lambda: site.daemon.plugin(bundle.id), "the record")
    assert (record["status"], record["artifact_sha256"]) == ("verified", again.raw["digest_sha256"])
    assert (site.placed(bundle), site.leftovers()) == ("1.0.0", [])
    row = site.row()
    assert set(row["expires"]) == {"root role", "timestamp role", "snapshot role", "targets role"}
    assert (row["usable"], row["expires_at"]) == (True, min(row["expires"].values()))
    site.repository.holds_s["timestamp"] = 2 * DAY_S
    site.refreshed(site.offer(again))
    horizon = ctl("trust", "horizon", "--format", "json")
    ends = {one["what"]: one["when"] for one in json.loads(horizon.stdout) if one["name"] == site.name}
    assert (horizon.returncode, ends) == (3, site.row()["expires"])


# What the index may be.


@pytest.mark.parametrize(
    ("attack", "make", "code"),
    [
        ("T08 a manifest", lambda _: bundles.manifest_v2(), "index_invalid"),
        ("T38", lambda raw: indexes.encoded(raw).replace(b'"status"', b'"status": "x", "status"', 1), "index_invalid"),
        ("T09", lambda raw: {**raw, "generated_at": "2020-01-01T00:00:00Z"}, "index_rolled_back"),
        ("T10", lambda raw: {**raw, "plugins": []}, "index_changed"),
        ("T45", lambda raw: {**raw, "generated_at": indexes.moment(time.time() + 3600)}, "index_from_future"),
        ("T16", lambda raw: {**raw, "generated_at": "9999-12-31T23:59:59Z"}, "index_from_future"),
        ("too large", lambda raw: b" " * 300_001, "fetch_too_large"),
        ("bytes", lambda raw: b"\xff\x00", "index_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_index_that_may_not_be_taken_leaves_the_last_one(site, attack, make, code):
    bundle = site.bundle()
    raw = site.refreshed(site.offer(bundle))
    before = site.row()
    site.serve(make(raw))
    assert site.code(site.refresh()) == code
    row = site.row()
    assert code in row["trouble"]
    assert {**row, "trouble": ""} == before
    denied = site.events("market.refreshed")[0]
    assert (denied["decision"], denied["code"], denied["target"]) == ("deny", code, site.name)
    assert site.install(bundle).status == 200
    assert site.leftovers() == []


def test_metadata_that_may_not_be_taken_leaves_the_last_one(site):
    """T01, T09, T15, T16, T31, T32, T33: one after the other, each with the last good one in use."""
    bundle, repository, web = site.bundle(), site.repository, site.web
    site.refreshed(site.offer(bundle))
    timestamp = f"/{site.name}/metadata/timestamp.json"
    old, before = web.files[timestamp], site.row()
    repository.publish()
    site.sync()
    assert site.refresh().status == 200
    good = dict(web.files)

    def tried():
        code = site.code(site.refresh())
        row = site.row()
        assert {**row, "trouble": "", "expires": 0, "expires_at": 0} == {**before, "expires": 0, "expires_at": 0}
        assert site.leftovers() == []
        for path in [path for path in web.files if path.startswith(f"/{site.name}/metadata/") and path not in good]:
            del web.files[path]
        web.files.update(good)
        return code

    web.files[timestamp] = old
    assert tried() == "index_rolled_back"
    web.files[timestamp] = old.replace(b'"sig":"', b'"sig":"00', 1)
    assert tried() == "index_signature_invalid"
    for holds_s, code in ((-1, "index_expired"), (31 * DAY_S, "index_invalid"), (300_000 * DAY_S, "index_invalid")):
        repository.holds_s["timestamp"] = holds_s
        repository.publish_timestamp()
        site.sync()
        assert tried() == code
    repository.holds_s["timestamp"] = DAY_S
    repository.publish_timestamp()
    for signers, code in (
        ([KEYS["root"]], "index_signature_invalid"),
        ([FRESH], "index_signature_invalid"),
        ([KEYS["root"], FRESH], "ok"),
    ):
        if repository.top.version == 2:
            repository.top.version, repository.signers["root"] = 1, [KEYS["root"]]
        repository.rotate("root", FRESH, signers=signers)
        site.sync()
        assert (tried() if code != "ok" else site.code(site.refresh())) == code
    assert site.install(bundle).status == 200


FRESH = signer()


# T17, T24, T25, T26
@pytest.mark.parametrize(
    ("file", "attack", "code"),
    [
        ("timestamp.json", "endless", "fetch_too_large"), ("timestamp.json", "drip", "fetch_too_large"),
        ("timestamp.json", "huge", "fetch_too_large"), ("timestamp.json", "short", "fetch_failed"),
        ("timestamp.json", "longer", "fetch_failed"), ("timestamp.json", "gzip", "fetch_failed"),
        ("timestamp.json", "404", "fetch_missing"), ("timestamp.json", "304", "fetch_failed"),
        ("2.root.json", "slow", "fetch_failed"), ("plugins.json", "slow", "fetch_failed"),
        ("plugins.json", "404", "fetch_missing"), ("artifact", "endless", "fetch_too_large"),
        ("artifact", "short", "fetch_failed"),
    ],
)  # fmt: skip
def test_source_that_lies_or_stalls_is_given_up(site, file, attack, code):
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    before = site.row()
    path = site.path(bundle) if file == "artifact" else site.served.get(file, f"/{site.name}/metadata/{file}")
    good = site.web.files.get(path, b"{}" * 20)
    site.web.answers[path] = {
        "endless": index_servers.endless(site.web),
        "drip": index_servers.drip(site.web),
        "slow": index_servers.drip(site.web, length=300),
        "huge": index_servers.body(b"x", length=1 << 40),
        "short": index_servers.body(good[:10], length=len(good)),
        "longer": index_servers.body(good + b"junk", length=len(good)),
        "gzip": index_servers.body(gzip.compress(good), "Content-Encoding: gzip"),
        "404": index_servers.status(404),
        "304": index_servers.status(304),
    }[attack]
    answer = site.install(bundle) if file == "artifact" else site.refresh()
    assert site.code(answer) == code, answer
    assert (site.placed(bundle), site.leftovers()) == (None, [])
    assert {**site.row(), "trouble": ""} == before


def test_who_withholds_what_is_taken_back_withholds_all(site):
    """T29: or a host would go on installing it from metadata that never ends."""
    bundle = site.bundle()
    site.refreshed(site.offer(bundle))
    before = site.row()
    site.take_back({"plugin": f"{bundle.id}@1.0.0", "action": "block-install", "reason": "leaks"}, signers=())
    made = site.publish(site.offer(bundle))
    site.web.answers[site.served["revocations.json"]] = index_servers.status(404)
    assert site.code(site.refresh()) == "fetch_missing"
    assert ({**site.row(), "trouble": ""}, site.leftovers()) == (before, [])
    del site.web.answers[site.served["revocations.json"]]
    assert site.refresh().status == 200
    assert (site.row()["generated_at"], site.code(site.install(bundle))) == (made["generated_at"], "release_revoked")


# What may be taken by it.


def test_file_that_was_replaced_is_refused(site):
    """T03, T22, T44: artifact or manifest, at the first install and at one over what is here already."""
    bundle, other = site.bundle(), site.bundle()
    site.refreshed(site.offer(bundle), site.offer(other))
    manifest, artifact = site.path(bundle, "manifest.json"), site.path(bundle)
    good = site.web.files[manifest]
    site.web.files[manifest] = site.web.files[site.path(other, "manifest.json")][: len(good)]
    assert site.code(site.install(bundle)) == "digest_mismatch"
    assert artifact not in site.web.asked  # T41
    site.web.files[manifest] = good
    assert site.install(bundle).status == 200
    good = site.web.files[artifact]
    site.web.files[artifact] = good[:-2] + b"#\n"
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
    entry = site.offer(bundle)
    entry["releases"][0].update(fields)
    entry["channels"] = {"stable": entry["releases"][0]["version"]}
    site.refreshed(entry)
    assert site.code(site.install(bundle)) == "index_mismatch"
    assert site.path(bundle) not in site.web.asked  # T41


def test_who_signs_the_repository_is_no_publisher(site):
    """T05, T06, T43: its keys vouch for files, never for whose they are; a draft is for looking."""
    stranger, forged, one, other = (
        site.bundle(author=STRANGER),
        site.bundle(author=bundles.author("acme")),
        site.bundle(),
        site.bundle(),
    )
    mixed = site.offer(one)
    mixed["releases"][0]["manifest_url"] = site.offer(other)["releases"][0]["manifest_url"]
    entries = (site.offer(stranger), site.offer(forged), mixed)
    site.refreshed(*entries, publishers=[{"id": "stranger", "public_key_ed25519": STRANGER.public}])
    codes = [site.code(site.install(bundle)) for bundle in (stranger, forged, one)]
    assert codes == ["publisher_untrusted", "signature_invalid", "index_mismatch"]
    site.refreshed(*entries, status="draft")
    assert (site.row()["usable"], site.code(site.install(one))) == (False, "index_browse_only")


def test_addresses_that_no_repository_may_lead_to(site):
    """T39, T40: what is no target is not asked for, wherever the index says it is; redirects are judged."""
    bundle = site.bundle()
    named = ["https://127.0.0.1:{port}/x", "https://10.0.0.1/x", "file:///etc/passwd", "https://10.0.0.1/targets/x",
             "https://{host}/targets/", "https://{host}/targets/../metadata/1.root.json",
             "https://{host}/targets/%2e%2e/metadata/1.root.json"]  # fmt: skip
    for where in named:
        entry = site.offer(bundle)
        entry["releases"][0]["manifest_url"] = where.format(host=index_servers.HOST, port=site.web.port)
        site.refreshed(entry)
        site.web.asked.clear()
        assert site.code(site.install(bundle)) in {"fetch_blocked", "fetch_missing", "unsupported"}, where
        assert site.web.asked == []
    site.refreshed(site.offer(bundle))
    for where in ("https://127.0.0.1:{port}/x", "http://{host}/x", "https://169.254.169.254/x"):
        leading = index_servers.redirect(where.format(host=index_servers.HOST, port=site.web.port))
        for path in (site.path(bundle, "manifest.json"), f"/{site.name}/metadata/timestamp.json"):
            site.web.answers[path] = leading
            answer = site.refresh() if path.endswith("timestamp.json") else site.install(bundle)
            assert site.code(answer) == "fetch_blocked"
            del site.web.answers[path]
    assert "/x" not in site.web.asked
    # Within the mirror five are followed.
    path = site.path(bundle)
    site.web.answers[path] = index_servers.redirect(f"/{site.name}/1?token=a")
    for number in range(1, 5):
        site.web.answers[f"/{site.name}/{number}?token=a"] = index_servers.redirect(f"{number + 1}?token=a")
    site.web.files[f"/{site.name}/5?token=a"] = site.web.files[path]
    assert site.install(bundle).status == 200
    site.web.answers[f"/{site.name}/5?token=a"] = index_servers.redirect("6")
    assert site.code(site.install(bundle)) == "fetch_blocked"


def test_mirror_is_a_copy_whatever_host_the_index_names(site):
    """And T11: what the index has no more, or in another format, spoils nothing else."""
    bundle, other = site.bundle(), site.bundle()
    entry = site.offer(bundle)
    for name in ("manifest_url", "artifact_url"):
        entry["releases"][0][name] = entry["releases"][0][name].replace(
            site.base, "https://elsewhere.example/p/targets/"
        )
    site.refreshed(entry, site.offer(other))
    assert site.install(bundle).status == 200
    foreign = site.offer(other)
    foreign["releases"][0]["capabilities"] = ["rpc:call"]
    site.refreshed(foreign)
    assert [site.code(site.install(one)) for one in (bundle, other)] == ["not_found", "unsupported"]


def test_keys_of_the_repository_are_rotated_without_the_operator(site):
    """T20, T31: all roles, the root's too; a floor that lost keys set counts no more."""
    bundle, repository = site.bundle(), site.repository
    repository.timestamp.version = repository.snapshot.version = 2**53 - 100
    site.refreshed(site.offer(bundle))
    repository.timestamp.version = repository.snapshot.version = 5
    repository.publish()
    site.sync()
    assert site.code(site.refresh()) == "index_rolled_back"
    for role in ("timestamp", "snapshot", "targets", "root"):
        repository.rotate(role, signer())
    site.refreshed(site.offer(bundle))
    assert site.install(bundle).status == 200
    # Another pinned root is another repository, or a later one of this line.
    site.pin(site.web.files[f"/{site.name}/metadata/3.root.json"])
    assert (site.row()["usable"], site.refresh().status) == (True, 200)
    site.pin(b"{}")
    assert (site.row()["code"], site.code(site.refresh())) == ("source_invalid", "source_invalid")
    site.pin()
    site.root_file.chmod(0o666)
    assert site.code(site.refresh()) == "source_invalid"
    site.root_file.chmod(0o644)
    assert site.refresh().status == 200


@pytest.fixture(scope="module")
def shaky(web, tmp_path_factory):
    """A place whose system calls can be made to fail, and its faults."""
    with trading(web, [], tuf=["keep", "fault"]) as place:
        library = faults.compiled(tmp_path_factory.mktemp("shim"))
        with faults.attached(place, library) as sick:
            yield place, sick


def test_anti_rollback_and_index_outlive_a_restart_without_network(shaky, web, tmp_path):
    """T13, T14, T15, T17, T18: an expired repository installs nothing; what runs keeps running, also over a restart."""
    place, sick = shaky
    with place.running() as daemon:
        site = TufSite(daemon=daemon, web=web, name="keep", parent=tmp_path)
        bundle, other = site.bundle(v2=True), site.bundle()
        site.refreshed(site.offer(bundle), site.offer(other))
        old, shelf = dict(web.files), place.state / "market" / "keep"
        shutil.copytree(shelf / "repository", tmp_path / "old")
        backup = daemon.ctl("backup", str(place.home / "old.tar"))
        assert backup.returncode == 0, daemon.log_file.read_text()[-3000:]
        site.refreshed(site.offer(bundle), site.offer(other))
        assert site.install(bundle).status == 200
        daemon.activate(bundle.id)
    sick.shift_clock(11 * DAY_S)
    web.answers["/keep/metadata/timestamp.json"] = index_servers.status(503)
    with place.running() as daemon:
        site.daemon = daemon
        daemon.until_state("armed", bundle.id)
        assert (site.row()["code"], site.code(site.refresh())) == ("index_expired", "fetch_failed")
        assert site.code(site.install(other)) == "index_expired"
        # Whoever asks for health hears it before anything is installed.
        noted = json.loads(daemon.get("/api/health").body)["notes"]
        held = {one["detail"].split(" role ")[0] for one in noted if one["code"] == "index_expired"}
        assert held == set(ROLES), noted
        assert "latticectl market refresh keep" in noted[0]["detail"]
        assert daemon.plugin(bundle.id)["runtime"]["state"] == "armed"
        del web.answers["/keep/metadata/timestamp.json"]
        assert site.code(site.refresh()) == "index_expired"
        sick.shift_clock(0)
        fresh = dict(web.files)
        web.files.update(old)
        assert site.code(site.refresh()) == "index_rolled_back"
        # What was seen is remembered elsewhere, too: older metadata on disk, or none, is no way back.
        shutil.rmtree(shelf / "repository")
        assert site.code(site.refresh()) == "index_rolled_back"
        shutil.copytree(tmp_path / "old", shelf / "repository")
        for path in (shelf / "repository", *(shelf / "repository").iterdir()):
            place.own(path)
        assert (site.row()["code"], daemon.ctl("trust", "horizon").returncode) == ("index_rolled_back", 3)
    # Nor is an older state with its ledger.
    restored = place.once("--restore", str(place.home / "old.tar"))
    assert restored.returncode == 0, restored.stderr
    with place.running() as daemon:
        site.daemon = daemon
        assert site.code(site.refresh()) == "index_rolled_back"
        web.files.update(fresh)
        sick.shift_clock(11 * DAY_S)
        assert site.code(site.refresh()) == "index_expired"
        site.repository.now = time.time() + 11 * DAY_S
        site.repository.new_root()
        site.refreshed(site.offer(bundle), site.offer(other))
        assert json.loads(daemon.get("/api/health").body)["notes"] == []
        assert site.install(other).status == 200
    sick.shift_clock(0)


def test_full_disk_or_kill_leaves_the_old_or_the_new_repository(shaky, web, tmp_path):
    """T42: metadata and index of one refresh, never of two, and nothing is left behind. T29: nor what it takes back."""
    place, sick = shaky
    with place.running() as daemon:
        site = TufSite(daemon=daemon, web=web, name="fault", parent=tmp_path)
        bundle = site.bundle(v2=True)
        site.refreshed(site.offer(bundle))
        assert site.install(bundle).status == 200
        daemon.activate(bundle.id)
        before, market = site.row(), place.state / "market" / "fault"
        second = site.publish(site.offer(bundle))
        for calls in (faults.MKDIR, faults.OPEN_WRITE, faults.WRITE, faults.SYNC, faults.RENAME):
            with sick.failing(errno.ENOSPC, calls, below=market):
                assert site.code(site.refresh()) == "store_unavailable", calls
            assert ({**site.row(), "trouble": ""}, site.leftovers()) == (before, [])
        # kill -9 while the index comes.
        path = site.served["plugins.json"]
        web.answers[path] = index_servers.drip(web, length=300)
        web.asked.clear()
        command = daemon.ctl_command("market", "refresh", "fault")
        with processes.spawned(command, user=place.user, env=place.environment()) as asking:
            index_servers.until_asked(web, path)
            daemon.process.kill()
            daemon.process.wait()
            assert asking.wait(timeout=daemons.START_S) != 0
        del web.answers[path]
    with place.running() as daemon:
        site.daemon = daemon
        assert (site.row(), site.leftovers()) == (before, [])
        # T45, T15: a clock two years off, either way, installs nothing; what is here stays.
        for years in (-2, 2):
            sick.shift_clock(years * 365 * DAY_S)
            assert site.code(site.install(bundle)) in {"index_from_future", "index_expired"}
            assert site.row()["usable"] is False
        # T19: one that is set back while the index comes is not looked at again.
        sick.shift_clock(0)
        web.answers[path] = index_servers.after(lambda: sick.shift_clock(-2 * 365 * DAY_S), web.files[path])
        assert site.refresh().status == 200
        sick.shift_clock(0)
        del web.answers[path]
        assert site.row()["generated_at"] == second["generated_at"]
        daemon.until_state("armed", bundle.id)
        # Signed by the repository, not by keys of its own; T30: for good.
        site.take_back({"plugin": f"{bundle.id}@1.0.0", "action": "freeze", "reason": "leaks"}, signers=())
        assert site.refresh().status == 200
        daemon.until_state("failed", bundle.id, code="plugin_revoked")
        site.take_back(signers=())
        assert site.refresh().status == 200
        assert site.code(site.install(bundle)) == "release_revoked"
        del site.repository.targets.targets["revocations.json"]
        site.repository.publish()
        site.sync()
        assert site.code(site.refresh()) == "fetch_missing"


def published(directory, *options):
    """Run the sample that makes a repository of `site`, as its page says."""
    script = pages.CHECKOUT / "plugins-sample/sources/tuf_repository.py"
    command = [sys.executable, script, *options, "keys", "site", "tuf"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=daemons.START_S)
    assert done.returncode == 0, done.stderr


def test_repository_of_the_sample_is_a_source_and_stopping_waits_for_none(web, tmp_path):
    """In a directory of this host, through rotations of its keys; then SIGTERM while metadata of another drips."""
    with trading(web, [], tuf=["slow"]) as place:
        work = place.home / "work"
        bundle = bundles.drop(work / "site" / "acme.made", "1.0.0", author=ACME, id="acme.made")
        index = work / "site" / "plugins.json"
        entry = indexes.entry(bundle, "https://plugins.example.org/tuf/targets/acme.made/1.0.0/")
        index.write_bytes(indexes.encoded(indexes.index(entry)))
        published(work)
        root = work / "tuf/metadata/1.root.json"
        local = f'[market.sources.made]\nformat = "tuf"\nurl = "file://{work}/tuf"\nroot = "{place.home}/made.json"'
        place.write(place.home / "made.json", root.read_bytes())
        place.set(place.config.read_text().split("\n", 3)[3] + f"\n{local}\n[supervision]\ndrain_s = 0")
        with place.running() as daemon:
            site = TufSite(daemon=daemon, web=web, name="slow", parent=tmp_path)

            def refreshed():
                return site.code(daemon.post("/api/market/refresh", {"source": "made"}))

            assert refreshed() == "ok"
            for options in (["--rotate", "root"], ["--rotate", "timestamp"], ["--rotate", "targets"], ["--timestamp"]):
                published(work, *options)
                assert refreshed() == "ok", options
            assert site.code(daemon.post("/api/market/install", {"id": "acme.made", "source": "made"})) == "ok"
            assert site.placed(bundle) == "1.0.0"
            site.publish(site.offer(site.bundle()))
            path = "/slow/metadata/1.snapshot.json"
            web.answers[path] = index_servers.drip(web, length=300)
            command = daemon.ctl_command("market", "refresh", "slow")
            with processes.spawned(command, user=place.user, env=place.environment()) as asking:
                index_servers.until_asked(web, path)
                daemon.process.terminate()
                assert daemon.process.wait(timeout=daemons.START_S) == 0
                assert asking.wait(timeout=daemons.START_S) != 0
            assert site.leftovers() == []

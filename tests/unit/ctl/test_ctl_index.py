"""latticectl index: add, sign, revoke, validate, in an empty directory; what hosts would refuse is refused first."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latticed.kit import files
from latticed.settings.market import MarketSettings
from latticed.trust import index, index_revocations
from tests.house import processes

URL = "https://plugins.example.org/shelf"
SITE = "site/plugins.json"
BACK = Path("site/revocations.json")


@pytest.fixture
def author(ctl, tmp_path, monkeypatch):
    """Keys acme.key and index.key, and the signed bundle acme.demo."""
    monkeypatch.chdir(tmp_path)
    ctl("key", "generate", "acme.key", "index.key")
    ctl("new", "system", "acme.demo", "--publisher", "acme")
    assert ctl("sign", "--key", "acme.key", "acme.demo").code == 0
    return {name: ctl("key", "show", f"{name}.key").out.strip() for name in ("acme", "index")}


@pytest.fixture
def add(ctl, author):
    def add(*words, bundle="acme.demo", url=URL, key="index.key"):
        given = ["--publisher-key", author["acme"]] if not Path(SITE).exists() else []
        signing = ["--key", key] if key else []
        return ctl("index", "add", "--url", url, *signing, *given, *words, SITE, bundle)

    return add


def version(ctl, number, **fields):
    """Raise the version of acme.demo, and sign it."""
    path = Path("acme.demo/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": number, **fields}))
    assert ctl("sign", "--key", "acme.key", "acme.demo").code == 0


def read():
    return json.loads(Path(SITE).read_text())


def date(moment):
    """Give the index another date, unsigned."""
    Path(SITE).write_text(json.dumps({**read(), "generated_at": moment, "signatures": []}))


def test_added_and_signed_index_is_one_that_hosts_take(ctl, author, add):
    """With its files beside it, byte for byte; validate finds nothing, with the pinned key and the trust policy too."""
    assert add().out == f"{SITE}: added acme.demo 0.1.0 to stable\n"
    for name in ("manifest.json", "artifact"):
        assert Path("site/acme.demo/0.1.0", name).read_bytes() == Path("acme.demo", name).read_bytes()
    found = index.decode(Path(SITE).read_bytes())
    entry = found.entries["acme.demo"]
    assert (found.refused, entry.unsupported, entry.channels) == ((), "", {"stable": "0.1.0"})
    assert entry.releases[0].manifest_url == f"{URL}/acme.demo/0.1.0/manifest.json"
    judged = index.judge(found, pinned=[author["index"]], seen=None, now_s=int(time.time()))
    assert judged.browse_only == ""
    assert ctl("trust", "add", "acme", author["acme"], "--trust", "trust.json").code == 0
    ran = ctl("index", "validate", "--index-key", author["index"], "--trust", "trust.json", SITE, "--format", "json")
    assert ran.code == 0
    assert ran.json == {
        "path": SITE,
        "ok": True,
        "status": "official",
        "generated_at": read()["generated_at"],
        "plugins": 1,
        "releases": 1,
        "findings": [],
    }


def test_index_has_size_and_changelog_for_people(ctl, add):
    assert add("--changelog", "https://acme.example/changes").code == 0
    release = index.decode(Path(SITE).read_bytes()).entries["acme.demo"].releases[0]
    size = Path("acme.demo/artifact").stat().st_size
    assert (release.artifact_bytes, release.changelog_url) == (size, "https://acme.example/changes")
    version(ctl, "0.2.0")
    assert add().code == 0
    assert read()["plugins"][0]["changelog_url"] == "https://acme.example/changes"
    for wrong in ("http://acme.example/changes", "file:///changes", "changes"):
        assert add("--changelog", wrong).code == 2


def test_channels_rise_and_releases_stay(ctl, add):
    """An older version, an alpha and the same one again leave the stable channel where it is."""
    add()
    for number, channel in (("1.0.0", "stable"), ("0.9.0", "stable"), ("1.1.0-alpha.1", "alpha")):
        version(ctl, number)
        assert add("--channel", channel).code == 0
    assert add("--channel", "alpha").code == 0
    (entry,) = read()["plugins"]
    assert entry["channels"] == {"stable": "1.0.0", "alpha": "1.1.0-alpha.1"}
    assert entry["latest"] == "1.0.0"
    assert [one["version"] for one in entry["releases"]] == ["0.1.0", "1.0.0", "0.9.0", "1.1.0-alpha.1"]
    assert ctl("index", "validate", SITE).code == 0
    # From the alpha channel to the stable one.
    assert add("--channel", "stable").code == 0
    assert read()["plugins"][0]["channels"] == {"stable": "1.1.0-alpha.1"}
    assert ctl("index", "validate", SITE).code == 0


def test_release_never_changes(ctl, add):
    """Another artifact or signature under a version that was published is refused, and nothing is written."""
    add()
    before = read()
    with open("acme.demo/artifact", "ab") as artifact:
        artifact.write(b"\n")
    ctl("sign", "--key", "acme.key", "acme.demo")
    ran = add()
    assert (ran.code, "raise its version" in ran.err) == (1, True)
    assert read() == before
    assert ctl("index", "validate", SITE).code == 0


def test_index_without_signature_says_so_and_sign_makes_it_whole(ctl, author, add):
    ran = add(key=None)
    assert "latticectl index sign" in ran.err
    ran = ctl("index", "validate", "--index-key", author["index"], SITE)
    assert (ran.code, "index_unsigned" in ran.out) == (6, True)
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 0
    assert ctl("index", "validate", "--index-key", author["index"], SITE).code == 0
    # Two keys, where hosts ask for both: the second signs what the first has signed.
    signed = read()
    assert ctl("index", "sign", "--keep", "--key", "acme.key", "--label", "acme", SITE).code == 0
    assert {**read(), "signatures": signed["signatures"]} == signed
    both = [word for key in author.values() for word in ("--index-key", key)]
    assert ctl("index", "validate", *both, SITE).code == 0
    # Anything else that is done to it takes the signatures away.
    assert ctl("index", "sign", "--status", "draft", "--key", "index.key", SITE).code == 0
    ran = ctl("index", "validate", "--index-key", author["index"], SITE)
    assert (ran.code, "browse_only: its status is draft" in ran.out) == (6, True)


def test_kept_signature_of_another_key_holds_whatever_its_label(ctl, author, revoke):
    """No --label is given: both keys have the same. Hosts that pin one of them, or ask for both, take both files."""
    assert revoke("--plugin", "acme.demo@0.1.0").code == 0
    files = {path: json.loads(Path(path).read_text()) for path in (SITE, BACK)}
    for _ in range(2):
        assert ctl("index", "sign", "--keep", "--key", "acme.key", SITE).code == 0
        for path, before in files.items():
            after = json.loads(Path(path).read_text())
            assert after["signatures"][:-1] == before["signatures"]
            assert {**after, "signatures": before["signatures"]} == before
        for pinned in ([author["index"]], [author["acme"]], list(author.values())):
            words = [word for key in pinned for word in ("--index-key", key)]
            assert ctl("index", "validate", *words, SITE).code == 0
    # The same key again takes its own signature's place, under the new label.
    assert ctl("index", "sign", "--keep", "--key", "acme.key", "--label", "acme", SITE).code == 0
    assert [one["publisher"] for one in read()["signatures"]] == ["index", "acme"]


def test_date_of_the_index_always_rises(ctl, author, add):
    """By a second at least; one that is dated ahead is not signed with an earlier date, which hosts would refuse."""
    add()
    first = read()["generated_at"]
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 0
    assert read()["generated_at"] > first
    ahead = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100))
    date(ahead)
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 0
    assert read()["generated_at"] > ahead
    date("2099-01-01T00:00:00Z")
    before = Path(SITE).read_bytes()
    ran = ctl("index", "sign", "--key", "index.key", SITE)
    assert (ran.code, "check this host's clock" in ran.err) == (1, True)
    assert Path(SITE).read_bytes() == before


def test_validate_finds_what_hosts_would_refuse(ctl, author, add):
    """Each finding names release and code, as our verifier has it: files, index and their agreement."""
    add()
    whole = Path(SITE).read_bytes()
    shutil.copytree("site/acme.demo", "kept")

    def found(change):
        raw = json.loads(whole)
        change(raw, raw["plugins"][0], raw["plugins"][0]["releases"][0])
        Path(SITE).write_text(json.dumps(raw))
        ran = ctl("index", "validate", SITE, "--format", "json")
        assert ran.code == (6 if ran.json["findings"] else 0)
        return [one["code"] for one in ran.json["findings"]]

    def nothing(*_):
        pass

    assert found(nothing) == []
    # What is in the index.
    assert found(lambda raw, entry, release: entry.update(publisher="others")) == ["index_mismatch"]
    assert found(lambda raw, entry, release: entry.update(type="wasm")) == ["index_mismatch"]
    assert found(lambda raw, entry, release: release.update(artifact_sha256="0" * 64)) == ["index_mismatch"]
    assert found(lambda raw, entry, release: release.update(capabilities=["kv:read"])) == ["index_mismatch"]
    assert found(lambda raw, entry, release: release.update(capabilities=["kv:fly"])) == ["unsupported"]
    assert found(lambda raw, entry, release: release.update(manifest_url="http://a/b")) == ["unsupported"]
    assert found(lambda raw, entry, release: release.update(manifest_url=f"{URL}/x.json")) == ["elsewhere"]
    assert found(lambda raw, entry, release: entry.update(id="../x")) == ["entry_refused"]
    assert found(lambda raw, entry, release: raw.update(publishers=[])) == ["publisher_untrusted"]
    # What is beside it.
    here = Path("site/acme.demo/0.1.0")
    with open(here / "artifact", "ab") as artifact:
        artifact.write(b"\n")
    assert found(nothing) == ["digest_mismatch"]
    (here / "artifact").unlink()
    assert found(nothing) == ["artifact_missing"]
    shutil.rmtree(here)
    assert found(nothing) == ["manifest_missing"]
    here.symlink_to("../../kept/0.1.0")
    assert found(nothing) == ["unreadable"]


def test_bundle_that_hosts_would_refuse_is_not_added(ctl, author, add):
    """Unsigned, changed after signing, signed by another key, without version: nothing is written."""
    ctl("new", "system", "acme.raw", "--publisher", "acme")
    shutil.copytree("acme.demo", "acme.bad")
    with open("acme.bad/artifact", "ab") as artifact:
        artifact.write(b"\n")
    shutil.copytree("acme.demo", "acme.old")
    old = {"id": "acme.old", "name": "Old", "type": "system", "capabilities": ["log:write"], "publisher": "acme"}
    Path("acme.old/manifest.json").write_text(json.dumps(old))
    ctl("sign", "--key", "acme.key", "acme.old")
    for bundle, told in (
        ("acme.raw", "digest_sha256"),
        ("acme.bad", "artifact's SHA-256"),
        ("acme.old", "version: expected"),
        ("none", "expected a bundle directory"),
    ):
        ran = add(bundle=bundle)
        assert ran.code == 1
        assert told in ran.err
    ran = ctl("index", "add", "--url", URL, "--publisher-key", author["index"], SITE, "acme.demo")
    assert (ran.code, "valid under none" in ran.err or "signature" in ran.err) == (1, True)
    ran = ctl("index", "add", "--url", URL, SITE, "acme.demo")
    assert (ran.code, "--publisher-key" in ran.err) == (2, True)
    assert not Path(SITE).exists()
    assert os.listdir("site") == []


@pytest.mark.parametrize("plugin_id", ["plugins.json", "revocations.json"])
def test_id_that_is_the_name_of_a_file_of_the_index_is_not_added(ctl, add, author, plugin_id):
    """Its directory would be where that file has to be; afterwards the index is changed and revoked as before."""
    ctl("new", "worker", "other", "--id", plugin_id, "--publisher", "acme")
    assert ctl("sign", "--key", "acme.key", "other").code == 0
    ran = add(bundle="other")
    assert (ran.code, f"{plugin_id}: expected another id" in ran.err, os.listdir("site")) == (1, True, [])
    assert add().code == 0
    assert add(bundle="other").code == 1
    assert ctl("index", "revoke", "--plugin", "acme.demo@*", "--action", "freeze", "--key", "index.key", SITE).code == 0
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 0
    assert ctl("index", "validate", "--index-key", author["index"], SITE).code == 0


@pytest.mark.parametrize(
    "url",
    ["http://a.example/x", "https://user@a.example/x", "https://a.example/x?y", "https://a.example/x#y", "a.example"],
)
def test_url_that_no_index_may_name_is_a_usage_error(add, url):
    ran = add(url=url)
    assert (ran.code, "--url" in ran.err) == (2, True)
    assert not Path("site").exists()


def test_full_disk_leaves_the_old_index(ctl, add, monkeypatch):
    """Whichever file cannot be written: what is served stays whole."""
    add()
    before = Path(SITE).read_bytes()
    version(ctl, "1.0.0")
    real = files.replace
    for full in ("manifest.json", "artifact", "plugins.json"):

        def replace(path, data, *, mode, full=full):
            if path.name == full:
                raise OSError(28, os.strerror(28))
            real(path, data, mode=mode)

        with monkeypatch.context() as patches:
            patches.setattr(files, "replace", replace)
            ran = add()
        assert (ran.code, "No space left" in ran.err) == (1, True)
        assert Path(SITE).read_bytes() == before
        assert ctl("index", "validate", SITE).code == 0
    assert add().code == 0


def test_two_that_change_an_index_at_once_do_not_lose_a_release(ctl, add):
    add()
    with files.closing(os.open("site", os.O_RDONLY)) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ran = ctl("index", "sign", "--key", "index.key", SITE)
    assert (ran.code, "another latticectl" in ran.err) == (1, True)
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"schema": "other"}', b"\xff", b'{"schema": "lattice.plugin.index.v1", "generated_at": "now"}'],
)
def test_what_is_no_index_is_left_as_it_is(ctl, author, data):
    Path("site").mkdir()
    Path(SITE).write_bytes(data)
    for words in (
        ("add", "--url", URL, "--publisher-key", author["acme"], SITE, "acme.demo"),
        ("sign", "--key", "index.key", SITE),
        ("validate", SITE),
    ):
        assert ctl("index", *words).code == 1
    assert Path(SITE).read_bytes() == data
    assert ctl("index", "validate", "none/plugins.json").code == 4
    assert ctl("index", "sign", "--key", "index.key", "none/plugins.json").code == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw["signatures"].append(7),
        lambda raw: raw["plugins"][0]["releases"].append("1.0.0"),
        lambda raw: raw["plugins"][0].update(releases=None),
        lambda raw: raw["plugins"][0].update(channels=["stable"]),
        lambda raw: raw["publishers"][0].update(public_key_ed25519="short"),
    ],
    ids=["signatures", "release", "releases", "channels", "key"],
)
def test_index_with_broken_parts_is_changed_or_refused_and_never_a_traceback(ctl, add, spoil):
    """Hosts take such an index, as far as they can, so another tool may have made it."""
    add()
    raw = read()
    spoil(raw)
    Path(SITE).write_text(json.dumps(raw))
    version(ctl, "0.2.0")
    before = Path(SITE).read_bytes()
    ran = add()
    if ran.code == 0:
        assert index.decode(Path(SITE).read_bytes()).entries["acme.demo"].unsupported == ""
    else:
        assert (Path(SITE).read_bytes(), "hint:" in ran.err) == (before, True), ran.err
    # A broken entry is no reason to let the others become too old.
    for words in ((), ("--keep", "--label", "second")):
        assert ctl("index", "sign", "--key", "index.key", *words, SITE).code == 0


def test_what_another_tool_put_into_an_index_stays(ctl, author, add):
    """Fields that latticed does not know, of the index, a plugin and a publisher, are kept and signed."""
    add()
    raw = read()
    raw["notice"], raw["plugins"][0]["icon"], raw["publishers"][0]["homepage"] = "hello", "a.svg", "https://a.example"
    Path(SITE).write_text(json.dumps(raw))
    version(ctl, "1.0.0")
    assert add().code == 0
    after = read()
    assert (after["notice"], after["plugins"][0]["icon"]) == ("hello", "a.svg")
    assert after["publishers"][0]["homepage"] == "https://a.example"
    assert ctl("index", "validate", "--index-key", author["index"], SITE).code == 0


@pytest.fixture
def revoke(ctl, add):
    add()

    def revoke(*words, action="freeze"):
        return ctl("index", "revoke", *words, "--action", action, "--key", "index.key", SITE)

    return revoke


def taken_back():
    """The file as hosts read it: what it takes back, and under which keys it holds."""
    document, found, refused = index_revocations.decode(BACK.read_bytes())
    return {(one.kind, one.value): (one.action, one.reason) for one in found}, document, refused


def test_revoked_release_is_one_that_hosts_take_back(ctl, author, revoke):
    digest = read()["plugins"][0]["releases"][0]["artifact_sha256"]
    ran = revoke("--plugin", "acme.demo@0.1.0", "--digest", digest.upper(), "--reason", "leaks tokens")
    assert (ran.code, ran.err.count("note")) == (0, 0), ran
    found, document, refused = taken_back()
    both = {("plugins", "acme.demo@0.1.0"), ("digests", digest)}
    assert (set(found), set(found.values()), refused) == (both, {("freeze", "leaks tokens")}, ())
    assert document.held_by([author["index"]])
    validate = ("index", "validate", "--index-key", author["index"], SITE, "--format", "json")
    assert ctl(*validate).json["findings"] == []
    # The date rises with each change; `sign` dates both files anew, and keeps what is taken back.
    assert revoke("--plugin", "acme.gone@*", action="kill").code == 0
    later = taken_back()[1].generated_s
    assert later > document.generated_s
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 0
    assert set(taken_back()[0]) == both | {("plugins", "acme.gone@*")}
    assert taken_back()[1].generated_s > later
    dated = taken_back()[1].generated_s
    version(ctl, "0.1.1")
    words = ("index", "add", "--url", URL, SITE, "acme.demo")
    assert ctl(*words).code == 0
    assert taken_back()[1].generated_s == dated
    assert ctl(*words, "--key", "index.key").code == 0
    assert (set(taken_back()[0]), taken_back()[1].generated_s > dated) == (both | {("plugins", "acme.gone@*")}, True)
    # A second signer's signature is beside the first one in both.
    ctl("key", "generate", "second.key")
    second = ctl("key", "show", "second.key").out.strip()
    assert ctl("index", "sign", "--keep", "--key", "second.key", "--label", "second", SITE).code == 0
    assert taken_back()[1].held_by([author["index"], second]) == {author["index"], second}
    assert ctl(*validate, "--index-key", second).json["findings"] == []


@pytest.mark.parametrize(("file", "where"), [(SITE, "index"), (BACK, "revocations.json")])
def test_validate_finds_a_file_that_hosts_would_not_read_to_its_end(ctl, author, revoke, file, where):
    """Larger than `market.index_bytes` is by default."""
    assert revoke("--plugin", "acme.demo@0.0.9").code == 0
    most = MarketSettings().index_bytes
    whole = json.dumps({**json.loads(Path(file).read_text()), "signatures": [], "more": ""}).encode()
    validate = ("index", "validate", SITE, "--format", "json")
    for more, found in ((0, []), (1, [(where, "fetch_too_large")])):
        Path(file).write_bytes(whole.replace(b'"more": ""', b'"more": "%b"' % (b"x" * (most + more - len(whole)))))
        assert Path(file).stat().st_size == most + more
        # Unsigned, it has other findings, too.
        ran = ctl(*validate)
        sizes = [(one["where"], one["code"]) for one in ran.json["findings"] if one["code"] == "fetch_too_large"]
        assert sizes == found


def test_validate_says_which_channel_has_nothing_to_install(ctl, author, add, revoke):
    """A note: both files are taken, and what is taken back has to be uploaded before there is a better release."""
    validate = ("index", "validate", "--index-key", author["index"], SITE)
    assert revoke("--plugin", "acme.demo@0.1.0").code == 0
    ran = ctl(*validate)
    assert (ran.code, "nothing wrong" in ran.out) == (0, True)
    assert ran.err.startswith("acme.demo: channel stable names 0.1.0, which revocations.json takes back: hosts install")
    assert ctl(*validate, "--format", "json").json["findings"] == []
    version(ctl, "0.1.1")
    assert add().code == 0
    assert "channel" not in ctl(*validate).err
    digest = read()["plugins"][0]["releases"][1]["artifact_sha256"]
    assert revoke("--digest", digest).code == 0
    assert "stable names 0.1.1" in ctl(*validate).err


def test_revocation_grows_harsher_and_never_milder(revoke):
    assert revoke("--plugin", "acme.demo@0.1.0").code == 0
    assert revoke("--plugin", "acme.demo@0.1.0", action="kill").code == 0
    before = BACK.read_bytes()
    assert [one[0] for one in taken_back()[0].values()] == ["kill"]
    refused = revoke("--plugin", "acme.demo@0.1.0", action="block-install")
    assert (refused.code, "holds for good" in refused.err, BACK.read_bytes()) == (1, True, before)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--plugin", "acme.demo"), 2),
        (("--plugin", "../x@1"), 2),
        (("--digest", "7f3a"), 2),
        (("--plugin", "acme.demo@0.1.0", "--label", "A B"), 2),
    ],
)
def test_what_hosts_could_not_read_is_not_taken_back(revoke, words, code):
    ran = revoke(*words)
    assert (ran.code, BACK.exists()) == (code, False), ran


def test_mistyped_version_is_noticed(revoke):
    ran = revoke("--plugin", "acme.demo@0.1.1")
    assert (ran.code, "no release" in ran.err, "acme.demo@0.1.1" in ran.err) == (0, True, True), ran


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"schema": "lattice.plugin.index.v1"}'])
def test_file_that_is_no_revocations_is_left_as_it_is(ctl, author, revoke, data):
    BACK.write_bytes(data)
    whole = Path(SITE).read_bytes()
    assert revoke("--plugin", "acme.demo@0.1.0").code == 1
    assert ctl("index", "sign", "--key", "index.key", SITE).code == 1
    assert (BACK.read_bytes(), Path(SITE).read_bytes()) == (data, whole)
    found = ctl("index", "validate", SITE, "--format", "json").json["findings"]
    assert [(one["where"], one["code"]) for one in found] == [("revocations.json", "revocations_invalid")]


def test_validate_finds_revocations_that_hosts_would_refuse(ctl, author, revoke):
    revoke("--plugin", "acme.demo@0.1.0")
    raw = json.loads(BACK.read_bytes())

    def found(**fields):
        BACK.write_text(json.dumps({**raw, **fields}))
        ran = ctl("index", "validate", "--index-key", author["index"], SITE, "--format", "json")
        return [one["code"] for one in ran.json["findings"]]

    assert found() == []
    assert found(signatures=[]) == ["revocations_unsigned"]
    assert found(revocations=[]) == ["revocations_unsigned"]
    BACK.write_text(json.dumps({**raw, "revocations": [*raw["revocations"], {"action": "burn"}]}))
    assert ctl("index", "validate", SITE, "--format", "json").json["findings"][0]["code"] == "entry_refused"


def test_full_disk_leaves_the_old_revocations(revoke, monkeypatch):
    revoke("--plugin", "acme.demo@0.1.0")
    before = BACK.read_bytes()

    def replace(path, data, *, mode):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "replace", replace)
    ran = revoke("--plugin", "acme.demo@*", action="kill")
    assert (ran.code, "No space left" in ran.err, BACK.read_bytes()) == (1, True, before)


def test_directory_that_cannot_be_opened_is_named(ctl, tmp_path):
    user = processes.STRANGER if os.getuid() == 0 else None
    ids = {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
    with processes.home_of(user, tmp_path) as home:
        assert ctl("key", "generate", str(home / "index.key")).code == 0
        (home / "site").mkdir()
        (home / "site").chmod(0o311)
        if user is not None:
            os.chown(home / "index.key", user.uid, user.gid)
        python = processes.reachable_python() if user else sys.executable
        words = ("index", "sign", "--key", str(home / "index.key"), str(home / "site/plugins.json"))
        command = [python, "-P", "-m", "latticed.ctl.main", *words]
        ran = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, **ids)
    assert (ran.returncode, ran.stderr) == (1, f"error: cannot open {home}/site: Permission denied\n")

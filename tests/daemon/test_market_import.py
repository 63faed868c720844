"""Taking bundles from a directory: a real daemon, and files that whoever may write there could put into it."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import signal
import tarfile
import threading

import pytest

from tests.house import bundles, daemons, processes

pytestmark = pytest.mark.daemon

ACME, STRANGER = bundles.author("acme"), bundles.author("stranger")
LIMIT = 300_000
numbered = itertools.count()


def settings(spool):
    return f'[market]\nimport_dir = "{spool}"\n[limits]\nartifact_bytes = {LIMIT}\nread_deadline_s = 60'


@pytest.fixture(scope="module")
def shop():
    with daemons.placed() as place:
        place.trust_us(ACME)
        spool = place.home / "spool"
        spool.mkdir()
        place.own(spool)
        place.set(settings(spool))
        with place.running() as daemon:
            yield daemon


@pytest.fixture
def spool(shop):
    return Spool(shop)


class Spool:
    """The directory, and what the daemon says to a file of it."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.path = daemon.place.home / "spool"

    def bundle(self, plugin_id=None, *, author=ACME, artifact=bundles.ARTIFACT, **fields):
        raw = bundles.manifest_v2(id=plugin_id or f"acme.import{next(numbered)}", **fields)
        manifest = json.dumps(bundles.signed(raw, artifact, author)).encode()
        return raw["id"], [("manifest.json", manifest), ("artifact", artifact)]

    def put(self, data, name=None):
        name = name or f"{next(numbered)}.tar"
        (self.path / name).write_bytes(data)
        self.daemon.place.own(self.path / name)
        return name

    def take(self, name, **fields):
        answer = self.daemon.post("/api/market/import", {"name": name, **fields})
        body = json.loads(answer.body)
        return body["code"] if answer.status != 200 else body

    def placed(self, plugin_id):
        place = self.daemon.place.state / "bundles" / plugin_id / "manifest.json"
        return json.loads(place.read_bytes())["version"] if place.exists() else None

    def nothing_is_left(self):
        there = os.listdir(self.daemon.place.state / "bundles")
        assert [one for one in there if one.startswith(".")] == []


def archive(members, *, kind=tarfile.GNU_FORMAT):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def test_bundle_is_taken_in_and_becomes_the_candidate_of_what_runs(spool):
    """As after an install of a source: verified, nothing granted; a newer one is a candidate, an older is refused."""
    plugin_id, members = spool.bundle(version="1.0.0")
    data = archive(members)
    assert spool.take(spool.put(data), sha256="0" * 64) == "import_invalid"
    assert spool.placed(plugin_id) is None
    taken = spool.take(spool.put(data), sha256=hashlib.sha256(data).hexdigest())
    assert (taken["id"], taken["version"], taken["source"]) == (plugin_id, "1.0.0", "")
    steps = [one["step"] for one in taken["steps"]]
    assert steps == ["file", "publisher", "manifest", "consent", "artifact", "sandbox", "placed"]
    record = spool.daemon.until(lambda: spool.daemon.plugin(plugin_id), "the record")
    assert (record["status"], record["granted"]) == ("verified", ["kv:read", "log:write"])
    assert spool.daemon.set_status("installed", plugin_id).status == 200
    _, newer = spool.bundle(plugin_id, version="1.1.0", artifact=bundles.ARTIFACT + b"# newer\n")
    name = spool.put(archive(newer))
    assert spool.take(name, identity="0" * 64) == "import_mismatch"
    identity = spool.take(name)["identity"]
    assert spool.take(name, identity=identity)["identity"] == identity
    spool.daemon.until(lambda: (spool.daemon.plugin(plugin_id) or {}).get("candidate"), "a candidate")
    assert spool.daemon.post(f"/api/plugins/by-id/{plugin_id}/upgrade", {}).status == 200
    assert spool.take(spool.put(data)) == "version_downgrade"
    event = spool.daemon.events(action="market.imported", newest="1", limit="1")[0]
    assert (event["target"], event["decision"], event["code"]) == (plugin_id, "deny", "version_downgrade")
    spool.nothing_is_left()


@pytest.mark.parametrize(
    ("field", "other"), [("id", "acme.other"), ("publisher", "stranger"), ("versions", ">=1.1"), ("identity", "0" * 64)]
)
def test_bundle_that_is_another_than_the_request_says_is_not_placed(spool, field, other):
    """By somebody whom the host trusts, and not the one who is meant."""
    plugin_id, members = spool.bundle(version="1.0.0")
    name = spool.put(archive(members))
    assert spool.take(name, **{field: other}) == "import_mismatch"
    assert spool.placed(plugin_id) is None
    spool.nothing_is_left()
    event = spool.daemon.events(action="market.imported", newest="1", limit="1")[0]
    assert (event["target"], event["decision"], event["code"]) == (plugin_id, "deny", "import_mismatch")
    assert spool.take(name, id=plugin_id, publisher="acme", versions="^1.0")["version"] == "1.0.0"
    assert spool.placed(plugin_id) == "1.0.0"


def test_range_that_is_none_is_refused(spool):
    assert spool.take("nothing.tar", versions="one") == "bad_request"


def test_bundle_of_host_risk_takes_consent_by_name(spool):
    fields = {"capabilities": ["http:egress"], "egress": {"hosts": ["api.example.org:443"]}}
    plugin_id, members = spool.bundle(**fields)
    name = spool.put(archive(members))
    assert spool.take(name) == "needs_consent"
    assert spool.take(name, accept=["http:egress"]) == "needs_consent"
    assert spool.placed(plugin_id) is None
    assert spool.take(name, accept=["http:egress"], accept_hosts=["api.example.org:443"])["id"] == plugin_id


def test_held_plugin_is_left_alone(spool):
    plugin_id, members = spool.bundle(version="1.0.0")
    assert spool.take(spool.put(archive(members)))["version"] == "1.0.0"
    spool.daemon.until(lambda: spool.daemon.plugin(plugin_id), "its record")
    assert spool.daemon.ctl("market", "hold", plugin_id).returncode == 0
    _, members = spool.bundle(plugin_id, version="1.1.0")
    name = spool.put(archive(members))
    assert spool.take(name) == "held"
    assert spool.take(name, accept_held=True)["version"] == "1.1.0"


@pytest.mark.parametrize("off", [(), ("--off",)])
def test_hold_of_a_plugin_that_nobody_knows_is_refused(spool, off):
    refused = spool.daemon.ctl("market", "hold", *off, "acme.misspelt")
    assert (refused.returncode, "found 'acme.misspelt'" in refused.stderr) == (4, True), refused


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden.tar", "a/b", "../spool/x", "/etc/passwd", "nul\0", "x" * 255, "é\u202e.tar", "\ud800"],
)
def test_hostile_name_names_nothing(spool, name):
    assert spool.take(name) in {"bad_request", "not_found"}
    spool.nothing_is_left()


def test_anything_but_two_regular_files_in_order_is_refused(spool):
    plugin_id, members = spool.bundle()
    manifest, artifact = members
    whole = archive(members)
    link = tarfile.TarInfo("artifact")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    linked = archive([manifest])[: -10_240 + 2 * 512]
    cases = {
        "empty": b"",
        "noise": os.urandom(4096),
        "cut in the manifest": whole[:700],
        "cut in the artifact": whole[: whole.index(b"#!/bin/sh") + 10],
        "without its end": whole[: -len(whole) % 512 or None].rstrip(b"\0"),
        "other order": archive([artifact, manifest]),
        "manifest alone": archive([manifest]),
        "a third": archive([*members, ("extra", b"x")]),
        "manifest twice": archive([manifest, manifest, artifact]),
        "below a directory": archive([("./manifest.json", manifest[1]), artifact]),
        "climbing": archive([("../manifest.json", manifest[1]), artifact]),
        "absolute": archive([("/manifest.json", manifest[1]), artifact]),
        "a link": linked[:1024] + link.tobuf() + bytes(1024),
        "bytes after its end": whole + b"x",
        "zeros without end": whole + bytes(1 << 20),
        "large manifest": archive([("manifest.json", manifest[1] + b" " * 70_000), artifact]),
        "large artifact": archive([manifest, ("artifact", b"x" * (LIMIT + 1))]),
        "larger than both may be": whole + bytes(600_000),
        "pax headers": archive([("manifest.json", manifest[1]), ("é" * 90, b"x")], kind=tarfile.PAX_FORMAT),
    }
    found = {what: spool.take(spool.put(data)) for what, data in cases.items()}
    assert found == dict.fromkeys(cases, "import_invalid")
    assert spool.placed(plugin_id) is None
    spool.nothing_is_left()
    assert spool.take(spool.put(whole))["id"] == plugin_id


def test_what_the_manifest_says_is_judged_as_everywhere(spool):
    plugin_id, (manifest, artifact) = spool.bundle()
    foreign = archive(spool.bundle(author=STRANGER)[1])
    unsigned = json.dumps(bundles.with_digest(bundles.manifest_v2(id=plugin_id), artifact[1])).encode()
    flipped = manifest[1].replace(b'"Demo"', b'"Dem0"')
    reserved = spool.bundle("latticed.proxy")[1]
    found = [
        spool.take(spool.put(data))
        for data in (
            foreign,
            archive([("manifest.json", unsigned), artifact]),
            archive([("manifest.json", flipped), artifact]),
            archive([("manifest.json", b"{"), artifact]),
            archive([manifest, ("artifact", artifact[1] + b"#")]),
            archive(reserved),
        )
    ]
    expected = ["publisher_untrusted", "manifest_invalid", "signature_invalid", "manifest_invalid_json"]
    assert found[:5] == [*expected, "digest_mismatch"]
    assert found[5] in {"manifest_invalid", "import_invalid"}
    assert spool.placed(plugin_id) is None
    spool.nothing_is_left()


def test_other_kinds_of_files_are_neither_followed_nor_waited_for(spool):
    plugin_id, members = spool.bundle()
    outside = spool.daemon.place.home / "outside.tar"
    outside.write_bytes(archive(members))
    spool.daemon.place.own(outside)
    (spool.path / "link.tar").symlink_to(outside)
    os.mkfifo(spool.path / "fifo.tar")
    (spool.path / "directory.tar").mkdir()
    for name in ("fifo.tar", "directory.tar"):
        spool.daemon.place.own(spool.path / name)
    found = {name: spool.take(name) for name in ("link.tar", "fifo.tar", "directory.tar", "none.tar")}
    expected = dict.fromkeys(("link.tar", "fifo.tar", "directory.tar"), "import_invalid")
    assert found == {**expected, "none.tar": "not_found"}
    unreadable = spool.put(archive(members))
    if spool.daemon.place.user is not None:
        os.chmod(spool.path / unreadable, 0)
        assert spool.take(unreadable) == "import_invalid"
        os.chmod(spool.path / unreadable, 0o644)
        os.chown(spool.path / unreadable, processes.OTHER_STRANGER.uid, processes.OTHER_STRANGER.gid)
        assert spool.take(unreadable) == "foreign_owner"
    assert spool.placed(plugin_id) is None


def test_file_that_changes_while_it_is_read_is_refused_or_taken_as_it_was(spool):
    """A writer flips bytes all the while; what is taken is what was signed, every time."""
    plugin_id, members = spool.bundle(artifact=bundles.ARTIFACT + b"#" * 200_000)
    whole = archive(members)
    name = spool.put(whole)
    ended = threading.Event()

    def flips():
        with open(spool.path / name, "r+b", buffering=0) as file:
            while not ended.is_set():
                for at in (len(whole) // 2, len(whole) // 3):
                    os.pwrite(file.fileno(), b"!", at)
                    os.pwrite(file.fileno(), whole[at : at + 1], at)
            file.truncate()

    writer = threading.Thread(target=flips)
    writer.start()
    try:
        found = {answer if isinstance(answer := spool.take(name), str) else "taken" for _ in range(10)}
    finally:
        ended.set()
        writer.join()
    assert found <= {"changed_while_reading", "digest_mismatch", "taken"}
    assert found - {"taken"}
    if (place := spool.daemon.place.state / "bundles" / plugin_id / "artifact").exists():
        assert place.read_bytes() == members[1][1]
    assert spool.take(spool.put(whole))["id"] == plugin_id
    spool.nothing_is_left()


def test_no_directory_for_imports_means_none_are_taken(spool):
    """A change of the setting counts at a reload."""
    _, members = spool.bundle()
    name, place = spool.put(archive(members)), spool.daemon.place
    place.set()
    spool.daemon.signal(signal.SIGHUP)
    spool.daemon.until(lambda: spool.take(name) == "import_off", "the settings without it")
    place.set(settings(place.home / "none"))
    spool.daemon.signal(signal.SIGHUP)
    spool.daemon.until(lambda: spool.take(name) == "not_found", "the settings with another")
    place.set(settings(spool.path))
    spool.daemon.signal(signal.SIGHUP)
    spool.daemon.until(lambda: isinstance(spool.take(name), dict), "the settings of before")

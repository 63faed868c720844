"""Anything in the plugin directory of a running daemon gets a code; no hang, no crash, and no other bundle is lost."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest

from tests.house import bundles, daemons

pytestmark = pytest.mark.daemon

ACME = bundles.author("acme")


def _fifo(path):
    path.mkdir()
    os.mkfifo(path / "manifest.json")
    os.mkfifo(path / "artifact")


def _fifo_artifact(path):
    _good(path).joinpath("artifact").unlink()
    os.mkfifo(path / "artifact")


def _device(path):
    path.mkdir()
    os.mknod(path / "manifest.json", 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero: endless


def _endless_artifact(path):
    _good(path).joinpath("artifact").unlink()
    os.mknod(path / "artifact", 0o666 | 0o020000, os.makedev(1, 5))


def _socket(path):
    path.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path / "manifest.json"))


def _link_to_good(path):
    path.mkdir()
    for name in ("manifest.json", "artifact"):
        (path / name).symlink_to(path.parent / "good" / name)


def _link_to_itself(path):
    path.mkdir()
    (path / "manifest.json").symlink_to("manifest.json")


def _link_to_secret(path):
    path.mkdir()
    (path / "manifest.json").symlink_to("/etc/shadow")


def _directories(path):
    path.mkdir()
    (path / "manifest.json").mkdir()
    (path / "artifact").mkdir()


def _huge_manifest(path):
    _good(path)
    (path / "manifest.json").write_bytes(b" " * ((64 << 10) + 1))


def _sparse_artifact(path):
    _good(path)
    os.truncate(path / "artifact", 1 << 40)


def _deep_json(path):
    bundles.write(path, b'{"id":' * 10_000)


def _deep_arrays(path):
    bundles.write(path, b"[" * 60_000)


def _bytes(data):
    return lambda path: bundles.write(path, data)


def _closed(path):
    _good(path)
    (path / "manifest.json").chmod(0)


def _closed_directory(path):
    _good(path)
    path.chmod(0)


def _foreign(name):
    def make(path):
        os.chown(_good(path) / name, 65499, 65499)

    return make


def _empty(path):
    path.mkdir()


def _only_artifact(path):
    path.mkdir()
    (path / "artifact").write_bytes(b"x")


def _good(path, **fields):
    return bundles.drop(path.parent, path.name, author=ACME, **{"id": f"acme.x{abs(hash(path.name))}", **fields}).path


CASES = {
    "fifo": (_fifo, "manifest_not_regular"),
    "fifo-artifact": (_fifo_artifact, "artifact_not_regular"),
    "device": (_device, "manifest_not_regular"),
    "endless-artifact": (_endless_artifact, "artifact_not_regular"),
    "socket": (_socket, "manifest_not_regular"),
    "link-to-good": (_link_to_good, "manifest_not_regular"),
    "link-to-itself": (_link_to_itself, "manifest_not_regular"),
    "link-to-secret": (_link_to_secret, "manifest_not_regular"),
    "directories": (_directories, "manifest_not_regular"),
    "huge-manifest": (_huge_manifest, "manifest_too_large"),
    "sparse-artifact": (_sparse_artifact, "artifact_too_large"),
    "deep-objects": (_deep_json, "manifest_invalid_json"),
    "deep-arrays": (_deep_arrays, "manifest_invalid_json"),
    "nothing": (_bytes(b""), "manifest_invalid_json"),
    "zeros": (_bytes(bytes(1000)), "manifest_invalid_json"),
    "not-utf8": (_bytes(b'{"id": "acme.\xff"}'), "manifest_invalid_json"),
    "bom": (_bytes(b"\xef\xbb\xbf{}"), "manifest_invalid_json"),
    "two-objects": (_bytes(b"{}{}"), "manifest_invalid_json"),
    "duplicate-keys": (_bytes(b'{"id": "a.b", "id": "a.c"}'), "manifest_invalid_json"),
    "empty-object": (_bytes(b"{}"), "manifest_invalid"),
    "array": (_bytes(b"[]"), "manifest_invalid_json"),
    "empty": (_empty, "manifest_missing"),
    "only-artifact": (_only_artifact, "manifest_missing"),
    "closed-file": (_closed, "unreadable"),
    "closed-directory": (_closed_directory, "unreadable"),
    "foreign-manifest": (_foreign("manifest.json"), "foreign_owner"),
    "foreign-artifact": (_foreign("artifact"), "foreign_owner"),
}
NEEDS_ROOT = {"device", "endless-artifact", "closed-file", "closed-directory", "foreign-manifest", "foreign-artifact"}


@pytest.fixture(scope="module")
def crowded():
    """A daemon with one good bundle, armed; every test leaves it armed."""
    with daemons.placed(probed=True) as place:
        place.trust_us(ACME)
        place.drop("good", author=ACME, id="acme.good")
        with place.running() as daemon:
            daemon.activate("acme.good")
            yield daemon
            events = {entry["event"] for entry in daemon.log()}
            assert not events & {"request_failed", "lifecycle_failed", "saver_failed", "library_spoke"}, daemon.log()


@pytest.fixture
def daemon(crowded):
    """That daemon, whose event loop must not block for long during any test."""
    with crowded.turns.short():
        yield crowded


def _unharmed(daemon):
    good = daemon.plugin("acme.good")
    assert (good["available"], good["runtime"]["state"]) == (True, "armed")
    assert daemon.get("/api/health").status in {200, 503}


@pytest.mark.parametrize("name", sorted(CASES))
def test_hostile_bundle_gets_its_code_and_affects_no_other(daemon, name):
    """It is dropped while the daemon runs, and also verified by name over the API."""
    make, code = CASES[name]
    if name in NEEDS_ROOT and os.getuid() != 0:
        pytest.skip("making it takes uid 0")
    make(daemon.place.plugins / name)
    daemon.until_rejected(name, code)
    judged = daemon.post("/api/plugins/verify", {"name": name})
    assert (judged.status, judged.json()["code"]) == (200, code)
    (found,) = [one for one in daemon.get("/api/plugins/rejected").json() if one["name"] == name]
    assert found["reason"], found
    assert found["hint"], found
    assert "shadow" not in found["reason"]
    _unharmed(daemon)


def test_unreadable_bundle_does_not_change_health():
    """It is refused as `unreadable`; any user may drop bundles."""
    with daemons.placed() as place:
        place.trust_us(ACME)
        with place.running() as daemon:
            _closed_directory(place.plugins / "closed")
            daemon.until_rejected("closed", "unreadable")
            assert daemon.get("/api/health").json()["problems"] == []
            (place.plugins / "closed").chmod(0o755)
            daemon.until(lambda: daemon.rejected() == {}, "it to be readable")


def test_bundle_directories_that_are_links_or_files_are_ignored(daemon):
    """No link is followed out of the plugin directory; hidden names are ignored too."""
    place = daemon.place
    outside = bundles.drop(place.home, "outside", author=ACME, id="acme.outside").path
    (place.plugins / "linked").symlink_to(outside)
    (place.plugins / "loop").symlink_to(".")
    (place.plugins / "dangling").symlink_to("/nonexistent")
    (place.plugins / "file").write_bytes(b"{}")
    os.mkfifo(place.plugins / "pipe")
    place.drop(".hidden", author=ACME, id="acme.hidden")
    place.drop("marker", author=ACME, id="acme.marker")
    daemon.until(lambda: daemon.plugin("acme.marker"), "what was dropped last")
    assert not {"linked", "loop", "dangling", "file", "pipe", ".hidden"} & set(daemon.rejected())
    assert daemon.plugin("acme.outside") is None
    assert daemon.plugin("acme.hidden") is None
    _unharmed(daemon)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"caf\xe9", "caf\\udce9"),
        (b"new\nline", "new\\x0aline"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"rtl\xe2\x80\xaeeman", "rtl\\u202eeman"),
        (b"x" * 255, "x" * 255),
    ],
)
def test_directory_name_of_any_bytes_is_shown_escaped(daemon, raw, shown):
    """The API and latticectl escape it."""
    path = os.path.join(os.fsencode(daemon.place.plugins), raw)
    os.mkdir(path)
    daemon.until_rejected(shown, "manifest_missing")
    ran = daemon.ctl("rejected")
    assert ran.returncode == 0, ran
    assert not [char for char in ran.stdout if not char.isprintable() and char != "\n"]
    listed = json.loads(daemon.ctl("rejected", "--format", "json").stdout)
    assert shown in [one["name"] for one in listed]
    _unharmed(daemon)
    os.rmdir(path)
    daemon.until(lambda: shown not in daemon.rejected(), "it to be gone")


def test_constantly_rewritten_bundle_does_not_hide_another(daemon):
    """After hundreds of writes, its final state is reported."""
    busy = daemon.place.drop("busy", author=ACME, id="acme.busy")
    for number in range(300):
        busy.artifact_path.write_bytes(b"%d" % number)
        if number == 100:
            daemon.place.drop("meanwhile", author=ACME, id="acme.meanwhile")
    busy.artifact_path.write_bytes(busy.artifact)
    daemon.until(lambda: daemon.plugin("acme.meanwhile"), "the other bundle")
    daemon.until(lambda: (one := daemon.plugin("acme.busy")) and one["available"], "the busy one to verify")
    _unharmed(daemon)


def test_hundreds_of_broken_bundles_do_not_hide_a_good_one(daemon):
    """All are listed, each with its code; the number of open descriptors does not grow with them."""
    pid = daemon.process.pid
    before = len(os.listdir(f"/proc/{pid}/fd")) if os.getuid() == 0 else 0
    for number in range(400):
        (daemon.place.plugins / f"junk-{number}").mkdir()
        (daemon.place.plugins / f"junk-{number}" / "manifest.json").write_bytes(b"{" * number)
    daemon.place.drop("zz-last", author=ACME, id="acme.last")
    daemon.until(lambda: daemon.plugin("acme.last"), "the good one")
    daemon.until(lambda: sum(name.startswith("junk-") for name in daemon.rejected()) == 400, "all the broken ones")
    if os.getuid() == 0:
        assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 20
    _unharmed(daemon)


def test_thousands_of_empty_directories_do_not_delay_the_daemon(daemon):
    """They are made and removed as fast as possible; meanwhile the API answers and another bundle is seen."""
    crowd = [daemon.place.plugins / f"a-{number:05}" for number in range(4_000)]
    for number, path in enumerate(crowd):
        path.mkdir()
        if number % 1_000 == 0:
            assert daemon.get("/api/health").status in {200, 503}
    daemon.place.drop("zz-beside", author=ACME, id="acme.beside")
    daemon.until(lambda: daemon.plugin("acme.beside"), "the bundle beside them")
    for path in crowd:
        path.rmdir()
    daemon.until(lambda: not any(name.startswith("a-") for name in daemon.rejected()), "them to be gone")
    _unharmed(daemon)


def test_hostile_bundles_have_the_same_codes_after_a_restart():
    """The first scan finds all of them at once, and the daemon becomes ready."""
    with daemons.placed() as place:
        place.trust_us(ACME)
        expected = {}
        for name, (make, code) in CASES.items():
            if name not in NEEDS_ROOT or os.getuid() == 0:
                make(place.plugins / name)
                expected[name] = code
        with place.running() as daemon:
            assert daemon.rejected() == expected
            daemon.signal(signal.SIGHUP)
            daemon.expect_notice("RELOADING=1")
            daemon.expect_notice("READY=1")
            daemon.until(lambda: daemon.rejected() == expected, "the same codes")
            assert daemon.stop() == 0


@pytest.mark.slow
def test_bundle_is_seen_although_clients_use_up_descriptors():
    """The daemon may have 128 descriptors; two hundred clients connect."""
    with daemons.placed() as place:
        place.trust_us(ACME)
        place.drop("first", author=ACME, id="acme.first")
        place.descriptors = 128
        place.set('[runners]\nsystem = "noop"')  # a child alone takes hundreds of numbers
        with place.running() as daemon:
            daemon.activate("acme.first")
            clients = [daemons.raw_http.connected(place.socket) for _ in range(200)]
            try:
                place.drop("second", author=ACME, id="acme.second")
            finally:
                for sock in clients:
                    sock.close()
            daemon.until(lambda: daemon.plugin("acme.second"), "the second bundle")
            assert daemon.plugin("acme.first")["runtime"]["state"] == "armed"

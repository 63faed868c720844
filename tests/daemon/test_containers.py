"""The daemon in a container: as process 1, which inherits all orphans, and with names that are not UTF-8."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.house import bundles, children, daemons, hosting, namespaces, programs

pytestmark = [pytest.mark.daemon, pytest.mark.root]

CONTAINER = """
set -e
odd="$1/$(printf 'odd\\\\377\\\\342\\\\200\\\\250name')"
mkdir "$odd"
mount -t tmpfs tmpfs "$odd"
shift
exec "$@"
"""
PLUGIN = (
    programs.SDK
    + b"""
    def do_die(self, payload):
        os._exit(payload)

Test().run()
"""
)

NAMED = PLUGIN.replace(b"import errno", b"import ctypes, errno").replace(
    b"Test().run()", b'ctypes.CDLL(None).prctl(15, b"a\\xff\\x0bSigCgt:\\t", 0, 0, 0)\nTest().run()'
)


@pytest.fixture(scope="module")
def container():
    """One daemon for all of these, process 1 of its namespace, with an odd mount; the host, and its pid outside."""
    namespaces.needed()
    acme = bundles.author("acme")
    with daemons.placed(None, settings="[supervision]\nstop_grace_s = 0.2") as place:
        place.trust_us(acme)
        (place.home / "odd").mkdir()
        place.before = (*namespaces.UNSHARE, "/bin/sh", "-c", CONTAINER, "sh", str(place.home / "odd"))
        with contextlib.ExitStack() as stack:
            daemon = stack.enter_context(place.running())
            (first,) = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
            yield hosting.Host(daemon=daemon, author=acme), int(first)
            os.kill(int(first), signal.SIGTERM)  # its father is unshare, which takes none
            assert daemon.ended() == 0


def zombies(pid):
    """Zombie children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # of a thread, or a child, that is gone
            found += [child for child in (task / "children").read_text().split() if state(child) == b"Z"]
    return found


def state(pid):
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]


def in_namespace(pid):
    """The number of a process in the daemon's namespace."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_bytes()
        return int(status.partition(b"\nNSpid:\t")[2].split(b"\n")[0].split(b"\t")[1])
    return 0


def test_orphans_are_reaped_and_own_children_keep_their_exit_codes(container):
    """They are orphans of the container's other processes; plugins that end meanwhile are reported with their own exit
    codes.
    """
    host, first = container
    host.up("acme.demo", PLUGIN)
    orphan = ["nsenter", "--target", str(first), "--pid", "--mount", "/bin/sh", "-c"]
    for round_ in range(3):
        subprocess.run([*orphan, "for one in 1 2 3 4 5 6 7 8; do sleep 0.0$one & done"], check=True)
        assert host.invoke("acme.demo", "die", 40 + round_).status != 200
        told = f"{40 + round_}"
        host.daemon.until(
            lambda told=told: told in host.runtime("acme.demo").get("last_error", {}).get("message", ""), "its end"
        )
        assert host.daemon.post("/api/plugins/by-id/acme.demo/restart").status == 200
    host.daemon.until(lambda: not zombies(first), "every orphan to be reaped")
    assert host.runtime("acme.demo")["state"] == "armed"


def test_plugin_with_a_hostile_process_name_is_still_stopped(container):
    """The name has bytes that are not UTF-8, and what looks like another line of /proc/PID/status."""
    host, first = container
    host.up("acme.named", NAMED)
    inside = host.runtime("acme.named")["pid"]
    pid = next(one for one in children.descendants(first) if in_namespace(one) == inside)
    assert b"a\xff\x0bSigCgt" in Path(f"/proc/{pid}/comm").read_bytes()
    os.kill(pid, signal.SIGSTOP)  # it cannot answer shutdown; whether it catches SIGTERM is read from its status
    assert host.daemon.set_status("disabled", "acme.named").status == 200
    assert host.runtime("acme.named")["state"] == "stopped"
    assert not children.alive(pid)
    assert not [one for one in host.daemon.log() if one["level"] in {"error", "critical"}]

"""When the daemon ends, however it ends, its children end; and no other process is ever signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import children, hosting, peers, processes, programs

pytestmark = pytest.mark.daemon

RUNTIME = {"sandbox": {"features": ["processes"]}}
_LOOKALIKE = """
import ctypes, os, signal, struct, sys
pid, uid = map(int, sys.argv[1:])
numbers = (ctypes.c_int * 1)(pid)
wanted = ctypes.create_string_buffer(
    struct.pack("10Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(numbers), 1)
)
libc = ctypes.CDLL(None, use_errno=True)
got = libc.syscall(435, wanted, len(wanted.raw) - 1)  # clone3 with the number that the new process is to have
if got == 0:
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, lambda number, _: os.write(1, b"signal %d\\n" % number))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.setsid()
    os.write(1, b"here\\n")
    while True:
        signal.pause()
os.write(1, f"made {got}\\n".encode() if got > 0 else f"{os.strerror(ctypes.get_errno())}\\n".encode())
if got > 0:
    sys.stdin.read()
    os.kill(got, signal.SIGKILL)
    print("status", os.waitpid(got, 0)[1], flush=True)
"""
"""A process with a given pid and user that reports every signal; killed at the end of its stdin."""


def test_kill_9_of_the_daemon_ends_all_children(place, acme):
    """So it does with children and grandchildren in sessions of their own, under both protocols; the next start is
    clean. The artifact is large enough to be kept in memory for the next start, which no process has afterwards.
    """
    large = programs.MOODY + b"\n" + (b"#" * 99 + b"\n") * 4_000
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        host.up("acme.demo", large, runtime=RUNTIME)
        daemon.until(lambda: kept(daemon) == [len(large)], "its artifact to be kept")
        host.result("acme.demo", "fork")
        daemon.until(lambda: len(host.processes()) == 8, "its processes, and process 1 of their namespace")
        tree = host.processes()
        daemon.kill()
        hosting.until_gone(tree)
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        pid = daemon.until_state("armed")["runtime"]["pid"]
        assert host.processes() == children.family(pid)
        assert len(host.processes()) == 2
        daemon.until(lambda: kept(daemon) == [len(large)], "its artifact to be kept again")
        assert daemon.set_status("disabled").json()["runtime"]["state"] == "stopped"
        daemon.until(lambda: kept(daemon) == [], "it to be let go")


def kept(daemon):
    """The sizes of the artifacts in memory that the daemon has descriptors of; it is an ordinary user's process."""
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(entry).startswith("/memfd:artifact"):
                found.append(entry.stat().st_size)
    return found


def test_kill_9_during_starts_and_stops_of_plugins_leaves_no_process(place, acme):
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        for number in range(6):
            host.drop(f"acme.demo-{number}", programs.MOODY, runtime=RUNTIME)
        daemon.until(lambda: daemon.plugin("acme.demo-5"), "the bundles")
        for number in range(6):
            daemon.activate(f"acme.demo-{number}")
        asking = [
            subprocess.Popen(
                daemon.ctl_command("restart", f"acme.demo-{number}"),
                env=place.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(6)
        ]
        daemon.until(
            lambda: len(daemon.events(action="plugin.runtime")) > 6 or any(one.poll() is not None for one in asking),
            "the first restart",
        )
        tree = host.processes()
        daemon.kill()
        for one in asking:
            one.wait(timeout=processes.PATIENCE_S)
        hosting.until_gone(tree)


def test_sigterm_shuts_plugins_down_cleanly(place, acme):
    """Each gets `shutdown` first; its last output is kept, and the stop is audited."""
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        host.up("acme.demo", peers.POLITE)
        (pid,) = host.processes()
        assert daemon.stop() == 0
        assert not children.alive(pid)
        assert "asked by a message" in [entry.get("line") for entry in daemon.log()]
        assert len(daemon.log("plugin_stopped")) == 1


@pytest.mark.root
def test_reused_pid_is_not_signalled(place, acme):
    """The plugin waits, is stopped, ends, or is started again, or the daemon is killed meanwhile."""
    place.set("[supervision]\nbackoff_base_s = 600.0\nbackoff_ceiling_s = 600.0")
    with contextlib.ExitStack() as strangers:
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=acme)
            host.up("acme.demo", programs.MOODY)
            host.up("acme.other", programs.MOODY)
            crashed, killed = (host.runtime(one)["pid"] for one in ("acme.demo", "acme.other"))
            host.invoke("acme.demo", "crash")
            daemon.until_state("failed", code="exited")
            one = strangers.enter_context(_lookalike(crashed, place.uid))
            assert daemon.set_status("disabled").json()["runtime"]["state"] == "stopped"
            assert daemon.set_status("active").json()["runtime"]["state"] == "armed"
            daemon.kill()
        two = strangers.enter_context(_lookalike(killed, place.uid))
        with place.running() as daemon:
            daemon.until_state("armed", "acme.other")
            assert daemon.set_status("disabled", "acme.other").status == 200
            assert daemon.stop() == 0
        assert [_farewell(one), _farewell(two)] == [f"status {signal.SIGKILL:d}\n"] * 2


@contextlib.contextmanager
def _lookalike(pid: int, uid: int) -> Iterator[subprocess.Popen[str]]:
    """Start an unrelated process with that pid, once it is free; returns the process that made it."""
    processes.until(lambda: not Path(f"/proc/{pid}").exists(), what=f"the number {pid} to be free")
    command = [sys.executable, "-c", _LOOKALIKE, str(pid), str(uid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        said = {maker.stdout.readline() for _ in range(2)}
        assert said == {f"made {pid}\n", "here\n"}
        yield maker


def _farewell(maker: subprocess.Popen[str]) -> str:
    """End that process; return the output of it and its maker."""
    return maker.communicate(timeout=processes.PATIENCE_S)[0]

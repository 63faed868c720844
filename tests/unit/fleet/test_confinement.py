"""What each half of the agent tries after it is confined, as processes of one user: the kernel says no."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.house import processes

_TRIED = """
import ctypes, json, os, signal, socket, sys, threading
from pathlib import Path
from latticed.fleet import confinement

half, place, other = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
mine, theirs = socket.socketpair()
confinement.begin(f"fleet-{half}")
if half == "node":
    confinement.confine_node()
else:
    confinement.confine_link(readable=[Path("/usr"), Path("/etc"), Path("/lib")], writable=[place / "link"])

def unix(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))

def datagram():
    one, two = socket.socketpair(type=socket.SOCK_DGRAM)

def connect(family, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as sock:
        sock.connect_ex(("127.0.0.1" if family == socket.AF_INET else "::1", 9))

def call(number, *words):
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()

tries = {
    "ipv4": lambda: connect(socket.AF_INET),
    "ipv6": lambda: connect(socket.AF_INET6),
    "udp": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM),
    "raw": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "vsock": lambda: socket.socket(socket.AF_VSOCK).close(),
    "control": lambda: unix(place / "control.sock"),
    "datagram": datagram,
    "pair": lambda: [one.close() for one in socket.socketpair()],
    "uring": lambda: call(425, 1, 0),
    "key": lambda: (place / "node/key").read_bytes(),
    "key_by_link": lambda: (place / "link/to_key").read_bytes(),
    "key_by_proc": lambda: Path(f"/proc/{other}/cwd").stat(),
    "write_key": lambda: (place / "node/key").write_bytes(b"x"),
    "hard_link": lambda: os.link(place / "node/key", place / "link/hard"),
    "move_key": lambda: os.rename(place / "node/key", place / "link/key"),
    "credentials": lambda: (place / "link/nats.creds").write_bytes(b"x"),
    "renewed": lambda: os.rename(place / "link/nats.creds", place / "link/again"),
    "hosts": lambda: Path("/etc/passwd").read_bytes(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": lambda: os._exit(0) if os.fork() == 0 else None,
    "thread": thread,
    "kill": lambda: os.kill(other, 0),
    "kill_parent": lambda: os.kill(os.getppid(), 0),
    "ptrace": lambda: call(101, 16, other, 0, 0),
    "memory": lambda: open(f"/proc/{other}/mem", "rb").close(),
    "pidfd": lambda: call(434, other, 0),
    "setuid": lambda: os.setuid(0),
    "namespace": lambda: call(272, 0x10000000),
    "filter_off": lambda: call(317, 0, 0, 0),
    "itself": lambda: os.kill(os.getpid(), 0),
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = "done"
    except Exception as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""
DENIED = ("PermissionError", "OSError", "FileNotFoundError")
BOTH = {
    *("raw", "vsock", "datagram", "uring", "exec", "fork", "kill", "kill_parent", "ptrace", "pidfd"),
    *("setuid", "namespace", "filter_off"),
}
NODE = {"ipv4", "ipv6", "udp"}
LINK = {"control", "key", "key_by_link", "write_key", "move_key", "hard_link", "memory"}


@pytest.fixture
def place(tmp_path):
    """Files of both halves and a listening socket, all of the user who tries."""
    import socket

    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of system calls in the script are those of x86_64")
    for name in ("node", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "node/key").write_bytes(b"secret")
    (tmp_path / "link/nats.creds").write_bytes(b"of its own")
    (tmp_path / "link/to_key").symlink_to(tmp_path / "node/key")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        # Root passes over permissions: as an ordinary user, where these tests have root.
        if os.getuid() == 0:
            for path in (tmp_path, *tmp_path.rglob("*")):
                os.chown(path, processes.STRANGER.uid, processes.STRANGER.gid, follow_symlinks=False)
            for parent in tmp_path.parents:
                if parent != parent.parent and parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                    parent.chmod(0o755)
        yield tmp_path


@pytest.mark.parametrize(("half", "denied"), [("node", BOTH | NODE), ("link", BOTH | LINK)])
def test_half_can_do_no_more_than_it_has_to(place, half, denied):
    user = processes.STRANGER if os.getuid() == 0 else None
    ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    with subprocess.Popen(["sleep", "600"], **ids) as other:
        try:
            ran = subprocess.run(
                [sys.executable, "-P", "-c", _TRIED, half, str(place), str(other.pid)],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                timeout=processes.PATIENCE_S,
                **ids,
            )
        finally:
            other.kill()
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    refused = {name for name, what in found.items() if what != "done"}
    # Whose process another is can be asked; what is in it cannot.
    assert refused - {"key_by_proc"} == denied, found
    assert {found[name] for name in refused} <= set(DENIED), found
    assert (place / "node/key").read_bytes() == b"secret" if half == "link" else True


def test_without_a_kernel_that_confines_nothing_is_run():
    """Landlock refused by a filter, as in a container that does not know it."""
    script = (
        "import ctypes\n"
        "from latticed.fleet import confinement\n"
        "from latticed.sandbox import syscalls\n"
        "machine = syscalls.machine()\n"
        "machine.numbers['landlock_create_ruleset'] = 9999\n"
        "try:\n"
        "    confinement.confine_link(readable=[], writable=[])\n"
        "except confinement.Problem as problem:\n"
        "    print(problem.code)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "not_confined\n"), ran.stderr

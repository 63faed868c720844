"""What any user of the host can do: sockets whose names are another's, processes with newlines in theirs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.house import forks

_CLONE_NEWNS = 0x00020000
_PR_SET_NAME = 15


def listening_inode(port: int) -> int:
    """Of the socket that listens at a port of 127.0.0.1, as every user can read it."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return next(int(row[9]) for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A")


@contextlib.contextmanager
def bound(name: bytes, *, over: Path | None = None) -> Iterator[int]:
    """A process of another user that listens at a unix socket of this name; its pid. `over`: the directory that it has
    a file system of its own at, as in a user namespace.
    """
    with _child(functools.partial(_bound, name), over) as pid:
        yield pid


@contextlib.contextmanager
def named(name: bytes) -> Iterator[int]:
    """A process of another user that has this name, and listens at some TCP and UDP port; its pid."""
    with _child(functools.partial(_named, name)) as pid:
        yield pid


def _bound(name: bytes) -> list[socket.socket]:
    made = socket.socket(socket.AF_UNIX)
    made.bind(name)
    made.listen()
    return [made]


def _named(name: bytes) -> list[socket.socket]:
    assert ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0) == 0
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    return [socket.create_server(("127.0.0.1", 0)), datagrams]


@contextlib.contextmanager
def _child(story: Callable[[], list[socket.socket]], over: Path | None = None) -> Iterator[int]:
    ready, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 dislikes forks of threaded processes
        pid = os.fork()
    if pid == 0:
        try:
            if over:
                assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
                subprocess.run(["mount", "--make-rprivate", "/"], check=True)
                # Over what a stranger may not even enter, such as the tests' own directory.
                subprocess.run(["mount", "-t", "tmpfs", "none", Path("/", over.parts[1])], check=True)
                over.mkdir(parents=True)
                over.chmod(0o777)
            os.setgroups([])
            os.setresgid(forks.NOBODY, forks.NOBODY, forks.NOBODY)
            os.setresuid(forks.NOBODY, forks.NOBODY, forks.NOBODY)
            made = story()
            os.write(tell, b"r")
            signal.pause()
            del made
        except BaseException:  # noqa: BLE001 - shown, and told by the exit status
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        with os.fdopen(ready, "rb") as told:
            assert told.read(1) == b"r", "the stranger has no socket; see its stderr"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

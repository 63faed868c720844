"""Run a part of a test as another user: another uid, or root of a user namespace of its own.

A fork, because an unprivileged user may not be able to start the Python that runs the tests.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

NOBODY = 65533
DEADLINE_S = 45
_CLONE_NEWUSER = 0x10000000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")


def run_as(uid: int, story: Callable[[], Awaitable[None]]) -> None:
    """Run the coroutine function `story` in a child with this uid and gid and no capabilities; its failure is ours."""

    def become() -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    _in_child(become, story)


def run_in_user_namespace(limits: dict[str, int], story: Callable[[], Awaitable[None]]) -> None:
    """Run `story` as root of a fresh user namespace with these limits (file names in /proc/sys/user)."""

    def become() -> None:
        uid, gid = os.geteuid(), os.getegid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        for name, value in limits.items():
            Path("/proc/sys/user", name).write_text(str(value))

    _in_child(become, story)


def _in_child(become: Callable[[], None], story: Callable[[], Awaitable[None]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 dislikes forks of threaded processes
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(DEADLINE_S)
            become()
            asyncio.run(_await(story))
            code = 0
        except BaseException:  # noqa: BLE001 - shown, and told by the exit status
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}; see its stderr"


async def _await(story: Callable[[], Awaitable[None]]) -> None:
    await story()

"""Real processes for tests: under another uid if asked, with their own directory, ended by pid whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
_GRACE_S = 10.0
_sleep = time.sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Ids that need no entry in the user database."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


STRANGER = User(uid=65500, gid=65500)
OTHER_STRANGER = User(uid=65501, gid=65501)


PATIENCE_S = 45.0
"""How long tests wait for what happens within a second on an idle machine: the suite runs beside other load."""
LONG_PATIENCE_S = 4 * PATIENCE_S
"""The same, for what takes several seconds then."""


def until(condition: Callable[[], T], *, what: str, deadline_s: float = PATIENCE_S) -> T:
    """The first true answer of `condition`; fails the test when none comes before the deadline.

    The longer it takes, the rarer it is asked for: most conditions cost a request, which slows down what is waited for.
    """
    began = time.monotonic()
    while True:
        if answer := condition():
            return answer
        waited_s = time.monotonic() - began
        if waited_s > deadline_s:
            pytest.fail(f"waited {deadline_s:g} s for {what}")
        _sleep(min(max(0.01, waited_s / 10), 0.05))


def reachable_python() -> str:
    """A Python that every uid can run and that has latticed's dependencies: this one, or the test skips."""
    for place in {Path(sys.executable).absolute(), Path(sys.executable).resolve(), Path(os.__file__).resolve()}:
        closed = [parent for parent in place.parents if not parent.stat().st_mode & stat.S_IXOTH]
        if closed:
            pytest.skip(f"this Python lies below {closed[-1]}, which other uids cannot enter")
    return sys.executable


@contextlib.contextmanager
def home_of(user: User | None, parent: Path) -> Iterator[Path]:
    """A fresh directory (0700) below `parent` that belongs to `user`; `parent` is opened for passing through."""
    for place in (parent, *parent.parents):
        mode = place.stat().st_mode
        if user is not None and place.stat().st_uid == os.getuid() and not mode & stat.S_IXOTH:
            place.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
    home = parent / f"home-{user.uid if user else os.getuid()}"
    home.mkdir(mode=0o700)
    if user is not None:
        os.chown(home, user.uid, user.gid)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def spawned(
    command: Sequence[str | Path],
    *,
    user: User | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = "/",
    pass_fds: Sequence[int] = (),
    stdout: Path | int | None = None,
    stderr: Path | int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` and end it, SIGTERM then SIGKILL, by its pid; output goes where it is told to, else to pipes.

    With `user`: under those ids and groups, nothing else. Needs uid 0 then, or the test skips.
    """
    if user is not None and os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    ids = {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)} if user else {}
    with contextlib.ExitStack() as files:
        out, err = (
            files.enter_context(place.open("wb")) if isinstance(place, Path) else place or subprocess.PIPE
            for place in (stdout, stderr)
        )
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            **ids,
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> int:
    """End the process, by SIGTERM first; its exit status. Pipes are drained and closed."""
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    except ValueError:  # the test read and closed the pipes
        process.wait()
    return process.returncode

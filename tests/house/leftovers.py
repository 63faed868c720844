"""Fails a test that leaves asyncio tasks, threads, child processes, file descriptors or unhandled exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from latticed.runners import uids

SETTLE_S = 3.0
"""How long something on its way out (a thread being joined, a child being reaped) may take to be gone."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The threads, children and descriptors of this process."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    fds: frozenset[tuple[int, str]]

    def new_since(self, before: Survey) -> list[str]:
        """What is there now and was not then, as text."""
        threads = [f"thread {thread.name!r}" for thread in self.threads - before.threads]
        children = [f"child process {pid} ({_command(pid)})" for pid in self.children - before.children]
        fds = [f"descriptor {fd} ({target})" for fd, target in self.fds - before.fds]
        return sorted(threads + children + fds)


def survey() -> Survey:
    """Look at threads, children (zombies included) and descriptors of this process."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            children.update(int(pid) for pid in (task / "children").read_text().split())
    fds: set[tuple[int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing is gone by now
            target = os.readlink(f"/proc/self/fd/{name}")
            # Open as long as the process lives, by design (`uids.shared`).
            if not target.startswith(str(uids.LEASES)):
                fds.add((int(name), target))
    return Survey(frozenset(threading.enumerate()), frozenset(children), frozenset(fds))


def settled(before: Survey) -> list[str]:
    """What is new since `before` and does not go away within SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    pause = _real_sleep
    while found := survey().new_since(before):
        if time.monotonic() > deadline:
            return found
        pause(0.01)
    return []


_real_sleep = time.sleep


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "zombie"
        )
    return "gone"


@contextlib.contextmanager
def watched_loops() -> Iterator[list[str]]:
    """Collect, in words, the tasks that were still pending when an event loop of asyncio.Runner was closed.

    Runner.close() cancels such tasks silently, so they can be seen at no other moment.
    """
    found: list[str] = []
    original = asyncio.runners._cancel_all_tasks

    def cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(50):  # a callback that is due may still end a task
            if not asyncio.all_tasks(loop):
                break
            loop.run_until_complete(asyncio.sleep(0))
        found.extend(f"task {task.get_name()!r} ({task.get_coro()})" for task in asyncio.all_tasks(loop))
        original(loop)

    asyncio.runners._cancel_all_tasks = cancel_all_tasks
    try:
        yield found
    finally:
        asyncio.runners._cancel_all_tasks = original


class Unheard(logging.Handler):
    """Collects what asyncio could only log: exceptions that nobody retrieved, errors in callbacks."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"asyncio reported: {record.getMessage()}")

    def __enter__(self) -> Self:
        logging.getLogger("asyncio").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("asyncio").removeHandler(self)

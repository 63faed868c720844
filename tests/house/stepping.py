"""Counts what a piece of work does, step by step, and lets a test act before each: copy the state, refuse the disk."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Steps:
    """Calls `at` before each step, by its name."""

    at: Any = staticmethod(lambda _: None)
    names: list[str] = field(default_factory=list)

    def before(self, owner, name, monkeypatch):
        done = getattr(owner, name)

        def stepped(*args, **named):
            self.names.append(name)
            self.at(name)
            return done(*args, **named)

        monkeypatch.setattr(owner, name, stepped)


async def cancelled_in(owner, name, then, monkeypatch, begin):
    """The order in which the methods `name` and `then` of `owner` were done, where the task that `begin()` starts is
    cancelled within the first, as on a slow disk.
    """
    entered, go_on, order = threading.Event(), threading.Event(), []
    first, second = getattr(owner, name), getattr(owner, then)

    def slow(*args):
        entered.set()
        go_on.wait(30)
        first(*args)
        order.append(name)

    def after(*args):
        order.append(then)
        second(*args)

    monkeypatch.setattr(owner, name, slow)
    monkeypatch.setattr(owner, then, after)
    task = asyncio.create_task(begin())
    assert await asyncio.to_thread(entered.wait, 30)
    task.cancel()
    await asyncio.wait({task}, timeout=0.5)
    go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    return order


def copy_as_killed(root: Path, target: Path) -> None:
    """Copy what a kill at this moment would leave of a home: all but its runtime directory and its lock."""

    def copied(source: str, place: str) -> None:
        # What another thread is writing has another name until it is whole: it may be gone between listing and copying.
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source, place)

    shutil.copytree(root, target, ignore=shutil.ignore_patterns("run", "lock"), copy_function=copied)

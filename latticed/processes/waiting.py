"""Waiting for descriptors and for work that must be finished, without threads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def readable(fd: int) -> None:
    """Wait until `fd` is readable or at end of file. Nothing is read; only one task may wait for a descriptor."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[None] = loop.create_future()
    # The callback may run once more before the reader is removed: a future that is done takes no second result.
    loop.add_reader(fd, lambda: None if seen.done() else seen.set_result(None))
    try:
        await seen
    finally:
        loop.remove_reader(fd)


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or raise its exception. It is never cancelled: when the caller is cancelled
    meanwhile, CancelledError is raised once `work` is done. So `work` needs a time limit of its own.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            # Each cancellation ends this wait only; the loop waits again.
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001 - it is raised by result() below
            break
    if cancelled is not None and not task.cancelled():
        task.exception()  # mark it retrieved: CancelledError takes precedence
        raise cancelled
    return task.result()

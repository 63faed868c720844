"""Waiting for a thread's end from the event loop, without blocking it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading

_LOOK_S: Final = 0.001
"""How often it looks. The thread was asked to stop, so this ends soon; `Thread.join` would block the event loop."""


async def joined(thread: threading.Thread) -> None:
    """Wait for the end of `thread`, which was asked to stop; a cancellation is raised only after that."""
    cancelled: asyncio.CancelledError | None = None
    while thread.is_alive():
        try:
            await asyncio.sleep(_LOOK_S)
        # Remembered, not raised: the caller closes what the thread uses as soon as this returns.
        except asyncio.CancelledError as error:
            cancelled = error
    thread.join()
    if cancelled is not None:
        raise cancelled

"""Waiting until a decision or a verdict has had its effect, on what is alive and on what is done for a plugin."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.lifecycle.deps import LifecycleDeps

SETTLE_S: Final = 10.0
"""Whoever decides is answered after that long, whatever has not ended yet."""


async def at_rest(rooms: LifecycleDeps, plugin_id: str) -> None:
    """Until a plugin is armed, stopped or failed, and nothing goes on for it that it may not have done."""
    await asyncio.gather(rooms.supervisor.settled(plugin_id, within_s=SETTLE_S), drained(rooms, plugin_id))


async def drained(rooms: LifecycleDeps, plugin_id: str) -> None:
    """Until nothing goes on for a plugin that it may not have done."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await rooms.services.drained(plugin_id)

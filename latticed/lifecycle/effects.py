"""Waiting until a decision or a verdict has had its effect on what runs and on what is done for a plugin."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.host.services import HostServices
    from latticed.supervisor.supervisor import Supervisor

SETTLE_S: Final = 10.0
"""A decision is answered after that long, whatever has not ended yet."""


@dataclass(frozen=True, slots=True)
class Effects:
    """Both waits end after SETTLE_S at the latest."""

    supervisor: Supervisor
    services: HostServices

    async def settled(self, plugin_id: str) -> None:
        """Until a plugin is armed, stopped or failed, and nothing goes on for it that it may not do."""
        await asyncio.gather(self.supervisor.settled(plugin_id, within_s=SETTLE_S), self.drained(plugin_id))

    async def drained(self, plugin_id: str) -> None:
        """Until nothing goes on for a plugin that it may not do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self.services.drained(plugin_id)

"""Waits until a decision or a verdict has taken effect on processes and host services."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value

if TYPE_CHECKING:
    from latticed.host.services import HostServices
    from latticed.supervisor.supervisor import Supervisor

SETTLE_S: Final = 10.0
"""Longest time that a decision waits for its effects before it is answered."""


class EffectWaiter(Value, frozen=True):
    """Waits for the effects of a decision. Both waits end after SETTLE_S at the latest, without an error."""

    supervisor: Supervisor
    services: HostServices

    async def settled(self, plugin_id: str) -> None:
        """Wait until a plugin is armed, stopped or failed, and host services have ended what they may not do for it."""
        await asyncio.gather(self.supervisor.settled(plugin_id, within_s=SETTLE_S), self.drained(plugin_id))

    async def drained(self, plugin_id: str) -> None:
        """Until host services have ended what they may not do any more for a plugin."""
        # Answered all the same: the decision stands and is enforced, only its effects take longer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self.services.drained(plugin_id)

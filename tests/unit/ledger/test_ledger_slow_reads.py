"""Slow reads of plugins queue behind each other, never in front of an operator's."""

from __future__ import annotations

import asyncio
import threading

from latticed.kit.clock import SystemClock
from latticed.ledger import audit, open_ledger


async def test_operator_read_does_not_wait_for_slow_plugin_read(tmp_path):
    """One plugin's query hangs and another waits behind it; the operator's is answered."""
    go_on = threading.Event()
    async with open_ledger(tmp_path / "state", clock=SystemClock()) as ledger:
        slow = asyncio.create_task(ledger.read_for_plugin(lambda _: go_on.wait(30)))
        behind = asyncio.create_task(ledger.read_for_plugin(audit.last_seq))
        assert await asyncio.wait_for(ledger.read_slow(audit.last_seq), 10) == 0
        assert not slow.done()
        assert not behind.done()
        go_on.set()
        assert (await slow, await behind) == (True, 0)

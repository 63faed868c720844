"""Questions of plugins wait for each other, never the operator for them."""

from __future__ import annotations

import asyncio
import threading

from latticed.kit.clock import SystemClock
from latticed.ledger import audit, open_ledger


async def test_an_operator_is_answered_while_a_plugin_asks_something_slow(tmp_path):
    """One plugin's question hangs, another waits for it; the operator's is answered beside them."""
    go_on = threading.Event()
    async with open_ledger(tmp_path / "state", clock=SystemClock()) as ledger:
        slow = asyncio.create_task(ledger.read_for_plugin(lambda _: go_on.wait(30)))
        behind = asyncio.create_task(ledger.read_for_plugin(audit.last_seq))
        assert await asyncio.wait_for(ledger.read_slow(audit.last_seq), 10) == 0
        assert not slow.done()
        assert not behind.done()
        go_on.set()
        assert (await slow, await behind) == (True, 0)

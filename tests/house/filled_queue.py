"""Puts notifications into the queue of a daemon that does not run: `python -m … STATE SENDER COUNT`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from latticed.host.notify.keeper import NotificationQueue
from latticed.kit import logs
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.ledger.notifications import NotificationRow
from latticed.settings import shapes


async def main(state: Path, sender: str, count: int) -> None:
    logs.configure("error")
    clock = SystemClock()
    most = {"plugin_items": 1_000_000, "total_items": 1_000_000, "plugin_bytes": 1 << 30, "total_bytes": 1 << 30}
    wanted = shapes.NotifySettings(**most)
    async with (
        open_ledger(state, clock=clock) as ledger,
        NotificationQueue(ledger, clock=clock, settings=wanted) as queue,
    ):

        def change(tx) -> None:
            for number in range(count):
                queue.accept_in(tx, sender, NotificationRow(title=f"item {number}", event=f"n{number}"))

        await ledger.write(change, durable=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

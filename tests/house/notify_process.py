"""The queue of notifications in a process that is ended by kill -9; it reports each step on a line.

`python -m` runs it with the state directory and a name for this run. Lines: `accepted <id> <dedupe>`, `taken <id>`,
`done <id>`, each written after the call returned.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from latticed.host.notify.keeper import NotificationQueue
from latticed.kit import logs
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.ledger.notifications import NotificationRow
from latticed.settings import shapes


def say(*words: str) -> None:
    os.write(1, (" ".join(words) + "\n").encode())  # in one piece, and not kept back


async def send(queue: NotificationQueue, run: str, sender: int) -> None:
    number = 0
    while True:
        dedupe = f"{run}-{sender}-{number}"
        accepted = await queue.accept(f"acme.p{sender}", NotificationRow(title="t", body="x" * 500, dedupe=dedupe))
        say("accepted", accepted.id, dedupe)
        number += 1


async def deliver(queue: NotificationQueue, chance: random.Random) -> None:
    while True:
        item = await queue.next()
        say("taken", item.id)
        await asyncio.sleep(0)
        match chance.randrange(4):
            case 0:
                await queue.retry(item, code="busy")
            case 1:
                pass  # a delivery that never ends
            case _:
                await queue.done(item.id)
                say("done", item.id)


async def main(directory: Path, run: str) -> None:
    logs.configure("error")  # stdout is for what is said here
    clock = SystemClock()
    wanted = shapes.NotifySettings(
        plugin_items=100_000, plugin_bytes=1 << 29, total_items=1_000_000, total_bytes=1 << 30
    )
    async with (
        open_ledger(directory, clock=clock) as ledger,
        NotificationQueue(ledger, clock=clock, settings=wanted) as queue,
    ):
        say("ready")
        chance = random.Random(run)
        await asyncio.gather(*(send(queue, run, sender) for sender in range(3)), deliver(queue, chance))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

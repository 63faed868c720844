"""Plain nats-py clients that answer at once, and hear what is pushed: what documents to nodes are measured beside.

It reads a file that says who to be, commands on stdin, and answers each by a line (`tests/house/simulated_fleets.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticed.fleet import nats_connection, subjects

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_CONNECTING = 48


async def main(told: dict[str, Any]) -> None:
    tls = ssl.create_default_context(cafile=told["ca"])
    limit = asyncio.Semaphore(_CONNECTING)
    heard: dict[str, float] = {}
    up = 0

    async def subscribe(name: str, credentials: str, stack: contextlib.AsyncExitStack) -> None:
        nonlocal up
        endpoint = nats_connection.NatsEndpoint(
            servers=tuple(told["servers"]),
            tls=tls,
            credentials=Path(credentials),
            name=name,
            inbox=subjects.inbox(name),
        )

        async def take(message: Msg) -> None:
            heard[name] = time.monotonic()
            if message.reply:
                await message.respond(b"+")

        async with limit:
            client, _ = await stack.enter_async_context(nats_connection.probing(endpoint))
            for subject in (subjects.invocation(name), subjects.desired_pushed(name)):
                await client.subscribe(subject, cb=take)
            await client.flush()
        up += 1

    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for name, credentials in told["nodes"]:
            group.create_task(subscribe(name, credentials, stack))
        while line := await commands.readline():
            answer = list(heard.items()) if json.loads(line)["do"] == "heard" else up
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_bytes())))

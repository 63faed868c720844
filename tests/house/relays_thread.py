"""The SMTP relay of `relays` in a thread with a loop of its own, for tests that are not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.house import relays
from tests.house.relays import Relay


@contextlib.contextmanager
def relaying() -> Iterator[Relay]:
    """A relay without TLS, at a port of loopback."""
    ready, made = threading.Event(), []

    async def serve() -> None:
        ended = asyncio.Event()
        async with relays.serving() as relay:
            made.extend([relay, asyncio.get_running_loop(), ended])
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="relay")
    thread.start()
    ready.wait()
    relay, loop, ended = made
    try:
        yield relay
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()

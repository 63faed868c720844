"""Changes told to open pages: that there were some, in bounded memory, whoever reads or does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

from latticed.console import live


async def test_a_million_events_are_one_line():
    """A listener that takes nothing meanwhile is told once, and that anything may have changed."""
    read = threading.Event()

    def changes() -> Iterator[str]:
        for number in range(1_000_000):
            yield f"acme.p{number % 1000}"
        read.set()

    hub = live.LiveHub(changes)
    listener = hub.listen()
    assert listener is not None
    await asyncio.to_thread(read.wait)
    await asyncio.wait_for(listener.ready.wait(), 30)
    assert listener.take() == {"targets": None, "daemon": ""}
    hub.leave(listener)


async def test_a_page_is_told_which_plugin_and_what_became_of_the_daemon():
    go = threading.Semaphore(0)

    def changes() -> Iterator[str]:
        for change in ("acme.demo", "gone", "back"):
            go.acquire()
            yield change

    hub = live.LiveHub(changes)
    first, second = hub.listen(), hub.listen()
    assert first is not None
    assert second is not None
    told = []
    for _ in range(3):
        go.release()
        await asyncio.wait_for(first.ready.wait(), 30)
        told.append(first.take())
    assert told == [
        {"targets": ["acme.demo"], "daemon": ""},
        {"targets": [], "daemon": "gone"},
        {"targets": [], "daemon": "back"},
    ]
    assert second.take() == {"targets": ["acme.demo"], "daemon": "back"}, "what it did not take comes together"


async def test_there_are_not_more_listeners_than_the_most():
    hub = live.LiveHub(lambda: iter(()))
    kept = [hub.listen() for _ in range(live.MOST_LISTENERS)]
    assert None not in kept
    assert hub.listen() is None
    hub.leave(kept[0])  # type: ignore[arg-type]
    assert hub.listen() is not None

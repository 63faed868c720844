"""Changes told to open pages: that there were some, in bounded memory, whoever reads or does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

from latticed.console import live


async def test_a_million_events_are_one_line():
    """A listener that takes nothing meanwhile is told once, and that anything may have changed."""
    read = threading.Event()

    def changes(wanted: Callable[[], bool]) -> Iterator[str]:
        del wanted
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

    def changes(wanted: Callable[[], bool]) -> Iterator[str]:
        del wanted
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
    hub = live.LiveHub(lambda _: iter(()))
    kept = [hub.listen() for _ in range(live.MOST_LISTENERS)]
    assert None not in kept
    assert hub.listen() is None
    hub.leave(kept[0])  # type: ignore[arg-type]
    assert hub.listen() is not None


async def test_what_has_ended_is_read_anew_for_the_next_page():
    """As after a refusal: the page that is open hears no more, and one that comes has the daemon asked again."""
    begun = threading.Semaphore(0)

    def changes(wanted: Callable[[], bool]) -> Iterator[str]:
        assert wanted()
        begun.release()
        yield "denied"

    hub = live.LiveHub(changes)
    for _ in range(3):
        listener = hub.listen()
        assert listener is not None
        await asyncio.wait_for(listener.ready.wait(), 30)
        assert listener.take()["daemon"] == "denied"
    assert [begun.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]


async def test_nothing_is_wanted_once_every_page_is_closed():
    asked, left = threading.Event(), threading.Event()

    def changes(wanted: Callable[[], bool]) -> Iterator[str]:
        yield f"acme.{wanted()}"
        asked.wait()
        if not wanted():
            left.set()

    hub = live.LiveHub(changes)
    listener = hub.listen()
    assert listener is not None
    await asyncio.wait_for(listener.ready.wait(), 30)
    assert listener.take()["targets"] == ["acme.True"]
    hub.leave(listener)
    asked.set()
    assert await asyncio.to_thread(left.wait, 30)

"""Event streams share one reader: read once, formatted once per scope; one that stalls holds nobody up and misses
nothing, or is told so. Real ledger, real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from types import SimpleNamespace

import pytest
from aiohttp import ClientError

from latticed.kit.peers import Peer
from latticed.ledger import audit as rows
from latticed.model import chain
from latticed.model.audit import Event
from latticed.model.chain import Position
from latticed.model.errors import Problem
from latticed.rpc import event_tail
from latticed.rpc import events as streams
from latticed.rpc.access import Scope
from latticed.rpc.event_tail import EventPage, EventTail
from tests.house import in_process, long, raw_http

CALL = Event(actor="plugin:acme.demo", action="host.call", target="kv.get", decision="allow", detail={"bytes": 1})
ACT = Event(actor="uid:0", action="plugin.status", target="acme.demo", decision="allow", detail={"to": "active"})
SECRET = Event(actor="uid:0", action="secret.set", target="token", decision="allow")
LARGE = Event(actor="plugin:a.b", action="host.call", target="kv.get", decision="allow", detail={"x": "y" * 400})


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


def reader(home, scopes=Scope.ALL, *, calls, write):
    """The task of a stream from the beginning whose chunks `write` gets; `scopes` are what its peer is granted."""
    peer = Peer(pid=1, uid=1, gid=1, groups=frozenset())
    api = SimpleNamespace(
        ledger=home.app.api.ledger,
        closing=home.app.api.closing,
        paging=home.app.api.paging,
        tails=home.app.api.tails,
        access=SimpleNamespace(scopes=lambda _: scopes),
    )
    ask = SimpleNamespace(api=api, peer=peer)
    answer = SimpleNamespace(write=write)
    return asyncio.create_task(streams._follow(ask, answer, Position(), calls=calls))


def told(chunks):
    """(id, event) of what was written to a stream."""
    found = []
    for block in b"".join(chunks).decode().split("\n\n"):
        if "\ndata: " in block:
            at, _, data = block.split("\n")
            found.append((at.removeprefix("id: "), json.loads(data.removeprefix("data: "))))
    return found


@contextlib.asynccontextmanager
async def ended(tasks):
    """Cancels streams at the end, and raises what one of them raised."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in results if not isinstance(one, asyncio.CancelledError)] == []


async def test_streams_read_and_format_each_page_once_per_scope(home, monkeypatch):
    """Of twenty streams ten may see payloads, ten not; all are sent the same bytes as others of their scope."""
    pages, formatted = [], []
    page, shown = streams._page, streams._shown
    monkeypatch.setattr(streams, "_page", lambda *a, **b: pages.append(1) or page(*a, **b))
    monkeypatch.setattr(streams, "_shown", lambda *a, **b: formatted.append(1) or shown(*a, **b))
    sent = [[] for _ in range(20)]

    async def writer(number, chunk):
        sent[number].append(chunk)

    tasks = [
        reader(home, (Scope.ALL, Scope.READ)[number % 2], calls=True, write=lambda chunk, n=number: writer(n, chunk))
        for number in range(20)
    ]
    async with ended(tasks):
        await in_process.until(lambda: all(b"up to date" in b"".join(one) for one in sent), "all have caught up")
        pages.clear()
        formatted.clear()
        for number in range(60):
            await home.app.api.ledger.record((CALL, ACT, SECRET)[number % 3])
        await in_process.until(lambda: all(len(told(one)) == (60, 40)[n % 2] for n, one in enumerate(sent)), "all sent")
        await in_process.until(lambda: all(b"id: 40.20\n\n" in b"".join(one) for one in sent), "all up to date")
    assert len(formatted) <= 2 * len(pages)
    assert len(pages) <= 62
    assert len({b"".join(one) for one in sent}) == 2
    assert all("detail" in event for _, event in told(sent[0]))
    assert {(event["action"], "detail" in event) for _, event in told(sent[1])} == {
        ("plugin.status", False),
        ("host.call", False),
    }


@pytest.mark.parametrize("seed", range(long.times(2, 20)))
async def test_every_reader_gets_every_event_once_in_order_however_slow_it_is(home, monkeypatch, seed):
    """Readers that come late, pause and are left far behind; pages small enough to be cut anywhere."""
    monkeypatch.setattr(streams, "PAGE", 7)
    monkeypatch.setattr(streams, "SPAN", 11)
    monkeypatch.setattr(event_tail, "GATHER_S", 0.001)
    dice, sent, tasks = random.Random(seed), [], []

    def begin():
        chunks, pause_s = [], dice.choice((0, 0, 0.001, 0.02, 0.1))

        async def write(chunk):
            chunks.append(chunk)
            await asyncio.sleep(pause_s * dice.random())

        calls = dice.random() < 0.7
        sent.append((calls, chunks))
        tasks.append(reader(home, calls=calls, write=write))

    async with ended(tasks):
        for _ in range(25):
            if len(tasks) < 12 and dice.random() < 0.5:
                begin()
            # Several within one commit, or one alone.
            events = [dice.choice((CALL, CALL, ACT, SECRET)) for _ in range(dice.choice((1, 3, 30)))]
            await asyncio.gather(*(home.app.api.ledger.record(event) for event in events))
            await asyncio.sleep(dice.choice((0, 0, 0.003)))
        end = home.app.api.ledger.read(rows.position)
        last = {True: f"id: {end}\n\n".encode(), False: f"id: {end.decisions}\n\n".encode()}
        await in_process.until(
            lambda: all(b"".join(chunks).endswith(b": up to date\n" + last[calls]) for calls, chunks in sent), "the end"
        )
    assert sent
    for calls, chunks in sent:
        found, at = {"decisions": [], "calls": []}, Position()
        for where, event in told(chunks):
            found[event.get("chain", "decisions")].append(event["seq"])
            at = at.past([event])
            assert where == (str(at) if calls else str(at.decisions))
        assert found["decisions"] == list(range(1, end.decisions + 1))
        assert found["calls"] == (list(range(1, end.calls + 1)) if calls else [])


async def test_reader_that_stalls_is_told_what_it_misses_and_cut_while_others_go_on(home, monkeypatch):
    """It gets what was sent before, is said how much is missing, and goes on where it was when it comes again."""
    # Long enough for more to be recorded meanwhile, also on a machine with much else to do.
    monkeypatch.setattr(streams, "WRITE_S", 4.0)
    cut = []
    monkeypatch.setattr(streams, "log", SimpleNamespace(warning=lambda name, **fields: cut.append((name, fields))))
    ledger, path = home.app.api.ledger, home.app.api.settings.control_socket
    live = []

    async def write(chunk):
        live.append(chunk)

    stalled = await asyncio.to_thread(raw_http.connected, path)
    with contextlib.closing(stalled):
        await asyncio.to_thread(stalled.sendall, raw_http.request("GET", "/api/events?after=0&host_calls=1"))
        async with ended([reader(home, calls=True, write=write)]):
            recorded = 0
            while not cut:
                await asyncio.gather(*(ledger.record(LARGE) for _ in range(200)))
                recorded += 200
                await in_process.until(
                    lambda n=recorded: len(told(live[-3:])) and told(live)[-1][0] == f"0.{n}", "live"
                )
        ((name, fields),) = cut
        assert (name, fields["missed"] > 0) == ("event_stream_cut", True)
        heard = await asyncio.to_thread(_everything, stalled)
    ids = [int(at) for at in re.findall(rb"\nid: 0\.(\d+)\nevent:", heard)]
    assert ids == list(range(1, len(ids) + 1))
    assert fields["after"] == f"0.{ids[-1]}"
    assert ids[-1] + fields["missed"] <= recorded
    assert re.search(rb"\n: cut, as nothing was read for 4 s: %d events or more are missing" % fields["missed"], heard)
    # The rest comes to who resumes after the last id.
    rest = await asyncio.to_thread(raw_http.connected, path)
    with contextlib.closing(rest):
        resumed = raw_http.request("GET", "/api/events?host_calls=1", Last_Event_ID=f"0.{ids[-1]}")
        await asyncio.to_thread(rest.sendall, resumed)
        last = b"id: 0.%d\n\n" % recorded
        found = await asyncio.to_thread(_everything, rest, last)
    assert [int(at) for at in re.findall(rb"\nid: 0\.(\d+)\nevent:", found)] == list(range(ids[-1] + 1, recorded + 1))


def _everything(sock, until=b"\r\n0\r\n\r\n"):
    """What is sent up to `until`, by default the end of the answer."""
    heard = b""
    while until not in heard[-200_000:]:
        part = sock.recv(1 << 20)
        assert part, heard[-300:]
        heard += part
    # Without the framing of chunks (RFC 9112, section 7.1), of which none is smaller than an event here.
    body, whole = heard.partition(b"\r\n\r\n")[2], b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        whole, body = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return whole


@pytest.fixture
def broken(monkeypatch):
    """A list; while something is in it, the ledger cannot be read by streams."""
    real, broken = streams._page, []

    def page(db, seen, *, calls):
        if broken:
            raise Problem("ledger_unavailable", "the ledger cannot be read")
        return real(db, seen, calls=calls)

    monkeypatch.setattr(streams, "_page", page)
    return broken


async def test_failure_to_read_ends_streams_and_the_next_ones_work(home, broken):
    """A ledger that cannot be read: every stream ends with the problem, none waits for ever."""
    sent = [[], [], []]

    async def write(number, chunk):
        sent[number].append(chunk)

    tasks = [reader(home, calls=False, write=lambda chunk, n=number: write(n, chunk)) for number in range(2)]
    await in_process.until(lambda: all(b"up to date" in b"".join(one) for one in sent[:2]), "both have caught up")
    broken.append(1)
    await home.app.api.ledger.record(ACT)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(one, "code", one) for one in results] == ["ledger_unavailable"] * 2
    broken.clear()
    async with ended([reader(home, calls=False, write=lambda chunk: write(2, chunk))]):
        await home.app.api.ledger.record(ACT)
        await in_process.until(lambda: [at for at, _ in told(sent[2])] == ["1", "2"], "both events")


async def test_stream_that_fails_is_cut_without_a_second_answer_on_the_wire(home, broken, capsys):
    """Its reader would take the second one's head for an event."""
    async with home.session.get("http://latticed/api/events?after=0") as answer:
        received = await answer.content.readuntil(b"id: 0\n\n")
        broken.append(1)
        await home.app.api.ledger.record(ACT)
        with pytest.raises(ClientError):
            received += await asyncio.wait_for(answer.content.read(), in_process.DEADLINE_S)
    assert b"HTTP" not in received
    assert capsys.readouterr().out.count("answer_broken_off") == 1


async def test_streams_end_when_the_daemon_stops(home):
    """At once, though no event comes, and nothing of the tail is left."""
    sent = []

    async def write(chunk):
        sent.append(chunk)

    tasks = [reader(home, calls=calls, write=write) for calls in (False, True, True)]
    await in_process.until(lambda: b"".join(sent).count(b"up to date") == 3, "all have caught up")
    home.app.api.closing.set()
    assert await asyncio.gather(*tasks) == [None] * 3


async def test_each_stream_has_a_turn_of_the_loop_of_its_own():
    """32 of them that wrote a page each in one turn of the loop would hold it up for 15 ms."""
    pages = asyncio.Queue()
    tail = EventTail(
        chains=chain.NAMES, read=lambda _: pages.get(), grown=lambda _: asyncio.sleep(0), closing=asyncio.Event()
    )
    turn, woken = 0, []

    async def count():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def follow():
        await tail.news(Position(), 60)
        woken.append(turn)

    counting = asyncio.create_task(count())
    async with tail.joined(Position()):
        following = [asyncio.create_task(follow()) for _ in range(9)]
        await asyncio.sleep(0)
        pages.put_nowait(EventPage([{}], Position(1, 0), more=False))
        await asyncio.gather(*following)
    counting.cancel()
    assert len(set(woken)) == len(woken) == 9

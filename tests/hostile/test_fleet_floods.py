"""One node that floods the message system, beside 99 others: it hurts itself alone. Against a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from latticed.fleet import deployment, subjects
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_engine import NatsControllerEngine, NatsEngine
from tests.house import long, nats_floods, nats_servers

WAIT_S = 120
OTHERS = 99
HOSTILE = "hostile"
SIZE = 1_200
"""Of a status of a few plugins."""
SUBJECTS = {
    "statuses": subjects.by_node(HOSTILE, "status"),
    "beats": subjects.by_node(HOSTILE, "beat"),
    "events": subjects.by_node(HOSTILE, "event"),
}


@pytest.fixture(scope="module", params=[1, *long.only(3)])
def fleet(request, tmp_path_factory):
    sizes = deployment.Sizes(nodes=OTHERS + 1, bundles_bytes=8 << 20)
    with nats_servers.running(tmp_path_factory.mktemp("nats"), request.param, sizes=sizes) as running:
        asyncio.run(_provide(running))
        yield running


async def _provide(fleet):
    async with fleet.connected("controller") as connection:
        await fleet.provide(connection)


class Heard:
    """What a controller has heard of nodes other than the hostile one, and when."""

    def __init__(self, connection):
        self.engine = NatsControllerEngine(connection)
        self.connection = connection
        self.at: dict[bytes, float] = {}
        self.hostile = 0

    async def listen(self, stream):
        async for batch in stream:
            for one in batch:
                if subjects.node_of(one.subject) == HOSTILE:
                    self.hostile += 1
                else:
                    self.at.setdefault(one.data, time.monotonic())


@contextlib.asynccontextmanager
async def listening(heard):
    tasks = [asyncio.create_task(heard.listen(stream)) for stream in (heard.engine.statuses(), heard.engine.events())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def others(fleet):
    """The engine of each of the others, by name."""
    async with contextlib.AsyncExitStack() as stack:
        names = [f"node-{number}" for number in range(OTHERS)]
        yield {name: NatsEngine(await stack.enter_async_context(fleet.connected(name)), name) for name in names}


async def told(engines, what, heard):
    """Each says one status and one event, all at once; how long it was until the controller had each, sorted."""
    said = {name: (f"{what} {name} status".encode(), f"{what} {name} event".encode()) for name in engines}
    began = time.monotonic()

    async def say(name):
        status, event = said[name]
        await engines[name].publish_status(status.ljust(SIZE))
        await engines[name].publish_event(event.ljust(SIZE), f"{what}-{name}")

    await asyncio.gather(*map(say, engines))
    wanted = {one.ljust(SIZE) for pair in said.values() for one in pair}
    await nats_servers.until(lambda: _all(wanted, heard))
    return sorted(heard.at[one] - began for one in wanted)


async def test_flood_of_one_nodes_requests_keeps_nobody_elses_from_being_answered(fleet):
    """Requests for credentials go to a controller and no stream: it hears them apart from what it leads the fleet by,
    and one of each node at a time.
    """
    names = [f"asking-{number}" for number in range(20)]
    async with (
        asyncio.timeout(WAIT_S),
        fleet.connected("controller") as leading,
        fleet.connected("controller") as hearing,
        contextlib.AsyncExitStack() as stack,
    ):
        engine = NatsControllerEngine(leading)

        async def answer():
            async with contextlib.aclosing(hearing.messages("renew.*", most=1_024, one_each=True)) as requests:
                async for one in requests:
                    await asyncio.sleep(0.01)  # what it takes to look at a request
                    with contextlib.suppress(EngineUnavailable):
                        await hearing.publish(one.reply, b"answer to " + one.data)

        answering = asyncio.create_task(answer())
        nodes = {name: NatsEngine(await stack.enter_async_context(fleet.connected(name)), name) for name in names}
        try:
            with nats_floods.flooding(fleet, HOSTILE, subjects.by_node(HOSTILE, "renewal"), SIZE, reply=True) as sent:
                # One that is not answered in time asks again, as the link does.
                answers = await asyncio.gather(*(_renewed(nodes[name], name.encode()) for name in names))
                revision = await engine.put("flooded", b"1", 0)
                assert (await engine.get("flooded")).revision == revision
        finally:
            answering.cancel()
            await asyncio.wait({answering})
    assert answers == [f"answer to {name}".encode() for name in names]
    assert sent[0] > 1_000


async def _renewed(engine, data):
    while True:
        with contextlib.suppress(EngineUnavailable):
            return await engine.renew(data)


async def _all(wanted, heard):
    return wanted <= heard.at.keys()


@pytest.mark.parametrize("what", ["statuses", *long.only("beats", "events")])
async def test_flood_of_one_node_keeps_nobody_elses_word_from_the_controller(fleet, what):
    """None of theirs is refused or lost, and of its own no more is kept than its quota."""
    async with asyncio.timeout(WAIT_S), fleet.connected("controller") as connection:
        heard = Heard(connection)
        async with listening(heard), others(fleet) as engines:
            quiet = await told(engines, f"{what} quiet", heard)
            with nats_floods.flooding(fleet, HOSTILE, SUBJECTS[what], SIZE if what != "beats" else 900) as sent:
                loud = await told(engines, f"{what} loud", heard)
        kept = await _kept(heard.engine)
    print(
        f"{what}: quiet p50 {quiet[len(quiet) // 2]:.3f} s max {quiet[-1]:.3f} s, "
        f"loud p50 {loud[len(loud) // 2]:.3f} s max {loud[-1]:.3f} s, {sent[0]} sent"
    )
    assert sent[0] > 2_000, "several times any quota, also on a busy machine"
    assert kept["STATUS"] <= deployment.STATUSES_PER_NODE
    assert kept["PRESENCE"] <= deployment.BEATS_PER_NODE
    assert kept["EVENTS"] <= deployment.EVENTS_PER_NODE
    assert heard.hostile <= deployment.STATUSES_PER_NODE + deployment.EVENTS_PER_NODE


async def _kept(engine):
    """How many messages of the hostile node each stream has."""
    found = {}
    kept = {"STATUS": subjects.status, "PRESENCE": subjects.presence, "EVENTS": subjects.events}
    for stream, subject in kept.items():
        answer = await engine._api(f"STREAM.INFO.{stream}", {"subjects_filter": subject(HOSTILE)})
        found[stream] = (answer["state"].get("subjects") or {}).get(subject(HOSTILE), 0)
    return found

"""The engine against a real nats-server: documents, chunks, events, status, presence, questions, the shared lease."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from latticed.fleet import deployment
from latticed.fleet.engine import CHUNK_BYTES, DESIRED_BYTES, EVENT_BYTES, Conflict, EngineUnavailable, QuotaExceeded
from latticed.fleet.nats_engine import NatsEngine
from tests.house.nats_servers import until

WAIT_S = 30


@pytest.fixture
async def engine(fleet, node):
    async with asyncio.timeout(WAIT_S), fleet.connected(node) as connection:
        yield NatsEngine(connection, node)


@contextlib.asynccontextmanager
async def listening(stream):
    """The next of an endless stream as a task, begun before this returns."""
    following = asyncio.ensure_future(anext(stream))
    try:
        yield following
    finally:
        following.cancel()
        await asyncio.wait({following})
        await stream.aclose()


class TestDesired:
    async def test_none_before_one_was_put(self, engine):
        assert await engine.desired() is None

    async def test_is_looked_up_as_it_was_put(self, engine, controller, node):
        document = b"d" * DESIRED_BYTES
        first = await controller.put_desired(node, document, 0)
        assert await engine.desired() == document
        await controller.put_desired(node, b"next", first)
        assert await engine.desired() == b"next"
        assert (await controller.desired(node)).data == b"next"

    async def test_is_pushed_to_who_listens(self, engine, controller, node):
        async with listening(engine.watch_desired()) as pushed:
            await engine.desired()  # a round trip: the subscription was sent before it
            await controller.put_desired(node, b"pushed", 0)
            assert await pushed == b"pushed"

    async def test_other_revision_than_expected_is_a_conflict(self, controller, node):
        revision = await controller.put_desired(node, b"one", 0)
        for stale in (0, revision + 1):
            with pytest.raises(Conflict):
                await controller.put_desired(node, b"two", stale)
        assert (await controller.desired(node)).data == b"one"

    async def test_too_large_is_refused(self, controller, node):
        with pytest.raises(ValueError, match="at most"):
            await controller.put_desired(node, bytes(DESIRED_BYTES + 1), 0)


class TestChunks:
    async def test_is_written_once(self, engine, controller, node):
        sha256 = hashlib.sha256(node.encode()).hexdigest()
        await controller.put_chunk(sha256, 3, b"x" * CHUNK_BYTES)
        await controller.put_chunk(sha256, 3, b"x" * CHUNK_BYTES)
        with pytest.raises(Conflict):
            await controller.put_chunk(sha256, 3, b"y" * CHUNK_BYTES)
        assert await engine.chunk(sha256, 3) == b"x" * CHUNK_BYTES

    async def test_missing_one_is_a_key_error(self, engine):
        with pytest.raises(KeyError):
            await engine.chunk("0" * 64, 0)


class TestEvents:
    async def test_same_id_is_stored_once(self, engine, controller, node):
        for _ in range(3):
            await engine.publish_event(b"event of " + node.encode(), f"id-of-{node}")
        await engine.publish_event(b"end", f"end-of-{node}")
        assert [one.data for one in await self.of(controller, node, 2)] == [b"event of " + node.encode(), b"end"]

    async def test_node_that_floods_is_refused_and_no_other(self, fleet, engine, controller, node):
        for number in range(deployment.EVENTS_PER_NODE):
            await engine.publish_event(b"%d" % number, f"{node}-{number}")
        with pytest.raises(QuotaExceeded):
            await engine.publish_event(b"one more", f"{node}-more")
        async with fleet.connected(f"{node}-b") as connection:
            await NatsEngine(connection, f"{node}-b").publish_event(b"of another", f"{node}-b")
        # Nothing that was there has gone, and room comes only from the controller.
        found = await self.of(controller, node, deployment.EVENTS_PER_NODE)
        assert found[0].data == b"0"
        await controller.thin_events(node, deployment.EVENTS_PER_NODE - 10)
        await engine.publish_event(b"one more", f"{node}-again")

    async def test_largest_is_taken(self, engine, node):
        await engine.publish_event(bytes(EVENT_BYTES), f"largest-{node}")

    async def test_too_large_is_refused(self, engine, node):
        with pytest.raises(ValueError, match="at most"):
            await engine.publish_event(bytes(EVENT_BYTES + 1), f"large-{node}")

    async def of(self, controller, node, count):
        """The first events of a node, in order."""
        found = []
        async with asyncio.timeout(WAIT_S), contextlib.aclosing(controller.events()) as batches:
            async for batch in batches:
                found += [one for one in batch if one.subject == f"ev.{node}.audit"]
                if len(found) >= count:
                    break
        return found[:count]


class TestStatusAndPresence:
    async def test_changed_status_reaches_a_controller_that_reads_on(self, engine, controller, node):
        mine = []
        await engine.publish_status(b"first")
        async with asyncio.timeout(WAIT_S), contextlib.aclosing(controller.statuses()) as batches:
            async for batch in batches:
                mine += [one.data for one in batch if one.subject == f"st.{node}"]
                if mine == [b"first"]:
                    await engine.publish_status(b"second")
                elif len(mine) == 2:
                    break
        assert mine == [b"first", b"second"]

    async def test_beat_is_seen(self, engine, controller, node):
        await engine.beat(b"here")
        await engine.desired()  # what was sent before it has arrived
        found = [one for one in await controller.present() if one.subject == f"hb.{node}"]
        assert [one.data for one in found] == [b"here"]


class TestQuestions:
    async def test_is_answered(self, engine, controller, node):
        async with listening(engine.invocations()) as asked:
            await engine.desired()
            answer = asyncio.ensure_future(controller.invoke(node, b"how are you", WAIT_S))
            question = await asked
            await question.answer(b"well: " + question.data)
            assert await answer == b"well: how are you"

    async def test_node_that_is_not_there_is_unavailable_at_once(self, controller, node):
        with pytest.raises(EngineUnavailable, match="no responders"):
            await controller.invoke(node, b"?", WAIT_S)


class TestShared:
    async def test_one_of_two_that_want_the_lease_has_it(self, controller, node):
        revision = await controller.put(f"lease-{node}", b"a", 0, ttl_s=60)
        with pytest.raises(Conflict):
            await controller.put(f"lease-{node}", b"b", 0, ttl_s=60)
        assert await controller.put(f"lease-{node}", b"a", revision, ttl_s=60) > revision

    async def test_lease_that_is_not_renewed_can_be_taken(self, controller, node):
        await controller.put(f"lease-{node}", b"a", 0, ttl_s=1)
        async with asyncio.timeout(WAIT_S):
            await until(lambda: _is_free(controller, f"lease-{node}"))
        await controller.put(f"lease-{node}", b"b", 0, ttl_s=60)
        assert (await controller.get(f"lease-{node}")).data == b"b"


async def _is_free(controller, key):
    return await controller.get(key) is None

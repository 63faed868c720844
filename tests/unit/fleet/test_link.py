"""The link between a real engine and the node's end of its socketpair, over outages of either."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from latticed.fleet import chunks, deployment, messages
from latticed.fleet.engine import CHUNK_BYTES, EVENT_BYTES, STATUS_BYTES, EngineUnavailable
from latticed.fleet.nats_connection import NatsConnection
from latticed.fleet.nats_engine import NatsControllerEngine, NatsEngine
from tests.house import nats_servers
from tests.house.links import linked
from tests.house.nats_servers import until

WAIT_S = 60


@pytest.fixture
async def pair(fleet, node, tmp_path):
    async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "spool") as (mine, _):
        yield mine


class TestDesired:
    async def test_document_that_was_there_before_is_handed_over(self, fleet, controller, node, tmp_path):
        await controller.put_desired(node, b"before", 0)
        async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "spool") as (mine, _):
            assert (await mine.following(messages.NewDesired)).document == b"before"

    async def test_each_change_is_handed_over_once(self, pair, controller, node):
        revision = 0
        for document in (b"one", b"two", b"three"):
            revision = await controller.put_desired(node, document, revision)
            assert (await pair.following(messages.NewDesired)).document == document

    async def test_node_that_reads_nothing_gets_the_newest_when_it_does(self, pair, controller, node):
        """Each of them fills more than the socket holds."""
        revision = 0
        for number in range(40):
            revision = await controller.put_desired(node, b"%02d" % number * (24 << 10), revision)
        last = b"39" * (24 << 10)
        found = await pair.following(messages.NewDesired, lambda one: one.document == last)
        assert found.document == last

    async def test_document_that_was_looked_up_takes_no_newer_ones_place(self, fleet, controller, node, tmp_path):
        """A node then had the older one until it was looked up again, a minute later: of a thousand always some."""
        asked, answered = asyncio.Event(), asyncio.Event()

        class LateAnswer(NatsEngine):
            async def desired(self):
                found = await super().desired()
                if found == b"old" and not asked.is_set():
                    asked.set()
                    await answered.wait()
                return found

        revision = await controller.put_desired(node, b"old", 0)
        async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "spool", engine=LateAnswer) as (mine, _):
            await asked.wait()
            revision = await controller.put_desired(node, b"new", revision)
            assert (await mine.following(messages.NewDesired)).document == b"new"
            answered.set()
            await controller.put_desired(node, b"newest", revision)
            assert (await mine.following(messages.NewDesired)).document == b"newest"


class TestPublished:
    async def test_newest_status_is_published(self, pair, controller, node):
        for document in (b"one", b"two"):
            pair.send(messages.NewStatus(document=document))
        await until(lambda: self.status(controller, node, b"two"))

    async def status(self, controller, node, wanted):
        async with contextlib.aclosing(controller.statuses()) as batches:
            async for batch in batches:
                found = [one.data for one in batch if one.subject == f"st.{node}"]
                break
        return found == [wanted]

    async def test_events_are_taken_in_order_and_said_to_be(self, pair, controller, node):
        for number in range(20):
            pair.send(event(number, node))
        assert [(await pair.following(messages.EventTaken)).number for _ in range(20)] == list(range(20))
        assert await events(controller, node, 20) == [b"event %d" % number for number in range(20)]

    async def test_events_beyond_the_quota_wait_until_there_is_room(self, pair, controller, node):
        for number in range(deployment.EVENTS_PER_NODE + 1):
            pair.send(event(number, node))
            if number % 32 == 31:  # the link holds some; a node waits for what is taken
                await pair.following(messages.EventTaken, lambda one, last=number: one.number == last)
        found = await events(controller, node, deployment.EVENTS_PER_NODE)
        assert len(found) == deployment.EVENTS_PER_NODE
        await controller.thin_events(node, deployment.EVENTS_PER_NODE - 1)
        taken = await pair.following(messages.EventTaken, lambda one: one.number == deployment.EVENTS_PER_NODE)
        assert taken.number == deployment.EVENTS_PER_NODE

    async def test_beats_are_there(self, pair, controller, node):
        await until(lambda: self.seen(controller, node))

    async def seen(self, controller, node):
        return any(one.subject == f"hb.{node}" for one in await controller.present())


def event(number, node):
    return messages.NewEvent(number=number, message_id=f"{node}-{number}", document=b"event %d" % number)


async def events(controller, node, count):
    found = []
    async with contextlib.aclosing(controller.events()) as batches:
        async for batch in batches:
            found += [one.data for one in batch if one.subject == f"ev.{node}.audit"]
            if len(found) >= count:
                break
    return found


class TestBundles:
    async def test_needed_one_is_fetched_into_the_spool(self, pair, controller, tmp_path):
        data = bytes(range(256)) * 1_000
        (tmp_path / "bundle").write_bytes(data)
        sha256 = await chunks.put(controller, tmp_path / "bundle")
        pair.send(messages.BundleNeeded(sha256=sha256))
        assert (await pair.following(messages.BundleHere)).sha256 == sha256
        assert (tmp_path / "spool" / messages.spool_name(sha256)).read_bytes() == data

    async def test_missing_one_is_said_to_be_and_found_later(self, pair, controller, tmp_path):
        data = b"x" * (CHUNK_BYTES + 1)
        sha256 = hashlib.sha256(data).hexdigest()
        pair.send(messages.BundleNeeded(sha256=sha256))
        missing = await pair.following(messages.BundleMissing)
        assert (missing.sha256, "chunk 0" in missing.reason) == (sha256, True)
        (tmp_path / "bundle").write_bytes(data)
        await chunks.put(controller, tmp_path / "bundle")
        pair.send(messages.BundleNeeded(sha256=sha256))
        assert (await pair.following(messages.BundleHere)).sha256 == sha256

    @pytest.mark.parametrize("spool_mib", [4, 8])
    async def test_one_that_is_said_to_be_here_is_here_until_it_was_tried(
        self, fleet, controller, node, tmp_path, spool_mib
    ):
        """There is room for one or two of the largest; others wait."""
        needed = []
        for number in range(4):
            (tmp_path / "bundle").write_bytes(bytes([number]) * (3 << 20))
            needed.append(await chunks.put(controller, tmp_path / "bundle"))
        directory = tmp_path / "spool"
        here, kept = [], {*needed}

        async def idle():
            return not link._fetching._running

        async with (
            asyncio.timeout(WAIT_S),
            linked(fleet, node, directory, spool_mib=spool_mib) as (pair, link),
        ):
            for sha256 in needed:
                pair.send(messages.BundleNeeded(sha256=sha256))
            for _ in needed:
                here.append((await pair.following(messages.BundleHere)).sha256)
                if len(here) * 4 < spool_mib:
                    continue
                await until(idle)
                assert all((directory / messages.spool_name(one)).exists() for one in here)
                assert sum(one.stat().st_size for one in directory.iterdir()) <= spool_mib << 20
                kept.discard(here.pop())
                pair.send(messages.BundlesKept(sha256s=tuple(kept)))

    async def test_file_that_was_damaged_in_the_spool_is_fetched_anew(self, pair, controller, tmp_path):
        data = b"x" * (CHUNK_BYTES + 1)
        (tmp_path / "bundle").write_bytes(data)
        sha256 = await chunks.put(controller, tmp_path / "bundle")
        place = tmp_path / "spool" / messages.spool_name(sha256)
        place.write_bytes(b"x" * CHUNK_BYTES + b"?")
        for anew in (False, True):
            pair.send(messages.BundleNeeded(sha256=sha256, anew=anew))
            assert (await pair.following(messages.BundleHere)).sha256 == sha256
            assert (place.read_bytes() == data) is anew


class TestInvocations:
    async def test_is_asked_and_answered(self, pair, controller, node):
        await pair.following(messages.LinkState, lambda one: one.up)
        asking = asyncio.ensure_future(self.asked(controller, node))
        asked = await pair.following(messages.InvocationAsked)
        assert asked.document == b"signed question"
        pair.send(messages.InvocationDone(number=asked.number + 7, document=b"of another"))
        pair.send(messages.InvocationDone(number=asked.number, document=b"signed answer"))
        assert await asking == b"signed answer"

    async def asked(self, controller, node):
        """The answer; until the server has heard that the node listens, there is nobody to ask."""
        while True:
            try:
                return await controller.invoke(node, b"signed question", WAIT_S)
            except EngineUnavailable:
                await asyncio.sleep(0.05)


class TestOutages:
    @pytest.fixture
    def fleet(self, tmp_path):
        with nats_servers.running(tmp_path / "nats") as running:
            yield running

    @pytest.fixture
    async def controller(self, fleet):
        async with fleet.connected("controller") as connection:
            yield await fleet.provide(connection)

    async def test_engine_that_was_gone_gets_what_waited_and_gives_what_changed(self, fleet, pair, controller, node):
        await pair.following(messages.LinkState, lambda one: one.up)
        await controller.put_desired(node, b"one", 0)
        await pair.following(messages.NewDesired)
        fleet.servers[0].kill()
        down = await pair.following(messages.LinkState, lambda one: not one.up)
        assert down.reason
        pair.send(messages.NewStatus(document=b"while it was gone"))
        for number in range(3):
            pair.send(event(number, node))
        fleet.servers[0].start()
        await pair.following(messages.LinkState, lambda one: one.up)
        taken = [(await pair.following(messages.EventTaken)).number for _ in range(3)]
        assert taken == [0, 1, 2]
        await until(lambda: TestPublished().status(controller, node, b"while it was gone"))
        found = await controller.desired(node)
        await controller.put_desired(node, b"two", found.revision)
        assert (await pair.following(messages.NewDesired, lambda one: one.document == b"two")).document == b"two"

    async def test_link_ends_when_the_node_does(self, fleet, node, tmp_path):
        async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "spool") as (mine, link):
            mine.close()
            await link.ended()

    async def test_link_ends_when_the_node_sends_what_is_no_message(self, fleet, node, tmp_path):
        async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "spool") as (mine, link):
            mine._writer.write(b"\xff\xff\xff\xff")
            with pytest.raises(messages.BadMessage):
                await link.ended()


async def test_event_larger_than_the_engine_takes_does_not_stop_the_others(pair, node):
    """The node should not make one; it stays with it, and those behind it wait no longer than for a pause."""
    pair.send(messages.NewEvent(number=1, message_id=f"{node}-large", document=bytes(EVENT_BYTES * 2)))
    pair.send(event(2, node))
    assert (await pair.following(messages.EventTaken)).number == 2


async def test_answer_larger_than_the_engine_takes_stops_nothing(fleet, node, tmp_path):
    async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "spool") as (mine, _):
        await mine.following(messages.LinkState, lambda one: one.up)
        for document in (bytes(STATUS_BYTES + 1), b"answer"):
            async with fleet.connected("controller") as connection:
                controller = NatsControllerEngine(connection)
                asked = asyncio.create_task(asking(controller, node))
                question = await mine.following(messages.InvocationAsked)
                mine.send(messages.InvocationDone(number=question.number, document=document))
                if len(document) <= STATUS_BYTES:
                    assert await asked == document
                asked.cancel()
                await asyncio.wait({asked})


async def asking(controller, node):
    """Ask until somebody listens; the answer, which is waited for as long as it takes."""
    while True:
        with contextlib.suppress(EngineUnavailable):
            return await controller.invoke(node, b"question", WAIT_S)
        await asyncio.sleep(0.05)


async def test_engine_says_no_more_than_that_it_is_unavailable(fleet, node):
    async with NatsConnection(fleet.endpoint(fleet.node(node), node, ("tls://127.0.0.1:1",))) as connection:
        with pytest.raises(EngineUnavailable):
            await NatsEngine(connection, node).desired()

"""Bundles through a real server in chunks: whole, interrupted, incomplete, swapped, too large, on a full disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource

import pytest

from latticed.fleet import chunks
from latticed.fleet.engine import CHUNK_BYTES, Conflict, EngineUnavailable
from latticed.fleet.nats_engine import NatsEngine
from latticed.fleet.spool import NotFetched, Spool
from tests.house import cut_wires
from tests.house.nats_servers import until

WAIT_S = 60
_random = random.Random(20)


def content(size):
    return _random.randbytes(size)


@pytest.fixture
def spool(directory):
    return Spool(directory, most_bytes=4 << 20, bundle_bytes=2 << 20)


@pytest.fixture
async def engine(fleet, node):
    async with asyncio.timeout(WAIT_S), fleet.connected(node) as connection:
        yield NatsEngine(connection, node)


async def kept(controller, tmp_path, data):
    path = tmp_path / "bundle"
    path.write_bytes(data)
    sha256 = await chunks.put(controller, path)
    assert sha256 == hashlib.sha256(data).hexdigest()
    return sha256


async def keep_some(controller, data, numbers):
    """Some chunks alone, as after a put that was interrupted."""
    sha256 = hashlib.sha256(data).hexdigest()
    for number in numbers:
        await controller.put_chunk(sha256, number, data[number * CHUNK_BYTES :][:CHUNK_BYTES])
    return sha256


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 7 * CHUNK_BYTES, 1_000_000])
async def test_bundle_of_any_size_arrives_as_it_was(engine, controller, spool, directory, tmp_path, size):
    data = content(size)
    sha256 = await kept(controller, tmp_path, data)
    assert not spool.has(sha256)
    await chunks.fetch(engine, spool, sha256)
    assert spool.has(sha256)
    assert (directory / f"{sha256}.tar").read_bytes() == data
    assert [one.name for one in directory.iterdir()] == [f"{sha256}.tar"]


async def test_putting_it_again_is_no_error(controller, tmp_path):
    data = content(300_000)
    assert await kept(controller, tmp_path, data) == await kept(controller, tmp_path, data)


async def test_put_that_finds_another_chunk_in_its_place_says_so(controller, tmp_path):
    data = content(300_000)
    await controller.put_chunk(hashlib.sha256(data).hexdigest(), 1, b"something else")
    with pytest.raises(Conflict):
        await kept(controller, tmp_path, data)


async def test_half_a_bundle_is_kept_and_goes_on_when_the_rest_is_there(engine, controller, spool, directory):
    data = content(5 * CHUNK_BYTES + 17)
    sha256 = await keep_some(controller, data, [0, 1, 3, 5])
    with pytest.raises(NotFetched, match="expected chunk 2"):
        await chunks.fetch(engine, spool, sha256)
    part = directory / f"{sha256}.part"
    assert part.read_bytes() == data[: 2 * CHUNK_BYTES]
    assert not spool.has(sha256)
    await keep_some(controller, data, [2, 4])
    asked = []

    class Counting:
        async def chunk(self, digest, number):
            asked.append(number)
            return await engine.chunk(digest, number)

    await chunks.fetch(Counting(), spool, sha256)
    assert min(asked) == 2
    assert (directory / f"{sha256}.tar").read_bytes() == data


async def test_part_that_ends_within_a_chunk_is_resumed_before_it(engine, controller, spool, directory, tmp_path):
    """As after SIGKILL in the middle of a write."""
    data = content(3 * CHUNK_BYTES)
    sha256 = await kept(controller, tmp_path, data)
    (directory / f"{sha256}.part").write_bytes(data[: CHUNK_BYTES + 99])
    await chunks.fetch(engine, spool, sha256)
    assert (directory / f"{sha256}.tar").read_bytes() == data


@pytest.mark.parametrize("place", [0, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
async def test_part_that_was_changed_meanwhile_is_refused_and_fetched_anew(
    engine, controller, spool, directory, tmp_path, place
):
    data = content(3 * CHUNK_BYTES + 5)
    sha256 = await kept(controller, tmp_path, data)
    changed = bytearray(data[: 3 * CHUNK_BYTES])
    changed[place] ^= 1
    (directory / f"{sha256}.part").write_bytes(changed)
    with pytest.raises(NotFetched, match="with the digest"):
        await chunks.fetch(engine, spool, sha256)
    assert list(directory.iterdir()) == []
    await chunks.fetch(engine, spool, sha256)
    assert (directory / f"{sha256}.tar").read_bytes() == data


async def test_swapped_chunks_are_refused_and_nothing_is_left(engine, controller, spool, directory):
    data = content(3 * CHUNK_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    for number, other in enumerate([1, 0, 2, 3]):
        await controller.put_chunk(sha256, number, data[other * CHUNK_BYTES :][:CHUNK_BYTES])
    with pytest.raises(NotFetched, match="with the digest"):
        await chunks.fetch(engine, spool, sha256)
    assert list(directory.iterdir()) == []


async def test_bundle_that_never_ends_is_cut_at_the_limit(spool, directory):
    class Endless:
        async def chunk(self, digest, number):
            return bytes(CHUNK_BYTES)

    with pytest.raises(NotFetched, match="at most 2097152 bytes"):
        await chunks.fetch(Endless(), spool, "0" * 64)
    assert list(directory.iterdir()) == []


async def test_lost_connection_keeps_what_came(fleet, controller, spool, directory, node, tmp_path):
    data = content(12 * CHUNK_BYTES + 1)
    sha256 = await kept(controller, tmp_path, data)
    async with (
        asyncio.timeout(WAIT_S),
        cut_wires.forwarding(fleet.servers[0].port) as wire,
        fleet.connected(node, urls=(f"tls://127.0.0.1:{wire.port}",)) as connection,
    ):
        engine = NatsEngine(connection, node)

        class CutAtFive:
            async def chunk(self, digest, number):
                if number == 5:
                    wire.cut()
                    await until(lambda: _down(connection))
                return await engine.chunk(digest, number)

        with pytest.raises(EngineUnavailable):
            await chunks.fetch(CutAtFive(), spool, sha256)
        came = (directory / f"{sha256}.part").read_bytes()
        assert data.startswith(came)
        wire.heal()
        await connection.wait_up()
        await chunks.fetch(engine, spool, sha256)
    assert (directory / f"{sha256}.tar").read_bytes() == data


async def _down(connection):
    return not connection.up


async def test_cancelled_fetch_leaves_no_descriptor_and_goes_on_later(engine, controller, spool, directory, tmp_path):
    data = content(9 * CHUNK_BYTES)
    sha256 = await kept(controller, tmp_path, data)
    reached = asyncio.Event()

    class Waiting:
        async def chunk(self, digest, number):
            if number == 4:
                reached.set()
                await asyncio.Event().wait()
            return await engine.chunk(digest, number)

    fetching = asyncio.create_task(chunks.fetch(Waiting(), spool, sha256))
    await reached.wait()
    fetching.cancel()
    await asyncio.wait({fetching})
    await chunks.fetch(engine, spool, sha256)
    assert (directory / f"{sha256}.tar").read_bytes() == data


class TestSpool:
    def test_oldest_files_go_first_and_never_the_one_that_is_fetched(self, spool, directory):
        names = [f"{number:064x}.tar" for number in range(4)]
        for age, name in enumerate(names):
            (directory / name).write_bytes(bytes(1 << 20))
            os.utime(directory / name, (age + 1, age + 1))
        oldest = f"{9:064x}"
        (directory / f"{oldest}.part").write_bytes(bytes(CHUNK_BYTES))
        os.utime(directory / f"{oldest}.part", (0, 0))
        (directory / "of-the-operator.tar").write_bytes(b"mine")
        with spool.begin(oldest) as partial:
            assert partial.size == CHUNK_BYTES
        left = {one.name for one in directory.iterdir()}
        assert left == {f"{oldest}.part", "of-the-operator.tar", names[3]}

    def test_bundle_that_is_coming_is_not_what_goes_to_make_room_for_another(self, directory):
        spool = Spool(directory, most_bytes=4 << 20, bundle_bytes=2 << 20)
        assert spool.at_once == 2
        whole = directory / f"{3:064x}.tar"
        whole.write_bytes(bytes(CHUNK_BYTES))
        with spool.begin(f"{1:064x}") as first:
            first.write(bytes(1 << 20))
            os.utime(directory / f"{1:064x}.part", (0, 0))
            with spool.begin(f"{2:064x}") as second:
                second.write(bytes(2 << 20))
                first.write(bytes(1 << 20))
                assert sum(one.stat().st_size for one in directory.iterdir()) == 4 << 20
        for age, number in enumerate((1, 2), 1):
            os.utime(directory / f"{number:064x}.part", (age, age))
        with spool.begin(f"{4:064x}"):
            left = {one.name for one in directory.iterdir()}
        assert left == {f"{2:064x}.part", f"{4:064x}.part"}

    @pytest.mark.parametrize("make", ["link", "fifo", "directory"])
    def test_what_is_no_file_of_its_own_is_not_written(self, spool, directory, tmp_path, make):
        sha256 = "a" * 64
        place, other = directory / f"{sha256}.part", tmp_path / "other"
        other.write_bytes(b"untouched")
        match make:
            case "link":
                place.symlink_to(other)
            case "fifo":
                os.mkfifo(place)
            case "directory":
                place.mkdir()
        with pytest.raises((OSError, NotFetched)):
            spool.begin(sha256)
        assert other.read_bytes() == b"untouched"

    @pytest.mark.parametrize("text", ["../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", ""])
    def test_name_that_is_no_digest_is_refused(self, spool, text):
        with pytest.raises(ValueError, match="64 hex digits"):
            spool.begin(text)

    def test_whole_file_can_be_read_by_the_daemons_user_whatever_the_umask(self, spool, directory):
        data = b"bundle"
        sha256 = hashlib.sha256(data).hexdigest()
        before = os.umask(0o077)
        try:
            with spool.begin(sha256) as partial:
                partial.write(data)
                partial.finish()
        finally:
            os.umask(before)
        assert (directory / f"{sha256}.tar").stat().st_mode & 0o777 == 0o644
        spool.forget(sha256)
        assert list(directory.iterdir()) == []


async def test_full_disk_leaves_nothing_of_it(spool, directory):
    """The kernel refuses to write on (EFBIG here, ENOSPC on a full disk)."""

    class Large:
        async def chunk(self, digest, number):
            return bytes(CHUNK_BYTES) if number < 8 else b""

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * CHUNK_BYTES + 100, hard))
    try:
        with pytest.raises(NotFetched, match="expected room"):
            await chunks.fetch(Large(), spool, "b" * 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(directory.iterdir()) == []

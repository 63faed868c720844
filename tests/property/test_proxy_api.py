"""Answers of a core's API: any bytes are connections or a ValueError, never more and never something else."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from latticed.system.proxy import api
from latticed.system.proxy.usage import Connection

IDS = [f"{index:08x}-185d-43ac-bb00-9a0a0e7ab31f" for index in range(4)]


def varint(value):
    made = b""
    while value > 0x7F:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def told(*connections, reset=True, closed=0):
    """A first frame as sing-box 1.14 writes it."""
    message = b""
    for one in connections:
        inner = field(1, one.id.encode()) + field(2, b"ss") + field(4, 4) + field(6, one.source.encode())
        inner += field(10, one.user.encode()) + field(12, 1_795_942_882_515) + field(13, closed)
        inner += field(16, one.up_bytes) + field(17, one.down_bytes) + field(21, b"direct")
        message += field(1, field(2, one.id.encode()) + field(3, inner))
    return message + (field(2, 1) if reset else b"")


ANNA = Connection(id=IDS[0], user="anna", source="198.51.100.1:5", up_bytes=300, down_bytes=1 << 40)
BEN = Connection(id=IDS[1], user="ben", source="[2001:db8::1]:65535", up_bytes=0, down_bytes=127)


def test_users_sources_and_bytes_are_read():
    first, second = api.connections(told(ANNA, BEN))
    assert (first.id, first.user, first.source, first.up_bytes, first.down_bytes) == (
        IDS[0],
        "anna",
        "198.51.100.1",
        300,
        1 << 40,
    )
    assert (second.user, second.source, second.down_bytes) == ("ben", "2001:db8::1", 127)
    assert api.connections(told()) == ()
    (ended,) = api.connections(told(ANNA, closed=1))
    assert (ended.is_open, first.is_open, ended.id, ended.down_bytes) == (False, True, IDS[0], 1 << 40)


def test_what_is_no_whole_list_is_refused():
    with pytest.raises(ValueError):
        api.connections(told(ANNA, reset=False))
    with pytest.raises(ValueError):
        api.connections(told(Connection(id="x", user="anna")))
    with pytest.raises(ValueError):
        api.connections(told(Connection(id=IDS[0], user="anna", up_bytes=(1 << 64) - 1)))


def test_a_name_that_no_user_can_have_is_nobodys():
    (found,) = api.connections(told(Connection(id=IDS[0], user="an\nna", source="nowhere")))
    assert (found.user, found.source) == ("", "")


@pytest.mark.parametrize(
    "hostile",
    [field(3, 1) * (1 << 19), field(2, 1) + field(1, b"".join(field(number, 1) for number in range(1 << 16)))],
    ids=["fields", "one event"],
)
def test_what_a_core_that_was_taken_over_tells_takes_no_memory_beside_itself(hostile):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            api.connections(hostile)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(hostile)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(300))
def test_any_bytes_are_connections_or_refused(seed):
    rng = random.Random(seed)
    data = bytearray(told(ANNA, BEN)) if rng.random() < 0.7 else bytearray(rng.randbytes(rng.randrange(60)))
    for _ in range(rng.randrange(1, 5)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.3:
                del data[rng.randrange(len(data)) :]
    try:
        found = api.connections(bytes(data))
    except ValueError:
        return
    assert all(one.up_bytes >= 0 and one.down_bytes >= 0 for one in found)


def test_requests_are_frames_of_what_they_ask():
    assert api.close_request(IDS[0]) == b"\0\0\0\0\x26" + field(1, IDS[0].encode())
    assert api.list_request()[5:] == field(1, 3_600 * 10**9)

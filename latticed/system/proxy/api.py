"""What sing-box's `api` service is asked and answers: gRPC-web over HTTP/1.1, on loopback, with a secret. Pure.

    POST /daemon.StartedService/SubscribeConnections     frames: who is connected now, then changes until one hangs up
    POST /daemon.StartedService/CloseConnection          ends one; also answers well for one that is not there
    Authorization: Bearer SECRET

Measured with 1.14: the first frame tells of all connections that are open, and of some that have ended, with all their
bytes; none that it tells no more comes back. It has the mark `reset`. A frame is a byte of flags, four of length, and a
message of protobuf; with the highest flag it is the end instead, as headers.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from latticed.system.proxy.usage import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT_TYPE: Final = "application/grpc-web+proto"
LIST_PATH: Final = "/daemon.StartedService/SubscribeConnections"
CLOSE_PATH: Final = "/daemon.StartedService/CloseConnection"
MAX_FRAME_BYTES: Final = 32 << 20
"""Some 100,000 connections; sing-box tells them all in one frame."""
MAX_EVENT_BYTES: Final = 64 << 10
"""What is told of one connection; some 300 bytes."""
HEADER_BYTES: Final = 5
_INTERVAL_NS: Final = 3_600_000_000_000
"""Between changes, which nobody waits for."""
_END: Final = 0x80
_MAX_VARINT_BYTES: Final = 10
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_USER: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SOURCE: Final = re.compile(r"\[?([0-9A-Fa-f:.]{2,45}?)\]?:[0-9]{1,5}")
# Fields of messages, by number (daemon/started_service.proto).
_EVENTS: Final = 1
_RESET: Final = 2
_CONNECTION: Final = 3
_ID_FIELD: Final = 1
_SOURCE_FIELD: Final = 6
_USER_FIELD: Final = 10
_CLOSED_AT: Final = 13
_UP_TOTAL: Final = 16
_DOWN_TOTAL: Final = 17


def list_request() -> bytes:
    """The body that asks for all connections."""
    return _frame(b"\x08" + _varint(_INTERVAL_NS))


def close_request(connection_id: str) -> bytes:
    """The body that ends one."""
    data = connection_id.encode("ascii")
    return _frame(b"\x0a" + _varint(len(data)) + data)


def frame_length(header: bytes) -> int:
    """How many bytes follow these five; ValueError for the end, and for too many.

    Where the secret is wrong, there are none: the status is among the headers of HTTP.
    """
    if len(header) != HEADER_BYTES:
        raise ValueError("the core's API told nothing")
    flags, length = struct.unpack(">BI", header)
    if flags & _END:
        raise ValueError("the core's API ended its answer without telling connections")
    if flags or length > MAX_FRAME_BYTES:
        raise ValueError("no frame of the core's API")
    return int(length)


def refusal(body: bytes) -> str:
    """Why a call that answers with nothing failed; empty when it did not. ValueError for what is no such answer."""
    place = 0
    while place + HEADER_BYTES <= len(body):
        flags, length = struct.unpack(">BI", body[place : place + HEADER_BYTES])
        data = body[place + HEADER_BYTES : place + HEADER_BYTES + length]
        if flags & _END:
            status = re.search(rb"(?:^|\n)grpc-status: ?([0-9]{1,3})\r?(?:\n|$)", data)
            if status is None:
                break
            return "" if int(status[1]) == 0 else f"gRPC status {int(status[1])}"
        place += HEADER_BYTES + length
    raise ValueError("no answer of the core's API")


def connections(message: bytes) -> tuple[Connection, ...]:
    """The connections of the first frame, in its order, those included that have ended and that it tells still.

    ValueError for anything else.
    """
    found, is_whole = [], False
    # One field after the other: a core that was taken over may tell millions of them.
    for number, value in _fields(message):
        is_whole = is_whole or (number, value) == (_RESET, 1)
        if number == _EVENTS:
            event = dict(_fields(_bytes(value, MAX_EVENT_BYTES)))
            found.append(_connection(dict(_fields(_bytes(event.get(_CONNECTION))))))
    if not is_whole:
        raise ValueError("no list of all connections")
    return tuple(found)


def _connection(fields: dict[int, int | bytes]) -> Connection:
    user = _text(fields.get(_USER_FIELD, b""))
    source = _SOURCE.fullmatch(_text(fields.get(_SOURCE_FIELD, b"")))
    identity = _text(fields.get(_ID_FIELD))
    if not _ID.fullmatch(identity):
        raise ValueError("a connection without an id")
    return Connection(
        id=identity,
        # The names are those of our file; a stranger's cannot be one.
        user=user if _USER.fullmatch(user) else "",
        source=source[1] if source else "",
        up_bytes=_whole(fields.get(_UP_TOTAL, 0)),
        down_bytes=_whole(fields.get(_DOWN_TOTAL, 0)),
        is_open=not fields.get(_CLOSED_AT),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field (protobuf.dev, Encoding)."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        match key & 7:
            case 0:
                value, place = _read_varint(message, place)
                yield key >> 3, value
            case 2:
                length, place = _read_varint(message, place)
                if place + length > len(message):
                    raise ValueError("a message of the core's API that is cut off")
                yield key >> 3, message[place : place + length]
                place += length
            case 1:
                place += 8
            case 5:
                place += 4
            case _:
                raise ValueError("a message of the core's API of another kind")


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place
    raise ValueError("a message of the core's API that is cut off")


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def _bytes(value: int | bytes | None, limit: int = MAX_FRAME_BYTES) -> bytes:
    if not isinstance(value, bytes) or len(value) > limit:
        raise ValueError("a message of the core's API of another kind")
    return value


def _text(value: int | bytes | None) -> str:
    return _bytes(value).decode("ascii", "replace")


def _whole(value: int | bytes) -> int:
    # int64: a negative one is nothing that was counted.
    if not isinstance(value, int) or value >= 1 << 63:
        raise ValueError("a message of the core's API of another kind")
    return value

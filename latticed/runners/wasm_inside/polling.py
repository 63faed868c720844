"""poll_oneoff: waiting for input or for time to pass (witx: subscription is 48 bytes, event 32)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latticed.runners.wasm_inside.streams import Streams

MOST: Final = 64
"""How many subscriptions one call may have."""
# Kinds of events, then clock and errno numbers, as in the witx.
_CLOCK, _READ, _WRITE = 0, 1, 2
_MONOTONIC: Final = 1
_BADF, _INVAL, _NOTSUP = 8, 28, 58
_LONGEST_S: Final = 3600.0  # of one wait, after which everything is looked at again


@dataclass(frozen=True, slots=True, kw_only=True)
class PollRequest:
    """One subscription. `userdata` is given back with the event; `kind` 0 is a clock, 1 reading, 2 writing.

    `timeout_ns` is relative to the call, or a time of the monotonic clock if `absolute`.
    """

    userdata: int
    kind: int
    fd: int = 0
    clock: int = 0
    timeout_ns: int = 0
    absolute: bool = False


def read(data: bytes) -> PollRequest:
    """Decode a subscription of 48 bytes."""
    # Offsets in bytes: userdata 0 (u64), kind 8 (u8), then from 16 a descriptor (u32), or a clock: id 16 (u32), timeout
    # 24 (u64), precision 32 (u64), flags 40 (u16), of which bit 0 is `absolute`.
    userdata, kind = struct.unpack_from("<QB", data)
    if kind != _CLOCK:
        return PollRequest(userdata=userdata, kind=kind, fd=struct.unpack_from("<I", data, 16)[0])
    clock, timeout_ns, _, flags = struct.unpack_from("<IxxxxQQH", data, 16)
    return PollRequest(userdata=userdata, kind=kind, clock=clock, timeout_ns=timeout_ns, absolute=bool(flags & 1))


def wait(asked: Sequence[PollRequest], streams: Streams, now_ns: Callable[[], int]) -> list[bytes]:
    """Block until at least one event occurred; return all that have, 32 bytes each.

    A subscription that can never be fulfilled is an event at once, with an errno. `now_ns` is the module's monotonic
    clock.
    """
    began_ns = now_ns()
    while True:
        events = [event for one in asked if (event := _event(one, streams, now_ns, began_ns)) is not None]
        if events:
            return events
        waits_s = [_left_ns(one, now_ns(), began_ns) / 1e9 for one in asked if one.kind == _CLOCK]
        streams.wait(min([*waits_s, _LONGEST_S]), reading=any(one.kind == _READ for one in asked))


def _left_ns(one: PollRequest, now_ns: int, began_ns: int) -> int:
    """Nanoseconds until the subscribed time of a clock, negative once it has passed; a relative one counts from
    `began_ns`.
    """
    return one.timeout_ns - (now_ns if one.absolute else now_ns - began_ns)


def _event(one: PollRequest, streams: Streams, now_ns: Callable[[], int], began_ns: int) -> bytes | None:
    """The event of a subscription, None while it has not occurred."""
    if one.kind == _CLOCK:
        if one.absolute and one.clock != _MONOTONIC:  # only the monotonic clock advances
            return _packed(one, _NOTSUP, 0)
        return _packed(one, 0, 0) if _left_ns(one, now_ns(), began_ns) <= 0 else None
    if one.kind not in {_READ, _WRITE}:
        return _packed(one, _INVAL, 0)
    if not streams.has(one.fd) or (one.fd == 0) != (one.kind == _READ):
        return _packed(one, _BADF, 0)
    if one.kind == _WRITE:  # always: a write blocks as long as it must
        return _packed(one, 0, 1)
    # How much there is, as far as is known; 1 also stands for end of file.
    return _packed(one, 0, max(streams.buffered, 1)) if streams.readable() else None


def _packed(one: PollRequest, error: int, size: int) -> bytes:
    """The event as bytes: userdata, errno, kind, bytes available, flags."""
    return struct.pack("<QHBxxxxxQHxxxxxx", one.userdata, error, one.kind, size, 0)

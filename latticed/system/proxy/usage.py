"""How much each user has used, from what the core tells of live connections. A state machine, pure.

    state = polled(state, [Connection(id="64b0…", user="anna", source="198.51.100.7", up_bytes=16, down_bytes=0)])

The core counts by connection, from its opening, and names each by a random UUID; so what was seen of one before is
taken off, and a core that starts anew has other ids. The state is kept after each poll, that of a user whole or not at
all (`split`). Of connections that have ended the core tells some for a while, with all that they carried. What another
one carries between the last poll and its end is lost, and nothing else: that is the one poll. Read again from the last
kept state, after a kill, the same connections give the same sums.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

GROUPS: Final = 16
MAX_TOLD: Final = 30_000
"""Connections that are told one by one, some 200 bytes each: an answer of the helper has 8 MiB."""
MAX_SEEN: Final = 100_000
"""Connections of which is kept what was seen, those that are not told at the moment included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection; bytes since it was opened. `user` empty: of none, and not counted. `is_open`: it goes on."""

    id: str
    user: str
    source: str = ""
    up_bytes: int = 0
    down_bytes: int = 0
    is_open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCount:
    up_bytes: int = 0
    down_bytes: int = 0

    def total(self) -> int:
        return self.up_bytes + self.down_bytes

    def plus(self, other: ByteCount) -> ByteCount:
        return ByteCount(up_bytes=self.up_bytes + other.up_bytes, down_bytes=self.down_bytes + other.down_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """`used`: by user. `seen`: by connection, as `anna 64b0…`, what of it is in `used` already.

    `ended`: by user, the end that was once reached, in seconds since 1970: a clock that is set back opens nothing.
    `knows_ended`: connections that have ended were polled before; the first time they count nothing, since a version
    before has counted them while they were open.
    """

    used: Mapping[str, ByteCount] = field(default_factory=dict)
    seen: Mapping[str, ByteCount] = field(default_factory=dict)
    ended: Mapping[str, int] = field(default_factory=dict)
    knows_ended: bool = True


def told(connections: Sequence[Connection], most: int) -> tuple[tuple[Connection, ...], dict[str, int]]:
    """At most `most` of them, and by user how many are left out: of those who have the most, those with least bytes."""
    if len(connections) <= most:
        return tuple(connections), {}
    by_user: dict[str, list[Connection]] = {}
    for one in sorted(connections, key=lambda one: (not one.is_open, -one.up_bytes - one.down_bytes, one.id)):
        by_user.setdefault(one.user, []).append(one)
    ranked = sorted((rank, name, one) for name, listed in by_user.items() for rank, one in enumerate(listed))
    left = Counter(name for _, name, _ in ranked[most:])
    return tuple(one for _, _, one in ranked[:most]), dict(left)


def polled(before: Usage, connections: Iterable[Connection], partly: Collection[str] = ()) -> Usage:
    """The state after a poll that told of these connections, all there are but for the users in `partly`, and of some
    that have ended.

    Of those it is kept what was seen, since their other connections may be told again; of MAX_SEEN at most.
    """
    used = dict(before.used)
    seen: dict[str, ByteCount] = {}
    for one in connections:
        if not one.user:
            continue
        # Counters never go back; one that seems to is taken for what was seen, since nothing may count twice.
        key = f"{one.user} {one.id}"
        was = seen.get(key) or before.seen.get(key)
        if was is None:
            is_new = one.is_open or before.knows_ended
            was = ByteCount() if is_new else ByteCount(up_bytes=one.up_bytes, down_bytes=one.down_bytes)
        now = ByteCount(up_bytes=max(one.up_bytes, was.up_bytes), down_bytes=max(one.down_bytes, was.down_bytes))
        more = ByteCount(up_bytes=now.up_bytes - was.up_bytes, down_bytes=now.down_bytes - was.down_bytes)
        seen[key] = now
        used[one.user] = used.get(one.user, ByteCount()).plus(more)
    untold = [key for key in before.seen if key.partition(" ")[0] in partly and key not in seen] if partly else []
    kept = untold[max(0, len(untold) + len(seen) - MAX_SEEN) :]
    return replace(before, used=used, seen={**{key: before.seen[key] for key in kept}, **seen}, knows_ended=True)


def ticked(before: Usage, until: Mapping[str, int], now_s: int) -> Usage:
    """With the ends that are reached at `now_s`. `until`: by user, those of the intent."""
    reached = {name: end for name, end in until.items() if end <= now_s}
    return replace(before, ended={**before.ended, **reached}) if reached else before


def wait_s(until: Iterable[int], now_s: float, most_s: float) -> float:
    """The seconds to the next of these ends; `most_s` where none comes before."""
    return min([most_s, *(end - now_s for end in until if end > now_s)])


def reset(before: Usage, user: str) -> Usage:
    """With nothing used by this user; what he has open counts from now on."""
    return replace(before, used={name: count for name, count in before.used.items() if name != user})


def of_users(before: Usage, names: Collection[str]) -> Usage:
    """With what these users have used, and nobody else."""
    used = {name: count for name, count in before.used.items() if name in names}
    return replace(before, used=used, ended={name: end for name, end in before.ended.items() if name in names})


def over(state: Usage, until: Mapping[str, int], quotas: Mapping[str, int], now_s: int) -> frozenset[str]:
    """Who has to be cut: those over their quota, and those whose end is reached, or was once. By user, of the intent.

    Another end than the one that was reached, later than now, is a new beginning.
    """
    ended = {name for name, end in until.items() if end <= now_s or state.ended.get(name) == end}
    spent = {name for name, most in quotas.items() if state.used.get(name, ByteCount()).total() >= most}
    return frozenset(ended | spent)


def sources(connections: Iterable[Connection]) -> dict[str, int]:
    """From how many addresses each user is connected at once: about as many as he has devices."""
    found: dict[str, set[str]] = {}
    for one in connections:
        if one.user and one.source and one.is_open:
            found.setdefault(one.user, set()).add(one.source)
    return {name: len(found[name]) for name in sorted(found)}


def group(user: str) -> int:
    """The group that a user's state is kept in: 2,000 users are more than one value of kv holds."""
    return zlib.crc32(user.encode()) % GROUPS


def split(state: Usage) -> tuple[Usage, ...]:
    """The state of each group of users; a user's bytes, and what of them was seen, are in one."""
    parts: list[tuple[dict[str, ByteCount], dict[str, ByteCount], dict[str, int]]] = [
        ({}, {}, {}) for _ in range(GROUPS)
    ]
    for name, count in state.used.items():
        parts[group(name)][0][name] = count
    for key, count in state.seen.items():
        parts[group(key.partition(" ")[0])][1][key] = count
    for name, end in state.ended.items():
        parts[group(name)][2][name] = end
    knows = state.knows_ended
    return tuple(Usage(used=used, seen=seen, ended=ended, knows_ended=knows) for used, seen, ended in parts)


def joined(parts: Iterable[Usage]) -> Usage:
    """What `split` took apart."""
    used: dict[str, ByteCount] = {}
    seen: dict[str, ByteCount] = {}
    ended: dict[str, int] = {}
    knows = True
    for one in parts:
        used |= one.used
        seen |= one.seen
        ended |= one.ended
        knows = knows and one.knows_ended
    return Usage(used=used, seen=seen, ended=ended, knows_ended=knows)


def written(state: Usage) -> str:
    return json.dumps(
        {
            "used": {name: [one.up_bytes, one.down_bytes] for name, one in state.used.items()},
            "seen": {name: [one.up_bytes, one.down_bytes] for name, one in state.seen.items()},
            "ended": dict(state.ended),
            "knows_ended": state.knows_ended,
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def read(value: bytes | str | None) -> Usage:
    """What `written` wrote; nothing used where there is none. ValueError for what it never writes."""
    if value is None:
        return Usage()
    found = json.loads(value)
    try:
        knows = found.get("knows_ended", False) is True
        used, seen = _counts(found["used"]), _counts(found["seen"])
        return Usage(used=used, seen=seen, ended=_ends(found["ended"]), knows_ended=knows)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no state of usage") from error


def _counts(value: dict[str, Any]) -> dict[str, ByteCount]:
    return {name: ByteCount(up_bytes=_whole(up), down_bytes=_whole(down)) for name, (up, down) in value.items()}


def _ends(value: dict[str, Any]) -> dict[str, int]:
    return {name: _whole(end) for name, end in value.items()}


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no state of usage")
    return value

"""What an operator configures, and what the plugin remembers: frozen models. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from datetime import tzinfo

    from latticed.model.addresses import Network

# What the plugin is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """Logins that are expected; what is empty holds for any. `hours`: pairs of minutes of the day, from and until (not
    included); until before from goes over midnight. `days`: 0 is Monday; the day of the login itself.
    """

    users: tuple[str, ...]
    networks: tuple[Network, ...]
    hours: tuple[tuple[int, int], ...]
    days: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The configuration, checked. With `allow` empty every login is expected; otherwise one that no rule allows is
    told as such. `failures` within `window_s` seconds are told.
    """

    allow: tuple[Allow, ...] = ()
    zone: tzinfo
    failures: int = 5
    window_s: int = 600
    tell: Literal["every", "unusual"] = "every"
    poll_s: int = 10


class Entry(Struct, frozen=True, kw_only=True):
    """An entry of node.journal, as far as it is needed. `dropped`: of how many messages journald says that it did not
    take them.
    """

    id: str
    at: str | None
    message: str
    trusted: bool
    dropped: int


class Page(Struct, frozen=True, kw_only=True):
    """An answer of node.journal."""

    entries: tuple[Entry, ...]
    cursor: str
    gap: bool


# What it remembers. Times are seconds since the epoch, those of the entries. Each part is bounded (`watch`).


class Known(Struct, frozen=True):
    """Logins of one user from one network so far."""

    first_s: int
    last_s: int
    count: int


class Run(Struct, frozen=True, kw_only=True):
    """Equal events, of which the first are told and the others counted until the run is over: since `since_s`, `told`
    ones, `more` ones; `id` of the first entry; `about` for the message.
    """

    since_s: int
    id: str
    told: int = 0
    more: int = 0
    about: dict[str, Any] = {}


class Attack(Struct, frozen=True, kw_only=True):
    """Failed attempts that go on. `id`: of the entry with which they were many; `messages` so far, the last at
    `told_s`, the next `pause_s` later at the earliest; `untold` since then. `networks` and `users`: the most frequent
    ones with a lower bound of their number (Misra and Gries, 1982).
    """

    id: str
    first_s: int
    last_s: int
    total: int
    untold: int
    told_s: int
    pause_s: int
    messages: int
    networks: dict[str, int]
    users: dict[str, int]


class Seen(Struct, frozen=True, kw_only=True):
    """One login, for `status`."""

    at_s: int
    user: str
    address: str
    method: str
    fingerprint: str
    flags: tuple[str, ...]


class Counts(Struct, frozen=True, kw_only=True):
    """Since the plugin was first started."""

    logins: int = 0
    failures: int = 0
    unread: int = 0
    dropped: int = 0
    gaps: int = 0


class State(Struct, frozen=True, kw_only=True):
    """`cursor`: entries up to it are in here. `few`: (time, network, user) of failures that are not many yet.
    `connections`: the last ones with a failure, and whether `Failed …` was one. `gap_at`: the cursor at which a gap was
    told. `down_s`: since when entries cannot be read, 0 when they can; `down_told`; `downs`: how often it was told.
    `trusted`: whether the last entry was journald's word; `sample`: the last message that could not be read.
    """

    cursor: str = ""
    at_s: int = 0
    trusted: bool = True
    counts: Counts = Counts()
    known: dict[str, Known] = {}
    logins: tuple[Seen, ...] = ()
    runs: dict[str, Run] = {}
    few: tuple[tuple[int, str, str], ...] = ()
    attack: Attack | None = None
    connections: dict[str, bool] = {}
    sample: str = ""
    gap_at: str = ""
    down_s: int = 0
    down_told: bool = False
    downs: int = 0

"""Who of several controllers acts: a lease that is taken and renewed by compare-and-set, and ends by itself.

It is held until `margin_s` before the engine drops it, by a clock that nobody sets and from before it was asked for:
whatever becomes of answers, two do not act at the same time, unless an engine lies. Then generations and
compare-and-set keep nodes from taking up anything twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet.engine import Conflict, EngineUnavailable
from latticed.kit import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.fleet.engine import ControllerEngine

KEY: Final = "lease"
_MOST_BYTES: Final = 1 << 10
_STALE: Final = 3
"""Lives of a lease after which one that was not renewed meanwhile is nobody's."""

log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePeriods:
    """Seconds: how long a lease lasts, how often it is renewed, and how much sooner than its end nobody acts."""

    ttl_s: int = 15
    renew_s: float = 4.0
    margin_s: float = 3.0
    look_s: float = 2.0
    """How often one who does not hold it looks whether it is free."""


def boottime_s() -> float:
    """Seconds by the clock that nobody sets and that goes on while the host is suspended (clock_gettime(2)): the engine
    does not wait for a host that sleeps.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseWords(Struct, frozen=True, kw_only=True):
    """What is kept under `KEY`. `instance` is of one start of a controller; `at` by its clock."""

    holder: Annotated[str, Meta(max_length=63)]
    instance: Annotated[str, Meta(max_length=32)]
    at: Annotated[int, Meta(ge=0, le=2**40)]
    until: Annotated[int, Meta(ge=0, le=2**40)]


class Lease:
    """`keep` runs for as long as the process; `held` says whether to act, at any moment."""

    def __init__(
        self,
        engine: ControllerEngine,
        holder: str,
        *,
        periods: LeasePeriods | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._holder = holder
        self._periods = periods or LeasePeriods()
        self._changed = changed
        self._instance = secrets.token_hex(16)
        self._revision = 0
        self._until_s = 0.0
        self._was_held = False
        self.seen: LeaseWords | None = None
        """Who holds it, as it was last seen; None when nobody does."""
        self.seen_s = boottime_s()
        """When `seen` was last another one, or another moment of the same (`boottime_s`)."""
        self.other_lives = False
        """Whether another controller was seen to renew it: what it shares is then the newest that there is."""
        self.lost = 0
        """How often it was lost while it was wanted."""
        self.epoch = 0
        """Grows each time that it is taken."""

    @property
    def held(self) -> bool:
        """Whether this controller may act now."""
        return boottime_s() < self._until_s

    async def keep(self) -> None:
        """Take it when it is free, renew it, and take it again when it was lost."""
        while True:
            held = self.held
            # What fails changes nothing: it stays held for as long as it surely is.
            with contextlib.suppress(EngineUnavailable):
                await (self._renew() if held or self._until_s else self._try())
            self._tell()
            pause_s = self._periods.renew_s if self.held else self._periods.look_s
            # Not later than it ends: then whoever asks is told so.
            left_s = self._until_s - boottime_s()
            await asyncio.sleep(min(pause_s, left_s) if left_s > 0 else pause_s)
            self._tell()

    async def release(self) -> None:
        """Give it up, so that another controller need not wait for its end."""
        if not self.held:
            return
        self._until_s = 0.0
        with contextlib.suppress(EngineUnavailable, Conflict):
            await self._engine.put(KEY, b"", self._revision, ttl_s=1)

    async def _renew(self) -> None:
        if not self.held:
            self._drop()
            return
        began_s = boottime_s()
        try:
            self._took(await self._put(self._revision), began_s)
        except Conflict:
            # A renewal whose answer was lost, or somebody else.
            if not await self._mine():
                self._drop()

    async def _try(self) -> None:
        """Take it if nobody has it."""
        kept = await self._engine.get(KEY)
        words = _read(kept.data) if kept is not None else None
        if words != self.seen:
            before, self.seen, self.seen_s = self.seen, words, boottime_s()
            self.other_lives |= before is not None and words is not None and before.instance == words.instance
        # One that was never renewed is held by nobody, even where the engine does not drop it.
        stale = boottime_s() - self.seen_s > _STALE * self._periods.ttl_s
        if words is not None and words.instance != self._instance and not stale:
            return
        began_s = boottime_s()
        try:
            revision = await self._put(kept.revision if kept is not None else 0)
        except Conflict:
            return
        self.epoch += 1
        self._took(revision, began_s)
        log.info("lease_taken", holder=self._holder)

    async def _mine(self) -> bool:
        """Whether what is kept is of this instance all the same; then it is gone on with."""
        kept = await self._engine.get(KEY)
        words = _read(kept.data) if kept is not None else None
        self.seen = words
        if kept is None or words is None or words.instance != self._instance:
            return False
        self._revision = kept.revision
        return True

    async def _put(self, expected: int) -> int:
        now_s = int(time.time())
        words = LeaseWords(holder=self._holder, instance=self._instance, at=now_s, until=now_s + self._periods.ttl_s)
        revision = await self._engine.put(KEY, msgspec.json.encode(words), expected, ttl_s=self._periods.ttl_s)
        self.seen, self.seen_s = words, boottime_s()
        return revision

    def _took(self, revision: int, began_s: float) -> None:
        self._revision = revision
        self._until_s = began_s + self._periods.ttl_s - self._periods.margin_s

    def _drop(self) -> None:
        self._until_s = 0.0
        self.lost += 1
        log.warning("lease_lost", holder=self._holder)

    def _tell(self) -> None:
        if self.held != self._was_held:
            self._was_held = self.held
            self._changed()


def _read(data: bytes) -> LeaseWords | None:
    """Who holds a lease; None for nobody, or for what no controller wrote."""
    if not data or len(data) > _MOST_BYTES:
        return None
    try:
        return msgspec.json.decode(data, type=LeaseWords)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None

"""The newest events, read once for all event streams that follow them, and formatted once per scope.

A stream whose position is in none of the blocks kept here is behind: it reads its pages itself, until it has caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.model.chain import Position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from latticed.model import chain

KEPT: Final = 5
"""Blocks kept, each a page of events: by so many a stream may be late without reading them itself."""
# What is recorded within this time goes out together, in one write to each stream: 32 of them that show host calls
# would else wake up for every commit. The first event after a pause is not delayed.
GATHER_S: Final = 0.02
log = logs.get_logger()


class EventPage(NamedTuple):
    """Events, the position after them, and whether more can be read without waiting."""

    events: list[dict[str, Any]]
    upto: Position
    more: bool


class Block:
    """The events after `start` and up to `upto`. `chunks`: them as bytes, by the scope of who is shown them."""

    __slots__ = ("chunks", "events", "start", "upto")

    def __init__(self, start: Position, page: EventPage) -> None:
        self.start, self.upto, self.events = start, page.upto, page.events
        self.chunks: dict[Hashable, bytes] = {}


class EventTail:
    """Follows the chains named `chains` while anybody is in `joined`.

    `read` returns the page after a position, `grown` returns once there is an event after one, `closing` is set when
    the daemon stops.
    """

    def __init__(
        self,
        *,
        chains: tuple[chain.Name, ...],
        read: Callable[[Position], Awaitable[EventPage]],
        grown: Callable[[Position], Awaitable[None]],
        closing: asyncio.Event,
    ) -> None:
        self.chains = chains
        self._read = read
        self._grown = grown
        self._closing = closing
        self._blocks: deque[Block] = deque(maxlen=KEPT)
        self._readers = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._failed: BaseException | None = None
        self.upto = Position()
        """The position after the newest block."""

    @contextlib.asynccontextmanager
    async def joined(self, newest: Position) -> AsyncIterator[None]:
        """Follow the chains during the block; the first who joins begins at `newest`, the end of the chains now."""
        if not self._readers:
            self._blocks.clear()
            self.upto, self._failed = newest, None
            self._task = fenced(self._follow(), self._fail, name="event tail")
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers and (task := self._task) is not None:
                # Taken before the wait: who joins meanwhile starts another one.
                self._task = None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def block(self, seen: Position) -> Block | None:
        """The block with the events after `seen`; None when there are none yet, or `seen` is before all blocks."""
        for one in reversed(self._blocks):
            if not self.beyond(one.start, seen):
                return one if self.beyond(one.upto, seen) else None
        return None

    def beyond(self, one: Position, other: Position) -> bool:
        """Whether there may be an event after `other` and not after `one`."""
        return any(one.of(name) > other.of(name) for name in self.chains)

    async def news(self, seen: Position, within_s: float) -> bool:
        """Wait until there is something after `seen`, or the daemon stops; False after `within_s` without either.

        Raises what reading the events has failed with.
        """
        if self._failed is not None:
            raise self._failed
        if self.beyond(self.upto, seen) or self._closing.is_set():
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiter)
        return True

    async def _follow(self) -> None:
        """Read what is recorded, block by block, until the daemon stops."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not closing.done():
                page = await self._read(self.upto)
                if self.beyond(page.upto, self.upto):
                    self._blocks.append(Block(self.upto, page))
                    self.upto = page.upto
                    await self._tell()
                if page.more:
                    continue
                await asyncio.wait({closing}, timeout=GATHER_S)
                await self._wait(closing)
        finally:
            closing.cancel()
            self._wake()

    async def _wait(self, closing: asyncio.Future[Any]) -> None:
        """Return once something was recorded or the daemon stops."""
        grown = asyncio.ensure_future(self._grown(self.upto))
        try:
            await asyncio.wait({grown, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            grown.cancel()
            await asyncio.gather(grown, return_exceptions=True)

    async def _tell(self) -> None:
        """Wake whoever waits, one in each turn of the loop: each writes a block. The next is read after that."""
        for waiter in list(self._waiting):
            if not waiter.done():
                waiter.set_result(None)
                await asyncio.sleep(0)

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """Every stream ends with this error; who joins once all have left tries again."""
        log.error("event_tail_failed", error=repr(error))
        self._failed = error
        self._wake()

"""The agent's process with the connection: it carries documents between the engine and the node, and believes none.

It has no scope on the daemon's socket and holds no key that signs a document. Whoever takes it over can keep documents
back and repeat old ones, which the node judges, and send what is not signed by the node, which the controller judges.

Nothing here fails because the engine is away: what is published waits for the next connection in bounded places, the
newest first where only that counts, and events stay with the node until the engine has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.fleet import messages
from latticed.fleet.engine import EngineUnavailable, QuotaExceeded
from latticed.fleet.fetching import Fetching
from latticed.fleet.pace import Pace
from latticed.kit import logs, text
from latticed.model.restart import spread

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Coroutine

    from latticed.fleet.engine import Engine, PendingInvocation
    from latticed.fleet.nats_connection import NatsConnection
    from latticed.fleet.renewing import Renewing
    from latticed.fleet.spool import Spool

log = logs.get_logger()

_READ_BYTES: Final = 64 << 10
_MOST_WAITING: Final = 64
"""Messages to the node that wait for it to read, and events of it that wait for the engine: it sends these again."""
_MOST_INVOCATIONS: Final = 4
"""Asked of the node at once; a further one is not heard, and its asker told by the time."""
_ANSWER_S: Final = 30.0
_STATUSES_AT_ONCE: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPeriods:
    """How often what is done, in seconds; each time ± 20 %, so that nodes do not do it together."""

    reconcile_s: float = 60.0
    """The desired document is looked up, whatever was pushed."""
    beat_s: float = 15.0
    status_s: float = 120.0
    """The status is published although it is the same: the engine may have lost the last minutes, and forgets it."""
    quota_s: float = 60.0
    """Events are tried again that the engine has refused for being too many."""
    statuses_s: float = 7.0
    """From one status to the next when there were a dozen at once: the engine takes 60 in five minutes."""

    share: float = 0.2

    def spread(self, seconds: float) -> float:
        return spread(seconds, self.share, random.random())  # noqa: S311 - spreads load, hides nothing


class _Outbox:
    """What goes to the node. Of a desired document and the connection's state only the newest is worth sending."""

    def __init__(self) -> None:
        self._newest: dict[type, Any] = {}
        self._others: deque[Any] = deque()
        self._filled = asyncio.Event()

    def put(self, message: Any) -> bool:
        """Whether there was room for it."""
        if isinstance(message, messages.NewDesired | messages.LinkState):
            self._newest[type(message)] = message
        elif len(self._others) < _MOST_WAITING:
            self._others.append(message)
        else:
            return False
        self._filled.set()
        return True

    async def take(self) -> bytes:
        """The next message, encoded."""
        while not (self._newest or self._others):
            self._filled.clear()
            await self._filled.wait()
        if self._others:
            return messages.encode(self._others.popleft())
        return messages.encode(self._newest.pop(next(iter(self._newest))))


@dataclass(slots=True)
class _Waiting:
    """What the node has given to be published, and what it was asked."""

    status: bytes | None = None
    status_is_new: asyncio.Event = field(default_factory=asyncio.Event)
    events: dict[int, messages.NewEvent] = field(default_factory=dict)
    event_is_new: asyncio.Event = field(default_factory=asyncio.Event)
    answers: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)


class Link:
    """`async with Link(connection, engine, spool, stream) as link: await link.ended()`: until the node ends.

    `stream` is this process's end of the socketpair. `https_hosts`: servers that bundles may be fetched from, no other;
    `https`: whom to trust for that, instead of the system's authorities. `renewing`: whose credentials are renewed;
    none's without it.
    """

    def __init__(
        self,
        connection: NatsConnection,
        engine: Engine,
        spool: Spool,
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        *,
        periods: LinkPeriods | None = None,
        https: ssl.SSLContext | None = None,
        https_hosts: Collection[str] = (),
        renewing: Renewing | None = None,
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._reader, self._writer = stream
        self._periods = periods or LinkPeriods()
        self._renewing = renewing
        self._outbox = _Outbox()
        self._fetching = Fetching(connection, engine, spool, self._outbox.put, https=https, https_hosts=https_hosts)
        self._waiting = _Waiting()
        self._sent: bytes | None = None
        self._numbers = 0
        self._pushed = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        work: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._read,
            self._write,
            self._reconcile,
            self._watch,
            self._beat,
            self._publish_status,
            self._publish_events,
            self._fetching.work,
            self._hear_invocations,
            self._renew,
        ]
        self._tasks = [asyncio.create_task(one(), name=f"link {one.__name__}") for one in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def ended(self) -> None:
        """Returns when the node has closed its end, and raises what ended one of the tasks here."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def connection_changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - what a connection calls
        """Tell the node, which says so in its status and to whoever asks on the host."""
        self._outbox.put(messages.LinkState(up=up, reason=text.clip(reason, 400)))

    # From and to the node.

    async def _read(self) -> None:
        """Messages of the node, until it ends. BadMessage: it is not what it should be, and the agent ends."""
        decoder = messages.Decoder(messages.ToLink)
        while data := await self._reader.read(_READ_BYTES):
            for message in decoder.feed(data):
                self._taken(message)

    def _taken(self, message: Any) -> None:
        waiting = self._waiting
        match message:
            case messages.NewStatus():
                waiting.status = message.document
                waiting.status_is_new.set()
            case messages.NewEvent():
                if len(waiting.events) < _MOST_WAITING or message.number in waiting.events:
                    waiting.events[message.number] = message
                    waiting.event_is_new.set()
            case messages.BundleNeeded():
                self._fetching.need(message)
            case messages.BundlesKept():
                self._fetching.keep(message.sha256s)
            case messages.NothingNeeded():
                self._fetching.forget()
            case messages.InvocationDone():
                answer = waiting.answers.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message.document)
            case messages.RenewalSigned() if self._renewing is not None:
                self._renewing.signed(message)

    async def _write(self) -> None:
        while True:
            data = await self._outbox.take()
            self._writer.write(data)
            await self._writer.drain()

    # The desired document.

    async def _reconcile(self) -> None:
        """Look it up at each new connection, and again and again."""
        while True:
            await self._connection.wait_up()
            seen = self._connection.connections
            with contextlib.suppress(EngineUnavailable):
                document = await self._looked_up()
                if document is not None:
                    self._hand_over(document)
            await self._pause(self._periods.reconcile_s, seen)

    async def _looked_up(self) -> bytes | None:
        """The desired document. What was asked before another one was pushed may be older, and would take its place in
        the outbox: it is asked again.
        """
        while True:
            pushed = self._pushed
            document = await self._engine.desired()
            if pushed == self._pushed:
                return document

    async def _watch(self) -> None:
        async for document in self._engine.watch_desired():
            self._pushed += 1
            self._hand_over(document)

    def _hand_over(self, document: bytes) -> None:
        # The same one again is of no use; an older one is the node's to judge.
        if document != self._sent:
            self._sent = document
            self._outbox.put(messages.NewDesired(document=document))

    async def _pause(self, seconds: float, seen: int) -> None:
        """Wait so long, or until there is another connection than the one numbered `seen`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._periods.spread(seconds)):
                await self._connection.wait_for_another(seen)

    # What the node publishes.

    async def _beat(self) -> None:
        while True:
            await self._connection.wait_up()
            seen = self._connection.connections
            with contextlib.suppress(EngineUnavailable):
                await self._engine.beat(b"{}")
            await self._pause(self._periods.beat_s, seen)

    async def _publish_status(self) -> None:
        waiting, clock = self._waiting, asyncio.get_running_loop().time
        pace = Pace(burst_s=(_STATUSES_AT_ONCE - 1) * self._periods.statuses_s)
        while True:
            if waiting.status is None:
                await waiting.status_is_new.wait()
                continue
            await asyncio.sleep(pace.wait_s(clock()))
            await self._connection.wait_up()
            waiting.status_is_new.clear()
            pace = pace.spent(self._periods.statuses_s, clock())
            seen = self._connection.connections
            try:
                await self._engine.publish_status(waiting.status)
            except ValueError as error:
                log.info("status_too_large", reason=str(error))
                waiting.status = None
                continue
            except EngineUnavailable as error:
                self._told("status", error)
                await self._pause(self._periods.beat_s, seen)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._periods.spread(self._periods.status_s)):
                    await waiting.status_is_new.wait()

    async def _publish_events(self) -> None:
        """One after the other, in the order of their numbers."""
        waiting = self._waiting
        while True:
            if not waiting.events:
                waiting.event_is_new.clear()
                await waiting.event_is_new.wait()
            await self._connection.wait_up()
            seen = self._connection.connections
            event = waiting.events[min(waiting.events)]
            try:
                await self._engine.publish_event(event.document, event.message_id)
            except ValueError as error:  # no engine ever takes it: it stays with the node, and others go on
                log.info("event_too_large", number=event.number, reason=str(error))
                del waiting.events[event.number]
                continue
            except EngineUnavailable as error:
                self._told("event", error)
                pause_s = self._periods.quota_s if isinstance(error, QuotaExceeded) else self._periods.beat_s
                await self._pause(pause_s, seen)
                continue
            del waiting.events[event.number]
            self._outbox.put(messages.EventTaken(number=event.number))

    # What the node is asked.

    async def _hear_invocations(self) -> None:
        async with asyncio.TaskGroup() as group:
            async for question in self._engine.invocations():
                if len(self._waiting.answers) < _MOST_INVOCATIONS:
                    self._numbers += 1
                    answer = asyncio.get_running_loop().create_future()
                    self._waiting.answers[self._numbers] = answer
                    group.create_task(self._ask(self._numbers, question, answer))

    async def _ask(self, number: int, question: PendingInvocation, answer: asyncio.Future[bytes]) -> None:
        try:
            if self._outbox.put(messages.InvocationAsked(number=number, document=question.data)):
                async with asyncio.timeout(_ANSWER_S):
                    document = await answer
                await question.answer(document)
        except (TimeoutError, EngineUnavailable, ValueError) as error:  # the last: it is larger than the engine takes
            log.info("invocation_unanswered", number=number, reason=text.sanitise(str(error), 200))
        finally:
            del self._waiting.answers[number]

    async def _renew(self) -> None:
        """Have the credentials renewed before they end, for as long as there are some that end."""
        if self._renewing is None:
            await asyncio.Event().wait()
        else:
            await self._renewing.work(self._connection, self._engine, self._outbox.put, self._periods.spread)

    def _told(self, what: str, error: EngineUnavailable) -> None:
        log.info("not_published", what=what, reason=text.sanitise(str(error), 200))

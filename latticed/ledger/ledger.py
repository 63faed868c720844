"""The ledger's public interface: reads, writes, audit events, signed heads, floors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.kit.clock import rfc3339
from latticed.ledger import audit as audit_rows
from latticed.ledger import floors, state, upkeep
from latticed.ledger.chain import signed_by
from latticed.ledger.coalesce import EVERY_S, Denials
from latticed.ledger.commit import unrecorded
from latticed.ledger.deferred_events import DeferredEvents
from latticed.ledger.reader import Readers
from latticed.ledger.retention import KEEP_ALL
from latticed.ledger.writer import LedgerWriter, resolve
from latticed.model import audit
from latticed.model.chain import CALLS, DECISIONS, NAMES
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger.connection import Connection
    from latticed.ledger.retention import Retention
    from latticed.ledger.transaction import Transaction
    from latticed.model.chain import Head, Name, Position

T = TypeVar("T")

HEAD_INTERVAL_S: Final = 60.0
"""Longest time without a new head while events arrive; also signed after every 1,000 events and at close."""


PROBE_S: Final = 5.0
"""Between two tries of a disk that refused something."""


def _write_anything(tx: Transaction) -> None:
    """Write one page that says what it said before: a transaction that changes nothing would succeed on a full disk."""
    ((version,),) = tx.execute("PRAGMA user_version").fetchall()
    tx.execute(f"PRAGMA user_version={version}")


class Ledger:
    """Reads and writes of one locked state directory. Made by `open_ledger`; belongs to one event loop."""

    def __init__(
        self, *, writer: LedgerWriter, readers: Readers, plugin_readers: Readers, entered: state.StateDir, clock: Clock
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._plugin_readers = plugin_readers
        self._entered = entered
        self._clock = clock
        self._denials = Denials()
        self._deferred = DeferredEvents(writer, clock)
        self._signed_s = clock.monotonic_s()
        self.public_key = state.public_half(entered.key)
        """The host key's public half, base64 of 32 raw bytes."""
        self.retention = KEEP_ALL
        """Retention of decisions; may be changed at any time."""
        self.calls_retention = KEEP_ALL
        """Retention of host calls."""
        self.trouble: Problem | None = None
        """What a check while running found wrong with the file."""
        self._floors_refused: Problem | None = None
        self._kept: dict[str, tuple[int, Any]] = {}
        self._probed_s = 0.0
        self._floors_turn = asyncio.Lock()
        """Held while floors are signed and written, so that two calls write in their order."""
        self.floors = entered.floors
        """What the signed file outside SQLite holds, as it was last read or written."""
        self.sources = dict(entered.floors.sources)
        """The newest index of each source of the market; every file of floors that is written has them."""
        self.behind = entered.behind
        """Why this ledger is older than what was decided, when an operator accepted that; empty otherwise."""

    @property
    def refused(self) -> int:
        """How many events of `record_later` wait because the disk would not take them."""
        return self._deferred.refused

    @property
    def unwritten(self) -> Problem | None:
        """Why the disk takes no decisions at present, as far as was tried; None where it does."""
        return self._writer.refused or self._floors_refused

    async def write(self, change: Callable[[Transaction], T], *, durable: bool = False, essential: bool = False) -> T:
        """Run `change` on the writer's thread as one transaction and return what it returned, once committed.

        An exception of `change` undoes it alone and comes back as it is. `durable` adds an fsync: it survives a power
        cut, not only kill -9. `essential` is what stops something: on a full disk it is written from the reserve.
        Cancelling the caller neither loses nor halves the write. Problem ledger_unavailable when the disk would not
        take it: then nothing of it was written.
        """
        return await self._writer.submit(change, durable=durable, essential=essential)

    def read(self, question: Callable[[Connection], T]) -> T:
        """Run a short point query inline, on the event loop. Sees what is committed; Problem ledger_unavailable."""
        return self._readers.ask(question)

    def read_kept(self, name: str, question: Callable[[Connection], T]) -> T:
        """As `read`, for what is asked often and hardly changes: the answer is kept under `name`, and asked for again
        once anything but events was written. It must not be changed by who gets it.
        """
        kept = self._kept.get(name)
        if kept is None or kept[0] != self._writer.changes:
            kept = self._kept[name] = (self._writer.changes, self.read(question))
        found: T = kept[1]
        return found

    async def read_slow(self, question: Callable[[Connection], T]) -> T:
        """Run a long query off the loop, on one snapshot; consume cursors within `question`.

        One such query runs at a time, others wait. Cancelling the caller interrupts it. Problem ledger_unavailable.
        """
        return await self._readers.ask_slowly(question)

    async def read_for_plugin(self, question: Callable[[Connection], T]) -> T:
        """As `read_slow`, in a queue of its own, so that an operator never waits for plugins."""
        return await self._plugin_readers.ask_slowly(question)

    async def record(self, event: audit.Event | audit.AllowedCall) -> int:
        """Append one audit event and return its seq once committed; Problem audit_unavailable when it cannot be.

        Denials beyond a quota are only counted (`ledger.coalesce`): those return the last seq of their chain.
        """
        return await self._called_back(self.note, event)

    def note(self, event: audit.Event | audit.AllowedCall, done: Callable[[Any, BaseException | None], None]) -> None:
        """As `record`, without waiting: `done(seq, None)` or `done(None, problem)` is called once.

        That may be before this returns, where nothing is written.
        """
        # Only denials: a caller can cause them without end, and the chain would grow with every one.
        if isinstance(event, audit.Event) and event.decision == "deny":
            kept = self._denials.take(event, self._clock.monotonic_s())
            if kept is None:
                done(self._writer.tip.of(CALLS if event.action == audit.HOST_CALL else DECISIONS), None)
                return
            event = kept
        self._append(event, done)

    def record_later(self, event: audit.Event) -> None:
        """Queue `event` for recording and return at once; it is retried until the disk takes it (`DeferredEvents`)."""
        self._deferred.put(event)

    def record_limited(self, event: audit.Event, *, group: str = "") -> None:
        """As `record_later`, for what anybody can cause without end: beyond a quota it is only counted.

        Each `group` has a quota of its own.
        """
        kept = self._denials.take(event, self._clock.monotonic_s(), group=group)
        if kept is not None:
            self._deferred.put(kept)

    async def wait_for_events(self, seen: Position, *, calls: bool = False) -> None:
        """Return once a decision after `seen` is committed or, with `calls`, an event of either chain.

        Returns at once when there is one already.
        """
        await self._writer.wait_for_events(seen, calls=calls)

    async def sign_head(self) -> list[Head]:
        """Sign the newest event of each chain, on disk when this returns; none of one that is signed already."""
        # Before the write: while it fails, `_keep_up` tries again in a minute and not every second.
        self._signed_s = self._clock.monotonic_s()
        return await self._writer.submit(lambda tx: tx.chains.sign(), durable=True)

    def directory_fault(self) -> Problem | None:
        """The problem when a file of the state directory was replaced or removed: nothing is written then. Blocks."""
        return self._entered.identity.fault()

    async def snapshot(self, target: Path) -> None:
        """Write a consistent copy of the database to `target`, which must not exist, fsynced; reads and writes go on.

        Raises OSError, Problem ledger_unavailable. A cancelled call leaves an incomplete file.
        """
        await upkeep.snapshot(self._entered.database, target)

    async def remove_old(self, *, by_age: bool) -> int:
        """Apply retention by size and, with `by_age`, by age; returns the number of events removed.

        Problem ledger_unavailable.
        """
        kept: dict[Name, Retention] = {DECISIONS: self.retention, CALLS: self.calls_retention}
        return await upkeep.remove_old(self._writer, kept, self._clock, by_age=by_age)

    def genuine(self, heads: Iterable[Head]) -> list[Head]:
        """Those of `heads` that this host has signed; heads found elsewhere (in the journal) may be of any origin."""
        key = self._entered.key.public_key()
        return [head for head in heads if signed_by(key, head)]

    async def write_floors(self, kept: floors.Floors) -> None:
        """Replace the signed file, fsynced, off the loop; in order with the writes around it.

        It names heads that are on disk by now, never others: so a power cut makes no ledger older than its floors.
        """
        async with self._floors_turn:
            await self._write_floors(kept)

    async def _write_floors(self, kept: floors.Floors) -> None:
        """`write_floors`, for who holds `_floors_turn`; whether the disk took them is noted."""
        try:
            await self._replace_floors(kept)
        except Problem as problem:
            self._floors_refused = problem if problem.code == "ledger_unavailable" else self._floors_refused
            raise
        self._floors_refused = None

    async def _replace_floors(self, kept: floors.Floors) -> None:
        # Durable, and before the file is written: heads named there must survive any power cut that the file does.
        await self.sign_head()
        heads: dict[Name, tuple[int, str]] = {}
        for name in NAMES:
            if (head := self.read(lambda db, name=name: audit_rows.newest_head(db, name))) is not None:  # type: ignore[misc]
                heads[name] = (head["seq"], head["hash"])
        marked = replace(
            kept,
            heads=heads,
            accepted_at=self.floors.accepted_at,
            replaced=self.floors.replaced,
            sources=dict(self.sources),
        )
        # Not on the writer's thread: whatever is to be recorded meanwhile would wait for it.
        content = await asyncio.to_thread(floors.signed, marked, self._entered.key)
        # Through the writer's queue: it is over before the lock of the directory is released.
        await self._writer.submit(lambda _: floors.replace_file(self._entered.directory, content))
        # Only after the file is on disk: what is in memory never claims more than the file.
        self.floors = marked

    async def remember_sources(self, seen: Mapping[str, floors.SeenIndex]) -> None:
        """Have the floors name what was seen last of sources. Problem ledger_unavailable: it counts until the next
        start all the same.
        """
        self.sources |= seen
        async with self._floors_turn:
            # Read within the turn: floors that are being written meanwhile would else be replaced by those before.
            await self._write_floors(self.floors)

    def accept(self, seen: Iterable[Head]) -> None:
        """Accept this ledger although it may be an older copy: heads signed before now, and `seen` (of the journal),
        are no longer evidence of a rollback.

        Changes `floors` in memory only; the next `write_floors` saves it.
        """
        replaced = (*(head.hash for head in self.genuine(seen)), *self.floors.replaced)[: floors.MOST_REPLACED]
        self.floors = replace(self.floors, accepted_at=rfc3339(self._clock.wall_us()), replaced=replaced)

    def _append(
        self, event: audit.Event | audit.AllowedCall, done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """As `note`, without a quota: the seq, or Problem audit_unavailable for any failure."""
        try:
            self._writer.append(event, done)
        except Problem as closed:
            done(None, unrecorded(closed))

    async def _called_back(self, work: Callable[..., None], event: audit.Event | audit.AllowedCall) -> int:
        """What `work(event, done)` calls `done` with."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        work(event, functools.partial(resolve, done))
        return await done

    def _start(self) -> list[asyncio.Task[None]]:
        """Begin the work that goes on while the ledger is open; the tasks, for `_cancelled`."""
        work = {"upkeep": self._keep_up(), "later": self._deferred.run(), "retention": self._retain()}
        # Only for files larger than `integrity.WHOLE_BYTES`; smaller ones were checked wholly at open.
        if self._entered.partly_checked:
            work["check"] = self._check_rest()
        return [asyncio.create_task(one, name=f"ledger-{name}") for name, one in work.items()]

    async def _keep_up(self) -> None:
        """Periodically write counted denials and sign heads, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            now_s = self._clock.monotonic_s()
            await self._record_owed(self._denials.due(now_s))
            if now_s - self._signed_s >= HEAD_INTERVAL_S:
                with contextlib.suppress(Problem):  # reported to the callers of write and record
                    await self.sign_head()
            if self.unwritten is not None and now_s - self._probed_s >= PROBE_S:
                self._probed_s = now_s
                await self._probe()

    async def _probe(self) -> None:
        """Find out whether the disk takes again what it refused: perhaps nobody else writes for a long time."""
        with contextlib.suppress(Problem):
            if self._writer.refused is not None:
                await self.write(_write_anything)
            if self._floors_refused is not None:
                async with self._floors_turn:
                    await self._write_floors(self.floors)

    async def _retain(self) -> None:
        """Apply retention periodically until cancelled."""
        while True:
            # Size every time, age only in the first check of a round.
            for check in range(upkeep.CHECKS_PER_ROUND):
                with contextlib.suppress(Problem):  # as above
                    await self.remove_old(by_age=check == 0)
                await asyncio.sleep(upkeep.CHECK_S)

    async def _record_owed(self, events: list[audit.Event]) -> None:
        """Record events with counts; those that are refused are kept for the next round."""
        for event in events:
            try:
                await self._called_back(self._append, event)
            # Counted denials are in memory only: back they go, and the next round tries again.
            except Problem:
                self._denials.put_back(event)

    async def _check_rest(self) -> None:
        """Check what opening a large file left out; damage shows in health and at the next start.

        What cannot be read shows in health too, until a later check can.
        """
        while True:
            try:
                self.trouble = await upkeep.check_rest(self._entered.database)
            except Problem as problem:
                self.trouble = problem
                await asyncio.sleep(upkeep.UNREAD_S)
            else:
                return

    async def _finish(self) -> None:
        """Before the writer stops: record what is queued or counted, and sign the last head."""
        # Deferred events first: the final head must sign all that was accepted, in the order it happened.
        await self._deferred.flush()
        await self._record_owed(self._denials.rest(self._clock.monotonic_s()))
        # On a full disk the chain stays without this head: closing must not fail for it.
        with contextlib.suppress(Problem):
            await self.sign_head()


def _ignore(_: Head) -> None:
    pass


@contextlib.asynccontextmanager
async def open_ledger(
    state_dir: Path,
    *,
    clock: Clock,
    on_head: Callable[[Head], None] = _ignore,
    accept_rollback: bool = False,
) -> AsyncIterator[Ledger]:
    """Lock `state_dir` and open its ledger; `on_head` gets every signed head, on the event loop, for the journal.

    Leaving the context writes what is queued, signs a last head and releases the lock. Problems: state_unusable,
    state_in_use, ledger_damaged, ledger_newer; ledger_rolled_back, floors_invalid unless `accept_rollback`.
    """
    async with contextlib.AsyncExitStack() as stack:
        writer = LedgerWriter(state_dir, clock=clock, on_head=on_head, accept_rollback=accept_rollback)
        entered = await writer.start()
        # Undone in reverse: tasks, what is owed and the last head, readers; writer and lock last.
        stack.push_async_callback(writer.stop)
        readers = Readers(entered.database)
        stack.push_async_callback(readers.close)
        # A second one has a lock of its own, so that slow queries of plugins do not delay those of operators.
        plugin_readers = Readers(entered.database)
        stack.push_async_callback(plugin_readers.close)
        ledger = Ledger(writer=writer, readers=readers, plugin_readers=plugin_readers, entered=entered, clock=clock)
        stack.push_async_callback(ledger._finish)  # noqa: SLF001 - the two halves of one thing
        stack.push_async_callback(_cancelled, ledger._start())  # noqa: SLF001
        yield ledger


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    # Waited for, with any exception: a task that still writes would race with `_finish`.
    await asyncio.gather(*tasks, return_exceptions=True)

"""Who is checked when: one timer wheel, turns for the places, one short task for each check that runs."""

from __future__ import annotations

import asyncio
import functools
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

import msgspec

from latticed.host.fair_queue import FairQueue
from latticed.host.monitor import alerts, watched
from latticed.host.monitor import spec as specs
from latticed.host.monitor.rules import decide
from latticed.kit import logs
from latticed.ledger import monitors as rows
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from latticed.host.monitor.alerts import Alert
    from latticed.host.monitor.rules import Outcome
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.host.monitor.watched import WatchedTarget
    from latticed.host.notify.keeper import NotificationQueue
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.monitors import Result
    from latticed.model.egress import EgressRights
    from latticed.settings import MonitorSettings

T = TypeVar("T")

SOON_S: Final = 2.0
"""A new monitor is checked for the first time within so long."""
JITTER: Final = 0.1

log = logs.get_logger()


class MonitorKeeper:
    """An async context manager: entered, every monitor on record is watched; left, no check runs.

    `check(spec, rights)` makes one check. `rights(plugin_id)` says where a plugin may connect to, or None while it may
    not at all (not active, capability not granted): then its monitors rest.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        queue: NotificationQueue,
        wheel: Wheel,
        clock: Clock,
        check: Callable[[MonitorSpec, EgressRights], Awaitable[Result]],
        rights: Callable[[str], EgressRights | None],
        settings: Callable[[], MonitorSettings],
        roll: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._wheel = wheel
        self._clock = clock
        self._check_target = check
        self._rights = rights
        self._settings = settings
        self._roll = roll
        self._watched: dict[tuple[str, str], WatchedTarget] = {}
        wanted = settings()
        self._turns: FairQueue[WatchedTarget] = FairQueue(total=wanted.total_checks, per_owner=wanted.plugin_checks)
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        for row, last in await self._ledger.read_slow(rows.load_all):
            try:
                spec = specs.decode(row.spec)
            except msgspec.MsgspecError as error:  # written by another version; it is kept, and put anew by its owner
                log.error("monitor_unreadable", plugin_id=row.plugin_id, name=row.name, reason=str(error))
                continue
            found = watched.of_row(row, spec, last)
            self._watch(found, first_s=self._roll() * self._interval_s(found))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._retire(self._watched.values())
        self._watched.clear()

    # What plugins change. A caller that is cancelled leaves no half of a change behind.

    async def put(self, plugin_id: str, name: str, spec: MonitorSpec) -> WatchedTarget:
        """Watch `spec` from now on, in place of what had that name. Problems: quota_exceeded, ledger_unavailable."""
        return await self._whole(self._put(plugin_id, name, spec))

    async def delete(self, plugin_id: str, name: str) -> bool:
        """Watch it no more and forget its results; False when there was none."""
        return await self._whole(self._delete(plugin_id, name))

    async def forget(self, plugin_id: str) -> int:
        """Delete all of one plugin; how many there were."""
        return await self._whole(self._forget(plugin_id))

    def recheck(self, plugin_id: str) -> None:
        """Have no check of one plugin go on that may not, when this returns; the others go on by their intervals."""
        if self._rights(plugin_id) is None:
            for one in self._of(plugin_id):
                if one.task is not None:
                    one.task.cancel()

    async def drained(self, plugin_id: str) -> None:
        """Return once no check of one plugin runs that may not."""
        if self._rights(plugin_id) is None:
            running = [one.task for one in self._of(plugin_id) if one.task is not None]
            await asyncio.gather(*running, return_exceptions=True)

    def _of(self, plugin_id: str) -> list[WatchedTarget]:
        return [one for (owner, _), one in self._watched.items() if owner == plugin_id]

    # What plugins and operators see.

    def get(self, plugin_id: str, name: str) -> WatchedTarget | None:
        return self._watched.get((plugin_id, name))

    def every(self) -> list[WatchedTarget]:
        """All that are watched, by owner and name."""
        return [self._watched[key] for key in sorted(self._watched)]

    def rests(self, plugin_id: str) -> bool:
        """Whether nothing of this plugin's is checked now: it may not act."""
        return self._rights(plugin_id) is None

    def results(self, key: int, *, after: int, limit: int) -> list[Result]:
        """The newest `limit` results of one, oldest first."""
        return self._ledger.read(lambda db: rows.results(db, key, after=after, limit=limit))

    # Changes.

    async def _put(self, plugin_id: str, name: str, spec: MonitorSpec) -> WatchedTarget:
        async with self._changing:
            before = self._watched.get((plugin_id, name))
            if before is not None and before.spec == spec:
                return before
            anew = before is None or spec.differs_in_kind(before.spec)
            settings, now_us, text = self._settings(), self._clock.wall_us(), specs.encode(spec)
            quota = RowQuota(plugin=settings.plugin_monitors, total=settings.total_monitors)
            row = await self._ledger.write(
                lambda tx: rows.put(tx, plugin_id, name, text, quota, now_us=now_us, anew=anew), durable=True
            )
            if before is not None:
                await self._retire([before])
            # The old one may have kept a result between the two lines above: what is on record counts.
            row = self._ledger.read(lambda db: rows.get(db, plugin_id, name)) or row
            last = self._ledger.read(lambda db: rows.results(db, row.key, limit=1))
            after = watched.of_row(row, spec, last[0] if last else None)
            self._watch(after, first_s=self._roll() * min(SOON_S, self._interval_s(after)))
            return after

    async def _delete(self, plugin_id: str, name: str) -> bool:
        async with self._changing:
            existed = await self._ledger.write(lambda tx: rows.delete(tx, plugin_id, name), durable=True)
            if (found := self._watched.pop((plugin_id, name), None)) is not None:
                await self._retire([found])
            return existed

    async def _forget(self, plugin_id: str) -> int:
        async with self._changing:
            count = await self._ledger.write(lambda tx: rows.clear(tx, plugin_id), durable=True)
            mine = [key for key in self._watched if key[0] == plugin_id]
            await self._retire([self._watched.pop(key) for key in mine])
            return count

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())  # heard, whoever waits
        return await asyncio.shield(task)

    def _watch(self, one: WatchedTarget, *, first_s: float) -> None:
        self._watched[one.plugin_id, one.name] = one
        one.ticket = self._wheel.add(first_s, functools.partial(self._due, one))

    async def _retire(self, ended: Iterable[WatchedTarget]) -> None:
        """Have these checked no more; returns when no check of them runs."""
        running = []
        for one in ended:
            one.gone = True
            if one.ticket is not None:
                one.ticket.cancel()
            if one.task is not None:
                one.task.cancel()
                running.append(one.task)
        await asyncio.gather(*running, return_exceptions=True)

    # Checks.

    def _due(self, one: WatchedTarget) -> None:
        pause_s = self._interval_s(one) * (1 + JITTER * (2 * self._roll() - 1))
        one.ticket = self._wheel.add(pause_s, functools.partial(self._due, one))
        if one.busy:
            one.skipped += 1
        elif self._rights(one.plugin_id) is not None:
            one.busy = True
            self._turns.push(one.plugin_id, one, slow=one.slow)
            self._start()

    def _start(self) -> None:
        """Start checks for as long as there are places."""
        while (found := self._turns.pop()) is not None:
            one, slow = found
            if one.gone:
                self._turns.release(one.plugin_id, slow=slow)
                continue
            one.task = asyncio.create_task(self._run(one), name=f"monitor {one.plugin_id}/{one.name}")
            # Not the task's own business: one that is cancelled before its first step does nothing at all.
            one.task.add_done_callback(functools.partial(self._ended, one, slow=slow))

    def _ended(self, one: WatchedTarget, _: asyncio.Task[None], *, slow: bool) -> None:
        one.busy, one.task = False, None
        self._turns.release(one.plugin_id, slow=slow)
        self._start()

    async def _run(self, one: WatchedTarget) -> None:
        """One check; its exceptions go no further."""
        try:
            rights = self._rights(one.plugin_id)  # it may have waited for its turn
            if rights is None:
                return
            at, started_s = self._clock.wall_us(), self._clock.monotonic_s()
            result = await self._check_target(one.spec, rights)
            took_us = round((self._clock.monotonic_s() - started_s) * 1_000_000)
            await self._keep(one, replace(result, at=at, took_us=took_us))
        except Exception:
            log.error("monitor_failed", plugin_id=one.plugin_id, name=one.name, exc_info=True)

    async def _keep(self, one: WatchedTarget, result: Result) -> None:
        """Put a result on record with what follows from it, as one: an alert is never lost and never told twice.

        On a full disk nothing follows, and the next result is judged instead.
        """
        standing, alert = decide(one.standing, cast("Outcome", result.outcome), one.spec.failures)
        since = one.since if standing.state == one.standing.state else result.at
        most = self._settings().results

        def change(tx: Transaction) -> Result | None:
            kept = rows.keep(
                tx, one.key, result, state=standing.state, against=standing.against, since=since, most=most
            )
            if kept is not None and alert is not None:
                self._tell(tx, one, alert, kept)
            return kept

        try:
            kept = await self._ledger.write(change, durable=alert is not None)
        except Problem as problem:
            log.error("monitor_result_lost", plugin_id=one.plugin_id, name=one.name, code=problem.code)
            return
        if kept is not None:
            one.standing, one.since, one.last = standing, since, kept
        if alert is not None:
            self._queue.wake()

    def _tell(self, tx: Transaction, one: WatchedTarget, alert: Alert, result: Result) -> None:
        before_us = 0 if one.standing.state == "unknown" else one.since
        message = alerts.message(alert, one.name, one.spec, result, key=one.key, since_us=before_us)
        try:
            told = self._queue.accept_in(tx, one.plugin_id, message).id
        except Problem as problem:  # the owner's quota is used up; the audit event and the state are still kept
            told = problem.code
        tx.append_audit(alerts.event(alert, one.plugin_id, one.name, one.spec, result, notification=told))

    def _interval_s(self, one: WatchedTarget) -> float:
        """As asked for, or what the settings allow by now."""
        return max(one.spec.interval_s, self._settings().min_interval_s)

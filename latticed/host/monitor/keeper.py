"""The monitors of all plugins: checked at their intervals; results, states and alerts are stored in the ledger."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, cast

from latticed.host.monitor import alerts, watched
from latticed.host.monitor import spec as specs
from latticed.host.monitor.rules import decide
from latticed.host.monitor.watched import WatchedTarget
from latticed.host.scheduled import ScheduledKeeper
from latticed.kit import logs
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.ledger import monitors as rows
from latticed.ledger.quota import RowQuota
from latticed.model import restart
from latticed.model.errors import Problem
from latticed.processes import waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.host.monitor.alerts import Alert
    from latticed.host.monitor.rules import Outcome
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.host.notify.keeper import NotificationQueue
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.monitors import Result
    from latticed.model.egress import EgressRights
    from latticed.settings import MonitorSettings

SOON_S: Final = 2.0
"""The first check of a new monitor is made within so many seconds, at random: a plugin may put many at once."""
JITTER: Final = 0.1
"""Each pause between checks is the interval, more or less this share of it."""

log = logs.get_logger()


class MonitorKeeper(ScheduledKeeper[WatchedTarget]):
    """An async context manager: entered, every stored monitor is checked; left, no check runs.

    `check(spec, rights)` makes one check and never raises. `rights(plugin_id)`: where a plugin may connect to, None
    while it may not act (not active, capability not granted): then its monitors are not checked. `queue` takes the
    notifications of alerts. `roll` gives a random number in [0, 1).
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
        settings: MonitorSettings,
        roll: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            ledger,
            "monitor",
            wheel=wheel,
            rights=rights,
            total=settings.total_checks,
            per_plugin=settings.plugin_checks,
            delete_row=rows.delete,
            delete_rows=rows.clear,
        )
        self._notifications = queue
        self._clock = clock
        self._check = check
        self.settings = settings
        self._roll = roll
        self._soon = TokenBuckets()

    async def __aenter__(self) -> Self:
        # Off the event loop: there may be thousands of rows.
        for row, last in await self._ledger.read_slow(rows.load_all):
            if (spec := self._decoded(row, specs.decode)) is not None:
                found = watched.of_row(row, spec, last)
                # Spread over the whole interval: after a restart, all checks would otherwise be due at one moment.
                self._keep(found, first_s=self._roll() * self._interval_s(found))
        return self

    async def put(self, plugin_id: str, name: str, spec: MonitorSpec) -> WatchedTarget:
        """Check `spec` from now on, replacing this plugin's monitor of that name. Returns the monitor once it is on
        disk.

        Putting an equal spec changes nothing. State and results are kept unless kind or target differ. Problems
        quota_exceeded, ledger_unavailable: then the previous monitor stays in force.
        """
        return await self._change(plugin_id, lambda: self._put(plugin_id, name, spec))

    def results(self, key: int, *, after: int, limit: int) -> list[Result]:
        """The newest `limit` results of a monitor with a number above `after`, oldest first; `key`: that of its row."""
        return self._ledger.read(lambda db: rows.results(db, key, after=after, limit=limit))

    async def _put(self, plugin_id: str, name: str, spec: MonitorSpec) -> WatchedTarget:
        """As `put`, after earlier changes of this plugin."""
        before = self.get(plugin_id, name)
        # A plugin may put its monitors at each of its starts: this neither writes nor restarts the interval.
        if before is not None and before.spec == spec:
            return before
        anew = before is None or spec.differs_in_kind(before.spec)
        settings, now_us, text = self.settings, self._clock.wall_us(), specs.encode(spec)
        quota = RowQuota(plugin=settings.plugin_monitors, total=settings.total_monitors)
        # Before the old one is stopped: if the write fails, that stays in force.
        row = await self._ledger.write(
            lambda tx: rows.put(tx, plugin_id, name, text, quota, now_us=now_us, anew=anew), durable=True
        )
        if before is not None:
            await self._stop([before])
        # A check of the old one may have written a result before it was stopped: the row is read again.
        row = self._ledger.read(lambda db: rows.get(db, plugin_id, name)) or row
        last = self._ledger.read(lambda db: rows.results(db, row.key, limit=1))
        after = watched.of_row(row, spec, last[0] if last else None)
        if before is not None:
            after.checked_s = before.checked_s
        self._keep(after, first_s=self._first_s(after))
        return after

    def _first_s(self, one: WatchedTarget) -> float:
        """Seconds until the first check of a monitor that was put: soon, not only after an interval, which may be a
        day, so that a mistake in the spec shows.

        Putting and deleting monitors must not evade the interval: each check may be an alert, and what is recorded of
        that is kept for good.
        """
        settings, now_s, interval_s = self.settings, self._clock.monotonic_s(), self._interval_s(one)
        rate = Rate(burst=settings.plugin_monitors, per_second=1 / settings.min_interval_s)
        if self._soon.take(one.plugin_id, rate, now_s):
            return restart.spread(interval_s, JITTER, self._roll())
        return max(self._roll() * min(SOON_S, interval_s), one.checked_s + settings.min_interval_s - now_s)

    def _keep(self, one: WatchedTarget, *, first_s: float) -> None:
        """Hold a monitor in memory, and have its first check due in `first_s` seconds."""
        self._kept[one.plugin_id, one.name] = one
        self._schedule(one, first_s)

    # Checks.

    def _due(self, one: WatchedTarget) -> None:
        """Queue a check, unless the last one still waits or runs, and schedule the next one."""
        # First, and in any case: the pause counts from here, so that a slow check does not shift later ones, and a
        # plugin that may act again is checked without anything else being done.
        self._schedule(one, restart.spread(self._interval_s(one), JITTER, self._roll()))
        if one.busy:
            one.skipped += 1
        elif not self.resting(one.plugin_id):
            self._enqueue(one)

    async def _run(self, one: WatchedTarget, rights: EgressRights) -> None:
        """Make one check, and store its result with time (wall clock) and duration (monotonic clock)."""
        one.checked_s = self._clock.monotonic_s()
        at, started_s = self._clock.wall_us(), self._clock.monotonic_s()
        result = await self._check(one.spec, rights)
        took_us = round((self._clock.monotonic_s() - started_s) * 1_000_000)
        # Whole: the write is not cancelled with its caller, and without what follows it the next result would be judged
        # by a state that the row has no more, so that an alert is repeated or lost.
        await waiting.uncancelled(self._record(one, replace(result, at=at, took_us=took_us)))

    async def _record(self, one: WatchedTarget, result: Result) -> None:
        """Write a result, the state and the alert that follow from it in one transaction.

        So an alert is neither lost nor sent twice. When the write fails (full disk), the state stays as it was and the
        next result is judged instead: this is logged, and nothing is raised.
        """
        status, alert = decide(one.status, cast("Outcome", result.outcome), one.spec.failures)
        since = one.since if status.state == one.status.state else result.at
        most = self.settings.results

        def change(tx: Transaction) -> Result | None:
            kept = rows.keep(tx, one.key, result, state=status.state, against=status.against, since=since, most=most)
            if kept is not None and alert is not None:
                self._alert(tx, one, alert, kept)
            return kept

        try:
            # Only alerts are fsynced: checks are many, and what a power cut loses is replaced by the next check.
            kept = await self._ledger.write(change, durable=alert is not None)
        except Problem as problem:
            log.error("monitor_result_lost", plugin_id=one.plugin_id, name=one.name, code=problem.code)
            return
        # Only after the commit, and not if the monitor was deleted meanwhile: memory never claims more than the row.
        if kept is not None:
            one.status, one.since, one.last = status, since, kept
        if alert is not None:
            # After the commit: the queue reads the row that was just written.
            self._notifications.wake()

    def _alert(self, tx: Transaction, one: WatchedTarget, alert: Alert, result: Result) -> None:
        """Add notification and audit event of an alert to the transaction of its result."""
        before_us = 0 if one.status.state == "unknown" else one.since
        message = alerts.message(alert, one.name, one.spec, result, key=one.key, since_us=before_us)
        try:
            notified = self._notifications.accept_in(tx, one.plugin_id, message).id
        except Problem as problem:  # the owner's quota is used up; the audit event and the state are still kept
            notified = problem.code
        tx.append_audit(alerts.event(alert, one.plugin_id, one.name, one.spec, result, notification=notified))

    def _interval_s(self, one: WatchedTarget) -> float:
        """Seconds, as asked for, but at least `monitor.min_interval_s`: it may have been raised since the monitor was
        put.
        """
        return max(one.spec.interval_s, self.settings.min_interval_s)

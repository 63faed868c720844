"""Runs what manifests schedule: asks `model.schedule` when that is, and has the plugin carry out the action then.

Only for plugins that answer now; what was missed while one was stopped is one run. The schedules of one plugin run one
after another, as its answers do. `changed` is told of every change of a handle.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import logs, text
from latticed.kit.clock import rfc3339
from latticed.kit.tasks import fenced
from latticed.kit.value import Value
from latticed.ledger import schedules as rows
from latticed.ledger.schedules import ScheduleRow
from latticed.model import schedule as rules
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Ticket, Wheel
    from latticed.kit.zone import HostZone
    from latticed.ledger import Ledger
    from latticed.model.manifest import Schedule
    from latticed.supervisor.handle import Handle

LOOK_S: Final = 30.0
"""Clock and zone are looked at so often: either may be set while a run is waited for."""
END_S: Final = 2.0
"""How long the daemon's end waits for runs, whose plugins have been stopped by then, to be recorded."""
REASON_CHARS: Final = 200
_US: Final = 1_000_000

log = logs.get_logger()


@dataclass(slots=True, kw_only=True, eq=False)
class _Scheduled:
    """A schedule of a plugin that runs. `next_at`: when it begins, 0 for never; `due`: what that was reckoned from."""

    schedule: Schedule
    row: ScheduleRow
    due: int | None = None
    next_at: int = 0
    ticket: Ticket | None = None


class ScheduleCounts(Value, frozen=True, kw_only=True):
    """What `/metrics` shows of a schedule; times in microseconds since the epoch, 0 for never."""

    plugin_id: str
    name: str
    runs: int
    failures: int
    last_at: int
    next_at: int


class Schedules:
    """The schedules of all plugins that run. Made once; `close` it after the plugins have been stopped.

    `handles` are the supervisor's. `roll` gives a random number in [0, 1). All runs on the event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        handles: Mapping[str, Handle],
        *,
        clock: Clock,
        wheel: Wheel,
        zone: HostZone,
        roll: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._handles = handles
        self._clock = clock
        self._wheel = wheel
        self._zone = zone
        self._roll = roll
        self._kept: dict[str, dict[str, _Scheduled]] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._look: Ticket | None = None
        self._ending = False

    def changed(self, plugin_id: str) -> None:
        """Follow a plugin that was started, stopped, or may have been accepted with other schedules. Never raises."""
        try:
            self._follow(plugin_id)
        # A handle tells it in the middle of a change of its state, which must not fail with the ledger's reading.
        except Exception:
            log.error("schedules_not_followed", plugin_id=plugin_id, exc_info=True)

    def _follow(self, plugin_id: str) -> None:
        """As `changed`; what the ledger raises."""
        wanted, kept = self._wanted(plugin_id), self._kept.get(plugin_id, {})
        if not wanted and not kept:
            return
        gone = [name for name, one in kept.items() if wanted.get(name) != one.schedule]
        for name in gone:
            self._drop(kept.pop(name))
        # Not of one that is stopped, whose rows say when they ran.
        if wanted and (gone or len(wanted) > len(kept)):
            self._enter(plugin_id, {name: one for name, one in wanted.items() if name not in kept})
        if not wanted:
            self._kept.pop(plugin_id, None)
            if plugin_id in self._turns and not self._turns[plugin_id].locked():
                del self._turns[plugin_id]

    def begin_none(self) -> None:
        """The daemon stops: no run begins from here on; those under way go on."""
        self._ending = True
        for kept in self._kept.values():
            for one in kept.values():
                self._drop(one)

    async def drain(self, within_s: float) -> None:
        """Wait for the runs under way, `within_s` seconds at most."""
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=within_s)

    async def close(self) -> None:
        """End; runs whose plugin has been stopped get END_S to be recorded."""
        for kept in self._kept.values():
            for one in kept.values():
                self._drop(one)
        self._kept.clear()
        if self._look is not None:
            self._look.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=END_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def view(self, plugin_id: str, schedules: Iterable[Schedule]) -> list[dict[str, Any]]:
        """How each of these schedules of a plugin stands, as `responses.ScheduleView`; also while it is stopped."""
        stored = self._ledger.read(lambda db: rows.of(db, plugin_id))
        return [self._view(plugin_id, one, stored.get(one.name)) for one in schedules]

    def counts(self) -> list[ScheduleCounts]:
        """Of each schedule of a plugin that runs."""
        return [
            ScheduleCounts(
                plugin_id=plugin_id,
                name=name,
                runs=one.row.runs,
                failures=one.row.failures,
                last_at=one.row.began_at,
                next_at=one.next_at,
            )
            for plugin_id, kept in self._kept.items()
            for name, one in kept.items()
        ]

    def _wanted(self, plugin_id: str) -> dict[str, Schedule]:
        """The schedules that are in force now, by name: those of the effective manifest of a plugin that answers."""
        handle = self._handles.get(plugin_id)
        if handle is None or not handle.answers:
            return {}
        return {one.name: one for one in handle.plugin.manifest.schedules}

    def _enter(self, plugin_id: str, new: dict[str, Schedule]) -> None:
        """Put schedules in force. One that was in force before, as it is now, goes on where it was."""
        stored, now = self._ledger.read(lambda db: rows.of(db, plugin_id)), self._clock.wall_us()
        kept = self._kept.setdefault(plugin_id, {})
        changed = []
        for name, schedule in new.items():
            row, word = stored.get(name), rules.word(schedule)
            if row is None or row.word != word:
                old = row or ScheduleRow(plugin_id=plugin_id, name=name, word="", since=0)
                row = replace(old, word=word, since=now)
                changed.append(row)
            one = kept[name] = _Scheduled(schedule=schedule, row=row)
            self._plan(one)
        if changed or len(stored) > len(kept):
            self._spawn(self._store(changed, plugin_id, frozenset(kept)), f"schedules of {plugin_id}")
        if self._look is None:
            self._look = self._wheel.add(LOOK_S, self._look_at_zone)

    async def _store(self, changed: list[ScheduleRow], plugin_id: str, names: frozenset[str]) -> None:
        """Keep rows of schedules that are in force from now on, and remove those of others."""
        try:
            await self._ledger.write(lambda tx: rows.enter(tx, plugin_id, changed, names))
        # They are in force all the same: only since when is lost at the daemon's end.
        except Problem as problem:
            log.warning("schedules_not_stored", plugin_id=plugin_id, code=problem.code)

    def _drop(self, one: _Scheduled) -> None:
        """No run of it begins any more. One that has begun ends with the plugin's instance."""
        if one.ticket is not None:
            one.ticket.cancel()
        one.ticket, one.next_at = None, 0

    # When.

    def _plan(self, one: _Scheduled) -> None:
        """Reckon when its next run begins, and have it looked at then, or in LOOK_S."""
        if self._ending:
            return
        if one.ticket is not None:
            one.ticket.cancel()
        now, row, zone = self._clock.wall_us(), one.row, self._zone.current
        history = rules.ScheduleHistory(since=row.since, began_at=row.began_at, ended_at=row.ended_at)
        found = rules.moved_back(one.schedule, history, now)
        if found is not history:  # the clock was set back
            one.row = replace(row, since=found.since, began_at=found.began_at, ended_at=found.ended_at)
        due = rules.due_at(one.schedule, found, now, zone)
        if due is None:
            one.due, one.next_at, one.ticket = None, 0, None
            return
        # Rolled once for each run: rolled at each look, the earliest roll would win.
        if due != one.due:
            late = round(rules.latest_jitter(one.schedule, due, zone) * self._roll())
            one.due, one.next_at = due, max(due, now) + late
        one.ticket = self._wheel.add(min(max(one.next_at - now, 0) / _US, LOOK_S), lambda: self._look_at(one))

    def _look_at(self, one: _Scheduled) -> None:
        """Begin its run if that is due by the clock as it is now."""
        self._plan(one)
        if one.ticket is None or one.next_at > self._clock.wall_us():
            return
        one.ticket.cancel()
        one.ticket = None
        key = one.row.plugin_id, one.row.name
        # Never twice at once: the end of the one that runs plans the next.
        if key not in self._running:
            task = self._spawn(self._run(one), f"schedule {one.row.name} of {one.row.plugin_id}")
            self._running[key] = task
            task.add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: tuple[str, str]) -> None:
        """A run has ended: plan the next one, of the schedule as it is in force now."""
        self._running.pop(key, None)
        plugin_id, name = key
        one = self._kept.get(plugin_id, {}).get(name)
        if one is not None:
            self._plan(one)

    def _look_at_zone(self) -> None:
        """Called by the timer, as long as there are schedules."""
        self._look = None
        if self._kept:
            self._look = self._wheel.add(LOOK_S, self._look_at_zone)
            self._spawn(self._follow_zone(), "time zone")

    async def _follow_zone(self) -> None:
        """Read the host's zone, and plan anew when it is another one."""
        if await asyncio.to_thread(self._zone.refresh):
            log.info("time_zone_changed")
            for plugin_id, kept in self._kept.items():
                for name, one in kept.items():
                    if (plugin_id, name) not in self._running:
                        self._plan(one)

    # Running.

    async def _run(self, one: _Scheduled) -> None:
        """One run: on record that it began, the action, on record how it ended."""
        plugin_id = one.row.plugin_id
        async with self._turns.setdefault(plugin_id, asyncio.Lock()):
            # It may have been stopped, or accepted otherwise, while it waited.
            if self._ending or self._kept.get(plugin_id, {}).get(one.row.name) is not one:
                return
            row = replace(one.row, began_at=self._clock.wall_us(), ended_at=0, runs=one.row.runs + 1)
            try:
                # Before it begins: after a kill it must not run again for the same moment. To the disk where that
                # moment is a day, say; of an interval the worst is one run more.
                await self._ledger.write(lambda tx: rows.put(tx, row), durable=one.schedule.every_s is None)
            except Problem as problem:
                # What cannot be recorded does not happen. The next run is that of the next moment.
                row = replace(row, ended_at=row.began_at, code=problem.code, reason=problem.reason, runs=row.runs - 1)
                self._note(one, row)
                return
            one.row = row
            code, reason = await self._invoked(plugin_id, one.schedule)
            ended = replace(
                row,
                ended_at=max(self._clock.wall_us(), row.began_at + 1),
                code=code,
                reason=text.sanitise(reason, REASON_CHARS),
                failures=row.failures + bool(code),
            )
            self._note(one, ended)
            try:
                await self._ledger.write(lambda tx: rows.finish(tx, ended))
            except Problem as problem:
                log.warning("schedule_not_stored", plugin_id=plugin_id, schedule=row.name, code=problem.code)

    async def _invoked(self, plugin_id: str, schedule: Schedule) -> tuple[str, str]:
        """Have the plugin carry out the action; (code, reason), both empty when it did."""
        handle = self._handles.get(plugin_id)
        # Asked again: while its begin was written it may have been stopped, or accepted otherwise.
        if handle is None or self._wanted(plugin_id).get(schedule.name) != schedule:
            return "not_armed", "it was stopped before"
        try:
            reply = await handle.invoke(schedule.action, schedule.payload, by_outsider=False)
        except Problem as problem:
            return problem.code, problem.reason
        except Exception as error:
            log.error("schedule_failed", plugin_id=plugin_id, schedule=schedule.name, exc_info=True)
            return "internal", type(error).__name__
        if reply.get("ok") is True:
            return "", ""
        return "plugin_error", str(reply.get("error") or reply.get("message") or "it failed")

    def _note(self, one: _Scheduled, row: ScheduleRow) -> None:
        """Take in how a run ended; logged when it ended otherwise than the one before."""
        if row.code != one.row.code:
            write = log.warning if row.code else log.info
            write("schedule_ended", plugin_id=row.plugin_id, schedule=row.name, code=row.code, reason=row.reason)
        one.row = row
        # Its place may have been taken meanwhile: by the same schedule, after a restart of the plugin.
        other = self._kept.get(row.plugin_id, {}).get(row.name)
        if other is not None and other is not one and other.row.word == row.word:
            other.row = row

    def _view(self, plugin_id: str, schedule: Schedule, stored: ScheduleRow | None) -> dict[str, Any]:
        """`stored`: its row, if it has one."""
        word = rules.word(schedule)
        one = self._kept.get(plugin_id, {}).get(schedule.name)
        row = one.row if one is not None else stored
        if row is None or row.word != word:
            row = ScheduleRow(plugin_id=plugin_id, name=schedule.name, word=word, since=0)
        running = (plugin_id, schedule.name) in self._running
        state = "running" if running else "waiting" if one is not None and one.next_at else "stopped"
        outcome = (
            None if not row.began_at else row.code or "ok" if row.ended_at else "running" if running else "cut_off"
        )
        plain = {
            "name": schedule.name,
            "when": word.split("@")[1],
            "action": schedule.action,
            "state": state,
            "next_at": rfc3339(one.next_at) if one is not None and one.next_at and not running else None,
            "last_at": rfc3339(row.began_at) if row.began_at else None,
            "ended_at": rfc3339(row.ended_at) if row.ended_at else None,
            "outcome": outcome,
            "reason": row.reason or None,
            "runs": row.runs,
            "failures": row.failures,
        }
        return {name: value for name, value in plain.items() if value is not None}

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` as a task that `close` waits for; a failure is logged."""
        task = fenced(work, lambda error: log.error("task_failed", task=name, error=repr(error)), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

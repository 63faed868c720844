"""Which record is tried when: one timer wheel, turns for the places, one short task for each try.

A look is cheap and asks nobody: it learns the address that is wanted and when a try is due. Only a try asks a provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from latticed.host.ddns import audit_events as events
from latticed.host.ddns import record as kept
from latticed.host.ddns import rules as standing
from latticed.host.ddns import source
from latticed.host.ddns import spec as specs
from latticed.host.fair_queue import FairQueue
from latticed.kit import logs
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.ledger import ddns as rows
from latticed.ledger.quota import RowQuota
from latticed.model import restart
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from latticed.host.ddns.outcome import Published, UpdateFailed
    from latticed.host.ddns.providers import Providers
    from latticed.host.ddns.record import KeptRecord
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger, Transaction
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights
    from latticed.settings.shapes import DdnsSettings

T = TypeVar("T")

PLACES: Final = 8
PLACES_OF_ONE: Final = 4
"""Tries at once: of all plugins, of one."""
SPREAD_S: Final = 30.0
"""After a start the records are looked at over so long a time."""
TRIES: Final = Rate(burst=32, per_second=0.1)
"""Tries of one plugin: so many at once, then one each so many seconds, whatever it puts and deletes."""

log = logs.get_logger()


class DdnsKeeper:
    """An async context manager: entered, every record is kept up to date; left, no try runs.

    `rights(plugin_id)` says where a plugin may connect to, or None while it may not at all (not active, capability not
    granted): then its records rest. `addresses_of(interface)` is what an interface has now.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        wheel: Wheel,
        clock: Clock,
        providers: Providers,
        rights: Callable[[str], EgressRights | None],
        settings: Callable[[], DdnsSettings],
        addresses_of: Callable[[str], Iterable[Address]] = source.addresses_of,
        roll: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._wheel = wheel
        self._clock = clock
        self._providers = providers
        self._rights = rights
        self._settings = settings
        self._addresses_of = addresses_of
        self._roll = roll
        self._kept: dict[tuple[str, str, str], KeptRecord] = {}
        self._turns: FairQueue[KeptRecord] = FairQueue(total=PLACES, per_owner=PLACES_OF_ONE)
        self._buckets = TokenBuckets()
        self._paused: dict[tuple[str, str], int] = {}  # (plugin, provider): until when, as the provider asked
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        for row in await self._ledger.read_slow(rows.load_all):
            try:
                spec = specs.decode(row.spec)
            except msgspec.MsgspecError as error:  # written by another version; it is kept, and put anew by its owner
                log.error("ddns_unreadable", plugin_id=row.plugin_id, name=row.name, reason=str(error))
                continue
            self._follow(kept.of_row(row, spec), first_s=self._roll() * SPREAD_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._retire(self._kept.values())
        self._kept.clear()

    # What plugins change. A caller that is cancelled leaves no half of a change behind.

    async def put(self, plugin_id: str, spec: DdnsSpec, *, retry: bool = False) -> KeptRecord:
        """Keep `spec` from now on. Problems: quota_exceeded, bad_params, ledger_unavailable."""
        return await self._whole(self._put(plugin_id, spec, retry=retry))

    async def delete(self, plugin_id: str, name: str, kind: str) -> bool:
        """Keep it no more, and leave it at the provider as it is; False when there was none."""
        return await self._whole(self._delete(plugin_id, name, kind))

    async def forget(self, plugin_id: str) -> int:
        """Delete all of one plugin; how many there were."""
        return await self._whole(self._forget(plugin_id))

    def recheck(self, plugin_id: str) -> None:
        """Have no try of one plugin go on that may not, when this returns; the others go on by their looks."""
        if self._rights(plugin_id) is None:
            for one in self.every(plugin_id):
                if one.task is not None:
                    one.task.cancel()

    async def drained(self, plugin_id: str) -> None:
        """Return once no try of one plugin runs that may not."""
        if self._rights(plugin_id) is None:
            running = [one.task for one in self.every(plugin_id) if one.task is not None]
            await asyncio.gather(*running, return_exceptions=True)

    async def retry(self, plugin_id: str, name: str, kind: str | None = None) -> list[KeptRecord]:
        """Have those of this name (and type) that are not published tried again now; Problem not_found."""
        found = [one for one in self.every(plugin_id) if one.name == name and kind in (None, one.spec.type)]
        if not found:
            hint = f"latticectl ddns list {plugin_id}"
            raise Problem("not_found", f"{plugin_id} keeps no such record: {name} {kind or ''}".rstrip(), hint)
        waiting = [one for one in found if one.standing.state != "published"]
        return [await self.put(plugin_id, one.spec, retry=True) for one in waiting]

    def everything(self) -> list[KeptRecord]:
        """All that are kept, of every plugin."""
        return list(self._kept.values())

    def rests(self, plugin_id: str) -> bool:
        """Whether nothing of this plugin's is tried now: it may not act."""
        return self._rights(plugin_id) is None

    def every(self, plugin_id: str) -> list[KeptRecord]:
        """All of one plugin, by name and type."""
        return [self._kept[key] for key in sorted(key for key in self._kept if key[0] == plugin_id)]

    # Changes.

    async def _put(self, plugin_id: str, spec: DdnsSpec, *, retry: bool) -> KeptRecord:
        async with self._changing:
            place = (plugin_id, spec.name, spec.type)
            before = self._kept.get(place)
            if before is not None and before.spec == spec and not retry:
                return before
            if before is not None:
                await self._retire([before])
            settings = self._settings()
            how = rows.DdnsStatus()
            if before is not None:
                how = standing.put_again(before.standing, before.spec, spec, retry=retry)
            quota = RowQuota(plugin=settings.plugin_records, total=settings.total_records)
            text, now_us = specs.encode(spec), self._clock.wall_us()
            try:
                row = await self._ledger.write(
                    lambda tx: rows.put(tx, plugin_id, spec.name, spec.type, text, how, quota, now_us=now_us),
                    durable=True,
                )
            except Problem:
                if before is not None:  # as before, then
                    before.gone = False
                    self._follow(before, first_s=0.0)
                raise
            after = kept.of_row(row, spec)
            self._follow(after, first_s=0.0)
            return after

    async def _delete(self, plugin_id: str, name: str, kind: str) -> bool:
        async with self._changing:
            existed = await self._ledger.write(lambda tx: rows.delete(tx, plugin_id, name, kind), durable=True)
            if (found := self._kept.pop((plugin_id, name, kind), None)) is not None:
                await self._retire([found])
            return existed

    async def _forget(self, plugin_id: str) -> int:
        async with self._changing:
            count = await self._ledger.write(lambda tx: rows.clear(tx, plugin_id), durable=True)
            mine = [key for key in self._kept if key[0] == plugin_id]
            await self._retire([self._kept.pop(key) for key in mine])
            return count

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())  # heard, whoever waits
        return await asyncio.shield(task)

    def _follow(self, one: KeptRecord, *, first_s: float) -> None:
        self._kept[one.plugin_id, one.spec.name, one.spec.type] = one
        one.ticket = self._wheel.add(first_s, functools.partial(self._look, one))

    async def _retire(self, ended: Iterable[KeptRecord]) -> None:
        """Have these tried no more; returns when no try of them runs."""
        running = []
        for one in ended:
            one.gone = True
            if one.ticket is not None:
                one.ticket.cancel()
            if one.task is not None:
                one.task.cancel()
                running.append(one.task)
        await asyncio.gather(*running, return_exceptions=True)

    # Looks.

    def _look(self, one: KeptRecord) -> None:
        """See what is wanted; start what is due, or come back when it may be."""
        if one.gone or one.busy:
            return
        settings, now_us = self._settings(), self._clock.wall_us()
        one.wanted, one.try_at = self._wanted(one, settings), None
        if one.wanted and self._rights(one.plugin_id) is not None:
            at = standing.next_try(one.standing, one.wanted, now_us=now_us, policy=policy_of(settings))
            if at is not None:
                paused = self._paused.get((one.plugin_id, one.spec.provider), 0)
                one.try_at = max(at, min(paused, now_us + standing.LONGEST_US))
        if one.try_at is not None and one.try_at <= now_us:
            wait_s = self._buckets.take(one.plugin_id, TRIES, self._clock.monotonic_s())
            if not wait_s:
                one.busy = True
                self._turns.push(one.plugin_id, one, slow=one.slow)
                self._start()
                return
            one.try_at = now_us + round(wait_s * standing.SECOND_US)
        again_s = settings.poll_s
        if one.try_at is not None:
            again_s = min(again_s, (one.try_at - now_us) / standing.SECOND_US)
        one.ticket = self._wheel.add(again_s, functools.partial(self._look, one))

    def _wanted(self, one: KeptRecord, settings: DdnsSettings) -> str:
        """The address to publish now, or nothing: what the settings forbid by now is none."""
        spec, published = one.spec, one.standing.published
        if spec.address:
            return source.chosen(specs.addresses_in(spec), spec.type, published="", private=settings.private)
        found = source.chosen(
            self._addresses_of(spec.interface), spec.type, published=published, private=settings.private
        )
        one.seen, counts = source.settled(
            one.seen, found, published=published, now_s=self._clock.monotonic_s(), settle_s=settings.settle_s
        )
        return counts

    # Tries.

    def _start(self) -> None:
        """Start tries for as long as there are places."""
        while (found := self._turns.pop()) is not None:
            one, slow = found
            if one.gone:
                one.busy = False
                self._turns.release(one.plugin_id, slow=slow)
                continue
            one.task = asyncio.create_task(self._run(one), name=f"ddns {one.plugin_id}/{one.name}")
            # Not the task's own business: one that is cancelled before its first step does nothing at all.
            one.task.add_done_callback(functools.partial(self._ended, one, slow=slow))

    def _ended(self, one: KeptRecord, _: asyncio.Task[None], *, slow: bool) -> None:
        one.busy, one.task = False, None
        self._turns.release(one.plugin_id, slow=slow)
        if not one.gone:
            self._look(one)
        self._start()

    async def _run(self, one: KeptRecord) -> None:
        """One try; its exceptions go no further."""
        try:
            rights = self._rights(one.plugin_id)  # it may have waited for its turn
            if rights is not None:
                await self._begin(one)
                await self._keep(one, await self._providers.publish(one.plugin_id, one.spec, one.wanted, rights))
        except Exception:
            log.error("ddns_failed", plugin_id=one.plugin_id, name=one.name, exc_info=True)

    async def _begin(self, one: KeptRecord) -> None:
        """Have it on record that the provider may be given something else from now on, should this life end here."""
        if one.wanted != one.standing.published and one.standing.state == "published":
            one.standing = standing.begun(one.standing)
            with contextlib.suppress(Problem):  # the outcome will say so
                await self._ledger.write(lambda tx: rows.keep(tx, one.key, one.standing))

    async def _keep(self, one: KeptRecord, outcome: Published | UpdateFailed) -> None:
        """Remember what became of a try, on record too; without a ledger it counts until the next start."""
        before, now_us = one.standing, self._clock.wall_us()
        policy = policy_of(self._settings())
        after = standing.after(before, outcome, now_us=now_us, policy=policy, roll=self._roll())
        one.standing = after
        if (pause_s := getattr(outcome, "retry_after_s", 0.0)) > 0:
            self._paused[one.plugin_id, one.spec.provider] = now_us + round(pause_s * standing.SECOND_US)
        event = events.of(one, before, outcome)

        def change(tx: Transaction) -> None:
            if rows.keep(tx, one.key, after) and event is not None:
                tx.append_audit(event)

        try:
            await self._ledger.write(change, durable=event is not None)
        except Problem as problem:
            log.error("ddns_outcome_lost", plugin_id=one.plugin_id, name=one.name, code=problem.code)


def policy_of(settings: DdnsSettings) -> standing.RetryPolicy:
    """The arithmetic of these settings."""
    backoff = restart.RestartPolicy(base_s=settings.backoff_base_s, ceiling_s=settings.backoff_ceiling_s)
    return standing.RetryPolicy(least_change_s=settings.min_change_s, verify_s=settings.verify_s, backoff=backoff)

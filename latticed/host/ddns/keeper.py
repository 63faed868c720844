"""The DNS records of all plugins: rechecked periodically, updated at their provider when a try is due.

A recheck finds the address to publish and when a try is due; only a try sends anything to a provider.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Final, Self

from latticed.host.ddns import record, rules, source
from latticed.host.ddns import spec as specs
from latticed.host.ddns.record import KeptRecord
from latticed.host.scheduled import ScheduledKeeper
from latticed.kit import logs
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.ledger import ddns as rows
from latticed.ledger.quota import RowQuota
from latticed.model import restart
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latticed.host.ddns.outcome import Published, UpdateFailed
    from latticed.host.ddns.providers import Providers
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger, Transaction
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights
    from latticed.settings.shapes import DdnsSettings

TOTAL_TRIES: Final = 8
PLUGIN_TRIES: Final = 4
"""Concurrent tries: of all plugins, of one. A try may take `providers.TRY_S`."""
SPREAD_S: Final = 30.0
"""Seconds over which the first rechecks of all records are spread after a start, so that providers do not get all tries
at once.
"""
TRIES: Final = Rate(burst=32, per_second=0.1)
"""The rate limit of tries per plugin: putting and deleting records does not evade it."""

log = logs.get_logger()


class DdnsKeeper(ScheduledKeeper[KeptRecord]):
    """An async context manager: entered, every record is kept up to date; left, no try runs.

    `rights(plugin_id)`: where a plugin may connect to, None while it may not act (not active, capability not granted):
    then its records are not tried. `addresses_of(interface)`: the current addresses of an interface. `roll` gives a
    random number in [0, 1).
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        wheel: Wheel,
        clock: Clock,
        providers: Providers,
        rights: Callable[[str], EgressRights | None],
        settings: DdnsSettings,
        addresses_of: Callable[[str], Iterable[Address]] = source.addresses_of,
        roll: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            ledger,
            "ddns",
            wheel=wheel,
            rights=rights,
            total=TOTAL_TRIES,
            per_plugin=PLUGIN_TRIES,
            delete_row=rows.delete,
            delete_rows=rows.clear,
        )
        self._clock = clock
        self._providers = providers
        self.settings = settings
        self._addresses_of = addresses_of
        self._roll = roll
        self._buckets = TokenBuckets()
        self._paused: dict[tuple[str, str], int] = {}  # (plugin, provider): end of its Retry-After, wall clock in µs

    async def __aenter__(self) -> Self:
        # Off the event loop: there may be thousands of rows.
        for row in await self._ledger.read_slow(rows.load_all):
            if (spec := self._decoded(row, specs.decode)) is not None:
                self._keep(record.of_row(row, spec), first_s=self._roll() * SPREAD_S)
        return self

    async def put(self, plugin_id: str, spec: DdnsSpec, *, retry: bool = False) -> KeptRecord:
        """Keep `spec` up to date from now on. Returns the record once it is on disk; the provider is asked afterwards.

        Putting an equal spec changes nothing, unless `retry`: then the provider is asked again, also after a denial,
        once the pause between changes is over (`rules.put_again`).

        Problems quota_exceeded, bad_params (another plugin has that name and type), ledger_unavailable: then a previous
        record stays in force.
        """
        return await self._change(plugin_id, lambda: self._put(plugin_id, spec, retry=retry))

    async def retry(self, plugin_id: str, name: str, kind: str | None = None) -> list[KeptRecord]:
        """Have records of this name (and type) tried again, as by `put` with `retry`, unless they are published.
        Returns all of that name, with what they are to have and when they are tried; Problem not_found without any.
        """
        return await self._change(plugin_id, lambda: self._retry(plugin_id, name, kind))

    async def _retry(self, plugin_id: str, name: str, kind: str | None) -> list[KeptRecord]:
        """As `retry`, after earlier changes of this plugin: what it has put or deleted meanwhile stays so."""
        found = [one for one in self.of(plugin_id) if one.name == name and kind in (None, one.spec.type)]
        if not found:
            hint = f"latticectl ddns list {plugin_id}"
            raise Problem("not_found", f"{plugin_id} keeps no such record: {name} {kind or ''}".rstrip(), hint)
        return [await self._again(one) for one in found]

    async def _again(self, one: KeptRecord) -> KeptRecord:
        """The record as it is once it was put again, or itself."""
        # A published one is left alone: there is nothing to retry, and each try costs one of the plugin's (`TRIES`).
        if one.status.state == "published":
            return one
        after = await self._put(one.plugin_id, one.spec, retry=True)
        with contextlib.suppress(OSError):  # the interfaces cannot be read now: `_due` says so
            self._look(after, self._clock.wall_us())
        return after

    async def _put(self, plugin_id: str, spec: DdnsSpec, *, retry: bool) -> KeptRecord:
        """As `put`, after earlier changes of this plugin."""
        before = self.get(plugin_id, spec.name, spec.type)
        # A plugin may put its records at each of its starts: the same again asks no provider.
        if before is not None and before.spec == spec and not retry:
            return before
        status = rows.DdnsStatus()
        if before is not None:
            await self._stop([before])  # first: a try that ends later would overwrite the status below
            status = rules.put_again(before.status, before.spec, spec, retry=retry)
        settings, now_us, text = self.settings, self._clock.wall_us(), specs.encode(spec)
        quota = RowQuota(plugin=settings.plugin_records, total=settings.total_records)
        try:
            row = await self._ledger.write(
                lambda tx: rows.put(tx, plugin_id, spec.name, spec.type, text, status, quota, now_us=now_us),
                durable=True,
            )
        except Problem:
            if before is not None:  # the old record stays in force
                before.gone = False
                self._keep(before, first_s=0.0)
            raise
        after = record.of_row(row, spec)
        self._keep(after, first_s=0.0)
        return after

    def _keep(self, one: KeptRecord, *, first_s: float) -> None:
        """Hold a record in memory, and have its first recheck due in `first_s` seconds."""
        self._kept[one.plugin_id, one.spec.name, one.spec.type] = one
        self._schedule(one, first_s)

    # Rechecks.

    def _due(self, one: KeptRecord) -> None:
        """Find the address to publish; queue a try if one is due, else schedule the next recheck.

        Exactly one of both happens for a record that is not gone: otherwise it would never be looked at again.
        """
        if one.gone or one.busy:
            return
        now_us = self._clock.wall_us()
        self._look(one, now_us)
        # Due: queued if the plugin's rate allows it; the run's end (`_ended`) leads here again.
        if one.try_at is not None and one.try_at <= now_us:
            # 0, and a token is taken; or the seconds until there is one.
            wait_s = self._buckets.take(one.plugin_id, TRIES, self._clock.monotonic_s())
            if not wait_s:
                self._enqueue(one)
                return
            one.try_at = now_us + round(wait_s * rules.SECOND_US)
        again_s = self.settings.poll_s
        # At the latest at the next try. More often than that, because addresses of interfaces are not announced (no
        # netlink), but polled.
        if one.try_at is not None:
            again_s = min(again_s, (one.try_at - now_us) / rules.SECOND_US)
        self._schedule(one, again_s)

    def _look(self, one: KeptRecord, now_us: int) -> None:
        """Find the address to publish, and when a try is due. OSError when the interfaces cannot be read."""
        # Even for a plugin that may not act, since `ddns.status` shows the address.
        one.wanted, one.try_at = self._wanted(one, self.settings), None
        if one.wanted and not self.resting(one.plugin_id):
            at = rules.next_try(one.status, one.wanted, now_us=now_us, policy=policy_of(self.settings))
            if at is not None:
                paused = self._paused.get((one.plugin_id, one.spec.provider), 0)
                # A pause of the provider applies to all records of the plugin there: they share the token.
                one.try_at = max(at, rules.due_at(paused, now_us))

    def _ended(self, one: KeptRecord) -> None:
        """After each try: the same as a recheck, as it finds when the next try is due."""
        self._due(one)

    def _wanted(self, one: KeptRecord, settings: DdnsSettings) -> str:
        """The address to publish now, as text; empty when there is none, or none that the settings still allow. Notes
        since when the interface has it.
        """
        spec, published = one.spec, one.status.published
        if spec.address:
            # Judged again, although `put` did: the operator may have revoked `ddns.private` since.
            return source.chosen(specs.addresses_in(spec), spec.type, published="", private=settings.private)
        found = source.chosen(
            self._addresses_of(spec.interface), spec.type, published=published, private=settings.private
        )
        one.seen, address = source.settled(
            one.seen, found, published=published, now_s=self._clock.monotonic_s(), settle_s=settings.settle_s
        )
        return address

    # Tries.

    async def _run(self, one: KeptRecord, rights: EgressRights) -> None:
        """Make one try, and store its outcome."""
        await self._begin(one)
        await self._record(one, await self._providers.publish(one.plugin_id, one.spec, one.wanted, rights))

    async def _begin(self, one: KeptRecord) -> None:
        """Write that a change is being sent, before it is: a daemon that is killed during the try, and starts again,
        must ask the provider even if the old address is wanted again.
        """
        if one.wanted != one.status.published and one.status.state == "published":
            one.status = rules.begun(one.status)
            with contextlib.suppress(Problem):  # `_record` reports a failing ledger
                await self._ledger.write(lambda tx: rows.keep(tx, one.key, one.status))

    async def _record(self, one: KeptRecord, outcome: Published | UpdateFailed) -> None:
        """Store the outcome of a try: status, and audit event if it is a new one, in one transaction.

        If the ledger cannot be written, the status is kept in memory only, so that backoff and pauses hold at least
        until the daemon ends; this is logged.
        """
        before, now_us = one.status, self._clock.wall_us()
        policy = policy_of(self.settings)
        after = rules.after(before, outcome, now_us=now_us, policy=policy, roll=self._roll())
        one.status = after
        # Only UpdateFailed has it. Kept in memory: after a restart the row's `next_at` still delays this record.
        if (pause_s := getattr(outcome, "retry_after_s", 0.0)) > 0:
            self._paused[one.plugin_id, one.spec.provider] = now_us + round(pause_s * rules.SECOND_US)
        event = record.audit_event(one, before, outcome)

        def change(tx: Transaction) -> None:
            # Not if the record was deleted during the try.
            if rows.keep(tx, one.key, after) and event is not None:
                tx.append_audit(event)

        try:
            # Only changes and new failures are fsynced: another outcome that a power cut loses is found again by the
            # next try.
            await self._ledger.write(change, durable=event is not None)
        except Problem as problem:
            log.error("ddns_outcome_lost", plugin_id=one.plugin_id, name=one.name, code=problem.code)


def policy_of(settings: DdnsSettings) -> rules.RetryPolicy:
    """The retry policy that the settings give."""
    backoff = restart.Backoff(base_s=settings.backoff_base_s, ceiling_s=settings.backoff_ceiling_s)
    return rules.RetryPolicy(min_change_s=settings.min_change_s, verify_s=settings.verify_s, backoff=backoff)

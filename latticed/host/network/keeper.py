"""Plans of plugins: kept in the ledger, offered to the root helper, and set to the state that the helper reports.

The helper decides, applies and undoes (`latticed.apply`). What operators do on its own socket, and what its dead-man
undoes, is learnt by asking it: every POLL_S, and before plans are shown.
"""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Self, cast

from latticed.host.network import events, offers, rules, views
from latticed.host.network.apply_client import LATE, HelperRefusal
from latticed.kit import logs
from latticed.kit.tasks import BackgroundTasks
from latticed.ledger import plans as rows
from latticed.ledger.plans import Reported
from latticed.ledger.quota import RowQuota
from latticed.model.errors import FaultError, Problem
from latticed.model.plan import PlanState
from latticed.plans import protocol
from latticed.plans.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.host.network.apply_client import ApplyHelper
    from latticed.host.secret.references import PluginSecrets
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.plans import PlanRow
    from latticed.plans.kind import Kind
    from latticed.plans.protocol import Moved, Observed

PLANS: Final = RowQuota(plugin=100, total=2_000)
"""How many plans are kept, as docs/write/services.md says."""
POLL_S: Final = 5.0
"""Seconds between two reports of the helper; a step is in the audit chain at most so much later."""
FRESH_S: Final = 0.5
"""A report is used again for so long: callers can cause no more requests than that."""
REPORT_S: Final = 2.0
"""Seconds to wait for a report before what is known is shown."""
ANSWER: Final = 0.9
"""How much of a plugin's call (`host_calls.deadline_s`) may go by until the helper answers; then the call says so."""
OBSERVE_S: Final = 30.0
"""Seconds until a live state is given up that came too late for the call which asked: the next call gets it."""
REFUSAL_S: Final = 2.0
"""Seconds in which an apply that is not allowed is refused to the plugin itself; later it shows in the plan's state."""
APPLY_S: Final = protocol.OPERATION_S + 5.0
NOT_PERMITTED: Final = "not_permitted"
"""Code of an apply whose plugin may not apply any more. A plugin sees it within service_unavailable."""
REPEAT_S: Final = 60.0
"""Seconds until a plan that the helper does not have is offered again."""
OFFERS: Final = 2
"""Offers, and questions for a live state, that are made at a time; further ones wait."""
PAGES: Final = 20
"""Pages of steps in one report; the rest is copied at the next."""

log = logs.get_logger()


class PlanKeeper:
    """Keeps plans; an async context manager that asks for reports while it is entered.

    `secrets_of(plugin_id)` gives a plugin's secrets: an offer has the values of those that its intent refers to, in the
    forms that the kind (of `kinds`) says. `may_plan(plugin_id)`, `may_apply(plugin_id)`: whether it may now.
    """

    def __init__(
        self,
        ledger: Ledger,
        asked: ApplyHelper,
        *,
        clock: Clock,
        secrets_of: Callable[[str], PluginSecrets],
        may_plan: Callable[[str], bool],
        may_apply: Callable[[str], bool],
        kinds: Mapping[str, Kind] = KINDS,
        quota: RowQuota = PLANS,
    ) -> None:
        self._ledger = ledger
        self._helper = asked
        self._clock = clock
        self._secrets_of = secrets_of
        self._may_plan = may_plan
        self._may_apply = may_apply
        self._kinds = kinds
        self._quota = quota
        self._reading = asyncio.Lock()
        self._reported_s = float("-inf")
        self._offered_s: dict[str, float] = {}  # sha256: when it was offered last
        self._unknown: list[PlanRow] = []  # planned rows that the last report did not have
        # (plugin id, sha256): the request that waits for its turn, or for its end.
        self._applying: dict[tuple[str, str], asyncio.Task[Moved]] = {}
        self._planning: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by plugin id
        self._events = events.PlanEvents()
        self._background = BackgroundTasks()
        # The helper takes few requests of one user at a time (`plans.server`): with the report, 4 at most.
        self._offers = asyncio.Semaphore(OFFERS)
        self._applies = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None
        # By kind: what no call waits for any more, and when it is too old for another.
        self._late: dict[str, tuple[asyncio.Task[Observed], float]] = {}
        self.call_s = 10.0
        """The longest call of a plugin (`host_calls.deadline_s`)."""
        self.trouble = ""
        """Why the helper cannot be asked, so that states may be outdated; empty when it answered last time."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._poll(), name="plans")
        return self

    async def __aexit__(self, *_: object) -> None:
        # Only the waiting ends: what the helper has begun it carries out.
        late = [asked for asked, _ in self._late.values()]
        ending = [*([self._loop] if self._loop else []), *self._applying.values(), *late]
        for one in ending:
            one.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self._background.ended()

    # For plugins.

    async def plan(self, plugin_id: str, kind: str, canonical: str, sha256: str, intent: dict[str, Any]) -> PlanRow:
        """Keep a plan and offer it to the helper; its row, with `code` and `reason` when the helper did not take it.

        HostError bad_params for a secret that is not bound or cannot be in a plan. Problems quota_exceeded,
        ledger_unavailable. HelperRefusal intent_refused: the kind's check, here or at the helper, refuses the intent.
        """
        # Before it is stored: a plan that cannot be offered would wait forever.
        secrets = await self._checked(plugin_id, kind, intent)
        row = await self._background.whole(self._kept(plugin_id, kind, canonical, sha256))
        # One of a plugin at a time: those of others wait for a place among OFFERS, and not behind all of this one's.
        async with self._planning[plugin_id]:
            # Whatever the row says: it may be outdated, and the helper knows what an offer may change.
            await self._offer(row.sha256, protocol.Offer(kind=kind, intent=intent, secrets=secrets))
        return self.of_plugin(plugin_id, sha256) or row

    async def _kept(self, plugin_id: str, kind: str, canonical: str, sha256: str) -> PlanRow:
        """Keep a plan; its row. Problems as `plan`. Not to be cancelled: what is written must be counted."""
        before = self.of_plugin(plugin_id, sha256)
        count = None
        # Only what changes is an event: repeating a call must not fill the audit chain. What another call changes
        # between this look and the write is counted.
        if before is None or before.state not in rows.STAYS:
            count = self._events.take(plugin_id, self._clock.monotonic_s())

        def change(tx: Transaction) -> tuple[PlanRow, bool]:
            before = rows.get(tx, plugin_id, sha256)
            row = rows.put(tx, plugin_id, sha256, kind, canonical, self._quota, now_us=self._clock.wall_us())
            changed = before is None or before.state is not row.state
            if changed and count is not None:
                tx.append_audit(events.planned(plugin_id, row, count))
            return row, changed

        changed = False
        try:
            # Durable: the plugin is told the plan's name, by which an operator approves it.
            row, changed = await self._ledger.write(change, durable=True)
        finally:
            if changed and count is None:
                self._events.untold(plugin_id)
            elif not changed and count is not None:
                self._events.untold(plugin_id, count - 1)  # those that its event would have stood for
        return row

    async def apply(self, plugin_id: str, sha256: str) -> None:
        """Have the helper apply a plan; returns once it has begun, or after REFUSAL_S. What became of it is its state.

        HelperRefusal: it was not begun (not approved, stale, another one waits for its confirmation). Problems
        not_found, `apply_client.NOT_RUNNING`, and NOT_PERMITTED when the plugin lost the right while it waited.
        """
        if self.of_plugin(plugin_id, sha256) is None:
            raise Problem("not_found", "this plugin has no plan of that sha256")
        # What was seen before is no answer to who asks what has become of it.
        for asked, _ in self._late.values():
            asked.cancel()
        self._late.clear()
        key = plugin_id, sha256
        asking = self._applying.get(key)
        if asking is None:
            asking = asyncio.create_task(self._apply(plugin_id, sha256))
            # Kept, since the loop has only weak references; its exception is looked at even when nobody waits any more.
            self._applying[key] = asking
            asking.add_done_callback(functools.partial(self._applied, key))
        done, _ = await asyncio.wait({asking}, timeout=REFUSAL_S)
        if done:
            asking.result()
            return
        # The helper answers one request after the other: until this one is done, nothing can be learnt from it.
        going, now_us = Reported(PlanState.APPLYING), self._clock.wall_us()
        await self._ledger.write(lambda tx: rows.mirror(tx, sha256, going, now_us=now_us))

    def of_plugin(self, plugin_id: str, sha256: str) -> PlanRow | None:
        """The plugin's plan of that name, or None."""
        return self._ledger.read(lambda db: rows.get(db, plugin_id, sha256))

    async def page(self, plugin_id: str, *, after: int, limit: int) -> list[PlanRow]:
        """At most `limit` plans of a plugin whose number is greater than `after`, oldest first."""
        return await self._ledger.read_for_plugin(
            lambda db: rows.page(db, plugin_id=plugin_id, after=after, limit=limit)
        )

    async def observe(self, kind: str) -> Observed:
        """The helper's report with the live state of `kind`; HelperRefusal, Problems as `ApplyHelper.ask`.

        On a busy machine a look may take longer than a call. It goes on then, and the next call has what it found:
        asked anew each time, a helper that is always a little late would never be heard.
        """
        asking, until_s = self._late.pop(kind, (None, 0.0))
        if asking is None or self._clock.monotonic_s() > until_s or asking.cancelled():
            asking = asyncio.create_task(self._observe(kind))
        within_s = self.call_s * ANSWER
        try:
            done, _ = await asyncio.wait({asking}, timeout=within_s)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if done:
            return asking.result()
        if (older := self._late.get(kind)) is not None:
            older[0].cancel()
        self._late[kind] = asking, self._clock.monotonic_s() + OBSERVE_S
        asking.add_done_callback(_looked_at)
        why = f"the root helper did not answer within {within_s:g} s and is still at it: ask again"
        raise Problem(LATE, f"{why}, or raise host_calls.deadline_s")

    async def _observe(self, kind: str) -> Observed:
        async with self._offers:
            return cast("Observed", await self._helper.ask(protocol.Observe(kind=kind), within_s=OBSERVE_S))

    # For operators.

    async def newest(
        self, *, plugin_id: str | None = None, state: str | None = None, before: int = 0, limit: int = 100
    ) -> list[PlanRow]:
        """At most `limit` plans, newest first, whose number is smaller than `before` unless that is 0."""
        return await self._ledger.read_slow(
            lambda db: rows.newest(db, plugin_id=plugin_id, state=state, before=before, limit=limit)
        )

    def named(self, sha256: str) -> list[PlanRow]:
        """The rows of one plan, newest first, one for each plugin that planned it; Problem not_found."""
        found = self._ledger.read(lambda db: rows.named(db, sha256))
        if not found:
            raise Problem("not_found", f"there is no plan {sha256[:80]!r}", "latticectl plan list")
        return found

    async def refresh(self, *, anew: bool = False) -> None:
        """Have our rows say what the helper says, waiting REPORT_S at most. Never raises; see `trouble`.

        A report of less than FRESH_S ago is enough, unless it has to be made `anew`.
        """
        async with self._reading:
            if not anew and self._clock.monotonic_s() - self._reported_s < FRESH_S:
                return
            try:
                await self._report()
                self.trouble = ""
            except Problem as problem:
                self.trouble = problem.reason
            self._reported_s = self._clock.monotonic_s()

    # Reports.

    async def _poll(self) -> None:
        while True:
            try:
                await self.refresh()
                await self.offer_again()
            except Exception:
                # A fault of latticed; the next report may be another one.
                log.error("plans_failed", exc_info=True)
            await asyncio.sleep(POLL_S)

    async def _report(self) -> None:
        """Ask for the plans and for steps, until all steps are copied; Problems as `ApplyHelper.ask`, ledger's."""
        for _ in range(PAGES):
            read = self._ledger.read(rows.steps_read)
            asked = protocol.Observe(steps_after=read.seq)
            observed = cast("Observed", await self._helper.ask(asked, within_s=REPORT_S))
            copied = rules.copies(read, observed)
            await self._write(observed, copied)
            self._unknown = rules.unknown(self._ledger.read(rows.needed), observed)
            if copied.read.seq >= observed.last_step:
                return

    async def _write(self, observed: Observed, copied: rules.Copied) -> None:
        """Write one report: our copies of steps, how far they go, and the states."""
        reports = rules.reports(self._ledger.read(rows.needed), observed)
        differing = self._ledger.read(
            lambda db: {sha: one for sha, one in reports.items() if not rows.is_mirrored(db, sha, one)}
        )
        if not differing and not copied.events:
            return
        now_us = self._clock.wall_us()

        def change(tx: Transaction) -> None:
            # In one transaction with the position: a step is copied once, whenever the daemon is killed.
            for event in copied.events:
                tx.append_audit(event)
            if copied.events:
                rows.set_steps_read(tx, copied.read)
            for sha256, reported in differing.items():
                rows.mirror(tx, sha256, reported, now_us=now_us)

        await self._ledger.write(change, durable=bool(copied.events))

    # Offers.

    async def _checked(self, plugin_id: str, kind: str, intent: dict[str, Any]) -> tuple[protocol.SecretValue, ...]:
        """The secrets of an intent, for its offer; HelperRefusal intent_refused by the kind's own check, HostError
        bad_params, service_unavailable.

        The helper checks again, with the live state; here it is for an error at once, also while no helper runs.
        """
        # Off the loop: an intent has up to 256 KiB, and the first one loads the code of its kind.
        faults, forms = await asyncio.to_thread(_judged, self._kinds, kind, intent)
        if faults:
            shown = faults[: protocol.MAX_FINDINGS]
            raise HelperRefusal(
                protocol.ErrorAnswer(code="intent_refused", message=f"{len(faults)} faults", findings=shown)
            )
        secrets = offers.opened(await asyncio.to_thread(offers.names, intent, forms), self._secrets_of(plugin_id))
        # Thousands may be derived.
        return await asyncio.to_thread(offers.values, plugin_id, intent, secrets, forms)

    async def _offer(self, sha256: str, offer: protocol.Offer) -> None:
        """Offer a plan, and keep what the helper said. Problem intent_refused; any other failure is in the row."""
        self._offered_s[sha256] = self._clock.monotonic_s()
        now_us = self._clock.wall_us()
        try:
            async with self._offers:
                moved = cast("Moved", await self._helper.ask(offer, within_s=self.call_s * ANSWER))
        except Problem as problem:
            refused, said = problem.code in rules.FINAL_CODES, problem
            if refused:
                failed = Reported(PlanState.FAILED, code=said.code, reason=said.reason)
                await self._ledger.write(lambda tx: rows.mirror(tx, sha256, failed, now_us=now_us))
                raise
            await self._ledger.write(lambda tx: rows.note(tx, sha256, said.code, said.reason, now_us=now_us))
            return
        reported = Reported(moved.state, review=moved.review, reason=moved.message)
        await self._ledger.write(lambda tx: rows.mirror(tx, sha256, reported, now_us=now_us))

    async def offer_again(self) -> None:
        """Offer what is planned and the helper does not keep: it did not run then, or had no room."""
        if self.trouble or not self._unknown:
            return
        now_s = self._clock.monotonic_s()
        self._offered_s = {row.sha256: self._offered_s.get(row.sha256, float("-inf")) for row in self._unknown}
        for row in self._unknown:
            # Its plugin may have been stopped since, or have lost the capability; it is offered once it may plan again.
            if not self._may_plan(row.plugin_id):
                continue
            if now_s - self._offered_s[row.sha256] < REPEAT_S:
                continue
            # Read anew: no value is kept here, and the plugin may have lost the secret meanwhile.
            try:
                intent = views.intent(row)
                secrets = await self._checked(row.plugin_id, row.kind, intent)
                await self._offer(row.sha256, protocol.Offer(kind=row.kind, intent=intent, secrets=secrets))
            except FaultError as error:
                self._offered_s[row.sha256] = now_s
                log.warning("plan_not_offered", sha256=row.sha256, plugin_id=row.plugin_id, reason=error.reason)

    async def _apply(self, plugin_id: str, sha256: str) -> Moved:
        """The helper's answer once the change is made or undone, with our rows set to it."""
        try:
            async with self._applies:
                # Only now: it may have waited for minutes behind others, and the call that asked for it has long been
                # answered. A plugin that was disabled, trimmed or revoked meanwhile changes nothing any more.
                if not self._may_apply(plugin_id):
                    raise Problem(NOT_PERMITTED, f"{plugin_id} may not apply plans any more", "latticectl caps list")
                moved = cast("Moved", await self._helper.ask(protocol.Apply(plan=sha256), within_s=APPLY_S))
        except Problem:
            # The plan may have gone stale, or the change was undone.
            await self.refresh(anew=True)
            raise
        await self.refresh(anew=True)
        return moved

    def _applied(self, key: tuple[str, str], asked: asyncio.Task[Moved]) -> None:
        """An apply has ended: its failure is recorded by the helper and shows in the plan's state."""
        del self._applying[key]
        if not asked.cancelled() and (error := asked.exception()) is not None:
            log.debug("plan_not_applied", plugin_id=key[0], sha256=key[1], reason=str(error))


def _looked_at(asked: asyncio.Task[Observed]) -> None:
    """Nobody may ask again: then its failure is nobody's."""
    if not asked.cancelled():
        asked.exception()


def _judged(
    kinds: Mapping[str, Kind], name: str, intent: dict[str, Any]
) -> tuple[tuple[protocol.Finding, ...], Mapping[str, str]]:
    """The faults of an intent as far as they need no live state, and without any, the forms of its secrets. Blocks."""
    kind = kinds.get(name)
    if kind is None:
        return (), {}
    faults = kind.check(intent, None, "")
    return faults, {} if faults else kind.secrets(intent)

"""Carries out what the helper is asked for, one request at a time. Blocking.

The order of an apply, and why: observe, check and compare the review (nothing is touched yet); have the tool validate;
keep snapshot and rendering; start the dead-man; write the armed record, which from then on undoes the change unless it
is confirmed; commit; check; wait for the confirmation. A kill after any of these leaves either nothing or the record.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets as random
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from msgspec import structs

from latticed.kit import clock as clocks
from latticed.kit import logs, text
from latticed.model import plan as plans
from latticed.model.audit import Actor
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.plan import PlanState
from latticed.plans import decide, protocol, review
from latticed.plans.records import Armed, Bound, PlanRecord, Target
from latticed.plans.upkeep import HELPER, LOCK_S, boot_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.kit.clock import Clock
    from latticed.plans.kind import Kind, Live
    from latticed.plans.programs import ProgramTools
    from latticed.plans.steps import StepChain
    from latticed.plans.store import Store
    from latticed.plans.upkeep import Choices, Upkeep

log = logs.get_logger()


class IntentRefused(Problem):
    """Problem intent_refused with each fault that was found."""

    def __init__(self, findings: tuple[protocol.Finding, ...]) -> None:
        first = findings[0]
        detail = f"{first.path}: expected {first.expected}, found {first.found}"
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        hint = first.hint
        if all(one.overridable for one in findings):
            codes = " ".join(f"--override {code}" for code in sorted({one.code for one in findings}))
            hint = f"{hint}; or approve it in spite of that: {codes}"
        super().__init__("intent_refused", detail + more, hint)
        self.findings = findings[: protocol.MAX_FINDINGS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks: the role decides, the actor is recorded."""

    role: decide.Role
    actor: str


class Operations:
    """The operations of one helper; not safe for several threads at once.

    `arm(kind, apply_id, within_s)` starts a dead-man, and returns once it is ready; what it returns is called once
    the record is written, or will not be. Problem apply_failed.
    """

    def __init__(
        self,
        store: Store,
        steps: StepChain,
        choices: Choices,
        upkeep: Upkeep,
        *,
        clock: Clock,
        arm: Callable[[str, str, int], Callable[[], None]],
    ) -> None:
        self._store = store
        self._steps = steps
        self._choices = choices
        self._upkeep = upkeep
        self._clock = clock
        self._arm = arm

    def carry_out(self, request: protocol.AnyRequest, asker: Asker) -> protocol.Answer:
        """The answer to a request; an ErrorAnswer for what is refused or fails. Raises for bugs only."""
        if type(request) not in decide.MAY[asker.role]:
            return protocol.ErrorAnswer(
                code="denied", message="this user may not ask for that", hint="ask as root (sudo)"
            )
        try:
            return self._carry_out(request, asker)
        except IntentRefused as refused:
            return protocol.ErrorAnswer(
                code=refused.code, message=refused.reason, hint=refused.hint, findings=refused.findings
            )
        except Problem as problem:
            return protocol.ErrorAnswer(code=problem.code, message=problem.reason, hint=problem.hint)
        except OSError as error:
            detail = f"the helper's directory cannot be used: {error.strerror or error}; nothing was changed"
            return protocol.ErrorAnswer(code="state_unusable", message=detail, hint="free space on its disk (df)")

    def _carry_out(self, request: protocol.AnyRequest, asker: Asker) -> protocol.Answer:
        match request:
            case protocol.Observe():
                return self._observe(request)
            case protocol.Offer():
                return self._offer(request)
            case protocol.Review():
                return self._review(request)
            case protocol.Approve():
                return self._approve(request, asker)
            case protocol.Refuse():
                return self._refuse(request, asker)
            case protocol.Apply():
                return self._apply(request, asker)
            case protocol.Confirm():
                return self._confirm(request, asker)
            case protocol.Rollback():
                return self._rollback(request, asker)
            case protocol.Boot():
                return protocol.Booted(targets=tuple(self._upkeep.restore_all()))
            case _:
                assert_never(request)

    # What is there

    def _observe(self, asked: protocol.Observe) -> protocol.Observed:
        live = self._observed_of(self._kind(asked.kind)).facts if asked.kind else None
        targets = {name: self._store.target(name) for name in self._choices.enabled}
        found = sorted(self._store.plans(), key=lambda one: one.offered_us)
        first, last = self._steps.bounds()
        steps = self._steps.after(asked.steps_after, protocol.MAX_STEPS) if asked.steps_after >= 0 else ()
        return protocol.Observed(
            kinds=tuple(sorted(self._choices.enabled)),
            targets=tuple(self._target_view(targets[name]) for name in sorted(targets)),
            plans=tuple(_view(one, targets.get(one.kind) or self._store.target(one.kind)) for one in found),
            live=live,
            steps=steps,
            first_step=first,
            last_step=last,
        )

    def _target_view(self, target: Target) -> protocol.TargetView:
        armed = target.armed
        boot_id, now_ns = boot_now()
        return protocol.TargetView(
            kind=target.kind,
            approved=target.bound.plan if target.bound else "",
            confirmed=target.confirmed,
            unconfirmed=armed.plan if armed else "",
            deadline_s=decide.left_s(armed, boot_id=boot_id, now_ns=now_ns) if armed else 0.0,
            drifted=self._upkeep.drifted.get(target.kind),
            problem=self._upkeep.problem(target.kind),
        )

    # What callers ask for

    def _offer(self, asked: protocol.Offer) -> protocol.Moved:
        kind = self._kind(asked.kind)
        try:
            name = plans.sha256(plans.canonical(asked.kind, asked.intent))
        except plans.BadIntent as error:
            raise Problem("bad_request", text.sanitise(str(error), 300)) from error
        # Form and meaning first: no program runs for an intent that is wrong on any host, and whatever `secrets` and
        # `render` make of one, they get only what passed.
        self._check(kind, asked.intent, None, "", _every)
        live = self._try_observe(kind)
        standing = self._check(kind, asked.intent, live, "", _every)
        macs = review.macs(self._store.key(), kind.secrets(asked.intent), asked.secrets)
        now = self._clock.wall_us()
        fresh = PlanRecord(
            plan=name,
            kind=kind.name,
            intent=asked.intent,
            macs=macs,
            state=PlanState.PLANNED,
            message=text.sanitise("; ".join(map(_sentence, standing)), 400),
            offered_us=now,
            updated_us=now,
        )
        review.shown(kind, fresh, live)
        with self._store.locked(kind.name, deadline_s=LOCK_S):
            target = self._store.target(kind.name)
            known = self._store.plan(name)
            if known is not None and not _is_offered_anew(known, fresh, target):
                if decide.state_of(known, target) is PlanState.PLANNED and known.message != fresh.message:
                    known = structs.replace(known, message=fresh.message)
                    self._store.put_plan(known)
                return _moved(known, target)
            if known is None:
                self._make_room()
            # Values first: a plan without its secrets could be approved and then not applied.
            if macs:
                self._store.put_secrets(name, {one.reference: one.value for one in asked.secrets})
            self._store.put_plan(fresh)
        log.info("plan_offered", plan=name[:12], kind=kind.name)
        return _moved(fresh, target)

    def _make_room(self) -> None:
        """Remove a plan that nobody needs when OFFERS are kept. Problem quota_exceeded."""
        kept = self._store.plans()
        if len(kept) < protocol.OFFERS:
            return
        targets = {kind: self._store.target(kind) for kind in {one.kind for one in kept}}
        gone = decide.evicted(kept, targets)
        if gone is None:
            raise Problem(
                "quota_exceeded", f"{len(kept)} plans are in use", "latticectl plan refuse PLAN, for one of them"
            )
        if decide.state_of(gone, targets[gone.kind]) is PlanState.APPROVED:
            self._steps.append("plan.forget", gone.plan, actor=HELPER, kind=gone.kind, reason="made room for an offer")
        self._store.remove_plan(gone.plan)

    def _review(self, asked: protocol.Review) -> protocol.Reviewed:
        plan, kind = self._plan_of(asked.plan)
        live = self._observed_of(kind)
        standing = self._check(kind, plan.intent, live, asked.source, _every)
        rendering = review.shown(kind, plan, live)
        with self._store.locked(kind.name, deadline_s=LOCK_S):
            target = self._store.target(kind.name)
            # Only a mark that keeps it from being removed; a full disk must not keep an operator from reading.
            with contextlib.suppress(OSError):
                now = self._clock.wall_us()
                # Read again: a dead-man may have written it meanwhile.
                plan = structs.replace(self._found(asked.plan), reviewed=True, updated_us=now)
                self._store.put_plan(plan)
        return protocol.Reviewed(
            plan=plan.plan,
            kind=kind.name,
            target=kind.target,
            state=decide.state_of(plan, target),
            review=review.digest(plan, target=kind.target, rendering=rendering, live=live),
            rendering=hashlib.sha256(rendering).hexdigest(),
            diff=review.diff(live, rendering),
            intent=plan.intent,
            narrows=self._is_narrow(kind, plan, target),
            findings=tuple(one for one in standing if one not in plan.overridden)[: protocol.MAX_FINDINGS],
            overridden=plan.overridden,
        )

    def _approve(self, asked: protocol.Approve, asker: Asker) -> protocol.Moved:
        plan, kind = self._plan_of(asked.plan)
        with self._store.locked(kind.name, deadline_s=LOCK_S):
            plan, target = self._found(asked.plan), self._store.target(kind.name)
            _raise_if(decide.approve(plan, target))
            live = self._observed_of(kind)
            overridden = self._check(kind, plan.intent, live, asked.source, lambda one: one.code in asked.overrides)
            self._require_review(kind, plan, live, asked.review)
            said: dict[str, str] = {}
            if overridden:
                codes = ",".join(sorted({one.code for one in overridden}))
                said = {"reason": "in spite of: " + "; ".join(map(_sentence, overridden)), "overrides": codes}
            # On the chain first: an approval that nobody can trace must not count.
            self._steps.append(
                "plan.approve", plan.plan, actor=asker.actor, kind=kind.name, review=asked.review, **said
            )
            fresh = self._upkeep.change(
                plan, PlanState.APPROVED, "", review=asked.review, source=asked.source, overridden=overridden
            )
        return _moved(fresh, target)

    def _refuse(self, asked: protocol.Refuse, asker: Asker) -> protocol.Moved:
        with self._store.locked(self._found(asked.plan).kind, deadline_s=LOCK_S):
            plan = self._found(asked.plan)
            target = self._store.target(plan.kind)
            _raise_if(decide.refuse(plan, target))
            self._steps.append("plan.refuse", plan.plan, actor=asker.actor, kind=plan.kind)
            fresh = self._upkeep.change(plan, PlanState.REFUSED, "", review="")
            self._store.remove_secrets(plan.plan)
        return _moved(fresh, target)

    def _apply(self, asked: protocol.Apply, asker: Asker) -> protocol.Moved:
        plan, kind = self._plan_of(asked.plan)
        with self._store.locked(kind.name, deadline_s=LOCK_S) as lock:
            # Read again: a dead-man may have changed it until the lock was free.
            plan, target = self._found(asked.plan), self._store.target(kind.name)
            way = decide.apply(plan, target, is_narrow=self._is_narrow(kind, plan, target))
            if isinstance(way, Fault):
                raise Problem.of(way)
            if way is decide.Way.ALREADY:
                # It may have drifted; there would be no other way back than another plan.
                was_gone = self._upkeep.put_back(kind, target, lock, "plan.restore")
                message = "something else had changed it; it was put back" if was_gone else "it is applied already"
                return _moved(plan, target, message=message)
            secrets = self._secrets(plan)
            tools = self._choices.tools(kind, lock, secrets)
            # Nothing is touched until the review is known to hold.
            live = kind.observe(tools)
            # Where an operator comes from is no word of the daemon's.
            source = "" if asker.role is decide.Role.DAEMON else asked.source
            if way is decide.Way.REVIEWED:
                self._check(kind, plan.intent, live, source or plan.source, lambda one: one in plan.overridden)
                self._require_review(kind, plan, live, plan.review)
            else:
                self._check_narrow(kind, plan, target, live, source)
            rendering = kind.render(plan.intent, live, secrets)
            kind.validate(rendering, tools)
            within_s = self._choices.confirm_within_s
            if asker.role is not decide.Role.DAEMON and asked.confirm_within_s:
                within_s = asked.confirm_within_s
            armed = self._armed(kind, plan, rendering, tools, within_s, narrows=way is decide.Way.NARROWS)
            return self._commit(kind, plan, armed, rendering, live, tools, asker)

    def _armed(
        self, kind: Kind, plan: PlanRecord, rendering: bytes, tools: ProgramTools, within_s: int, *, narrows: bool
    ) -> Armed:
        """Snapshot and rendering on disk, a dead-man that is ready, then the record that undoes the change: from here
        on a kill of everybody is harmless. Problem, OSError: nothing was touched.
        """
        apply_id = random.token_hex(8)
        target = self._store.target(kind.name)
        release: Callable[[], None] = lambda: None  # noqa: E731 - until there is a dead-man
        try:
            self._store.hold(apply_id, "snapshot", kind.snapshot(tools))
            self._store.hold(apply_id, "rendering", rendering)
            release = self._arm(kind.name, apply_id, within_s)
            # The time to confirm begins now: it is the operator's.
            armed = self._record(apply_id, plan, within_s, narrows=narrows)
            self._store.put_target(structs.replace(target, armed=armed))
        except (OSError, Problem):
            # Without record and dead-man nothing is committed. What cannot be removed now is removed at the next start.
            with contextlib.suppress(OSError):
                self._store.put_target(target)
                self._store.let_go(apply_id, "snapshot")
                self._store.let_go(apply_id, "rendering")
            raise
        finally:
            release()
        return armed

    def _record(self, apply_id: str, plan: PlanRecord, within_s: int, *, narrows: bool) -> Armed:
        """The record of a change that begins now."""
        boot_id, now_ns = boot_now()
        return Armed(
            apply_id=apply_id,
            plan=plan.plan,
            intent=plan.intent,
            macs=plan.macs,
            boot_id=boot_id,
            deadline_ns=now_ns + within_s * 1_000_000_000,
            narrows=narrows,
        )

    def _commit(
        self,
        kind: Kind,
        plan: PlanRecord,
        armed: Armed,
        rendering: bytes,
        live: Live,
        tools: ProgramTools,
        asker: Asker,
    ) -> protocol.Moved:
        """Commit, check, and confirm what nobody has to confirm. Problem apply_failed: it was undone."""
        try:
            self._steps.append(
                "plan.apply", plan.plan, actor=asker.actor, kind=kind.name, narrows=armed.narrows, apply=armed.apply_id
            )
            kind.commit(rendering, tools, may_wait=armed.narrows, live=live)
            kind.self_check(rendering, tools)
            boot_id, now_ns = boot_now()
            if decide.is_expired(armed, boot_id=boot_id, now_ns=now_ns):
                raise Problem("apply_failed", "it took longer than there was time to confirm")
            committed = structs.replace(armed, committed=True)
            target = structs.replace(self._store.target(kind.name), armed=committed)
            self._store.put_target(target)
            if armed.narrows:
                return self._keep(plan, target, HELPER)
        except (Problem, OSError) as error:
            why = error.reason if isinstance(error, Problem) else f"{error.strerror or error}"
            self._upkeep.undo(kind, armed, tools, "self_check", why, asker.actor)
            raise Problem("apply_failed", f"{why}; the change was undone", "") from error
        self._upkeep.settled(kind.name)
        log.info("plan_unconfirmed", plan=plan.plan[:12], kind=kind.name)
        return _moved(plan, target)

    def _confirm(self, asked: protocol.Confirm, asker: Asker) -> protocol.Moved:
        with self._store.locked(self._found(asked.plan).kind, deadline_s=LOCK_S) as lock:
            plan = self._found(asked.plan)
            target = self._store.target(plan.kind)
            boot_id, now_ns = boot_now()
            refused = decide.confirm(plan, target, boot_id=boot_id, now_ns=now_ns)
            if refused is None:
                return self._keep(plan, target, asker.actor)
            if refused.code == "expired" and target.armed is not None:
                self._upkeep.undo_expired_one(target, lock)  # its dead-man is gone
            raise Problem.of(refused)

    def _keep(self, plan: PlanRecord, target: Target, actor: str) -> protocol.Moved:
        """Make the unconfirmed change the confirmed state: one write, before which it would still be undone."""
        armed = target.armed
        assert armed is not None  # noqa: S101 - decided by the callers
        self._steps.append("plan.confirm", plan.plan, actor=actor, kind=target.kind, narrows=armed.narrows)
        bound = target.bound
        if not armed.narrows:
            bound = Bound(plan=plan.plan, intent=armed.intent, macs=armed.macs, source=plan.source)
        kept = structs.replace(
            target, bound=bound, confirmed=plan.plan, macs=armed.macs, rendering=armed.apply_id, armed=None
        )
        # What it will be once another plan takes its place; until then `state_of` says unconfirmed or applied. Before
        # it is kept: an approval that a kill left here would count once more, after the next plan.
        self._upkeep.change(plan, PlanState.STALE, "another plan has taken its place", review="", source=plan.source)
        try:
            self._store.put_target(kept)
        except OSError:
            # It may be there all the same (fsync(2) of the directory); what the caller says is that it is not.
            with contextlib.suppress(OSError):
                self._store.put_target(target)
            raise
        # From here on it is kept. What follows is tidying, which the next start does too.
        with contextlib.suppress(OSError):
            self._store.let_go(armed.apply_id, "snapshot")
            if target.rendering:
                self._store.let_go(target.rendering, "rendering")
        self._upkeep.settled(target.kind)
        log.info("plan_applied", plan=plan.plan[:12], kind=target.kind, narrows=armed.narrows)
        return _moved(plan, kept)

    def _rollback(self, asked: protocol.Rollback, asker: Asker) -> protocol.Moved:
        plan, kind = self._plan_of(asked.plan)
        with self._store.locked(kind.name, deadline_s=LOCK_S) as lock:
            plan, target = self._found(asked.plan), self._store.target(kind.name)
            _raise_if(decide.rollback(plan, target))
            assert target.armed is not None  # noqa: S101 - decided
            self._upkeep.undo(
                kind, target.armed, self._choices.tools(kind, lock), "operator", "undone by an operator", asker.actor
            )
        found = self._store.plan(plan.plan) or plan
        return _moved(found, self._store.target(kind.name))

    # Shared

    def _kind(self, name: str) -> Kind:
        """Problem kind_unknown."""
        found = self._choices.kinds.get(name)
        if found is None or name not in self._choices.enabled:
            known = ", ".join(sorted(self._choices.enabled & self._choices.kinds.keys())) or "none"
            raise Problem(
                "kind_unknown",
                f"this root helper does not apply plans of kind {name!r}; it applies: {known}",
                "kinds that this version has are named in [apply] kinds of root's settings",
            )
        return found

    def _found(self, name: str) -> PlanRecord:
        """Problem not_found."""
        plan = self._store.plan(name)
        if plan is None:
            raise Problem("not_found", f"the root helper has no plan {name[:12]}", "have it planned again")
        return plan

    def _plan_of(self, name: str) -> tuple[PlanRecord, Kind]:
        """A plan and its kind; Problems not_found, kind_unknown."""
        plan = self._found(name)
        return plan, self._kind(plan.kind)

    def _observed_of(self, kind: Kind) -> Live:
        return kind.observe(self._choices.tools(kind))

    def _try_observe(self, kind: Kind) -> Live | None:
        """The live state, None where the kind's tool is missing: planning works without."""
        try:
            return self._observed_of(kind)
        except Problem as problem:
            if problem.code != "tool_missing":
                raise
            return None

    def _check(
        self,
        kind: Kind,
        intent: dict[str, object],
        live: Live | None,
        source: str,
        passes: Callable[[protocol.Finding], bool],
    ) -> tuple[protocol.Finding, ...]:
        """The overridable findings that `passes` lets pass; IntentRefused with all others."""
        findings = kind.check(intent, live, source)
        passed = tuple(one for one in findings if one.overridable and passes(one))
        if refused := tuple(one for one in findings if one not in passed):
            raise IntentRefused(refused)
        return passed

    def _check_narrow(self, kind: Kind, plan: PlanRecord, target: Target, live: Live, source: str) -> None:
        """As `_check`, for a plan that nobody approved: it may do harm to no operator, the one who approved its bound
        included, but where the bound does the same harm already. IntentRefused.
        """
        bound = target.bound
        assert bound is not None  # noqa: S101 - else nothing narrows
        source = source or bound.source
        if kind.check(plan.intent, live, source):
            of_bound = kind.check(bound.intent, live, source)
            self._check(kind, plan.intent, live, source, lambda one: one in of_bound)

    def _require_review(self, kind: Kind, plan: PlanRecord, live: Live, wanted: str) -> None:
        """Problem stale, and the plan's state with it, unless the review is `wanted` now."""
        found = review.digest(plan, target=kind.target, rendering=review.shown(kind, plan, live), live=live)
        if found == wanted:
            return
        if plan.review == wanted:
            self._upkeep.change(plan, PlanState.STALE, "the live state has moved since it was approved", review="")
        raise Problem(
            "stale",
            f"the review of plan {plan.plan[:12]} is {found[:12]} now, not {wanted[:12]}: its live state or its secrets"
            " have moved; nothing was touched",
            f"latticectl plan show {plan.plan[:12]}, then approve it again",
        )

    def _is_narrow(self, kind: Kind, plan: PlanRecord, target: Target) -> bool:
        """As `decide.narrows`; False where the kind no longer understands the bound that an older version accepted."""
        of_kind = functools.partial(kind.narrows, now_s=self._clock.wall_us() // 1_000_000)
        try:
            return decide.narrows(target.bound, plan.intent, plan.macs, of_kind)
        except Exception as error:  # noqa: BLE001 - it must not keep an operator from approving another one
            log.error("plan_bound_not_understood", kind=kind.name, error=type(error).__name__)
            return False

    def _secrets(self, plan: PlanRecord) -> dict[str, str]:
        """The values of the plan's secrets; Problem state_unusable unless they are those that were approved: a kill may
        have come between writing values and writing the plan.
        """
        values = self._store.secrets(plan.plan) if plan.macs else {}
        key = self._store.key()
        if {name: review.mac(key, name, value) for name, value in values.items()} != plan.macs:
            raise Problem(
                "state_unusable", f"the secrets of plan {plan.plan[:12]} are not its own", "have it planned again"
            )
        return values


def _is_offered_anew(known: PlanRecord, fresh: PlanRecord, target: Target) -> bool:
    """Whether an offer of a plan that is kept changes it: it was closed, or a secret has another value. A refused plan
    stays refused, and one that is being applied stays as it is.
    """
    state = decide.state_of(known, target)
    if state in {PlanState.REFUSED, PlanState.APPLYING, PlanState.UNCONFIRMED}:
        return False
    return known.macs != fresh.macs or state in {PlanState.STALE, PlanState.ROLLED_BACK, PlanState.FAILED}


def _every(_: protocol.Finding) -> bool:
    """Offering and reading grant nothing, so what an operator could override passes."""
    return True


def _sentence(one: protocol.Finding) -> str:
    return f"{one.code}: expected {one.expected}, found {one.found}"


def _raise_if(fault: Fault | None) -> None:
    if fault is not None:
        raise Problem.of(fault)


def _moved(plan: PlanRecord, target: Target, *, message: str = "") -> protocol.Moved:
    state = decide.state_of(plan, target)
    deadline_s = 0.0
    if target.armed is not None and target.armed.plan == plan.plan:
        boot_id, now_ns = boot_now()
        deadline_s = decide.left_s(target.armed, boot_id=boot_id, now_ns=now_ns)
    shown = message or ("" if state is PlanState.APPLIED else plan.message)
    return protocol.Moved(
        plan=plan.plan, state=state, review=_review_of(plan, state), deadline_s=deadline_s, message=shown
    )


def _review_of(plan: PlanRecord, state: PlanState) -> str:
    """The approved review, for as long as it counts."""
    return plan.review if state in {PlanState.APPROVED, PlanState.APPLYING, PlanState.UNCONFIRMED} else ""


def _view(plan: PlanRecord, target: Target) -> protocol.PlanView:
    state = decide.state_of(plan, target)
    return protocol.PlanView(
        plan=plan.plan,
        kind=plan.kind,
        state=state,
        review=_review_of(plan, state),
        message="" if state is PlanState.APPLIED else plan.message,
        offered_at=clocks.rfc3339(plan.offered_us),
        updated_at=clocks.rfc3339(plan.updated_us),
    )


def actor_of(pid: int, uid: int, name: str) -> str:
    """A peer as steps name it."""
    return str(Actor(kind="peer", uid=uid, pid=pid, name=name))

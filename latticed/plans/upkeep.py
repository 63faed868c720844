"""What the helper does unasked: undo what nobody confirmed, put back what drifted, restore after a boot. Blocking.

The helper and its dead-men use this, in processes of their own; whoever changes a target holds its lock.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from latticed.kit import logs
from latticed.model.errors import Problem
from latticed.model.plan import PlanState
from latticed.plans import decide, protocol
from latticed.plans.programs import ProgramTools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.kit.clock import Clock
    from latticed.plans.kind import Kind
    from latticed.plans.records import Armed, PlanRecord, Target
    from latticed.plans.steps import StepChain
    from latticed.plans.store import Store

LOCK_S: Final = 10.0
"""How long to wait for a target's lock: another process holds it only to undo."""
HELPER: Final = "latticed-apply"
"""The actor of steps that the helper takes by itself."""
RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 30.0
"""Between two attempts to undo a change: doubled by each failure, up to MAX_RETRY_S."""
DRIFT_S: Final = 5.0
"""Between two repairs of one target: with a program that changes it again at once there is no race."""
AGAIN_S: Final = 60.0
"""Between two steps of what is done again and again (`Live.unfinished`): a client that is cut comes back at once."""
_WORDS: Final = {
    "deadline": "it was not confirmed in time",
    "boot": "the machine was started anew before",
    "operator": "undone by an operator",
    "self_check": "it could not be made",
}
"""What is recorded of a change that is undone at a later attempt, by why."""
log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What this version can, and what root chose.

    `kinds`: all there are, by name. `enabled`: those that may be applied; what others left unconfirmed is undone still.
    `programs`: paths that replace the kinds' own. `restored`: kinds whose drift is put back.
    """

    kinds: Mapping[str, Kind]
    enabled: frozenset[str]
    programs: Mapping[str, str] = field(default_factory=dict)
    restored: frozenset[str] = frozenset()
    confirm_within_s: int = 60

    def tools(self, kind: Kind, lock: int | None = None, hidden: Mapping[str, str] | None = None) -> ProgramTools:
        """The tools of a kind; `lock` and `hidden` as ProgramTools takes them."""
        paths = {name: self.programs.get(name, path) for name, path in kind.programs.items()}
        return ProgramTools(paths, lock=lock, hidden=hidden)


def boot_now() -> tuple[str, int]:
    """This boot's id (random(4)) and CLOCK_BOOTTIME in nanoseconds, which nobody can set and which counts sleep."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return boot_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Upkeep:
    """Undoes, restores and compares; not safe for several threads at once.

    `drifted`: for each kind that was compared, whether its live state is another than the confirmed one.
    """

    def __init__(self, store: Store, steps: StepChain, choices: Choices, *, clock: Clock) -> None:
        self._store = store
        self._steps = steps
        self._choices = choices
        self._clock = clock
        self.drifted: dict[str, bool] = {}
        self._recorded: set[str] = set()  # kinds whose drift has its step
        self._unseen: dict[str, str] = {}  # the code of the last look's failure
        self._remains: dict[str, str] = {}  # the same of a drift that could not be put back
        self._failures: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}
        self._repair_at: dict[str, float] = {}
        self._again_at: dict[str, float] = {}

    def undo_expired(self) -> None:
        """Undo every change whose deadline passed or that an earlier boot left. Failures are logged, and tried again
        after a pause.
        """
        for name in self._choices.kinds:
            try:
                # Without the lock: most of the time there is nothing.
                if self._is_due(self._store.target(name)):
                    with self._store.locked(name, deadline_s=LOCK_S) as lock:
                        self.undo_if_due(name, lock)
            except (Problem, OSError) as error:
                log.error("plan_rollback_failed", kind=name, code=_code(error))

    def undo_if_due(self, name: str, lock: int | None) -> bool:
        """Undo the change of a kind if it is due; `lock` as held, None when it cannot be had. Whether none is left that
        is due. OSError, Problem.
        """
        target = self._store.target(name)
        return not self._is_due(target) or self.undo_expired_one(target, lock)

    def _is_due(self, target: Target) -> bool:
        boot_id, now_ns = boot_now()
        return target.armed is not None and decide.is_expired(target.armed, boot_id=boot_id, now_ns=now_ns)

    def undo_expired_one(self, target: Target, lock: int | None) -> bool:
        """Undo an expired change; whether that could be done. Soon after a failure it is not tried at all."""
        armed, kind = target.armed, self._choices.kinds.get(target.kind)
        assert armed is not None  # noqa: S101 - the callers looked
        if kind is None or time.monotonic() < self._retry_at.get(target.kind, 0.0):
            return False
        boot_id, _ = boot_now()
        why = armed.undoing or ("deadline" if armed.boot_id == boot_id else "boot")
        try:
            self.undo(kind, armed, self._choices.tools(kind, lock), why, _WORDS[why], HELPER)
        except Exception as error:  # noqa: BLE001 - a mistake in a kind must not end the loop that tries again
            failures = self._failures.get(target.kind, 0)
            self._failures[target.kind] = failures + 1
            self._retry_at[target.kind] = time.monotonic() + min(MAX_RETRY_S, RETRY_S * 2 ** min(failures, 10))
            log.error("plan_rollback_failed", kind=target.kind, plan=armed.plan[:12], code=_code(error))
            return False
        self._failures.pop(target.kind, None)
        return True

    def restore_all(self) -> list[protocol.Restored]:
        """After a boot: undo what expired, then put each kind's confirmed state back where it is not there."""
        done: list[protocol.Restored] = []
        for name in sorted(self._choices.kinds):
            try:
                with self._store.locked(name, deadline_s=LOCK_S) as lock:
                    done.append(protocol.Restored(kind=name, outcome=self._boot(name, lock)))
            except Exception as error:  # noqa: BLE001 - one kind's mistake must not keep the others from coming back
                done.append(protocol.Restored(kind=name, outcome="failed", message=_code(error)))
                log.error("plan_restore_failed", kind=name, code=_code(error))
        return done

    def _boot(self, name: str, lock: int) -> str:
        """`undone`, `restored` or `nothing`, for one kind. Problem, OSError."""
        kind, target = self._choices.kinds[name], self._store.target(name)
        undone = False
        if target.armed is not None:
            boot_id, _ = boot_now()
            if not self._is_due(target):
                return "nothing"
            undone = True
            if target.armed.boot_id == boot_id or not target.confirmed:
                if not self.undo_expired_one(target, lock):
                    raise Problem("apply_failed", "the unconfirmed change could not be undone yet")
            else:
                # The snapshot is of a host that is gone with its boot: the confirmed state is what belongs here. Put
                # back first, recorded second: whatever comes between, it is done again.
                restored = self.put_back(kind, structs.replace(target, armed=None), lock, "plan.restore")
                self._record_undo(target, target.armed, "boot", "the machine was started anew before", HELPER)
                return "restored" if restored else "undone"
        if self.put_back(kind, self._store.target(name), lock, "plan.restore"):
            return "restored"
        return "undone" if undone else "nothing"

    def look_for_drift(self) -> None:
        """Compare each kind's live state with what was confirmed; put it back where `restored` says. Logs failures."""
        for name in self._choices.enabled:
            kind = self._choices.kinds[name]
            try:
                with self._store.locked(name, deadline_s=LOCK_S) as lock:
                    self._look(kind, self._store.target(name), lock)
                self._unseen.pop(name, None)
            except Exception as error:  # noqa: BLE001 - one kind's mistake must not hide the drift of the others
                if self._unseen.get(name) != (code := _code(error)):
                    log.warning("plan_drift_unknown", kind=name, code=code)
                self._unseen[name] = code

    def problem(self, name: str) -> str:
        """What keeps a kind from being looked at, or its drift from being put back, in the same words as long as that
        is so; empty for nothing.
        """
        if code := self._unseen.get(name):
            return f"the look at the live state failed: {code}"
        code = self._remains.get(name)
        return f"drift that could not be put back: {code}" if code else ""

    def settled(self, name: str) -> None:
        """The live state is the confirmed one, or what waits to be: its drift is over."""
        self.drifted[name] = False
        self._remains.pop(name, None)
        self._recorded.discard(name)

    def _look(self, kind: Kind, target: Target, lock: int) -> None:
        if not target.confirmed or target.armed is not None:
            return
        name = kind.name
        try:
            rendering = self._store.held(target.rendering, "rendering")
            holds = kind.holds(rendering, kind.observe(self._choices.tools(kind, lock)))
        except Exception:
            self.drifted.pop(name, None)
            raise
        if holds:
            self.settled(name)
            return
        self.drifted[name] = True
        # One step for each drift, not one for each look.
        if name not in self._recorded:
            self._steps.append("plan.drift", target.confirmed, actor=HELPER, kind=name)
            self._recorded.add(name)
            log.warning("plan_drifted", kind=name, plan=target.confirmed[:12])
        # Whoever changes it again at once is answered once in a while, not in a race.
        if name in self._choices.restored and time.monotonic() >= self._repair_at.get(name, 0.0):
            self._repair_at[name] = time.monotonic() + DRIFT_S
            try:
                self.put_back(kind, target, lock, "plan.drift_restored")
            except Exception as error:  # noqa: BLE001 - whatever it is, it has drifted, and is tried again
                if self._remains.get(name) != (code := _code(error)):
                    log.error("plan_restore_failed", kind=name, code=code)
                self._remains[name] = code

    def put_back(self, kind: Kind, target: Target, lock: int | None, action: str) -> bool:
        """Commit the confirmed rendering where the live state is another; whether that was needed. Problem, OSError."""
        if not target.confirmed or target.armed is not None:
            return False
        tools = self._choices.tools(kind, lock)
        rendering, live = self._store.held(target.rendering, "rendering"), kind.observe(tools)
        holds = kind.holds(rendering, live)
        if holds and not live.unfinished:
            self.settled(kind.name)
            return False
        kind.commit(rendering, tools, may_wait=True, live=live)
        kind.self_check(rendering, tools)
        self.settled(kind.name)
        now_s = time.monotonic()
        if holds and now_s < self._again_at.get(kind.name, 0.0):
            return True
        self._again_at[kind.name] = now_s + AGAIN_S
        self._steps.append(action, target.confirmed, actor=HELPER, kind=kind.name)
        log.info("plan_restored", kind=kind.name, plan=target.confirmed[:12])
        return True

    def undo(self, kind: Kind, armed: Armed, tools: ProgramTools, why: str, words: str, actor: str) -> None:
        """Put the snapshot back, then record it. Problem, OSError: it was not, so it is tried again, from now on.

        Recording uses the reserve when the disk is full; if even that fails, the record stays and the undo is repeated,
        which is harmless.
        """
        try:
            kind.restore(self._store.held(armed.apply_id, "snapshot"), tools)
        except Exception as error:
            # Half of it may be back: it must neither wait for its deadline nor be confirmed.
            with contextlib.suppress(OSError):
                target = self._store.target(kind.name)
                if target.armed is not None and not target.armed.undoing:
                    self._store.put_target(structs.replace(target, armed=structs.replace(target.armed, undoing=why)))
            if not isinstance(error, Problem):
                raise
            # Not its words, for the reason that `_code` gives.
            raise Problem(error.code, "what was there before could not be put back yet; it is tried again") from None
        target = self._store.target(kind.name)
        try:
            self._record_undo(target, armed, why, words, actor)
        except OSError as error:
            if not self._store.spend_reserve(error):
                raise
            self._record_undo(target, armed, why, words, actor)
        self._store.refill()
        log.warning("plan_rolled_back", kind=kind.name, plan=armed.plan[:12], reason=why)

    def _record_undo(self, target: Target, armed: Armed, why: str, words: str, actor: str) -> None:
        """Record that a change was undone, the armed record last: until it is gone the undo is repeated. OSError."""
        plan = self._store.plan(armed.plan)
        if plan is not None:
            state = PlanState.FAILED if why == "self_check" else PlanState.ROLLED_BACK
            self.change(plan, state, words, review="", undone_by=why)
        # A chain that cannot be read must not keep a change alive.
        try:
            self._steps.append("plan.rollback", armed.plan, actor=actor, code=why, reason=words, kind=target.kind)
        except ValueError as error:
            log.error("plan_steps_unreadable", error=str(error))
        self._store.put_target(structs.replace(target, armed=None))
        self._store.let_go(armed.apply_id, "snapshot")
        self._store.let_go(armed.apply_id, "rendering")

    def change(
        self,
        plan: PlanRecord,
        state: PlanState,
        message: str,
        *,
        review: str,
        source: str = "",
        overridden: tuple[protocol.Finding, ...] = (),
        undone_by: str = "",
    ) -> PlanRecord:
        """Write a plan's new state. OSError."""
        fresh = structs.replace(
            plan,
            state=state,
            message=message,
            review=review,
            source=source,
            overridden=overridden,
            undone_by=undone_by,
            updated_us=self._clock.wall_us(),
        )
        self._store.put_plan(fresh)
        return fresh


def _code(error: Exception) -> str:
    """What may be logged of an error: a tool's own words could repeat a secret of the snapshot."""
    return error.code if isinstance(error, Problem) else type(error).__name__

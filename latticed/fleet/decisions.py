"""Which of the daemon's decisions a node tells the fleet: each, only as many as its pace allows, or none. Pure.

    followed, verdict = take(followed, decision, paces, waiting=…, now_s=…)  # Tell, Passed, or Wait

What alters what runs, or what it may, is told each time, and waits when there is no room for it: the daemon's record
keeps it meanwhile. Denials, and what happens often, are told as far as the pace of their action goes; beyond that they
are counted and told in one sum, so that a flood of them pushes out nothing.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from latticed.fleet.pace import Pace

_KINDS: Final = frozenset(
    {"api", "audit", "bundle", "ledger", "market", "network", "plan", "plugin", "route", "secret", "task", "trust"}
)
"""First words of actions that are told."""
_UNTOLD: Final = frozenset({"market.refreshed", "network.plan"})
_FREQUENT: Final = frozenset(
    {
        "bundle.verdict",
        "ledger.backup",
        "market.fetched",
        "plan.drift",
        "plan.drift_restored",
        "plugin.invoke",
        "plugin.runtime",
        "plugin.verdict",
        "route.login",
        "task.begin",
        "task.cancel",
        "task.end",
        "task.withdraw",
    }
)
"""What is told at its pace, like every denial."""
MOST_WAITING: Final = 192
"""Events of the node that wait for the engine: with more, decisions wait too. The rest is for the agent's own."""
_MOST_PACED: Final = 96
"""With more of them waiting, what has a pace is only counted."""
_COST_S: Final = 300.0
_BURST_S: Final = 7 * _COST_S
"""Of one action eight may come at once; then one in five minutes."""
SUM_S: Final = 300
"""Seconds after the first that was counted until the sum is told."""
_MOST_COUNTED: Final = 24
"""Kinds that are counted by themselves; further ones together."""
_OTHERS: Final = "others"

Text = Annotated[str, Meta(max_length=4_096)]


class Decision(Struct, frozen=True, kw_only=True):
    """An event of the daemon's record (contracts §11), as far as it is told."""

    seq: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    ts: Annotated[str, Meta(max_length=40)]
    actor: Text
    action: Annotated[str, Meta(max_length=64)]
    target: Text
    decision: Text
    code: Text
    reason: Text
    hash: Annotated[str, Meta(max_length=64)]


class Followed(Struct, frozen=True, kw_only=True):
    """How far a node has followed the daemon's record: `seq`, `hash` and `ts` of the last event, 0 and empty before the
    first. `counted`: events that are to be told in a sum, by action and code, the first of them at `since_s`.
    """

    seq: int = 0
    hash: str = ""
    ts: str = ""
    counted: dict[str, int] = {}
    since_s: int = 0


class Tell(Struct, frozen=True, kw_only=True):
    """The decision is to be told, with `followed` on disk in the same step."""

    decision: Decision


class Passed(Struct, frozen=True, kw_only=True):
    """It is not told by itself."""


class Wait(Struct, frozen=True, kw_only=True):
    """There is no room for it yet; nothing is followed beyond it."""


def take(
    followed: Followed, decision: Decision, paces: dict[str, Pace], *, waiting: int, now_s: float, at_s: int
) -> tuple[Followed, Tell | Passed | Wait]:
    """What to do with the next event of the daemon's record, and how far it is followed then.

    `paces` are those of each action so far, and are altered. `waiting`: events of the node that the engine has not
    taken yet. `now_s` is a monotonic clock, `at_s` the wall clock.
    """
    after = Followed(
        seq=decision.seq,
        hash=decision.hash,
        ts=decision.ts,
        counted=followed.counted,
        since_s=followed.since_s,
    )
    action = decision.action
    if action.partition(".")[0] not in _KINDS or action in _UNTOLD:
        return after, Passed()
    if decision.decision != "deny" and action not in _FREQUENT:
        if waiting >= MOST_WAITING:
            return followed, Wait()
        return after, Tell(decision=decision)
    pace = paces.get(action, Pace(burst_s=_BURST_S))
    if waiting < _MOST_PACED and pace.wait_s(now_s) <= 0:
        paces[action] = pace.spent(_COST_S, now_s)
        return after, Tell(decision=decision)
    return _counted(after, decision, at_s), Passed()


def sum_is_due(followed: Followed, *, waiting: int, at_s: int) -> bool:
    """Whether to tell what was counted: also at once when the clock has gone back."""
    return bool(followed.counted) and waiting < MOST_WAITING and not 0 <= at_s - followed.since_s < SUM_S


def sum_of(followed: Followed) -> tuple[str, Followed]:
    """What was counted, in words, the most frequent first; and what is followed once it is told."""
    counted = sorted(followed.counted.items(), key=lambda item: (-item[1], item[0]))
    told = f"{sum(followed.counted.values())} more, up to event {followed.seq}: " + ", ".join(
        f"{what} {count}" for what, count in counted
    )
    return told, Followed(seq=followed.seq, hash=followed.hash, ts=followed.ts)


def _counted(followed: Followed, decision: Decision, at_s: int) -> Followed:
    counted = dict(followed.counted)
    what = f"{decision.action} {decision.code}".strip()[:128]
    if what not in counted and len(counted) >= _MOST_COUNTED:
        what = _OTHERS
    counted[what] = counted.get(what, 0) + 1
    since_s = followed.since_s if followed.counted else at_s
    return Followed(seq=followed.seq, hash=followed.hash, ts=followed.ts, counted=counted, since_s=since_s)

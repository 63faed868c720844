"""Which nodes are given a release next, when one goes on, and when it goes back: waves and their gates. Pure.

    rollout = begin("r1", nodes, release=new, before=old, policy=GatePolicy(), now_s=now_s)  # SHA-256 of intents
    rollout, wanted = decide(rollout, reports, now_s=now_s, waited_s=12.0)  # {node: the release it is to be assigned}

A node is in exactly one wave, by a hash of the rollout and its name: the same few nodes are not the first each time. A
wave's gate opens when all of its nodes that are there have had the release for a while and are well; those away are
counted by rule. When too many are not well, every node that was touched gets what it had before; one that has no way
back keeps the release. Nothing is given to a node of a later wave before the gate of each earlier one has opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

WAVES: Final = (10, 90, 400)
"""Nodes of each wave; the last size again for those that are left. A thousand are five waves."""


class RolloutState(StrEnum):
    """`RUNNING` waits for a gate; `HALTED` for an operator; `RETURNING` for nodes to have what they had before."""

    RUNNING = "running"
    HALTED = "halted"
    RETURNING = "returning"
    RETURNED = "returned"
    DONE = "done"


class NodeOutcome(StrEnum):
    """What a node's report says of a release."""

    PENDING = "pending"
    WELL = "well"
    UNWELL = "unwell"
    AWAY = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """When a wave's gate opens. Shares are of the wave's nodes, seconds those in which the controller could hear them,
    since the wave was given the release.
    """

    unwell_share: float = 0.02
    """More than this are not well: back. Of a small wave one is too many."""
    away_share: float = 0.2
    """More than this are away: the gate stays shut, and an operator is asked when `patience_s` has passed."""
    settle_s: float = 30.0
    """A node is well once it has been so for this long."""
    patience_s: float = 900.0
    """A node that is there and has not said anything about the release by then is not well."""
    denials_per_minute: float = 60.0
    restarts: int = 2
    """More than these, since it has the release, and the node is not well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What is known of one node: which release it has, for how long it has been well with it, and how that is. `why`:
    what ails it, for people.
    """

    release: str
    well_s: float
    healthy: bool
    denials_per_minute: float = 0.0
    restarts: int = 0
    present: bool = True
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout so far. `waves` are nodes in order; those up to `wave` (from 0) have been given the release."""

    name: str
    release: str
    before: str
    waves: tuple[tuple[str, ...], ...]
    policy: GatePolicy
    state: RolloutState = RolloutState.RUNNING
    wave: int = 0
    wave_began_s: float
    reason: str = ""
    """Why it is not running, for people."""
    befores: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a node had where that is not `before`; empty for one that has no way back."""

    def back(self, node: str) -> str:
        """What a node gets when this goes back; empty: it keeps what it has."""
        return self.befores.get(node, self.before)

    @property
    def touched(self) -> tuple[str, ...]:
        """Nodes that were given the release, in order."""
        return tuple(node for wave in self.waves[: self.wave + 1] for node in wave)


def begin(
    name: str,
    nodes: Sequence[str],
    *,
    release: str,
    before: str,
    policy: GatePolicy,
    now_s: float,
    sizes: Sequence[int] = WAVES,
    befores: Mapping[str, str] | None = None,
) -> Rollout:
    """A rollout of `release` to these nodes, which have `before` now, or what `befores` says of them."""
    return Rollout(
        name=name,
        release=release,
        before=before,
        waves=waves(name, nodes, sizes),
        policy=policy,
        state=RolloutState.RUNNING if nodes else RolloutState.DONE,
        wave_began_s=now_s,
        befores=dict(befores or {}),
    )


def waves(name: str, nodes: Sequence[str], sizes: Sequence[int] = WAVES) -> tuple[tuple[str, ...], ...]:
    """The nodes in waves of these sizes (1 or more each), the last one again and again; each node once."""
    ordered = sorted(set(nodes), key=lambda node: hashlib.sha256(f"{name}\n{node}".encode()).digest())
    found: list[tuple[str, ...]] = []
    begun = 0
    while begun < len(ordered):
        size = sizes[min(len(found), len(sizes) - 1)]
        found.append(tuple(ordered[begun : begun + size]))
        begun += len(found[-1])
    return tuple(found)


def outcome(rollout: Rollout, report: NodeReport | None, *, waited_s: float) -> NodeOutcome:
    """What a node of a wave that was given the release has made of it. `waited_s`: for how long the controller, which
    could hear nodes all the while, has waited for the wave.
    """
    policy = rollout.policy
    if report is None or not report.present:
        return NodeOutcome.AWAY
    if report.release != rollout.release:
        late = waited_s >= policy.patience_s
        return NodeOutcome.UNWELL if late else NodeOutcome.PENDING
    if not report.healthy or report.denials_per_minute > policy.denials_per_minute or report.restarts > policy.restarts:
        return NodeOutcome.UNWELL
    return NodeOutcome.WELL if report.well_s >= policy.settle_s else NodeOutcome.PENDING


def decide(
    rollout: Rollout,
    reports: Mapping[str, NodeReport],
    *,
    now_s: float,
    waited_s: float,
    gone: Collection[str] = frozenset(),
) -> tuple[Rollout, dict[str, str]]:
    """The rollout as it is now, and which release each node that it touched is to have. `waited_s` as `outcome` has it.
    `gone`: nodes that are given nothing any more; no gate waits for them, and nothing that they say counts.
    """
    following = _next(rollout, reports, gone, now_s=now_s, waited_s=waited_s)
    return following, wanted(following)


def wanted(rollout: Rollout) -> dict[str, str]:
    """The release that each touched node is to be assigned; assigning it again changes nothing."""
    match rollout.state:
        case RolloutState.RUNNING | RolloutState.HALTED | RolloutState.DONE:
            return dict.fromkeys(rollout.touched, rollout.release)
        case RolloutState.RETURNING | RolloutState.RETURNED:
            return {node: rollout.back(node) or rollout.release for node in rollout.touched}
        case _:
            assert_never(rollout.state)


def halted(rollout: Rollout, reason: str) -> Rollout:
    """By an operator: what was given stays, nothing more is given."""
    running = rollout.state is RolloutState.RUNNING
    return dataclasses.replace(rollout, state=RolloutState.HALTED, reason=reason) if running else rollout


def resumed(rollout: Rollout, *, now_s: float) -> Rollout:
    """By an operator: the wave that was halted is waited for anew."""
    if rollout.state is not RolloutState.HALTED:
        return rollout
    return dataclasses.replace(rollout, state=RolloutState.RUNNING, reason="", wave_began_s=now_s)


def returning(rollout: Rollout, reason: str) -> Rollout:
    """By an operator or a gate: every node that was touched gets what it had before."""
    if rollout.state in {RolloutState.RETURNING, RolloutState.RETURNED}:
        return rollout
    return dataclasses.replace(rollout, state=RolloutState.RETURNING, reason=reason)


def without_way_back(rollout: Rollout, nodes: Iterable[str]) -> Rollout:
    """These nodes cannot go back any more: what they had has expired, or was revoked."""
    gone = {node: "" for node in nodes if rollout.back(node)}
    return dataclasses.replace(rollout, befores={**rollout.befores, **gone}) if gone else rollout


def _next(
    rollout: Rollout, reports: Mapping[str, NodeReport], gone: Collection[str], *, now_s: float, waited_s: float
) -> Rollout:
    match rollout.state:
        case RolloutState.DONE | RolloutState.HALTED | RolloutState.RETURNED:
            return rollout
        case RolloutState.RETURNING:
            # Those that are away are not waited for: they find it when they come back.
            there = [
                (report, rollout.back(node))
                for node in rollout.touched
                if (report := reports.get(node)) and report.present and node not in gone
            ]
            back = all(report.release == before for report, before in there if before)
            return dataclasses.replace(rollout, state=RolloutState.RETURNED) if back else rollout
        case RolloutState.RUNNING:
            return _gated(rollout, reports, gone, now_s=now_s, waited_s=waited_s)
        case _:
            assert_never(rollout.state)


def _gated(
    rollout: Rollout, reports: Mapping[str, NodeReport], gone: Collection[str], *, now_s: float, waited_s: float
) -> Rollout:
    policy = rollout.policy
    if not rollout.waves:
        return dataclasses.replace(rollout, state=RolloutState.DONE)
    # Of all that were touched, not of the last wave alone: a release may turn bad after a while.
    touched = [node for node in rollout.touched if node not in gone]
    unwell = _those(rollout, touched, reports, NodeOutcome.UNWELL, waited_s=waited_s)
    if len(unwell) > policy.unwell_share * len(touched):
        report = reports.get(unwell[0])
        why = f": {report.why}" if report is not None and report.why else ""
        reason = f"{len(unwell)} of {len(touched)} nodes are not well, such as {unwell[0]}{why}"
        if any(rollout.back(node) for node in touched):
            return returning(rollout, reason)
        return halted(rollout, f"none has a way back, and {reason}")
    wave = [node for node in rollout.waves[rollout.wave] if node not in gone]
    away = _those(rollout, wave, reports, NodeOutcome.AWAY, waited_s=waited_s)
    if len(away) > policy.away_share * len(wave):
        late = waited_s >= policy.patience_s
        return halted(rollout, f"{len(away)} of {len(wave)} nodes are away, such as {away[0]}") if late else rollout
    if _those(rollout, wave, reports, NodeOutcome.PENDING, waited_s=waited_s):
        return rollout
    if rollout.wave + 1 == len(rollout.waves):
        return dataclasses.replace(rollout, state=RolloutState.DONE)
    return dataclasses.replace(rollout, wave=rollout.wave + 1, wave_began_s=now_s)


def _those(
    rollout: Rollout,
    nodes: Sequence[str],
    reports: Mapping[str, NodeReport],
    which: NodeOutcome,
    *,
    waited_s: float,
) -> list[str]:
    return [node for node in nodes if outcome(rollout, reports.get(node), waited_s=waited_s) is which]

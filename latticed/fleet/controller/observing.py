"""What nodes say of themselves, as a controller believes it: statuses in, reports for gates and for people out. Pure.

A status counts when the node's own key signed it and it is newer than the last: by the assignment that it has taken up,
then by its own clock. So an engine can repeat none. How it goes is measured between statuses: restarts since the node
has what it has, calls denied a minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import documents
from latticed.fleet.documents import Malformed, NodeStatus
from latticed.fleet.rollout import NodeReport
from latticed.kit.text import sanitise
from latticed.model.verdict import Code

if TYPE_CHECKING:
    from latticed.fleet.controller.assigning import FleetNodeKey, KeptAssignment
    from latticed.fleet.documents import PluginStatus

_SPAN_S: Final = 30
"""Two statuses that denials are counted between are so far apart at least, by the node's clock."""
SILENT_S: Final = 900.0
"""A node that is not heard for that long, while it could be, is not well: it looks at its daemon every minute."""
_ALTERED: Final = "changed_here"
_FAILED: Final = frozenset(
    {
        *(one.value for one in Code),
        *"""candidate_bad needs_consent needs_config config_invalid secret_missing bundle_unknown version_downgrade
        protocol_unsupported sandbox_unavailable intent_revoked invalid_transition no_end""".split(),
    }
)
"""Codes by which a host says that it cannot have what is wanted; others may pass by themselves. So may
`dependency_unmet`: what a plugin needs is often in the same intent, and comes to be active at a later look.
"""


class ReportedCounts(Struct, frozen=True):
    """Of one plugin, as its host counts."""

    restarts: int
    denied: int


class SeenStatus(Struct, frozen=True, kw_only=True):
    """The newest status of a node. `received` by the controller's clock; `since`: when it was first well with the
    release that it has, 0 for not.

    `began`: the counts when it first had what it has, by plugin; `before`: those of an earlier status, of `before_at`.
    """

    envelope: bytes
    received: int
    since: int = 0
    release: str = ""
    began: dict[str, ReportedCounts] = {}
    before: dict[str, ReportedCounts] = {}
    before_at: int = 0
    rates: dict[str, Annotated[float, Meta(ge=0)]] = {}


class Hearing(Struct, frozen=True, kw_only=True):
    """For how long a controller has been able to hear nodes: without a break from `since_s` to `now_s`, both by the
    clock that nobody sets (`lease.boottime_s`).
    """

    since_s: float
    now_s: float

    def past_s(self, then_s: float) -> float:
        """Seconds since `then_s` in which it could hear."""
        return self.now_s - max(then_s, self.since_s)


class HeardStatus(Struct, frozen=True, kw_only=True):
    """When a node's newest status came here, and since when the node has been well (`SeenStatus.since` is `since`); by
    the clock that nobody sets, so it is not kept.
    """

    received_s: float
    since: int
    since_s: float


class NotBelieved(Exception):  # reads as the finding it is
    """A status or an event that does not count; `code` says why, for an alarm. `key`: whose signature it has, where
    that holds.
    """

    def __init__(self, code: str, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.key = key


def read(data: bytes, node: FleetNodeKey, *, fleet: str) -> NodeStatus:
    """A status that this node signed; NotBelieved."""
    try:
        signed = documents.read(data, NodeStatus)
    except Malformed as error:
        raise NotBelieved("status_forged", f"expected a status signed by {node.name}, found: {error}") from error
    found: NodeStatus = signed.document
    if signed.key != node.key or found.node != node.name or found.fleet != fleet:
        reason = f"expected a status of {node.name} by its key, found one of {found.node}"
        raise NotBelieved("status_forged", reason, signed.key)
    return found


def taken(
    last: SeenStatus | None, data: bytes, status: NodeStatus, *, previous: NodeStatus | None, now_s: int
) -> SeenStatus | None:
    """What is known of a node after one more status; None for one that is no news. NotBelieved for one that is older
    than the last.
    """
    if last is not None and previous is not None:
        if data == last.envelope:
            return None
        order = (status.epoch, status.generation, status.at)
        before = (previous.epoch, previous.generation, previous.at)
        if order < before:
            raise NotBelieved(
                "status_old", f"expected a status after {before[2]}, found one of {order[2]}: repeated, or a clock"
            )
    counts = {one.id: ReportedCounts(one.restarts, one.denied) for one in status.plugins}
    same = last is not None and previous is not None and _same(previous, status)
    began = {**counts, **_known(last.began, counts)} if same and last is not None else counts
    release = release_of(status)
    well = not troubles(status)
    since = 0
    if release and well:
        kept = last is not None and last.release == release and last.since
        since = last.since if kept and last is not None else now_s
    fresh = last is None or not last.before_at or status.at - last.before_at >= _SPAN_S
    rates = _rates(last, counts, status.at)
    return SeenStatus(
        envelope=data,
        received=now_s,
        since=since,
        release=release,
        began=began,
        before=counts if fresh else last.before if last is not None else counts,
        before_at=status.at if fresh else last.before_at if last is not None else status.at,
        rates=rates,
    )


def heard(last: HeardStatus | None, seen: SeenStatus, *, now_s: int, steady_s: float) -> HeardStatus:
    """As a status comes, `seen` being what is known with it. `steady_s`: now, by the clock that nobody sets."""
    since_s = steady_s - max(0, now_s - seen.since)
    if last is not None and last.since == seen.since:
        since_s = last.since_s
    return HeardStatus(received_s=steady_s, since=seen.since, since_s=since_s)


def silent(last: HeardStatus | None, hearing: Hearing) -> bool:
    """Whether a node, if it is there, should have been heard."""
    return hearing.past_s(last.received_s if last is not None else 0.0) >= SILENT_S


def release_of(status: NodeStatus) -> str:
    """The intent that a node has carried out, or failed to; empty while it is at it."""
    if status.settled or failed(status):
        return status.intent
    codes = {one.code for one in status.plugins if one.code}
    # What was altered by hand after it was as wanted: it had it, and the host's own operator has the last word.
    return status.intent if codes == {_ALTERED} and not status.refused else ""


def failed(status: NodeStatus) -> bool:
    """Whether the node says that it will not come to have what it took up."""
    return any(one.code in _FAILED for one in status.plugins)


def troubles(status: NodeStatus) -> list[str]:
    """Why a node is not well, for people; empty when it is."""
    return [f"{one.id}: {word}" for one in status.plugins if (word := _trouble(one))]


def report(
    seen: SeenStatus | None,
    status: NodeStatus | None,
    last: HeardStatus | None,
    *,
    present: bool,
    hearing: Hearing,
    now_s: int,
) -> NodeReport | None:
    """What a gate looks at; None for a node of which nothing is known."""
    if seen is None or status is None:
        return NodeReport(release="", well_s=0.0, healthy=False, present=present) if present else None
    # Of what was heard before this process began there is the wall clock's word alone.
    well_s = hearing.now_s - last.since_s if last is not None else max(0, now_s - seen.since)
    return NodeReport(
        release=seen.release,
        well_s=well_s if seen.since else 0.0,
        healthy=not troubles(status) and not silent(last, hearing),
        denials_per_minute=sum(seen.rates.values()),
        restarts=restarts(seen, status),
        present=present,
        why=sanitise("; ".join(troubles(status)), 200),
    )


def restarts(seen: SeenStatus, status: NodeStatus) -> int:
    """Restarts of all plugins since the node has what it has."""
    total = 0
    for one in status.plugins:
        began = seen.began.get(one.id)
        start = began.restarts if began is not None and began.restarts <= one.restarts else 0
        total += one.restarts - start
    return total


def state(
    assigned: KeptAssignment | None,
    seen: SeenStatus | None,
    status: NodeStatus | None,
    *,
    present: bool,
    silent: bool,
) -> str:
    """A node in one word, of those of `controller_view.NodeCounts`."""
    if not present:
        return "away"
    if assigned is None:
        return "unassigned"
    if status is None or seen is None:
        return "pending"
    if (status.epoch, status.generation) >= assigned.turn and status.intent == assigned.intent:
        if troubles(status) or silent:
            return "unwell"
        if seen.release == assigned.intent:
            return "settled"
        return "waiting" if status.plans else "pending"
    return "refused" if status.refused else "pending"


def decode(data: bytes) -> SeenStatus:
    """As it is kept."""
    return msgspec.json.decode(data, type=SeenStatus)


def _trouble(one: PluginStatus) -> str:
    if one.code in _FAILED:
        return f"{one.code} {one.reason}".strip()
    if one.health == "unhealthy":
        return "unhealthy"
    return "failed" if one.state == "failed" else ""


def _same(previous: NodeStatus, status: NodeStatus) -> bool:
    """Whether both are about the same thing taken up."""
    return (previous.epoch, previous.generation, previous.intent) == (status.epoch, status.generation, status.intent)


def _known(began: dict[str, ReportedCounts], counts: dict[str, ReportedCounts]) -> dict[str, ReportedCounts]:
    """Of plugins whose counts were not begun anew since."""
    return {name: one for name, one in began.items() if name in counts and counts[name].restarts >= one.restarts}


def _rates(last: SeenStatus | None, counts: dict[str, ReportedCounts], at: int) -> dict[str, float]:
    """Denied calls a minute since the earlier status, by plugin."""
    if last is None or not last.before_at or at - last.before_at < _SPAN_S:
        return last.rates if last is not None else {}
    minutes = (at - last.before_at) / 60
    found = {}
    for name, now in counts.items():
        before = last.before.get(name)
        if before is not None and now.denied > before.denied:
            found[name] = (now.denied - before.denied) / minutes
    return found

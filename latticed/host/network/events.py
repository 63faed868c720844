"""Which plans of a plugin are audit events of their own.

A plugin may plan without end, and decisions are kept for good. Each of its calls is in the record of calls anyway.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.model.audit import Actor, Event

if TYPE_CHECKING:
    from latticed.ledger.plans import PlanRow

EVENTS: Final = Rate(burst=100, per_second=0.1)
"""Plans of one plugin that are events of their own, as docs/operate/audit.md says; others are counted in the next."""


class PlanEvents:
    """Counts, by plugin, the plans that had no event since the last one. In memory: a restart forgets the count."""

    def __init__(self) -> None:
        self._buckets = TokenBuckets()
        self._untold: Counter[str] = Counter()

    def take(self, plugin_id: str, now_s: float) -> int | None:
        """For how many plans the event of one that is made now stands, itself included; None: it has none. `now_s` is
        the monotonic time.
        """
        if self._buckets.take(plugin_id, EVENTS, now_s):
            return None
        return 1 + self._untold.pop(plugin_id, 0)

    def untold(self, plugin_id: str, plans: int = 1) -> None:
        """So many plans were made that have no event."""
        self._untold[plugin_id] += plans


def planned(plugin_id: str, row: PlanRow, count: int) -> Event:
    """The audit event of a plan, which stands for `count`; the intent is in the row, not in the event."""
    detail: dict[str, str | int | bool] = {"kind": row.kind, "bytes": len(row.intent.encode("utf-8"))}
    if count > 1:
        detail["count"] = count
    return Event(
        actor=str(Actor(kind="plugin", name=plugin_id)),
        action="network.plan",
        target=row.sha256,
        decision="allow",
        detail=detail,
    )

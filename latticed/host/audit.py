"""audit.query: a plugin reads its own audit events, never another's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from latticed.host.service import Caller, HostError, Params, Served, Whole
from latticed.ledger import audit as rows
from latticed.model.audit import Actor
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.ledger import Ledger


class Query(Params, frozen=True):
    after: Whole = 0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    action: str | None = None
    decision: str | None = None


class Audit:
    """The service."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def calls(self) -> tuple[Served, ...]:
        return (Served(method="audit.query", params=Query, serve=self._query),)

    async def _query(self, caller: Caller, asked: Query) -> dict[str, Any]:
        actor = str(Actor(kind="plugin", name=caller.plugin_id))
        try:
            events = await self._ledger.read_for_plugin(
                lambda db: rows.query(
                    db, after=asked.after, limit=asked.limit, actor=actor, action=asked.action, decision=asked.decision
                )
            )
        except Problem as problem:
            raise HostError(Denial.SERVICE_UNAVAILABLE, problem.detail) from problem
        return {"events": events, "next": events[-1]["seq"] if len(events) == asked.limit else None}

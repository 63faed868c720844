"""audit.query: a plugin reads its own audit events, those of its id under the present publisher alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from latticed.host.call import Caller, Params, Served, Whole
from latticed.ledger import audit as rows
from latticed.ledger import audit_horizon
from latticed.model import chain
from latticed.model.audit import Actor, Decision
from latticed.model.chain import DECISIONS, Position
from latticed.model.hostcall import FIX

if TYPE_CHECKING:
    from latticed.ledger import Ledger

CursorInBoth = Annotated[str, Meta(pattern=r"^[0-9]{1,15}\.[0-9]{1,15}\Z")]
"""A cursor over both chains, as `chain.Position` writes it: `decisions.calls`, the last seq of each."""


class AuditQuery(Params, frozen=True):
    """Parameters of audit.query."""

    after: Whole | CursorInBoth | None = None
    """The `next` of the answer before: a cursor over both chains, or a seq of the decisions, which alone are
    answered then; absent: from the beginning.
    """
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    """Most events in the answer."""
    action: str | None = None
    """Only events with this action."""
    decision: Decision | None = None
    """Only events with this decision: allow, deny or `-`."""


class AuditCalls:
    """The host call `audit.query`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def calls(self) -> tuple[Served, ...]:
        """The call with its parameters and handler, for `host.call.table`."""
        return (Served(method="audit.query", params=AuditQuery, serve=self._query),)

    async def _query(self, caller: Caller, asked: AuditQuery) -> dict[str, Any]:
        """Events of the caller, oldest first, and `next`: the cursor of the following page, or null."""
        after = chain.cursor(str(asked.after)) if asked.after is not None else Position()
        # A bare seq is a cursor over the chain of decisions alone (docs/adr/0011).
        decisions_only = not isinstance(after, Position)
        start = Position(after or 0, 0) if not isinstance(after, Position) else after
        # Events up to here belong to an earlier publisher of this id.
        horizon = self._ledger.read(lambda db: audit_horizon.of(db, caller.plugin_id))
        events = await rows.query_in_parts(
            self._ledger.read_for_plugin,
            chains=(DECISIONS,) if decisions_only else chain.NAMES,
            after=Position(*map(max, start, horizon)),
            limit=asked.limit,
            actor=str(Actor(kind="plugin", name=caller.plugin_id)),
            action=asked.action,
            decision=asked.decision,
        )
        for event in events:
            # The command that would grant what was denied is advice for operators, not for the plugin.
            event["detail"].pop(FIX, None)
        # A full page may be the last one: the next one is empty then.
        end = start.past(events)
        more = (end.decisions if decisions_only else str(end)) if len(events) == asked.limit else None
        return {"events": events, "next": more}

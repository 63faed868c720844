"""Rows of plans: owner, intent and state (model.plan). Nothing is applied here.

A plan is its owner's: two plugins may plan the same, and each has its own. All times are microseconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem
from latticed.model.plan import TRANSITIONS, PlanState

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.quota import RowQuota
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = "number, plugin_id, sha256, kind, intent, state, created_at, updated_at"
_OPEN: Final = "('planned', 'approved')"
"""States of plans that may still be applied: `_make_room` removes none of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One plan. `number` grows and is never used again; `intent` is the canonical form of kind and intent.

    `sha256` (hex) names it within its plugin: it is the hash of `intent`.
    """

    number: int
    plugin_id: str
    sha256: str
    kind: str
    intent: str
    state: PlanState
    created_at: int
    updated_at: int


def put(
    tx: Transaction, plugin_id: str, sha256: str, kind: str, intent: str, quota: RowQuota, *, now_us: int
) -> PlanRow:
    """Keep a plan and return its row.

    A plan that exists is not added again: its row is returned, set back to planned if it was applied or stale.

    Earlier plans of this owner and kind that are not approved go stale: the newest is what is wanted. Problem
    quota_exceeded when the plugin, or all, have as many as `quota` says and no closed one can be removed.
    """
    found = get(tx, plugin_id, sha256)
    # What is open stays as it is, and so does what an operator refused.
    if found is not None and found.state in {PlanState.PLANNED, PlanState.APPROVED, PlanState.REFUSED}:
        return found
    tx.execute(
        "UPDATE plans SET state = 'stale', updated_at = ? WHERE plugin_id = ? AND kind = ? AND state = 'planned'",
        (now_us, plugin_id, kind),
    )
    if found is not None:
        move(tx, plugin_id, sha256, PlanState.PLANNED, now_us=now_us)
    else:
        _make_room(tx, plugin_id, quota)
        tx.execute(
            "INSERT INTO plans (plugin_id, sha256, kind, intent, state, created_at, updated_at) VALUES (?,?,?,?,?,?,?)",
            (plugin_id, sha256, kind, intent, PlanState.PLANNED.value, now_us, now_us),
        )
    row = get(tx, plugin_id, sha256)
    assert row is not None  # noqa: S101 - put in just now
    return row


def move(tx: Transaction, plugin_id: str, sha256: str, wanted: PlanState, *, now_us: int) -> PlanRow:
    """Set the state of a plan and return its row; Problems not_found, invalid_transition (`model.plan.TRANSITIONS`)."""
    found = get(tx, plugin_id, sha256)
    if found is None:
        raise Problem("not_found", f"there is no plan {sha256[:12]}… of {plugin_id}")
    if wanted not in TRANSITIONS[found.state]:
        detail = f"the plan {sha256[:12]}… of {plugin_id} is {found.state}, so it cannot become {wanted}"
        raise Problem("invalid_transition", detail)
    tx.execute("UPDATE plans SET state = ?, updated_at = ? WHERE number = ?", (wanted.value, now_us, found.number))
    row = get(tx, plugin_id, sha256)
    assert row is not None  # noqa: S101 - found just now
    return row


def clear(tx: Transaction, plugin_id: str) -> int:
    """Remove all plans of one plugin; returns how many there were."""
    tx.execute("DELETE FROM plans WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def get(conn: RowReader, plugin_id: str, sha256: str) -> PlanRow | None:
    """One plan of the plugin, or None."""
    statement = f"SELECT {_COLUMNS} FROM plans WHERE plugin_id = ? AND sha256 = ?"  # noqa: S608 - constants
    row = conn.execute(statement, (plugin_id, sha256)).fetchone()
    return None if row is None else _row(row)


def page(conn: RowReader, *, plugin_id: str | None = None, after: int = 0, limit: int = 100) -> list[PlanRow]:
    """At most `limit` plans whose number is greater than `after`, oldest first: of one plugin, or of all."""
    chosen, values = ("plugin_id = ? AND ", (plugin_id,)) if plugin_id is not None else ("", ())
    statement = f"SELECT {_COLUMNS} FROM plans WHERE {chosen}number > ? ORDER BY number LIMIT ?"  # noqa: S608
    return [_row(row) for row in conn.execute(statement, (*values, after, limit))]


def _make_room(tx: Transaction, plugin_id: str, quota: RowQuota) -> None:
    """Remove the oldest closed plan of the plugin when a quota is reached; open ones stay. Problem quota_exceeded."""
    mine = int(tx.execute("SELECT count(*) FROM plans WHERE plugin_id = ?", (plugin_id,)).get)
    everybodys = int(tx.execute("SELECT count(*) FROM plans").get)
    if mine < quota.plugin and everybodys < quota.total:
        return
    oldest = f"SELECT min(number) FROM plans WHERE plugin_id = ? AND state NOT IN {_OPEN}"  # noqa: S608 - constants
    tx.execute(f"DELETE FROM plans WHERE number = ({oldest})", (plugin_id,))  # noqa: S608 - constants
    # One row has gone, which is enough unless the quota was lowered below what there is. Raising brings the row back.
    if tx.changes() and mine <= quota.plugin and everybodys <= quota.total:
        return
    whose, most = (f"plans of {plugin_id}", quota.plugin) if mine >= quota.plugin else ("plans", quota.total)
    raise Problem("quota_exceeded", f"expected at most {most} {whose} that are open", "have some approved or refused")


def _row(row: tuple[Any, ...]) -> PlanRow:
    number, plugin_id, sha256, kind, intent, state, created_at, updated_at = row
    return PlanRow(
        number=number,
        plugin_id=plugin_id,
        sha256=sha256,
        kind=kind,
        intent=intent,
        state=PlanState(state),
        created_at=created_at,
        updated_at=updated_at,
    )

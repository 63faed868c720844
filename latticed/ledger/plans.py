"""Rows of plans: owner, intent, and the state that the root helper reported last (model.plan). Nothing is applied here.

A plan is its owner's: two plugins may plan the same, and each has its own row. The rows only repeat what the helper
said: changing one changes nothing on the host. All times are microseconds since the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.plan import PlanState

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.quota import RowQuota
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = "number, plugin_id, sha256, kind, intent, state, review, code, reason, created_at, updated_at"
OPEN: Final = frozenset({PlanState.PLANNED, PlanState.APPROVED, PlanState.APPLYING, PlanState.UNCONFIRMED})
"""States of plans that wait for somebody, or that are being applied."""
NEEDED: Final = OPEN | {PlanState.APPLIED}
"""States of plans that `_make_room` does not remove. From the row of the applied one its plugin reads what is in force
(`network.state`), and changes that: to remove one device, say.
"""
STAYS: Final = OPEN | {PlanState.REFUSED}
"""States that planning the same again leaves as they are: what is open, and what an operator refused."""
_NEEDED: Final = "(" + ", ".join(f"'{state.value}'" for state in sorted(NEEDED)) + ")"
# A row that a newer plan of its plugin made stale stays so while the helper keeps it as an offer.
_DIFFERS: Final = "(state, review, code, reason) IS NOT (?1, ?2, ?3, ?4) AND NOT (state = 'stale' AND ?1 = 'planned')"


class PlanRow(Value, frozen=True, kw_only=True):
    """One plan. `number` grows and is never used again; `intent` is the canonical form of kind and intent.

    `sha256` (hex) names it within its plugin: it is the hash of `intent`. `review`: the one that is approved, 64 hex
    digits as the helper reported them, or empty. `code` and `reason`: why it was refused or failed, or empty.
    """

    number: int
    plugin_id: str
    sha256: str
    kind: str
    intent: str
    state: PlanState
    review: str
    code: str
    reason: str
    created_at: int
    updated_at: int


class Reported(NamedTuple):
    """What the helper reported of a plan; the fields are those of `PlanRow`."""

    state: PlanState
    review: str = ""
    code: str = ""
    reason: str = ""


class StepsRead(NamedTuple):
    """How far the steps of the helper's chain were copied: the last one's seq and hash; 0 and "" for none."""

    seq: int = 0
    hash: str = ""


def put(
    tx: Transaction, plugin_id: str, sha256: str, kind: str, intent: str, quota: RowQuota, *, now_us: int
) -> PlanRow:
    """Keep a plan and return its row.

    A plan that exists is not added again: its row is returned, set back to planned if it had come to an end, unless it
    was refused.

    Earlier plans of this owner and kind that are not approved go stale: the newest is what is wanted. Problem
    quota_exceeded when the plugin, or all, have as many as `quota` says and none can be removed.
    """
    found = get(tx, plugin_id, sha256)
    if found is not None and found.state in STAYS:
        return found
    tx.execute(
        "UPDATE plans SET state = 'stale', updated_at = ? WHERE plugin_id = ? AND kind = ? AND state = 'planned'",
        (now_us, plugin_id, kind),
    )
    if found is not None:
        tx.execute(
            "UPDATE plans SET state = 'planned', code = '', reason = '', updated_at = ? WHERE number = ?",
            (now_us, found.number),
        )
    else:
        _make_room(tx, plugin_id, quota)
        tx.execute(
            "INSERT INTO plans (plugin_id, sha256, kind, intent, state, created_at, updated_at) VALUES (?,?,?,?,?,?,?)",
            (plugin_id, sha256, kind, intent, PlanState.PLANNED.value, now_us, now_us),
        )
    row = get(tx, plugin_id, sha256)
    assert row is not None  # noqa: S101 - put in just now
    return row


def mirror(tx: Transaction, sha256: str, reported: Reported, *, now_us: int) -> int:
    """Write what the helper reported into the rows of this plan, whoever owns them; returns how many changed.

    Any state may follow any other: the helper decides, and this may have missed what came between.
    """
    changed = _DIFFERS + " AND sha256 = ?5"
    tx.execute(
        f"UPDATE plans SET state = ?1, review = ?2, code = ?3, reason = ?4, updated_at = ?6 WHERE {changed}",  # noqa: S608
        (*_values(reported), sha256, now_us),
    )
    return tx.changes()


def is_mirrored(conn: RowReader, sha256: str, reported: Reported) -> bool:
    """Whether `mirror` would change nothing."""
    statement = f"SELECT 1 FROM plans WHERE {_DIFFERS} AND sha256 = ?5 LIMIT 1"  # noqa: S608 - constants
    return conn.execute(statement, (*_values(reported), sha256)).fetchone() is None


def note(tx: Transaction, sha256: str, code: str, reason: str, *, now_us: int) -> None:
    """Keep why the helper did not take a planned plan; the state stays."""
    tx.execute(
        "UPDATE plans SET code = ?2, reason = ?3, updated_at = ?4"
        " WHERE sha256 = ?1 AND state = 'planned' AND (code, reason) IS NOT (?2, ?3)",
        (sha256, code, reason, now_us),
    )


def steps_read(conn: RowReader) -> StepsRead:
    """How far the helper's chain was copied."""
    row = conn.execute("SELECT seq, hash FROM plan_steps_read").fetchone()
    return StepsRead() if row is None else StepsRead(int(row[0]), str(row[1]))


def set_steps_read(tx: Transaction, read: StepsRead) -> None:
    """Remember how far the helper's chain was copied, in the transaction that appends the copies."""
    tx.execute("INSERT OR REPLACE INTO plan_steps_read (id, seq, hash) VALUES (1, ?, ?)", (read.seq, read.hash))


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


def newest(
    conn: RowReader, *, plugin_id: str | None = None, state: str | None = None, before: int = 0, limit: int = 100
) -> list[PlanRow]:
    """At most `limit` plans, newest first, whose number is smaller than `before` unless that is 0."""
    statement = (
        f"SELECT {_COLUMNS} FROM plans WHERE (?1 IS NULL OR plugin_id = ?1) AND (?2 IS NULL OR state = ?2)"  # noqa: S608
        " AND (?3 = 0 OR number < ?3) ORDER BY number DESC LIMIT ?4"
    )
    return [_row(row) for row in conn.execute(statement, (plugin_id, state, before, limit))]


def named(conn: RowReader, sha256: str) -> list[PlanRow]:
    """The rows of one plan, newest first: one for each plugin that planned it."""
    statement = f"SELECT {_COLUMNS} FROM plans WHERE sha256 = ? ORDER BY number DESC"  # noqa: S608 - constants
    return [_row(row) for row in conn.execute(statement, (sha256,))]


def needed(conn: RowReader) -> list[PlanRow]:
    """All plans that are open or applied, oldest first."""
    statement = f"SELECT {_COLUMNS} FROM plans WHERE state IN {_NEEDED} ORDER BY number"  # noqa: S608 - constants
    return [_row(row) for row in conn.execute(statement)]


def states(conn: RowReader) -> dict[str, int]:
    """How many plans are in each state that any is in."""
    return dict(conn.execute("SELECT state, count(*) FROM plans GROUP BY state ORDER BY state"))


def _values(reported: Reported) -> tuple[str, str, str, str]:
    return reported.state.value, reported.review, reported.code, reported.reason


def _make_room(tx: Transaction, plugin_id: str, quota: RowQuota) -> None:
    """Remove the oldest plan of the plugin that nobody needs when a quota is reached. Problem quota_exceeded."""
    mine = int(tx.execute("SELECT count(*) FROM plans WHERE plugin_id = ?", (plugin_id,)).get)
    everybodys = int(tx.execute("SELECT count(*) FROM plans").get)
    if mine < quota.plugin and everybodys < quota.total:
        return
    oldest = f"SELECT min(number) FROM plans WHERE plugin_id = ? AND state NOT IN {_NEEDED}"  # noqa: S608 - constants
    tx.execute(f"DELETE FROM plans WHERE number = ({oldest})", (plugin_id,))  # noqa: S608 - constants
    # One row has gone, which is enough unless the quota was lowered below what there is. Raising brings the row back.
    if tx.changes() and mine <= quota.plugin and everybodys <= quota.total:
        return
    whose, most = (f"plans of {plugin_id}", quota.plugin) if mine >= quota.plugin else ("plans", quota.total)
    raise Problem(
        "quota_exceeded", f"expected at most {most} {whose} that are open or applied", "have some approved or refused"
    )


def _row(row: tuple[Any, ...]) -> PlanRow:
    number, plugin_id, sha256, kind, intent, state, review, code, reason, created_at, updated_at = row
    return PlanRow(
        number=number,
        plugin_id=plugin_id,
        sha256=sha256,
        kind=kind,
        intent=intent,
        state=PlanState(state),
        review=review,
        code=code,
        reason=reason,
        created_at=created_at,
        updated_at=updated_at,
    )

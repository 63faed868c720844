"""Long-lived programs that plugins declared: services and tunnels. `spec` is opaque here: host.program and host.tunnel
parse it.

All times are microseconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.ledger import quota as quotas

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.quota import RowQuota
    from latticed.ledger.transaction import Transaction

Kind = Literal["service", "tunnel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRow:
    """One program; `candidate` is a spec that is being tried in place of `spec`, or empty.

    `name` is unique among the programs of its kind and plugin.
    """

    plugin_id: str
    kind: Kind
    name: str
    spec: str
    candidate: str
    created_at: int
    updated_at: int


_COLUMNS: Final = ", ".join(field.name for field in fields(ProgramRow))


def put(
    tx: Transaction, plugin_id: str, kind: Kind, name: str, spec: str, quota: RowQuota, *, now_us: int
) -> ProgramRow:
    """Keep a program from now on, or change its spec, and return its row; Problem quota_exceeded.

    A candidate that was being tried is dropped. The quota counts programs of this kind only.
    """
    if not settle(tx, plugin_id, kind, name, spec, now_us=now_us):
        quotas.check_one_more(tx, "programs", plugin_id, quota, what=kind + "s{whose}", where=f"kind = '{kind}'")
        tx.execute(
            f"INSERT INTO programs ({_COLUMNS}) VALUES (?,?,?,?,'',?,?)",  # noqa: S608 - constants
            (plugin_id, kind, name, spec, now_us, now_us),
        )
    row = get(tx, plugin_id, kind, name)
    assert row is not None  # noqa: S101 - put in just now
    return row


def settle(tx: Transaction, plugin_id: str, kind: Kind, name: str, spec: str, *, now_us: int) -> bool:
    """Change the spec of a program, and drop its candidate; False when there is no such program."""
    tx.execute(
        "UPDATE programs SET spec = ?, candidate = '', updated_at = ? WHERE plugin_id = ? AND kind = ? AND name = ?",
        (spec, now_us, plugin_id, kind, name),
    )
    return tx.changes() > 0


def consider(tx: Transaction, plugin_id: str, kind: Kind, name: str, candidate: str) -> bool:
    """Note that `candidate` is being tried in place of the spec, or (empty) that none is any more.

    False when there is no such program. The spec itself stays: after a crash it is what runs.
    """
    tx.execute(
        "UPDATE programs SET candidate = ? WHERE plugin_id = ? AND kind = ? AND name = ?",
        (candidate, plugin_id, kind, name),
    )
    return tx.changes() > 0


def delete(tx: Transaction, plugin_id: str, kind: Kind, name: str) -> bool:
    """Remove a program; False when there was none."""
    tx.execute("DELETE FROM programs WHERE plugin_id = ? AND kind = ? AND name = ?", (plugin_id, kind, name))
    return tx.changes() > 0


def clear(tx: Transaction, plugin_id: str, kind: Kind | None = None) -> int:
    """Remove all programs of one plugin, or those of one kind; returns how many there were."""
    chosen, values = ("", ()) if kind is None else (" AND kind = ?", (kind,))
    tx.execute(f"DELETE FROM programs WHERE plugin_id = ?{chosen}", (plugin_id, *values))  # noqa: S608 - constants
    return tx.changes()


def get(conn: RowReader, plugin_id: str, kind: Kind, name: str) -> ProgramRow | None:
    """One program of the plugin, or None."""
    statement = f"SELECT {_COLUMNS} FROM programs WHERE plugin_id = ? AND kind = ? AND name = ?"  # noqa: S608
    row = conn.execute(statement, (plugin_id, kind, name)).fetchone()
    return None if row is None else _row(row)


def load_all(conn: RowReader, kind: Kind) -> list[ProgramRow]:
    """Every program of one kind, by plugin and name."""
    statement = f"SELECT {_COLUMNS} FROM programs WHERE kind = ? ORDER BY plugin_id, name"  # noqa: S608 - constants
    return [_row(row) for row in conn.execute(statement, (kind,))]


def _row(row: tuple[Any, ...]) -> ProgramRow:
    return ProgramRow(**dict(zip(_COLUMNS.split(", "), row, strict=True)))

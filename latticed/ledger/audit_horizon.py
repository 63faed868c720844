"""How far back a plugin may read the audit record: not events from before its present publisher had its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.model.chain import Position

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction


def draw(tx: Transaction, plugin_id: str) -> None:
    """Hide all events so far from the plugin: they belong to the previous publisher.

    Call it in the transaction that gives the id to another publisher.
    """
    tx.execute("REPLACE INTO audit_horizons VALUES (?,?,?)", (plugin_id, *tx.chains.position))


def of(conn: RowReader, plugin_id: str) -> Position:
    """The last events of both chains that the plugin may not read; (0, 0) when it may read all."""
    row = conn.execute("SELECT decisions, calls FROM audit_horizons WHERE plugin_id = ?", (plugin_id,)).fetchone()
    return Position(*row) if row else Position()

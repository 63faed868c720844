"""How far back a plugin may read the audit record: not behind the moment its id came into its publisher's hands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.model.chain import Position

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction


def draw(tx: Transaction, plugin_id: str) -> None:
    """From now on what is on record so far is another publisher's."""
    tx.execute("REPLACE INTO audit_horizons VALUES (?,?,?)", (plugin_id, *tx.chains.position))


def of(conn: RowReader, plugin_id: str) -> Position:
    """The last events of both chains that are not this plugin's to read."""
    row = conn.execute("SELECT decisions, calls FROM audit_horizons WHERE plugin_id = ?", (plugin_id,)).fetchone()
    return Position(*row) if row else Position()

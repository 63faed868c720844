"""Operators' configurations of plugins, one document each, with the schema's hash that it was checked against.

Documents hold references to secrets, never values. Callers check documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = "document, sha256, schema_sha256, updated_at"


class ConfigRow(Value, frozen=True, kw_only=True):
    """`document` is compact JSON, hashes are lowercase hex, `updated_at` microseconds since the epoch."""

    document: bytes
    sha256: str
    schema_sha256: str
    updated_at: int


def get(conn: RowReader, plugin_id: str) -> ConfigRow | None:
    """What is set for a plugin, or None."""
    statement = f"SELECT {_COLUMNS} FROM configs WHERE plugin_id = ?"  # noqa: S608 - constants
    row = conn.execute(statement, (plugin_id,)).fetchone()
    if row is None:
        return None
    document, sha256, schema_sha256, updated_at = row
    return ConfigRow(document=bytes(document), sha256=sha256, schema_sha256=schema_sha256, updated_at=updated_at)


def put(tx: Transaction, plugin_id: str, row: ConfigRow) -> None:
    """Set a plugin's document, in place of any other."""
    tx.execute(
        f"INSERT OR REPLACE INTO configs (plugin_id, {_COLUMNS}) VALUES (?,?,?,?,?)",  # noqa: S608 - constants
        (plugin_id, row.document, row.sha256, row.schema_sha256, row.updated_at),
    )


def fits(tx: Transaction, plugin_id: str, schema_sha256: str) -> None:
    """Note that a plugin's document, if it has one, was checked against another schema."""
    tx.execute("UPDATE configs SET schema_sha256 = ? WHERE plugin_id = ?", (schema_sha256, plugin_id))


def rename_plugin(tx: Transaction, old: str, new: str) -> None:
    """Set the document of `old` aside under a name that no plugin has, or bring it back."""
    tx.execute("UPDATE OR REPLACE configs SET plugin_id = ? WHERE plugin_id = ?", (new, old))


def remove(tx: Transaction, plugin_id: str) -> None:
    """Remove a plugin's own document, not those of earlier publishers."""
    tx.execute("DELETE FROM configs WHERE plugin_id = ?", (plugin_id,))


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove all of an id, earlier publishers' included."""
    # Those set aside are at `<id>@<publisher>`: "A" is the character after "@".
    tx.execute(
        "DELETE FROM configs WHERE plugin_id = ? OR plugin_id >= ? AND plugin_id < ?",
        (plugin_id, f"{plugin_id}@", f"{plugin_id}A"),
    )

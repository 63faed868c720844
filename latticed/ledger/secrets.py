"""Sealed values and who may have them used. What is in `sealed` only the owner of the key can read (host.secrets).

A binding carries a MAC under the same key: who can only write this database cannot bind a secret. Removing one needs
no key, so the lifecycle can set a plugin's bindings aside in the transaction that accepts another publisher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

MAX_SECRETS: Final = 1_000
MAX_BINDINGS: Final = 64
"""Of one secret."""

_COLUMNS: Final = "owner, name, version, key_id, nonce, sealed, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRow:
    """One secret as it is stored. Times are microseconds since the epoch; `key_id` names the key, it tells nothing."""

    owner: str
    name: str
    version: int
    key_id: str
    nonce: bytes
    sealed: bytes
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """That `plugin_id` may have the secret used, if `mac` is right."""

    owner: str
    name: str
    plugin_id: str
    mac: bytes


def get(conn: RowReader, owner: str, name: str) -> SecretRow | None:
    """One secret, or None."""
    statement = f"SELECT {_COLUMNS} FROM secrets WHERE owner = ? AND name = ?"  # noqa: S608 - constants
    row = conn.execute(statement, (owner, name)).fetchone()
    return None if row is None else _row(row)


def load_all(conn: RowReader) -> tuple[SecretRow, ...]:
    """All secrets by owner and name."""
    statement = f"SELECT {_COLUMNS} FROM secrets ORDER BY owner, name"  # noqa: S608 - constants
    return tuple(_row(row) for row in conn.execute(statement))


def count(conn: RowReader) -> int:
    """How many there are."""
    return int(conn.execute("SELECT count(*) FROM secrets").get)


def put(tx: Transaction, row: SecretRow) -> None:
    """Store a secret, in place of the one of that owner and name; Problem quota_exceeded."""
    if get(tx, row.owner, row.name) is None and count(tx) >= MAX_SECRETS:
        raise Problem("quota_exceeded", f"expected at most {MAX_SECRETS} secrets, found {MAX_SECRETS}")
    tx.execute(
        f"INSERT OR REPLACE INTO secrets ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)",  # noqa: S608 - constants
        (row.owner, row.name, row.version, row.key_id, row.nonce, row.sealed, row.created_at, row.updated_at),
    )


def bound_to(conn: RowReader, owner: str, name: str) -> list[str]:
    """The ids of the plugins that may have one secret used, in order."""
    return [plugin_id for one, plugin_id in bindings(conn, owner) if one == name]


def delete(tx: Transaction, owner: str, name: str) -> bool:
    """Remove a secret and its bindings; False when there was none."""
    tx.execute("DELETE FROM secret_bindings WHERE owner = ? AND name = ?", (owner, name))
    tx.execute("DELETE FROM secrets WHERE owner = ? AND name = ?", (owner, name))
    return tx.changes() > 0


def bind(tx: Transaction, binding: Binding) -> None:
    """Keep a binding; Problems not_found (no such secret), quota_exceeded."""
    if get(tx, binding.owner, binding.name) is None:
        raise Problem("not_found", f"there is no secret {binding.name}")
    bound = set(bound_to(tx, binding.owner, binding.name))
    if len(bound - {binding.plugin_id}) >= MAX_BINDINGS:
        raise Problem("quota_exceeded", f"expected at most {MAX_BINDINGS} plugins bound to {binding.name}")
    tx.execute(
        "INSERT OR REPLACE INTO secret_bindings (owner, name, plugin_id, mac) VALUES (?,?,?,?)",
        (binding.owner, binding.name, binding.plugin_id, binding.mac),
    )


def unbind(tx: Transaction, owner: str, name: str, plugin_id: str) -> bool:
    """Take a binding away; False when there was none."""
    bound = (owner, name, plugin_id)
    tx.execute("DELETE FROM secret_bindings WHERE owner = ? AND name = ? AND plugin_id = ?", bound)
    return tx.changes() > 0


def unbind_all(tx: Transaction, plugin_id: str) -> int:
    """Take back every secret that was bound to a plugin; how many there were."""
    tx.execute("DELETE FROM secret_bindings WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def unbind_set_aside(tx: Transaction, plugin_id: str) -> None:
    """Take back what was bound under this id for publishers that held it before (`rename_plugin`)."""
    tx.execute("DELETE FROM secret_bindings WHERE plugin_id >= ? AND plugin_id < ?", (f"{plugin_id}@", f"{plugin_id}A"))


def rename_plugin(tx: Transaction, old: str, new: str) -> int:
    """Set all bindings of the plugin `old` aside under a name that no plugin has, or bring them back; how many.

    Their MACs fit the name they were made for, so under another one they open nothing.
    """
    tx.execute("UPDATE OR REPLACE secret_bindings SET plugin_id = ? WHERE plugin_id = ?", (new, old))
    return tx.changes()


def binding(conn: RowReader, owner: str, name: str, plugin_id: str) -> bytes | None:
    """The MAC of one binding, or None."""
    statement = "SELECT mac FROM secret_bindings WHERE owner = ? AND name = ? AND plugin_id = ?"
    row = conn.execute(statement, (owner, name, plugin_id)).fetchone()
    return None if row is None else bytes(row[0])


def bindings(conn: RowReader, owner: str) -> list[tuple[str, str]]:
    """(name, plugin id) of all bindings, in that order."""
    statement = "SELECT name, plugin_id FROM secret_bindings WHERE owner = ? ORDER BY name, plugin_id"
    return list(conn.execute(statement, (owner,)))


def _row(row: tuple[Any, ...]) -> SecretRow:
    owner, name, version, key_id, nonce, sealed, created_at, updated_at = row
    return SecretRow(
        owner=owner,
        name=name,
        version=version,
        key_id=key_id,
        nonce=bytes(nonce),
        sealed=bytes(sealed),
        created_at=created_at,
        updated_at=updated_at,
    )

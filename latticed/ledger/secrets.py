"""Rows of secrets, encrypted by host.secrets, and of their bindings to plugins.

A binding carries a MAC under the same key, so write access to this database does not suffice to bind a secret. Removing
one needs no key, so the lifecycle can set a plugin's bindings aside in the transaction that accepts another publisher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

MAX_SECRETS: Final = 1_000
"""Secrets of all owners together."""
MAX_BINDINGS: Final = 64
"""Plugins bound to one secret."""

_COLUMNS: Final = "owner, name, version, key_id, nonce, sealed, created_at, updated_at"


class SecretRow(Value, frozen=True, kw_only=True):
    """One secret: `sealed` is the ciphertext under `nonce`, `key_id` names the key (and reveals nothing of it).

    Times are microseconds since the epoch. `version` is the caller's count of changes.
    """

    owner: str
    name: str
    version: int
    key_id: str
    nonce: bytes
    sealed: bytes
    created_at: int
    updated_at: int


class Binding(Value, frozen=True, kw_only=True):
    """Permission for `plugin_id` to use a secret through host calls; void unless host.secrets verifies `mac`."""

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
    """Number of secrets of all owners."""
    return int(conn.execute("SELECT count(*) FROM secrets").get)


def put(tx: Transaction, row: SecretRow) -> None:
    """Insert a secret or replace the one of that owner and name; Problem quota_exceeded beyond MAX_SECRETS."""
    if get(tx, row.owner, row.name) is None and count(tx) >= MAX_SECRETS:
        raise Problem("quota_exceeded", f"expected at most {MAX_SECRETS} secrets, found {MAX_SECRETS}")
    tx.execute(
        f"INSERT OR REPLACE INTO secrets ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)",  # noqa: S608 - constants
        (row.owner, row.name, row.version, row.key_id, row.nonce, row.sealed, row.created_at, row.updated_at),
    )


def bound_to(conn: RowReader, owner: str, name: str) -> list[str]:
    """Sorted ids of the plugins with a binding to one secret."""
    return [plugin_id for one, plugin_id in bindings(conn, owner) if one == name]


def delete(tx: Transaction, owner: str, name: str) -> bool:
    """Remove a secret and its bindings; False when there was none."""
    tx.execute("DELETE FROM secret_bindings WHERE owner = ? AND name = ?", (owner, name))
    # Last: `changes` counts the rows of the latest statement, and the result is about the secret.
    tx.execute("DELETE FROM secrets WHERE owner = ? AND name = ?", (owner, name))
    return tx.changes() > 0


def bind(tx: Transaction, binding: Binding) -> None:
    """Insert or replace a binding; Problems not_found (no such secret), quota_exceeded (MAX_BINDINGS)."""
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
    """Remove a binding; False when there was none."""
    bound = (owner, name, plugin_id)
    tx.execute("DELETE FROM secret_bindings WHERE owner = ? AND name = ? AND plugin_id = ?", bound)
    return tx.changes() > 0


def unbind_all(tx: Transaction, plugin_id: str) -> int:
    """Remove all bindings of a plugin; returns how many there were."""
    tx.execute("DELETE FROM secret_bindings WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def unbind_set_aside(tx: Transaction, plugin_id: str) -> None:
    """Remove the bindings set aside (by `rename_plugin`) for earlier publishers of this id: `<plugin_id>@...`.

    "A" is the character after "@".
    """
    tx.execute("DELETE FROM secret_bindings WHERE plugin_id >= ? AND plugin_id < ?", (f"{plugin_id}@", f"{plugin_id}A"))


def rename_plugin(tx: Transaction, old: str, new: str) -> int:
    """Move all bindings of `old` to `new`: to set them aside under a name that no plugin has, or to bring them back.

    Returns how many. The MAC covers the original plugin id, so a binding is void while it is set aside.
    """
    tx.execute("UPDATE OR REPLACE secret_bindings SET plugin_id = ? WHERE plugin_id = ?", (new, old))
    return tx.changes()


def binding(conn: RowReader, owner: str, name: str, plugin_id: str) -> bytes | None:
    """The MAC of one binding; None when there is no such binding."""
    statement = "SELECT mac FROM secret_bindings WHERE owner = ? AND name = ? AND plugin_id = ?"
    row = conn.execute(statement, (owner, name, plugin_id)).fetchone()
    return None if row is None else bytes(row[0])


def bindings(conn: RowReader, owner: str) -> list[tuple[str, str]]:
    """(name, plugin id) of all bindings of an owner's secrets, in that order; their MACs are not checked here."""
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

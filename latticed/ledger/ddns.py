"""DNS records that are kept up to date for plugins, and the status of each. `spec` is opaque here: host.ddns parses it.

All times are microseconds since the epoch; 0: never.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.ledger import quota as quotas
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.quota import RowQuota
    from latticed.ledger.transaction import Transaction

State = Literal["pending", "published", "retrying", "denied"]
"""published: the provider has the address; retrying: after a failure that may pass; denied: after one that will not."""
_KEYS: Final = "key, plugin_id, name, type, spec, created_at, updated_at"
"""Columns of the record itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DdnsStatus:
    """The status of one record.

    `published`: the address that the provider had when it was last asked. `changed_at`: when that was last changed, and
    `flaps` how often in quick succession. `failures`: in a row; the last one is `code` and `reason`, at `failed_at`.
    `next_at`: not before then is the provider asked again about the same address.
    """

    state: State = "pending"
    published: str = ""
    changed_at: int = 0
    flaps: int = 0
    succeeded_at: int = 0
    failures: int = 0
    code: str = ""
    reason: str = ""
    failed_at: int = 0
    next_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DdnsRow:
    """One record of one plugin; `key` is never used again."""

    key: int
    plugin_id: str
    name: str
    type: str
    spec: str
    created_at: int
    updated_at: int
    standing: DdnsStatus


_STANDING: Final = tuple(field.name for field in fields(DdnsStatus))
"""Columns of its status, named as the fields of DdnsStatus."""
_COLUMNS: Final = f"{_KEYS}, {', '.join(_STANDING)}"
_SET: Final = ", ".join(f"{name} = ?" for name in _STANDING)


def put(
    tx: Transaction,
    plugin_id: str,
    name: str,
    kind: str,
    spec: str,
    standing: DdnsStatus,
    quota: RowQuota,
    *,
    now_us: int,
) -> DdnsRow:
    """Keep a record of the plugin from now on, or change it, and return its row.

    `kind` is the type of DNS record. Problems: quota_exceeded; bad_params when another plugin has this name and type.
    """
    owner = tx.execute("SELECT plugin_id FROM ddns_records WHERE name = ? AND type = ?", (name, kind)).get
    if owner not in (None, plugin_id):
        raise Problem("bad_params", f"name: expected one that no other plugin keeps, found {name} ({kind}) of another")
    if owner is None:
        quotas.check_one_more(tx, "ddns_records", plugin_id, quota, what="records{whose}")
        tx.execute(
            "INSERT INTO ddns_records (plugin_id, name, type, spec, created_at, updated_at) VALUES (?,?,?,?,?,?)",
            (plugin_id, name, kind, spec, now_us, now_us),
        )
    # For a row inserted just now as well: the status is set in one place.
    statement = f"UPDATE ddns_records SET spec = ?, updated_at = ?, {_SET} WHERE name = ? AND type = ?"  # noqa: S608
    tx.execute(statement, (spec, now_us, *_values(standing), name, kind))
    row = get(tx, plugin_id, name, kind)
    assert row is not None  # noqa: S101 - put in just now
    return row


def keep(tx: Transaction, key: int, standing: DdnsStatus) -> bool:
    """Set the status of the record with this `key`; False when it is gone, so that a late result is dropped."""
    tx.execute(f"UPDATE ddns_records SET {_SET} WHERE key = ?", (*_values(standing), key))  # noqa: S608 - constants
    return tx.changes() > 0


def delete(tx: Transaction, plugin_id: str, name: str, kind: str) -> bool:
    """Remove a record; False when there was none."""
    tx.execute("DELETE FROM ddns_records WHERE plugin_id = ? AND name = ? AND type = ?", (plugin_id, name, kind))
    return tx.changes() > 0


def clear(tx: Transaction, plugin_id: str) -> int:
    """Remove all records of one plugin; returns how many there were."""
    tx.execute("DELETE FROM ddns_records WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def get(conn: RowReader, plugin_id: str, name: str, kind: str) -> DdnsRow | None:
    """One record of the plugin, or None."""
    statement = f"SELECT {_COLUMNS} FROM ddns_records WHERE plugin_id = ? AND name = ? AND type = ?"  # noqa: S608
    row = conn.execute(statement, (plugin_id, name, kind)).fetchone()
    return None if row is None else _row(row)


def load_all(conn: RowReader) -> list[DdnsRow]:
    """Every record, by plugin, name and type."""
    statement = f"SELECT {_COLUMNS} FROM ddns_records ORDER BY plugin_id, name, type"  # noqa: S608 - constants
    return [_row(row) for row in conn.execute(statement)]


def _values(standing: DdnsStatus) -> tuple[Any, ...]:
    """The values of a status in the order of the columns of `_SET`."""
    return tuple(getattr(standing, name) for name in _STANDING)


def _row(row: tuple[Any, ...]) -> DdnsRow:
    width = len(_KEYS.split(", "))
    standing = DdnsStatus(**dict(zip(_STANDING, row[width:], strict=True)))
    return DdnsRow(**dict(zip(_KEYS.split(", "), row[:width], strict=True)), standing=standing)

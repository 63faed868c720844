"""Earlier versions of plugins that can be returned to, and versions that turned out bad.

A kept version is the record as it was when another version replaced it, with its configuration; its key-value data is
in the bucket `kv.aside`. `record` and `gate` are opaque here: `ledger.records` and `lifecycle.upgrades` decode them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.ledger import configs, kv
from latticed.ledger.configs import ConfigRow
from latticed.ledger.connection import DAMAGED

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

KEPT: Final = 3
"""How many identities of a plugin are kept besides the present one."""
BAD: Final = 16
"""How many bad identities of a plugin are remembered, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVersion:
    """One kept version, the `number`-th of its plugin; `kept_at` in microseconds since the epoch.

    `gate`: while the version that replaced it may still be given up, what is needed for that; else None.
    """

    plugin_id: str
    number: int
    version: str
    identity: str
    gate: bytes | None
    kept_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadVersion:
    """A version that is not offered any more, and why; `marked_at` in microseconds since the epoch."""

    plugin_id: str
    identity: str
    version: str
    code: str
    reason: str
    marked_at: int


_KEPT_COLUMNS: Final = ", ".join(field.name for field in fields(KeptVersion))
_BAD_COLUMNS: Final = ", ".join(field.name for field in fields(BadVersion))


def keep(tx: Transaction, kept: KeptVersion, record: bytes) -> None:
    """Keep a version with the plugin's present values and configuration; earlier ones beyond KEPT are removed.

    It replaces what was kept of the same identity, and ends a gate that is still open (`end_gate`).
    """
    plugin_id = kept.plugin_id
    end_gate(tx, plugin_id)
    for number, identity in _numbers(tx, plugin_id):
        if identity == kept.identity:
            drop(tx, plugin_id, number)
    row = configs.get(tx, plugin_id)
    values = (getattr(kept, field.name) for field in fields(KeptVersion))
    tx.execute(
        f"INSERT INTO kept_versions ({_KEPT_COLUMNS}, record, config) VALUES (?,?,?,?,?,?,?,?)",  # noqa: S608 - constants
        (*values, record, msgspec.json.encode(row) if row is not None else None),
    )
    kv.copy(tx, kv.own(plugin_id), kv.aside(plugin_id, kept.number))


def prune(tx: Transaction, plugin_id: str, present: str) -> None:
    """Remove all but the newest KEPT versions that are not the identity `present`, which is not counted."""
    others = [number for number, identity in _numbers(tx, plugin_id) if identity != present]
    for number in others[:-KEPT]:
        drop(tx, plugin_id, number)


def bring_back(tx: Transaction, plugin_id: str, number: int, *, keep: bool) -> None:
    """Make values and configuration those of a kept version; without `keep` it is kept no longer. Nothing happens when
    it is not kept: what was brought back once must not be replaced by nothing.
    """
    if record_of(tx, plugin_id, number) is None:
        return
    config = config_of(tx, plugin_id, number)
    kv.replace(tx, kv.aside(plugin_id, number), kv.own(plugin_id), keep=keep)
    if config is None:
        configs.remove(tx, plugin_id)
    else:
        configs.put(tx, plugin_id, config)
    if not keep:
        drop(tx, plugin_id, number)


def drop(tx: Transaction, plugin_id: str, number: int) -> None:
    """Keep a version no longer, nor its values."""
    tx.execute("DELETE FROM kept_versions WHERE plugin_id = ? AND number = ?", (plugin_id, number))
    kv.clear(tx, kv.aside(plugin_id, number))


def end_gate(tx: Transaction, plugin_id: str) -> None:
    """The version that replaced another one stays: from now on the other is only kept."""
    tx.execute("UPDATE kept_versions SET gate = NULL WHERE plugin_id = ? AND gate IS NOT NULL", (plugin_id,))


def mark_bad(tx: Transaction, bad: BadVersion) -> None:
    """Remember that a version is not to be offered again; the oldest beyond BAD are forgotten."""
    values = tuple(getattr(bad, field.name) for field in fields(BadVersion))
    tx.execute(f"INSERT OR REPLACE INTO bad_versions ({_BAD_COLUMNS}) VALUES (?,?,?,?,?,?)", values)  # noqa: S608
    tx.execute(
        "DELETE FROM bad_versions WHERE plugin_id = ? AND identity NOT IN"
        " (SELECT identity FROM bad_versions WHERE plugin_id = ? ORDER BY marked_at DESC LIMIT ?)",
        (bad.plugin_id, bad.plugin_id, BAD),
    )


def unmark_bad(tx: Transaction, plugin_id: str, identity: str) -> None:
    """A version was accepted again, by name."""
    tx.execute("DELETE FROM bad_versions WHERE plugin_id = ? AND identity = ?", (plugin_id, identity))


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove all of one plugin, the values of kept versions too."""
    for number, _ in _numbers(tx, plugin_id):
        drop(tx, plugin_id, number)
    tx.execute("DELETE FROM bad_versions WHERE plugin_id = ?", (plugin_id,))


def is_open(conn: RowReader, plugin_id: str, number: int) -> bool:
    """Whether the version that replaced this one may still be given up."""
    statement = "SELECT 1 FROM kept_versions WHERE plugin_id = ? AND number = ? AND gate IS NOT NULL"
    return conn.execute(statement, (plugin_id, number)).fetchone() is not None


def standing_by(conn: RowReader, plugin_id: str, identity: str) -> int:
    """The number of the version of this identity, if the one that replaced it may still be given up; else 0."""
    statement = "SELECT number FROM kept_versions WHERE plugin_id = ? AND identity = ? AND gate IS NOT NULL"
    row = conn.execute(statement, (plugin_id, identity)).fetchone()
    return 0 if row is None else int(row[0])


def record_of(conn: RowReader, plugin_id: str, number: int) -> bytes | None:
    """The record of a kept version; None when it is kept no longer."""
    statement = "SELECT record FROM kept_versions WHERE plugin_id = ? AND number = ?"
    row = conn.execute(statement, (plugin_id, number)).fetchone()
    return None if row is None else bytes(row[0])


def config_of(conn: RowReader, plugin_id: str, number: int) -> ConfigRow | None:
    """The configuration of a kept version, or None."""
    statement = "SELECT config FROM kept_versions WHERE plugin_id = ? AND number = ?"
    row = conn.execute(statement, (plugin_id, number)).fetchone()
    return None if row is None or row[0] is None else msgspec.json.decode(row[0], type=ConfigRow)


def load(conn: RowReader, plugin_id: str | None = None) -> list[KeptVersion]:
    """The kept versions of one plugin, or of all, the oldest of each first."""
    chosen, values = ("", ()) if plugin_id is None else (" WHERE plugin_id = ?", (plugin_id,))
    statement = f"SELECT {_KEPT_COLUMNS} FROM kept_versions{chosen} ORDER BY plugin_id, number"  # noqa: S608 - constants
    return [KeptVersion(**_named(_KEPT_COLUMNS, row)) for row in conn.execute(statement, values)]


def readable(conn: RowReader) -> frozenset[str]:
    """The identities of all kept versions that can still be read of a damaged ledger; never raises for damage."""
    found: set[str] = set()
    with contextlib.suppress(*DAMAGED):
        for (identity,) in conn.execute("SELECT identity FROM kept_versions"):
            found.add(str(identity))
    return frozenset(found)


def load_bad(conn: RowReader, plugin_id: str | None = None) -> list[BadVersion]:
    """The bad versions of one plugin, or of all."""
    chosen, values = ("", ()) if plugin_id is None else (" WHERE plugin_id = ?", (plugin_id,))
    statement = f"SELECT {_BAD_COLUMNS} FROM bad_versions{chosen} ORDER BY plugin_id, marked_at"  # noqa: S608 - constants
    return [BadVersion(**_named(_BAD_COLUMNS, row)) for row in conn.execute(statement, values)]


def _named(columns: str, row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(columns.split(", "), row, strict=True))


def _numbers(conn: RowReader, plugin_id: str) -> list[tuple[int, str]]:
    """(number, identity) of the kept versions of one plugin, the oldest first."""
    statement = "SELECT number, identity FROM kept_versions WHERE plugin_id = ? ORDER BY number"
    return [(int(number), str(identity)) for number, identity in conn.execute(statement, (plugin_id,))]

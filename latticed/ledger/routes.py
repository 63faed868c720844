"""HTTP routes that plugins have put, so that they are there again after a restart. `spec` is opaque here: host.route
parses it.

Several plugins may have a row for one path: host.route.table decides which running plugin gets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = "plugin_id, path, spec, created_at, updated_at"


class RouteQuota(Value, frozen=True, kw_only=True):
    """Limits of routes: of one plugin, of the bytes in the specs of one plugin (UTF-8), of all plugins."""

    routes: int = 32
    total_bytes: int = 1 << 20
    all_routes: int = 1_000


class RouteRow(Value, frozen=True, kw_only=True):
    """One route of one plugin. Times are microseconds since the epoch; `created_at` stays when the spec is replaced."""

    plugin_id: str
    path: str
    spec: str
    created_at: int
    updated_at: int


def put(tx: Transaction, plugin_id: str, path: str, spec: str, quota: RouteQuota, *, now_us: int) -> RouteRow:
    """Keep a route, in place of the one that the plugin has at this path; Problem quota_exceeded."""
    found = get(tx, plugin_id, path)
    # Without the row at this path, which is replaced: a plugin at its quota can still change its routes.
    size_of = "coalesce(sum(length(CAST(spec AS BLOB))), 0)"  # bytes; of a text, length() counts characters
    statement = f"SELECT count(*), {size_of} FROM routes WHERE plugin_id = ? AND path <> ?"  # noqa: S608 - constants
    others, size = tx.execute(statement, (plugin_id, path)).fetchone() or (0, 0)
    for would_be, most, what in (
        (others + 1, quota.routes, f"routes of {plugin_id}"),
        (size + len(spec.encode()), quota.total_bytes, f"bytes in the routes of {plugin_id}"),
        (count(tx) + (found is None), quota.all_routes, "routes"),
    ):
        if would_be > most:
            raise Problem("quota_exceeded", f"expected at most {most} {what}, found {would_be}", "delete some of them")
    row = RouteRow(
        plugin_id=plugin_id,
        path=path,
        spec=spec,
        created_at=now_us if found is None else found.created_at,
        updated_at=now_us,
    )
    values = (row.plugin_id, row.path, row.spec, row.created_at, row.updated_at)
    tx.execute(f"INSERT OR REPLACE INTO routes ({_COLUMNS}) VALUES (?,?,?,?,?)", values)  # noqa: S608 - constants
    return row


def delete(tx: Transaction, plugin_id: str, path: str) -> bool:
    """Remove the plugin's route at this path; False when there was none."""
    tx.execute("DELETE FROM routes WHERE plugin_id = ? AND path = ?", (plugin_id, path))
    return tx.changes() > 0


def clear(tx: Transaction, plugin_id: str) -> int:
    """Remove all routes of one plugin; returns how many there were."""
    tx.execute("DELETE FROM routes WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def get(conn: RowReader, plugin_id: str, path: str) -> RouteRow | None:
    """The plugin's route at this path, or None."""
    statement = f"SELECT {_COLUMNS} FROM routes WHERE plugin_id = ? AND path = ?"  # noqa: S608 - constants
    row = conn.execute(statement, (plugin_id, path)).fetchone()
    return None if row is None else _row(row)


def load_all(conn: RowReader) -> list[RouteRow]:
    """Every route, oldest first: of several rows for one path the oldest takes precedence."""
    statement = f"SELECT {_COLUMNS} FROM routes ORDER BY created_at, plugin_id, path"  # noqa: S608 - constants
    return [_row(row) for row in conn.execute(statement)]


def count(conn: RowReader) -> int:
    """Number of routes of all plugins."""
    return int(conn.execute("SELECT count(*) FROM routes").get)


def _row(row: tuple[Any, ...]) -> RouteRow:
    return RouteRow(**dict(zip(_COLUMNS.split(", "), row, strict=True)))

"""Rows of the marketplace: the newest index of each source, when releases were first seen, what was taken, holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.value import Value
from latticed.ledger.floors import SeenIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

MOST_RELEASES: Final = 200_000
"""Of one source: beyond them those that its index no longer has are forgotten."""
MOST_REVOCATIONS: Final = 100_000
"""Of one source, ten times what it may name at once: beyond them the first are forgotten that it names no more."""

_TAKEN: Final = "SELECT id, source, version, sha256, at FROM market_taken"

RevocationRow = tuple[str, str, str, str]
"""(kind, value, action, reason), as `trust.index_revocations` has them."""
ReleaseKey = tuple[str, str, str]
"""(plugin id, version, SHA-256 as `trust.index.Release.sha256`): with another file it is another release."""


class Taken(Value, frozen=True, kw_only=True):
    """What was installed of a source; `at` in microseconds since the epoch."""

    id: str
    source: str
    version: str
    sha256: str
    at: int


def seen(conn: RowReader, source: str) -> SeenIndex | None:
    """The newest index of a source that was accepted, None for none."""
    for at, at_s, sha256, keys in conn.execute(
        "SELECT generated_at, generated_s, sha256, keys FROM market_sources WHERE name = ?", (source,)
    ):
        return SeenIndex(generated_at=at, generated_s=at_s, sha256=sha256, keys=tuple(json.loads(keys)))
    return None


def remember(tx: Transaction, source: str, index: SeenIndex) -> None:
    """Keep the newest index of a source in place of the last one."""
    tx.execute(
        "INSERT OR REPLACE INTO market_sources VALUES (?,?,?,?,?)",
        (source, index.generated_at, index.generated_s, index.sha256, json.dumps(list(index.keys))),
    )


def note_releases(tx: Transaction, source: str, releases: Iterable[ReleaseKey], *, now_us: int) -> None:
    """Keep when each release was seen first; those that are known stay as they are."""
    for plugin_id, version, sha256 in releases:
        tx.execute(
            "INSERT OR IGNORE INTO market_releases VALUES (?,?,?,?,?)", (source, plugin_id, version, sha256, now_us)
        )


def count_releases(conn: RowReader, source: str) -> int:
    """How many releases of a source are remembered."""
    return next(
        int(count) for (count,) in conn.execute("SELECT count(*) FROM market_releases WHERE source=?", (source,))
    )


def forget_releases(tx: Transaction, source: str, *, before_us: int) -> None:
    """Forget the releases that were first seen before; so those that an index repeats begin their age anew."""
    tx.execute("DELETE FROM market_releases WHERE source = ? AND first_seen < ?", (source, before_us))


def first_seen(conn: RowReader, source: str, plugin_id: str) -> dict[tuple[str, str], int]:
    """Microseconds since the epoch by (version, SHA-256) of a plugin's releases, as in `ReleaseKey`."""
    rows = conn.execute(
        "SELECT version, sha256, first_seen FROM market_releases WHERE source = ? AND id = ?", (source, plugin_id)
    )
    return {(str(version), str(sha256)): int(at) for version, sha256, at in rows}


def note_taken(tx: Transaction, taken: Taken) -> None:
    """Keep from which source a plugin's bundle came, besides those taken before."""
    # Later than all others of the plugin, also by a clock that went back.
    tx.execute(
        "INSERT OR REPLACE INTO market_taken VALUES (?,?,?,?,"
        " max(?, coalesce((SELECT max(at) + 1 FROM market_taken WHERE id = ?), 0)))",
        (taken.id, taken.source, taken.version, taken.sha256, taken.at, taken.id),
    )


def taken(conn: RowReader) -> dict[str, Taken]:
    """What was taken last of sources, by plugin id."""
    return {one.id: one for one in _taken(conn.execute(f"{_TAKEN} ORDER BY id, at"))}


def taken_of(conn: RowReader, source: str) -> list[Taken]:
    """All that was ever taken of one source: what runs, waits for an upgrade or is kept for a rollback."""
    return list(_taken(conn.execute(f"{_TAKEN} WHERE source = ? ORDER BY id, at", (source,))))


def _taken(rows: Iterable[tuple[Any, ...]]) -> Iterator[Taken]:
    for one, source, version, sha256, at in rows:
        yield Taken(id=str(one), source=str(source), version=str(version), sha256=str(sha256), at=int(at))


def note_revocations(
    tx: Transaction, source: str, found: Iterable[RevocationRow], *, now_us: int, most: int = MOST_REVOCATIONS
) -> None:
    """Keep what a source takes back, also once it names it no more: of all that, the `most` that came last.

    What it names now is kept in any case.
    """
    named = set()
    for kind, value, action, reason in found:
        named.add((kind, value, action))
        tx.execute(
            "INSERT OR IGNORE INTO market_revocations VALUES (?,?,?,?,?,?)",
            (source, kind, value, action, reason, now_us),
        )
    ((count,),) = tx.execute("SELECT count(*) FROM market_revocations WHERE source = ?", (source,))
    if count <= most:
        return
    oldest = tx.execute(
        "SELECT kind, value, action FROM market_revocations WHERE source = ? ORDER BY at LIMIT ?",
        (source, count - most + len(named)),
    )
    for one in [row for row in oldest if row not in named][: count - most]:
        tx.execute(
            "DELETE FROM market_revocations WHERE source = ? AND kind = ? AND value = ? AND action = ?", (source, *one)
        )


def revocations_of(conn: RowReader, source: str, named: Iterable[tuple[str, str]]) -> list[RevocationRow]:
    """What a source ever took back by one of these (kind, value)."""
    return [
        (str(kind), str(value), str(action), str(reason))
        for wanted in sorted(named)
        for kind, value, action, reason in conn.execute(
            "SELECT kind, value, action, reason FROM market_revocations WHERE source = ? AND kind = ? AND value = ?",
            (source, *wanted),
        )
    ]


def hold(tx: Transaction, plugin_id: str, *, by: str, now_us: int) -> bool:
    """Keep a plugin at the version that it has; False when it was held before."""
    tx.execute("INSERT OR IGNORE INTO market_holds VALUES (?,?,?)", (plugin_id, by, now_us))
    return tx.changes() > 0


def release_hold(tx: Transaction, plugin_id: str) -> bool:
    """Hold a plugin no more; False when it was not held."""
    tx.execute("DELETE FROM market_holds WHERE id = ?", (plugin_id,))
    return tx.changes() > 0


def held(conn: RowReader) -> frozenset[str]:
    """The ids of all held plugins."""
    return frozenset(str(one) for (one,) in conn.execute("SELECT id FROM market_holds"))

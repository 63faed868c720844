"""Revocations that the daemon has ever seen; they hold until an operator lifts them (contracts §4)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Literal

from latticed.kit.value import Value
from latticed.ledger.connection import DAMAGED

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

Kind = Literal["keys", "digests", "plugins"]
KINDS: Final[tuple[Kind, ...]] = ("keys", "digests", "plugins")


class RevocationRows(Value, frozen=True, kw_only=True):
    """Public keys (base64), artifact digests (hex) and plugins (`id@version`, `id@*`), as the trust policy has them."""

    keys: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    plugins: frozenset[str] = frozenset()


def remember(tx: Transaction, seen: RevocationRows, *, now_us: int) -> RevocationRows:
    """Keep all of `seen` and return those that were not known before.

    What a later trust policy no longer has stays known: only `lift` removes one.
    """
    known = load(tx)
    fresh = {kind: getattr(seen, kind) - getattr(known, kind) for kind in KINDS}
    for kind, values in fresh.items():
        for value in sorted(values):
            tx.execute("INSERT INTO revocations VALUES (?,?,?)", (kind, value, now_us))
    return RevocationRows(**fresh)


def lift(tx: Transaction, kind: Kind, value: str) -> bool:
    """Forget one revocation; False when it was not known. The caller audits it."""
    tx.execute("DELETE FROM revocations WHERE kind = ? AND value = ?", (kind, value))
    return tx.changes() > 0


def readable(conn: RowReader) -> RevocationRows:
    """Those revocations that can still be read of a damaged table; never raises for damage."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    # What was read before the damage counts.
    with contextlib.suppress(*DAMAGED):
        for kind, value in conn.execute("SELECT kind, value FROM revocations"):
            if kind in found and isinstance(value, str):
                found[kind].add(value)
    return RevocationRows(**{kind: frozenset(values) for kind, values in found.items()})


def load(conn: RowReader) -> RevocationRows:
    """All revocations that are remembered."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for kind, value in conn.execute("SELECT kind, value FROM revocations"):
        found[kind].add(value)
    return RevocationRows(**{kind: frozenset(values) for kind, values in found.items()})

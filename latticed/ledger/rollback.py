"""Detects that a ledger is older than heads this host has signed; it is refused unless an operator accepts that.

The heads outside the ledger are those in floors.json (`check_floors`, at every start) and those in the journal
(`lifecycle.startup_merge`).

A power cut cannot make a ledger look older: a head leaves the ledger only once its event is on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ledger import audit, floors
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.ledger.connection import Connection, RowReader
    from latticed.model.chain import Head, Name

MOST_HEADS: Final = 40
"""Number of the newest journal entries that are read, to find the newest head of each chain."""
_HINT: Final = (
    "put the newer ledger back; or restore a backup; or, to go on with this one, held to the floors: "
    "latticed --accept-rollback"
)
"""Hint of ledger_rolled_back."""


_NO_FLOORS: Final = (
    "put floors.json back from a backup, or restore the backup; or, forgetting version floors, masks and revocations "
    "that the ledger does not have: latticed --accept-rollback"
)
"""Hint of floors_invalid at a start."""


def check_floors(
    directory: Path, conn: Connection, key: Ed25519PrivateKey, *, accept: bool
) -> tuple[floors.Floors, str]:
    """The floors of `directory`, and why the ledger is older than they are (empty: it is not).

    Problem ledger_rolled_back when it is older, floors_invalid when the signed file is missing or not of `key`; with
    `accept` (an operator said --accept-rollback) neither is raised: the second value says what is wrong.
    """
    try:
        # Read first: without a file these are empty floors, which a new ledger gets signed below.
        kept = floors.read(directory, key.public_key())
        if not floors.present(directory):
            if audit.last_seq(conn) == 0:  # killed after the key was made, before the floors were
                floors.write(directory, kept, key)
                return kept, ""
            raise Problem("floors_invalid", f"expected {floors.FILE} beside host.key, found none")
    # Other problems (a disk that would not take the new file) are no question of age, and `accept` does not cover them.
    except Problem as problem:
        if problem.code != "floors_invalid":
            raise
        if not accept:
            raise Problem(problem.code, problem.reason, _NO_FLOORS) from problem
        return floors.Floors(), problem.reason
    reason = behind(conn, [(chain, seq, found) for chain, (seq, found) in kept.heads.items()])
    if reason and not accept:
        raise problem_of(reason)
    return kept, reason


def behind(conn: RowReader, known: Iterable[tuple[Name, int, str]]) -> str:
    """What of `known` (chain, seq, hash: signed by this host) the ledger does not have, in words; empty for nothing.

    Events that its retention removed count as those that it has.
    """
    for chain, seq, found in known:
        last = audit.last_seq(conn, chain)
        removed = audit.checkpoint(conn, chain=chain)
        here = conn.execute(f"SELECT hash FROM {audit.TABLES[chain].events} WHERE seq = ?", (seq,)).fetchone()
        # Missing at the end. What is missing at the beginning was removed by retention, which a checkpoint states.
        if here is None and seq > max(last, removed["seq"] if removed else 0):
            return f"expected event {seq} of the {chain}, which this host has signed, found event {last} to be the last"
        if here is not None and here[0] != found:
            return f"expected event {seq} of the {chain} to be the one that this host has signed, found another"
    return ""


def behind_heads(conn: RowReader, heads: Iterable[Head]) -> str:
    """As `behind`, for signed heads instead of (chain, seq, hash)."""
    return behind(conn, [(head.chain, head.seq, head.hash) for head in heads])


def problem_of(detail: str) -> Problem:
    """The Problem ledger_rolled_back; `detail` says by which chain and event that was seen."""
    return Problem("ledger_rolled_back", f"this ledger is older than what was decided: {detail}", _HINT)

"""Is this ledger older than what this host has signed since? Heads kept outside say so, in floors and journal.

A power cut cannot make a ledger look older: a head leaves the ledger only once its event is on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.ledger import audit
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.ledger.connection import RowReader
    from latticed.model.chain import Head, Name

HINT = (
    "put the newer ledger back; or restore a backup; or, to go on with this one, held to the floors: "
    "latticed --accept-rollback"
)


def behind(conn: RowReader, known: Iterable[tuple[Name, int, str]]) -> str:
    """What of `known` (chain, seq, hash: signed by this host) the ledger does not have, in words; empty for nothing.

    What its retention has removed it once had.
    """
    for chain, seq, found in known:
        last = audit.last_seq(conn, chain)
        removed = audit.checkpoint(conn, chain=chain)
        here = conn.execute(f"SELECT hash FROM {audit.TABLES[chain].events} WHERE seq = ?", (seq,)).fetchone()
        if here is None and seq > max(last, removed["seq"] if removed else 0):
            return f"expected event {seq} of the {chain}, which this host has signed, found event {last} to be the last"
        if here is not None and here[0] != found:
            return f"expected event {seq} of the {chain} to be the one that this host has signed, found another"
    return ""


def behind_heads(conn: RowReader, heads: Iterable[Head]) -> str:
    """As `behind`."""
    return behind(conn, [(head.chain, head.seq, head.hash) for head in heads])


def problem(detail: str) -> Problem:
    """The Problem that stands for a ledger that is not the newest."""
    return Problem("ledger_rolled_back", f"this ledger is older than what was decided: {detail}", HINT)

"""All lines of an export, straight from a ledger's tables: what latticectl puts together page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latticed.ledger import audit
from latticed.ledger.connection import RowReader
from latticed.model import chain


def export(conn: RowReader) -> Iterator[dict[str, Any]]:
    """All decisions in order, then all calls, each head after the event that it signs.

    What retention left of a chain begins with `{"checkpoint": {...}}`. Heads of events that are gone come first or
    last.
    """
    for name in chain.NAMES:
        if (begins := audit.checkpoint(conn, chain=name)) is not None:
            yield {"checkpoint": begins, **audit._named(name)}
        rows = conn.execute(audit._select(name) + " ORDER BY seq")
        signed = conn.execute(f"SELECT {audit._HEAD} FROM {audit.TABLES[name].heads} ORDER BY seq, id")  # noqa: S608
        yield from audit._interleaved(rows, signed, name)

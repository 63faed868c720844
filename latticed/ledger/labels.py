"""Labels of this node: short texts by name, set by plugins that hold node:admin and shown among the node's facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction


def load(conn: RowReader) -> dict[str, str]:
    """All labels, by name."""
    return dict(conn.execute("SELECT name, value FROM node_labels ORDER BY name"))


def change(tx: Transaction, wanted: Mapping[str, str | None], *, most: int) -> dict[str, str]:
    """Set the labels that have a value, remove those with None, and return all labels after that.

    Problem quota_exceeded when there are more than `most` then; nothing is changed in that case.
    """
    for name, value in wanted.items():
        if value is None:
            tx.execute("DELETE FROM node_labels WHERE name = ?", (name,))
        else:
            tx.execute("INSERT OR REPLACE INTO node_labels VALUES (?,?)", (name, value))
    # Counted after the changes; raising undoes them, as each change runs in a savepoint (`commit.Committer`).
    labels = load(tx)
    if len(labels) > most:
        raise Problem("quota_exceeded", f"expected at most {most} labels, found {len(labels)}")
    return labels

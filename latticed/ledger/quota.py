"""How many rows plugins may have in a table of theirs: one quota and one check for all such tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.transaction import Transaction


class RowQuota(Value, frozen=True, kw_only=True):
    """How many rows one plugin may have, and all plugins together."""

    plugin: int
    total: int


def check_one_more(
    tx: Transaction,
    table: str,
    plugin_id: str,
    quota: RowQuota,
    *,
    what: str,
    where: str = "1",
    hint: str = "delete what is not needed",
) -> None:
    """Raise Problem quota_exceeded if another row of `plugin_id` would be beyond `quota`.

    Only rows that fulfil the SQL condition `where` count. The message calls them `what`, in which `{whose}` stands for
    " of <plugin>" or for nothing. `table` and `where` are put into the statement as they are.
    """
    # A comparison is 1 or 0 in SQLite, so the sum counts; over no rows it is NULL.
    statement = f"SELECT count(*), coalesce(sum(plugin_id = ?), 0) FROM {table} WHERE {where}"  # noqa: S608 - constants
    total, own = tx.execute(statement, (plugin_id,)).fetchone() or (0, 0)
    for found, most, whose in ((own, quota.plugin, f" of {plugin_id}"), (total, quota.total, "")):
        if found >= most:
            expected = f"expected at most {most} {what.format(whose=whose)}"
            raise Problem("quota_exceeded", f"{expected}, found {found + 1}", hint)

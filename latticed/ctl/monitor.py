"""latticectl monitor: the targets that plugins monitor, and their state."""

from __future__ import annotations

from typing import Any, Final

from latticed.ctl import delegated
from latticed.ctl.arguments import examples
from latticed.ctl.table import Column

EXAMPLES: Final = examples("latticectl monitor list", "latticectl monitor list acme.watch --format json")


def _last(row: dict[str, Any]) -> dict[str, Any]:
    """The last check; empty before the first."""
    found = row.get("last")
    return found if isinstance(found, dict) else {}


_LIST: Final = delegated.DelegatedList(
    path="monitors",
    member="monitors",
    summary="monitors and how they stand",
    columns=(
        (Column(title="PLUGIN"), "plugin"),
        (Column(title="NAME"), "name"),
        (Column(title="KIND"), "kind"),
        (Column(title="TARGET", shrinks=True), "target"),
        (Column(title="STATE"), delegated.state),
        (Column(title="SINCE"), delegated.time("since")),
        (Column(title="CHECKED"), lambda session, row: session.screen.when(delegated.text(_last(row), "at"))),
        (Column(title="OUTCOME"), lambda _, row: delegated.text(_last(row), "outcome")),
        (Column(title="REASON", shrinks=True), lambda _, row: delegated.fault(_last(row))),
    ),
)
arguments, run = _LIST.arguments, _LIST.run

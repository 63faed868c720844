"""latticectl monitor: the targets that plugins have watched, and how they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import delegated
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl monitor list", "latticectl monitor list acme.watch --format json")
_TABLE: Final = (
    Column(title="PLUGIN"),
    Column(title="NAME"),
    Column(title="KIND"),
    Column(title="TARGET", shrinks=True),
    Column(title="STATE"),
    Column(title="SINCE"),
    Column(title="CHECKED"),
    Column(title="OUTCOME"),
    Column(title="REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    delegated.add_list(actions, "monitors and how they stand")


def run(session: CtlSession) -> int:
    return delegated.listed(session, "monitors", "monitors", _TABLE, _row)


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    last = row.get("last") if isinstance(row.get("last"), dict) else {}
    return (
        delegated.text(row, "plugin"),
        delegated.text(row, "name"),
        delegated.text(row, "kind"),
        delegated.text(row, "target"),
        delegated.state(row),
        session.screen.when(delegated.text(row, "since")),
        session.screen.when(delegated.text(last or {}, "at")),
        delegated.text(last or {}, "outcome"),
        delegated.fault(row, "last"),
    )

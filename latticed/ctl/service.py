"""latticectl service: the long-lived programs that plugins have running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import delegated
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl service list", "latticectl service list acme.store --format json")
_TABLE: Final = (
    Column(title="PLUGIN"),
    Column(title="NAME"),
    Column(title="PROGRAM"),
    Column(title="STATE"),
    Column(title="PID", right=True),
    Column(title="RESTARTS", right=True),
    Column(title="STARTED"),
    Column(title="ERROR", shrinks=True),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    delegated.add_list(actions, "services and how they are")


def run(session: CtlSession) -> int:
    return delegated.listed(session, "services", "services", _TABLE, _row)


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    return (
        delegated.text(row, "plugin"),
        delegated.text(row, "name"),
        delegated.text(row, "program"),
        delegated.state(row),
        delegated.text(row, "pid"),
        delegated.text(row, "restarts"),
        session.screen.when(delegated.text(row, "started_at")),
        delegated.fault(row),
    )

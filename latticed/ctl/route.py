"""latticectl route: the HTTP routes that plugins have put, and whether they are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import delegated
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl route list", "latticectl route list acme.page --format json")
_TABLE: Final = (
    Column(title="PLUGIN"),
    Column(title="PATH"),
    Column(title="TARGET"),
    Column(title="STATE"),
    Column(title="URL", shrinks=True),
    Column(title="REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    delegated.add_list(actions, "routes and whether they are served")


def run(session: CtlSession) -> int:
    return delegated.listed(session, "routes", "routes", _TABLE, _row)


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    del session
    target = next((delegated.text(row, name) for name in ("origin", "action") if row.get(name)), "")
    return (
        delegated.text(row, "plugin"),
        delegated.text(row, "path"),
        f"{delegated.text(row, 'target')} {target}".strip(),
        delegated.state(row),
        delegated.text(row, "url"),
        delegated.text(row, "reason"),
    )

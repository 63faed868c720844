"""latticectl rejected: bundles that were refused, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import decode, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl rejected", "latticectl rejected --hints")

_COLUMNS: Final = (
    Column(title="BUNDLE", shrinks=True),
    Column(title="ID"),
    Column(title="VERSION", shrinks=True),
    Column(title="CODE"),
    Column(title="REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    parser.add_argument("--hints", action="store_true", help="also say what to do about each")


def run(session: CtlSession) -> int:
    """Print the refused bundles."""
    found = replies.rows(session.client().get("plugins", "rejected"), "list of rejected bundles")
    screen = session.screen
    if screen.json_wanted:
        screen.json(found)
        return ExitCode.OK
    rows = list(decode.rejected(found))
    if not rows:
        screen.note("no bundle is refused")
        return ExitCode.OK
    columns = (*_COLUMNS, Column(title="HINT")) if session.args.hints else _COLUMNS
    screen.rows(
        columns,
        ((row.name, row.id, row.version, Cell(row.code, "bad"), row.reason, row.hint)[: len(columns)] for row in rows),
    )
    return ExitCode.OK

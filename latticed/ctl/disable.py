"""latticectl disable: stop a plugin and keep it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import decision
from latticed.ctl.arguments import Parser, examples

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl disable acme.demo")


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")


def run(session: CtlSession) -> int:
    """Have the plugin disabled; success too when it is disabled already."""
    return decision.change(session, "disabled", "disabled")

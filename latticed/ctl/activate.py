"""latticectl activate: start an installed or disabled plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import consent, decision
from latticed.ctl.arguments import Parser, examples

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl activate acme.demo",
    "latticectl activate acme.demo && latticectl wait acme.demo --for healthy",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    consent.arguments(parser)


def run(session: CtlSession) -> int:
    """Have the plugin activated and wait for its start; exit code 1 when it could not be armed."""
    return decision.change(session, "active", "activated")

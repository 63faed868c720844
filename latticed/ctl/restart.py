"""latticectl restart: stop and start an active plugin; closes a breaker that a crash loop opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import ask, decision
from latticed.ctl.arguments import Parser, examples

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl restart acme.demo")


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")


def run(session: CtlSession) -> int:
    """Have the plugin stopped and started, and wait for the start; exit code 1 when it could not be armed."""
    plain = session.client().post("plugins", "by-id", ask.known_id(session.args.id), "restart", body={})
    return decision.report(session, plain, "restarted")

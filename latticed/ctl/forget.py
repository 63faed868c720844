"""latticectl forget: drop the record of a plugin that is not active; its pin and version floor stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import ask
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exits import Exit

if TYPE_CHECKING:
    from latticed.ctl.session import Session

EXAMPLES: Final = examples("latticectl disable acme.demo && latticectl forget acme.demo")


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")


def run(session: Session) -> int:
    plain = session.client().post("plugins", "by-id", ask.known_id(session.args.id), "forget", body={})
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        session.screen.line(session.args.id, "forgotten")
    return Exit.OK

"""latticectl fleet backup: have the controller write a verified copy of its database, on its own host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.client.control import LONG_S
from latticed.ctl import fleet_controller, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl fleet backup", "latticectl fleet backup before-upgrade.sqlite3")


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the file in the controller's backup directory")


def run(session: CtlSession) -> int:
    """Print where the copy is, and its SHA-256."""
    asked = fleet_controller.client(session, read_s=LONG_S)
    body: dict[str, Any] = {} if session.args.name is None else {"name": session.args.name}
    done = replies.mapping(asked.post("fleet", "backup", body=body), "backup")
    if session.screen.json_wanted:
        session.screen.json(done)
    else:
        session.screen.line(f"{done.get('path')}: {done.get('size')} bytes, SHA-256 {done.get('sha256')}")
    return ExitCode.OK

"""latticectl fleet key: the operator's key, which signs all that hosts of a fleet believe; offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import author_key, key
from latticed.ctl.arguments import examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.arguments import Parser
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet key operator.key --passphrase                # asked for twice, on the terminal",
    "latticectl fleet key operator.key --show                      # the public key, in base64",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("key", metavar="FILE", type=str, help="where the private key is written; the public is printed")
    parser.add_argument("--show", action="store_true", help="the key is there: print its public half")
    parser.add_argument("--passphrase", action="store_true", help="ask for a passphrase to encrypt it with")
    author_key.add_passphrase(parser)
    parser.set_defaults(key_fd=None)


def run(session: CtlSession) -> int:
    """Make the key, or show its public half."""
    found = key.show(session) if session.args.show else key.generate(session, [session.args.key])[0]
    if session.screen.json_wanted:
        session.screen.json(found)
    else:
        session.screen.line(found["public_key"])
    return ExitCode.OK

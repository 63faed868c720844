"""latticectl install: accept a verified plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import consent, decision
from latticed.ctl.arguments import Parser, examples

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl install acme.demo --dry-run",
    "latticectl install acme.demo",
    "latticectl install acme.fetch --accept http:egress --accept-host api.example.org:443",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    consent.arguments(parser)


def run(session: CtlSession) -> int:
    """Have the plugin installed; success too when it is installed already: active or disabled ones are."""
    return decision.change(session, "installed", "installed")

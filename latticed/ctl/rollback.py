"""latticectl rollback: return a plugin to a version that it had before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import ask, consent, decision
from latticed.ctl.arguments import Parser, examples

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl rollback acme.demo                # to the version before; info shows which are kept",
    "latticectl rollback acme.demo --to 1.2.0 --dry-run",
    "latticectl rollback acme.demo --snapshot     # with its values and configuration as it left them",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    parser.add_argument("--to", metavar="VERSION", help="the version to return to")
    parser.add_argument(
        "--snapshot", action="store_true", help="bring back its values and configuration as they were then, too"
    )
    consent.granting(parser)


def run(session: CtlSession) -> int:
    """Return to an earlier version and wait for the start; exit code 1 when it could not be armed."""
    args = session.args
    body = {**consent.given(args), **decision.dry_run(args)}
    if args.to is not None:
        body["to"] = args.to
    if args.snapshot:
        body["snapshot"] = True
    plain = session.client().post("plugins", "by-id", ask.known_id(args.id), "rollback", body=body)
    return decision.report(session, plain, "rolled back")

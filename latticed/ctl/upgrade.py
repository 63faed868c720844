"""latticectl upgrade: replace an installed plugin by the candidate in the plugin directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import ask, consent, decision
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.client import ApiRefusal

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl info acme.demo              # shows the candidate and what it adds",
    "latticectl upgrade acme.demo",
    "latticectl upgrade acme.demo --accept kv:write --accept limit=memory_mib:512",
    "latticectl upgrade acme.demo --allow-downgrade --dry-run",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    consent.arguments(parser)
    parser.add_argument("--accept-publisher", metavar="NAME", help="let this publisher take the plugin over")


def run(session: CtlSession) -> int:
    """Replace the plugin by its candidate and wait for the start; success too when there is no newer one."""
    args = session.args
    client = session.client()
    body = {**consent.given(args), **decision.dry_run(args)}
    if args.accept_publisher is not None:  # '' means the unsigned bundle
        body["accept_publisher"] = args.accept_publisher
    try:
        plain = client.post("plugins", "by-id", ask.known_id(args.id), "upgrade", body=body)
    except ApiRefusal as refusal:
        if refusal.code != "no_candidate" or args.accept_publisher is not None:
            raise decision.with_command(refusal, session) from refusal
        plain, view = ask.plugin(client, args.id)
        if view.status == "verified" or not view.available:  # not "already so": there is nothing to run
            raise
        return decision.report(session, plain, "already up to date")
    return decision.report(session, plain, "upgraded")

"""latticectl run: one invocation of a bundle that is being written, in the real sandbox, without the daemon."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.client.control import LONG_S, ApiRefusal
from latticed.ctl import ask, consent, invoke, replies, trial_input
from latticed.ctl.arguments import Parser, examples
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed import wire
    from latticed.ctl.session import CtlSession
    from latticed.ctl.trial import Trial
    from latticed.ctl.trial_input import TrialInput

EXAMPLES: Final = examples(
    "latticectl run ./acme.demo greet",
    """latticectl run ./acme.fetch fetch '{"path": "/"}' --accept http:egress --accept-host api.example.org:443""",
    "latticectl run ./acme.demo import - < data.json",
    "latticectl run ./acme.fetch fetch -f fetch.toml --secret API_TOKEN=@token.txt",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("directory", metavar="DIR", type=str, help="a bundle, signed or not; its src is packed")
    parser.add_argument("action", metavar="ACTION", help="what it is to do")
    parser.add_argument("payload", metavar="JSON", nargs="?", help="the payload, or - to read it from stdin")
    trial_input.arguments(parser)
    consent.granting(parser, dry_run=False)


def run(session: CtlSession) -> int:
    """Have it carry out the action; what it wrote goes to stderr. Exit code 1 when it says that it could not."""
    from latticed.ctl import trial

    args = session.args
    given = trial_input.read(args, session.environ)
    body = {"action": args.action, "payload": invoke.payload(args.payload)}
    with trial.opened(Path(args.directory), session.environ) as own:
        own.view()
        try:
            view = _activated(session, own, given)
            reply = replies.mapping(
                own.client(read_s=LONG_S).post("plugins", "by-id", own.plugin_id, "invoke", body=body), "reply"
            )
        finally:
            _tell(session, own)
        consent.remind(session.screen, view, dry_run=True)
        return invoke.show(session, reply, own.plugin_id, args.action, hint="")


def _activated(session: CtlSession, own: Trial, given: TrialInput) -> wire.PluginView:
    """Have it started with what it is given; the Problem of `Trial.activated`."""
    try:
        return own.activated(consent.given(session.args), lambda: trial_input.give(session.screen, own, given))
    except Problem as problem:
        if problem.code != "needs_config":
            raise
        raise Problem(problem.code, problem.reason, "-f FILE configures it") from problem


def _tell(session: CtlSession, own: Trial) -> None:
    """Print what the plugin wrote, and which of its calls were denied."""
    client = own.client()
    # Stopped first: what it wrote last is read then. One that was not installed is told of by its own refusal.
    with contextlib.suppress(ApiRefusal):
        client.post("plugins", "lifecycle", body={"id": own.plugin_id, "status": "disabled"})
    for line in own.lines():
        session.screen.note(f"{own.plugin_id}: {line}")
    for one in replies.rows(ask.about(client, own.plugin_id).get("denials"), "list of denials"):
        session.screen.note(f"denied: {one.get('target')}: {one.get('code')}: {one.get('reason')}")

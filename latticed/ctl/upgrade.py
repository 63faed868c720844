"""latticectl upgrade: replace an installed plugin by the candidate in the plugin directory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from latticed.client.control import ApiRefusal
from latticed.ctl import ask, consent, decision, decode
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed import wire
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl info acme.demo              # shows the candidate and what it adds",
    "latticectl upgrade acme.demo --wait    # until the new version stays, or is given up",
    "latticectl upgrade acme.demo --accept kv:write --accept limit=memory_mib:512",
    "latticectl upgrade acme.demo --allow-downgrade --dry-run   # shows its identity",
    "latticectl upgrade acme.demo --identity 5f0c…",
)
_PAUSE_S: Final = 0.2
"""Between two looks at an upgrade that is being watched."""


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    consent.arguments(parser)
    parser.add_argument("--accept-publisher", metavar="NAME", help="let this publisher take the plugin over")
    parser.add_argument("--retry", action="store_true", help="take a version that was given up before")
    parser.add_argument("--wait", action="store_true", help="wait until the new version stays, or is given up")


def run(session: CtlSession) -> int:
    """Replace the plugin by its candidate and wait for the start; success too when there is no newer one.

    Exit code 1 when the new version was given up, as far as that is known on return.
    """
    args = session.args
    client = session.client()
    agreed = consent.given(args)
    body = {"already_so": True, **agreed, **decision.dry_run(args)}
    if args.accept_publisher is not None:  # '' means the unsigned bundle
        body["accept_publisher"] = args.accept_publisher
    if args.retry:
        body["retry"] = True
    try:
        plain = client.post("plugins", "by-id", ask.known_id(args.id), "upgrade", body=body)
    except ApiRefusal as refusal:
        raise decision.with_command(refusal, session) from refusal
    done = "upgraded"
    if decode.plugin(plain).changed is False:
        done = "already up to date"
        decision.nothing_granted(session.screen, agreed)
    if args.dry_run:
        return decision.report(session, plain, done)
    # Of an upgrade of before this command nothing is said, unless this command has waited for its end.
    known = done == "upgraded" or _is_watched(decode.plugin(plain))
    if args.wait:
        plain = _decided(session, plain)
    view = decode.plugin(plain)
    if known and view.upgrade is not None and view.upgrade.state == "rolled_back":
        return _went_back(session, plain, view.upgrade)
    code = decision.report(session, plain, done)
    _tell_watched(session, plain)
    return code


def _decided(session: CtlSession, plain: Any) -> Any:
    """The plugin once its gate, if one is open, has ended; polls, as long as the daemon answers."""
    while _is_watched(view := decode.plugin(plain)):
        time.sleep(_PAUSE_S)
        plain, _ = ask.plugin(session.client(), view.id)
    return plain


def _is_watched(view: wire.PluginView) -> bool:
    """Whether its gate is open."""
    return view.upgrade is not None and view.upgrade.state == "gating"


def _went_back(session: CtlSession, plain: Any, found: wire.UpgradeView) -> int:
    """Report an upgrade that was given up."""
    view, screen = decode.plugin(plain), session.screen
    if screen.json_wanted:
        screen.json(plain)
    else:
        screen.line(view.id, f"is at version {view.version or '-'} again")
    screen.note(f"error: {decision.became(view, upgraded=True)[1]}")
    screen.note(f"what it had written is gone: the values are those of {found.before}")
    more = ask.where_it_tells(session.client(), view.id)
    screen.hint("; ".join(filter(None, (more, f"latticectl upgrade {view.id} --retry tries it again"))))
    return ExitCode.FAILED


def _tell_watched(session: CtlSession, plain: Any) -> None:
    """Say until when the new version is watched, if it is."""
    view, screen = decode.plugin(plain), session.screen
    if view.upgrade is None or not _is_watched(view):
        return
    ends = f"; the watch ends {screen.when(view.upgrade.until)}" if view.upgrade.until else ""
    screen.note(f"{view.upgrade.before} stands by, and comes back if {view.upgrade.version} does not do well{ends}")
    screen.hint(f"latticectl upgrade {view.id} --wait waits for that; latticectl rollback {view.id} goes back now")

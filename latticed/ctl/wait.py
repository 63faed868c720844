"""latticectl wait: until a plugin is available, active, healthy or stopped."""

from __future__ import annotations

import math
import time
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode, of
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed import wire
    from latticed.ctl.ask import Asked
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl wait acme.demo --for available --timeout 60",
    "latticectl wait acme.demo --for healthy",
)

CONDITIONS: Final = ("available", "active", "healthy", "stopped")
"""What --for takes."""
_PAUSE_S: Final = 0.1
"""Between two looks."""
_LAST_S: Final = 2.0
"""For the last look, which is at the deadline; a daemon that hangs or stops is waited for no longer."""


def _seconds(text: str) -> float:
    """An argument's type: seconds, 0 for one look."""
    try:
        seconds = float(text)
    except ValueError:
        # Fails the comparison below, as every comparison with NaN does.
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ArgumentTypeError(f"expected seconds, found {text[:40]!r}")
    return seconds


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id; it need not be there yet")
    parser.add_argument("--for", dest="condition", choices=CONDITIONS, default="active", help="default: active")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=30.0,
        help="seconds to wait at most (default 30), before a last look",
    )


def run(session: CtlSession) -> int:
    """Look until the condition holds.

    After the timeout exit code 1, or that of the last refusal (4: no such plugin).
    """
    args = session.args
    deadline_s = time.monotonic() + args.timeout
    client = session.client(until_s=deadline_s + _LAST_S)
    reached_once = False
    while True:
        found: tuple[dict[str, Any], wire.PluginView] | Problem
        try:
            found = ask.plugin(client, args.id)
            reached_once = True
        except Problem as problem:
            if not _passing(problem, reached_once=reached_once):
                raise
            # A refusal shows that the daemon was reached, too.
            reached_once = reached_once or of(problem) is ExitCode.NOT_FOUND
            # Kept for the case that the deadline passes: it says best what was in the way.
            found = problem
        if isinstance(found, tuple) and _holds(args.condition, found[1]):
            return _done(session, found[0])
        if time.monotonic() >= deadline_s:
            raise _too_late(session, client, found)
        # Not beyond the deadline, at which there is a last look.
        time.sleep(min(_PAUSE_S, max(0.0, deadline_s - time.monotonic())))


def _passing(problem: Problem, *, reached_once: bool) -> bool:
    """Whether to retry: the plugin is not there yet, or the daemon, reached before, is restarting."""
    code = of(problem)
    # Only the daemon's refusals have a status; an id that no request can carry will not appear later.
    return (code is ExitCode.NOT_FOUND and hasattr(problem, "status")) or (
        code is ExitCode.UNREACHABLE and reached_once
    )


def _holds(condition: str, view: wire.PluginView) -> bool:
    """Whether the plugin is what `condition` says: available, active, healthy or stopped."""
    match condition:
        case "available":
            return view.available
        case "active":
            return view.status == "active" and view.runtime.state == "armed"
        case "healthy":
            return view.runtime.state == "armed" and view.runtime.health == "healthy"
        case _:  # "stopped": not running and not about to be started; a failure in backoff does not count
            runtime = view.runtime
            if runtime.state == "stopped":
                return view.status != "active"  # an active plugin in this state is being started
            return runtime.state == "failed" and runtime.next_retry_at is None


def _done(session: CtlSession, plain: dict[str, Any]) -> int:
    """Print that the plugin fulfils the condition; with --json its record."""
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        session.screen.line(session.args.id, "is", session.args.condition)
    return ExitCode.OK


def _too_late(session: CtlSession, client: Asked, found: tuple[dict[str, Any], wire.PluginView] | Problem) -> Problem:
    """The Problem for a timeout: the last refusal, why its bundle is refused, or what the plugin is instead."""
    if isinstance(found, Problem):
        return _refused(session, client, found) if of(found) is ExitCode.NOT_FOUND else found
    view = found[1]
    is_now = f"status {view.status}, available {'yes' if view.available else 'no'}, runtime {view.runtime.state}, "
    return Problem(
        "timeout",
        f"{session.args.id} was not {session.args.condition} within {session.args.timeout:g} s: "
        f"{is_now}health {view.runtime.health}",
        f"latticectl info {session.args.id}",
    )


def _refused(session: CtlSession, client: Asked, missing: Problem) -> Problem:
    """`missing`, an id without a record, with what is known of bundles that have it, or its name."""
    try:
        rows = replies.rows(client.get("plugins", "rejected"), "list of rejected bundles")
    except Problem:
        return missing
    for row in rows:
        if session.args.id in {row.get("id"), row.get("name")}:
            why = f"the bundle {row.get('name')} is refused: {row.get('code')}: {row.get('reason')}"
            return Problem("not_found", f"{missing.reason}: {why}", f"latticectl explain {session.args.id}")
    hint = "latticectl rejected; latticectl health says whether the plugin directory can be read"
    return Problem("not_found", missing.reason, hint)

"""Shared by install, activate, disable, upgrade and restart: request a status, report it or that it is so already."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.client.control import ApiRefusal
from latticed.ctl import ask, consent, decode
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from latticed import wire
    from latticed.ctl.render import Screen
    from latticed.ctl.session import CtlSession

WAIT_S: Final = 60.0
"""How long to wait for a start beyond the daemon's answer, which comes within 10 s."""
_PAUSE_S: Final = 0.2
"""Between two looks at a plugin that is being started."""


def change(session: CtlSession, wanted: str, done: str) -> int:
    """Request the status `wanted` and report the result; returns the exit code. `done` is its past tense."""
    args = session.args
    agreed = consent.given(args) if hasattr(args, "accept") else {}
    asked = {"id": ask.known_id(args.id), "status": wanted, "already_so": True, **agreed, **dry_run(args)}
    try:
        plain = session.client().post("plugins", "lifecycle", body=asked)
    except ApiRefusal as refusal:
        raise with_command(refusal, session) from refusal
    view = decode.plugin(plain)
    if view.changed is False:
        done = f"already {wanted}" if view.status == wanted else f"already {wanted} (status {view.status})"
        nothing_granted(session.screen, agreed)
    return report(session, plain, done)


def nothing_granted(screen: Screen, agreed: Mapping[str, Any]) -> None:
    """Note that what was consented to was not granted, where the daemon did nothing at all."""
    if agreed.keys() & {"accept", "accept_hosts"}:
        screen.note("nothing was granted by this: use latticectl caps grant")


def dry_run(args: Namespace) -> dict[str, Any]:
    """The request's field for a dry run, if one is asked for."""
    return {"dry_run": True} if getattr(args, "dry_run", False) else {}


def report(session: CtlSession, plain: Any, done: str) -> int:
    """Show the record after a change; exit code 1 when an active plugin could not be armed."""
    screen = session.screen
    if dry_run(session.args) and not done.startswith("already"):
        return _foretell(session, plain, done)
    # An install starts nothing; after every other verb the plugin may be active.
    starts = session.args.verb != "install" and not dry_run(session.args)
    plain, view = _started(session, plain) if starts else (plain, decode.plugin(plain))
    if screen.json_wanted:
        screen.json(plain)
    else:
        screen.line(view.id, done + (f": version {view.version}" if view.version else ""), _alive(view))
    if view.unrecorded:
        return unrecorded(screen)
    tone, why = became(view)
    # The decision holds although the start failed, so this is no refusal but a failure.
    if tone == "bad":
        screen.note(f"error: {why}")
        again = ""
        if view.runtime.next_retry_at:
            again = "; it is tried again"
        elif view.available:  # else it is refused for the same reason
            again = f"; latticectl restart {view.id} tries again"
        screen.hint(f"latticectl explain {view.id} says what to do{again}")
        return ExitCode.FAILED
    if starts and tone == "warn":
        screen.note(f"error: {view.id} is still being started")
        screen.hint(shlex.join(["latticectl", "wait", view.id]))
        return ExitCode.FAILED
    if view.status in {"installed", "active"}:
        consent.remind(screen, view)
    return ExitCode.OK


def unrecorded(screen: Screen) -> int:
    """Say that what was decided is in force, and that the next start may undo it; exit code 1."""
    screen.note("error: this cannot be written down yet: until it is, a restart of latticed would undo it")
    screen.hint("latticectl health says why")
    return ExitCode.FAILED


def became(view: wire.PluginView, *, upgraded: bool = False) -> tuple[str, str]:
    """What an act on a plugin came to: `good`; `warn` and that it is being started; or `bad` and why.

    `upgraded`: the act was to take a version, which may have been given up since.
    """
    found = view.upgrade
    if upgraded and found is not None and found.state == "rolled_back":
        return "bad", f"{view.id} {found.version} was given up: {found.code}: {found.reason}"
    if view.status == "active" and view.runtime.state == "failed":
        return "bad", f"{view.id} could not be armed: {_failure(view)}"
    return ("warn", f"{view.id} is being started") if _starts(view) else ("good", "")


def _starts(view: wire.PluginView) -> bool:
    """Whether the plugin is being started, or waits for its turn."""
    return view.status == "active" and view.runtime.state == "stopped"


def _started(session: CtlSession, plain: Any) -> tuple[Any, wire.PluginView]:
    """The plugin as JSON and decoded, once it is armed or failed; as it is then after WAIT_S seconds.

    Polls, as the daemon may answer before a start has ended.
    """
    view, deadline_s = decode.plugin(plain), time.monotonic() + WAIT_S
    tone, why = became(view)
    if tone == "warn":
        session.screen.note(why)
    while _starts(view) and time.monotonic() < deadline_s:
        time.sleep(_PAUSE_S)
        plain, view = ask.plugin(session.client(), view.id)
    return plain, view


def _foretell(session: CtlSession, plain: Any, done: str) -> int:
    """Show the record that a dry run returned."""
    view, screen = decode.plugin(plain), session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    screen.line(view.id, f"would be {done}" + (f": version {view.version}" if view.version else ""))
    for label, words in (("adds:", view.adds), ("drops:", view.drops)):
        if words is not None:
            screen.line(label, ", ".join(words) or "nothing")
    screen.line("granted:", ", ".join(view.granted) or "nothing")
    screen.note("nothing was changed: this was a dry run")
    if view.identity:
        screen.hint(f"--identity {view.identity} has this version and no other one {done}")
    consent.remind(screen, view, dry_run=True)
    return ExitCode.OK


def with_command(refusal: ApiRefusal, session: CtlSession) -> ApiRefusal:
    """`refusal`; where a consent is missing, with the command that gives it as its hint."""
    if refusal.hint or refusal.code not in _CONSENTS:
        return refusal
    flag = _CONSENTS[refusal.code]
    command = shlex.join(["latticectl", session.args.verb, session.args.id, flag])
    return ApiRefusal(refusal.status, refusal.code, refusal.reason, command)


_CONSENTS: Final = {"version_downgrade": "--allow-downgrade"}
"""Codes whose missing consent is an option, by that option."""


def _alive(view: wire.PluginView) -> str:
    """State, runner and health of an active plugin, in brackets; empty for others."""
    if view.status != "active":
        return ""
    return f"({view.runtime.state}, {view.runtime.runner}, health {view.runtime.health})"


def _failure(view: wire.PluginView) -> str:
    """Why an active plugin could not be armed: `code: message` of the last error, or the runtime's message."""
    error = view.runtime.last_error
    return f"{error.code}: {error.message}" if error else view.runtime.message or "the daemon gave no reason"

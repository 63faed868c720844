"""latticectl config: show, set and check what an operator configures for a plugin."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from latticed import wire
from latticed.ctl import ask, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model import runtime
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.client.control import ApiRefusal
    from latticed.ctl.render import Screen
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl config get acme.demo > demo.json",
    "latticectl config get acme.demo --schema     # what it may hold",
    "latticectl config check acme.demo -f demo.toml",
    "latticectl config set acme.demo -f demo.toml # TOML or JSON; - reads stdin",
)

_FILE_BYTES: Final = 1 << 20
"""Of a file with comments and white space, more than the compact document may have."""


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="print the configuration as JSON", description="print the configuration")
    get.add_argument("id", metavar="ID", help="the plugin's id")
    get.add_argument("--schema", action="store_true", help="print the JSON Schema that it has to fit instead")
    for name, summary in (
        ("set", "replace the configuration; an active plugin is restarted"),
        ("check", "say whether a configuration fits, without setting it"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("id", metavar="ID", help="the plugin's id")
        action.add_argument(
            "-f", "--file", metavar="FILE", type=str, required=True, help="TOML or JSON, - for standard input"
        )


def run(session: CtlSession) -> int:
    """Print, set or check a configuration; exit code 1 when it does not fit its schema."""
    if session.args.action == "get":
        return _get(session)
    return _put(session, dry_run=session.args.action == "check")


def _get(session: CtlSession) -> int:
    """Print the configuration as JSON (with --schema its schema), and notes when it does not fit or secrets are not
    bound.
    """
    plugin_id, screen = ask.known_id(session.args.id), session.screen
    found = replies.mapping(session.client().get("plugins", "by-id", plugin_id, "config"), "configuration")
    if session.args.schema:
        if found.get("schema") is None:
            raise Problem("failed", f"{plugin_id} takes no configuration")
        screen.json(found["schema"])
        return ExitCode.OK
    if screen.json_wanted:
        screen.json(found)
        return ExitCode.OK
    screen.json(replies.mapping(found.get("config"), "configuration"))
    if found.get("schema") is None:
        screen.note(f"{plugin_id} takes no configuration")
    elif not found.get("is_set"):
        screen.note(f"none is set: {plugin_id} gets an empty one")
    if not found.get("fits", True):
        screen.note(str(found.get("problem") or "it does not fit the schema of its manifest"))
    _unbound(session, plugin_id, found)
    return ExitCode.OK


def _put(session: CtlSession, *, dry_run: bool) -> int:
    """Send the file's document, to be stored or (`dry_run`) only checked, and print what came of it."""
    from latticed.client.control import ApiRefusal

    plugin_id, screen = ask.known_id(session.args.id), session.screen
    try:
        done = send(session, plugin_id, document(session.args.file), dry_run=dry_run)
    except ApiRefusal as refusal:
        # Only this refusal lists faults; `main` prints any other one.
        if refusal.code != "config_invalid":
            raise
        return _refused(session, refusal)
    if screen.json_wanted:
        screen.json({"ok": True, **done})
    elif dry_run:
        screen.line(plugin_id, "fits:", f"{done.get('bytes')} bytes, nothing was changed")
    elif not done.get("changed"):
        screen.line(plugin_id, "is configured so already")
    else:
        screen.line(plugin_id, "configured" + (f" and restarted, {_state(done)}" if done.get("restarted") else ""))
    _unbound(session, plugin_id, done)
    code = _restarted(session, plugin_id, done) if done.get("restarted") else ExitCode.OK
    if code == ExitCode.OK and done.get("changed") and done.get("state") == "armed" and not screen.json_wanted:
        _next(session, plugin_id)
    return code


def _restarted(session: CtlSession, plugin_id: str, done: dict[str, Any]) -> int:
    """The exit code of a change that holds: FAILED when the plugin does not run with it, which is then said."""
    match _state(done):
        case runtime.RuntimeState.FAILED:
            session.screen.note(f"error: {plugin_id} could not be armed: {done.get('message') or 'no reason given'}")
            session.screen.hint(f"latticectl explain {plugin_id}")
        case runtime.STARTING:
            session.screen.note(f"error: {plugin_id} is still being started")
            session.screen.hint(f"latticectl wait {plugin_id}")
        case _:
            return ExitCode.OK
    return ExitCode.FAILED


def _state(done: dict[str, Any]) -> str:
    return runtime.shown(str(done.get("state") or ""), str(done.get("message") or ""))


def send(session: CtlSession, plugin_id: str, config: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
    """Have a configuration stored or (`dry_run`) only checked; what the daemon answers. ApiRefusal config_invalid."""
    body = {"config": config, "dry_run": dry_run}
    return replies.mapping(session.client().put("plugins", "by-id", plugin_id, "config", body=body), "answer")


def _next(session: CtlSession, plugin_id: str) -> None:
    """Print the next command where a plugin plans changes of the host: what is configured has yet to be applied."""
    _, view = ask.plugin(session.client(), plugin_id)
    if "network:plan" in view.capabilities:
        session.screen.hint(f"latticectl apply {plugin_id}")


def _refused(session: CtlSession, refusal: ApiRefusal) -> int:
    """Print everything that does not fit, one fault a line on stderr; with --format json as one object on stdout."""
    screen = session.screen
    if screen.json_wanted:
        screen.json({"ok": False, "code": refusal.code, "errors": refusal.errors, "more": refusal.more})
        return ExitCode.FAILED
    screen.error(misfit(screen, refusal, session.args.file, session.args.id))
    return ExitCode.FAILED


def misfit(screen: Screen, refusal: ApiRefusal, source: str, plugin_id: str) -> Problem:
    """The Problem for the file `source`, which does not fit, once each fault is printed on stderr."""
    for one in refusal.errors:
        where, expected, found = (one.get(name, "") for name in ("path", "expected", "found"))
        screen.note(f"{where or 'the document'}: expected {expected}, found {found}")
    if refusal.more:
        screen.note("… and more")
    name = "standard input" if source == "-" else source
    hint = f"latticectl config get {plugin_id} --schema shows what it may hold"
    return Problem(refusal.code, f"{name} does not fit the schema of {plugin_id}", hint)


def _unbound(session: CtlSession, plugin_id: str, found: dict[str, Any]) -> None:
    """Note which secrets of the configuration are not bound to the plugin, with the command that binds the first."""
    secrets = replies.rows(found.get("secrets") or [], "list of secrets")
    names = [str(one.get("name")) for one in secrets if not one.get("bound")]
    if names:
        session.screen.note(f"not bound to {plugin_id}, so its calls with them fail:", ", ".join(names))
        session.screen.hint(f"latticectl secret bind {names[0]} {plugin_id}")


def document(source: str) -> dict[str, Any]:
    """The object in a file of TOML or JSON, - for stdin. Problem usage when it cannot be read or sent; too_large."""
    data = read(source)
    name = "standard input" if source == "-" else source
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unfit(name, f"expected UTF-8, found byte 0x{data[error.start]:02x} at offset {error.start}") from error
    # A TOML document cannot begin with a brace, and a JSON object always does.
    as_json = source.endswith(".json") or text.lstrip().startswith("{")
    found = _json(name, data) if as_json else _toml(name, text)
    _check(name, found, "", 1)
    return found


def _json(name: str, data: bytes) -> dict[str, Any]:
    """The object in a JSON document, decoded strictly; Problem usage, with `name` for the file, when it is none."""
    from latticed.kit import strict_json

    try:
        document = strict_json.loads(data, max_depth=wire.MAX_CONFIG_DEPTH)
    except strict_json.InvalidJson as error:
        raise _unfit(name, str(error)) from error
    if not isinstance(document, dict):
        raise _unfit(name, "expected one JSON object, found something else")
    return document


def _toml(name: str, text: str) -> dict[str, Any]:
    """The table in a TOML document; Problem usage, with `name` for the file, when it cannot be parsed."""
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and what int() says of thousands of digits
        raise _unfit(name, f"expected TOML or a JSON object: {error}") from error
    except RecursionError as error:
        raise _unfit(name, f"expected at most {wire.MAX_CONFIG_DEPTH} levels of nesting, found more") from error


def _check(name: str, value: Any, path: str, depth: int) -> None:
    """Problem usage for nesting that is too deep, and for values that TOML has and JSON has not: dates, times,
    infinities, NaN.

    `path` and `depth` are those of `value` within the document; the problem names the place.
    """
    if isinstance(value, dict | list):
        if depth > wire.MAX_CONFIG_DEPTH:
            raise _unfit(name, f"{path}: expected at most {wire.MAX_CONFIG_DEPTH} levels of nesting, found more")
        steps = value.items() if isinstance(value, dict) else enumerate(value)
        for step, inner in steps:
            here = f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
            _check(name, inner, path + here, depth + 1)
    elif not isinstance(value, str | bool | int | float):
        if value is None:
            return
        raise _unfit(name, f"{path}: expected a value that JSON has, found a date or time", 'write it as "text"')
    elif isinstance(value, float) and value - value != 0:  # inf and nan alone
        raise _unfit(name, f"{path}: expected a finite number, found {value}")
    elif isinstance(value, int) and abs(value) >= 1 << 53:  # TOML has hexadecimal ones of any length
        raise _unfit(name, f"{path}: expected an integer within ±(2^53-1), found a larger one")


def read(source: str) -> bytes:
    """The bytes of a file, or of stdin for `-`; Problem usage, or too_large beyond _FILE_BYTES."""
    if source == "-":
        data = sys.stdin.buffer.read(_FILE_BYTES + 1)
    else:
        try:
            with open(os.fsencode(source), "rb") as file:
                data = file.read(_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise Problem("usage", f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _FILE_BYTES:
        raise Problem("too_large", f"expected at most {_FILE_BYTES} bytes, found more")
    return data


def _unfit(name: str, what: str, hint: str = "") -> Problem:
    """The Problem usage about a file's contents."""
    return Problem("usage", f"{name}: {what}", hint)

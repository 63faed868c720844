"""latticectl invoke: have an armed plugin carry out an action."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from latticed import wire
from latticed.client.control import LONG_S
from latticed.ctl import ask
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.kit import strict_json
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl invoke acme.demo greet",
    """latticectl invoke acme.demo greet '{"name": "world"}'""",
    "latticectl invoke acme.demo import - < data.json",
    """latticectl invoke latticed.wireguard issue '{"id": "anna-phone"}' --qr""",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    parser.add_argument("action", metavar="ACTION", help="what it is to do; `describe` where a plugin knows that")
    parser.add_argument("payload", metavar="JSON", nargs="?", help="the payload, or - to read it from stdin")
    parser.add_argument("--qr", action="store_true", help="draw the result, or its `conf`, as a QR code for a camera")


def run(session: CtlSession) -> int:
    """Have the plugin carry out the action; exit code 1 when it says that it could not."""
    args = session.args
    body = {"action": args.action, "payload": payload(args.payload)}
    client = session.client(read_s=LONG_S)  # longer than the daemon's own limit for an invocation
    reply = ask.invoke(client, ask.known_id(args.id), body)
    if args.qr and reply.get("ok") is True:
        _draw(session, reply)
        return ExitCode.OK
    failed = reply.get("ok") is not True and not session.screen.json_wanted
    return show(session, reply, args.id, args.action, hint=ask.where_it_tells(client, args.id) if failed else "")


def show(session: CtlSession, reply: dict[str, Any], plugin_id: str, action: str, *, hint: str) -> int:
    """Print the result on stdout and the plugin's message on stderr; returns the exit code.

    Problem action_failed, with `hint`, when it says that it could not.
    """
    screen = session.screen
    done = reply.get("ok") is True
    if screen.json_wanted:
        screen.json(reply)
        return ExitCode.OK if done else ExitCode.FAILED
    result, message = reply.get("result"), str(reply.get("message") or "")
    if isinstance(result, str):
        screen.line(result)
    elif result is not None:
        for line in json.dumps(result, indent=2, ensure_ascii=False).splitlines():
            screen.line(line)
    if not done:
        detail = str(reply.get("error") or message or "it gave no reason")
        raise Problem("action_failed", f"{plugin_id} refused {action!r}: {detail}", hint)
    if message:
        screen.note(message)
    return ExitCode.OK


def _draw(session: CtlSession, reply: dict[str, Any]) -> None:
    """Print a text of the result as a QR code, and the rest of it on stderr: the text may be a key, shown once.

    Problem usage for a result without a text, too_large for one that no code holds.
    """
    import segno  # nobody else pays for it

    result = reply.get("result")
    text = result.get("conf") if isinstance(result, dict) else result
    if not isinstance(text, str) or not text:
        raise Problem("usage", "--qr: expected a result that is text, or has `conf`, found another", "leave --qr out")
    try:
        # L: what a screen shows is not torn, and a smaller code is read from further away.
        code = segno.make(text, error="l", micro=False)
    except segno.DataOverflowError as error:
        found = f"{len(text)} characters"
        raise Problem("too_large", f"--qr: expected a text that fits a QR code, found {found}") from error
    drawn = io.StringIO()
    code.terminal(drawn, compact=True)
    for line in drawn.getvalue().splitlines():
        session.screen.line(line)
    if isinstance(result, dict):
        rest = {name: value for name, value in result.items() if name != "conf"}
        session.screen.note(json.dumps(rest, ensure_ascii=False))
    if reply.get("message"):
        session.screen.note(str(reply["message"]))


def payload(text: str | None) -> Any:
    """The payload as JSON values, `-` read from stdin; Problems too_large, usage."""
    if text is None:
        return None
    if text == "-":
        # One byte more than the API takes, which tells that there is too much.
        data = sys.stdin.buffer.read(wire.MAX_BODY_BYTES + 1)
        if len(data) > wire.MAX_BODY_BYTES:
            raise Problem("too_large", f"expected at most {wire.MAX_BODY_BYTES} bytes on stdin, found more")
    else:
        data = text.encode()
    try:
        return strict_json.loads(data)
    except strict_json.InvalidJson as error:
        found = data[:40].decode(errors="replace")
        hint = """put text in quotes of its own: '"text"'"""
        raise Problem("usage", f"the payload: expected JSON, found {found!r} ({error})", hint) from error

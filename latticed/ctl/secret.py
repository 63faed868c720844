"""latticectl secret: set, bind and delete secrets. Plugins refer to them by name; values are never shown."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Any, Final

from latticed import wire
from latticed.ctl import ask, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column
from latticed.kit import passwords
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl secret set API_TOKEN < token.txt         # without its last line end",
    "latticectl secret set --password WEB_LOGIN          # asked for twice; only its hash is sent and kept",
    "latticectl secret bind API_TOKEN acme.fetch         # now ${secret:API_TOKEN} works in its requests",
    "latticectl secret list",
    "latticectl secret unbind API_TOKEN acme.fetch",
    "latticectl secret delete API_TOKEN                  # --unbind: also while plugins have it bound",
)

_TABLE: Final = (
    Column(title="NAME"),
    Column(title="VERSION", right=True),
    Column(title="USABLE"),
    Column(title="PLUGINS", shrinks=True),
    Column(title="UPDATED"),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="names, versions, bindings; never values")
    for name, summary in (("set", "keep a value, read from stdin or asked for"), ("delete", "forget a secret")):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("name", metavar="NAME", help="upper case letters, digits and _")
        if name == "set":
            action.add_argument("--password", action="store_true", help="it is a login's password: keep its hash")
        if name == "delete":
            action.add_argument("--unbind", action="store_true", help="also when plugins have it bound, which lose it")
    for name, summary in (("bind", "let a plugin have it used"), ("unbind", "take that back")):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("name", metavar="NAME", help="upper case letters, digits and _")
        action.add_argument("id", metavar="ID", help="the plugin's id")


def run(session: CtlSession) -> int:
    """Carry out the action; no action prints a value."""
    match session.args.action:
        case "list":
            return _list(session)
        case "set":
            return keep(session, password=session.args.password)
        case "delete":
            return _delete(session)
        case action:
            return _bind(session, bound=action == "bind")


def _list(session: CtlSession) -> int:
    """Print names, versions and bindings."""
    plain = replies.mapping(session.client().get("secrets"), "secrets")
    rows = replies.rows(plain.get("secrets"), "list of secrets")
    screen = session.screen
    if screen.json_wanted:
        screen.json(list(rows))
        return ExitCode.OK
    screen.rows(_TABLE, [_row(session, row) for row in rows])
    return ExitCode.OK


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    """The cells of one secret."""
    usable = Cell("yes", "good") if row.get("usable") else Cell("no: its key is missing, or another", "bad")
    plugins = ", ".join(replies.texts(row.get("plugins") or []))
    updated = session.screen.when(str(row.get("updated_at") or ""))
    return str(row.get("name") or ""), str(row.get("version") or ""), usable, plugins, updated


def keep(session: CtlSession, *, password: bool) -> int:
    """Read a value and store it, or of a `password` its hash."""
    value = _read_value(session.args.name, twice=password)
    if not value:
        raise Problem(
            "usage", "expected a value on stdin, found nothing", "printf %s VALUE | latticectl secret set NAME"
        )
    if password:
        value = _hash(value)
    session.client().put_bytes("secrets", session.args.name, body=value)
    return _told(session, "set", {"set": True})


def _read_value(name: str, *, twice: bool) -> bytes:
    """Read from the terminal without echo, or all of stdin without a final newline. `twice`: asks for it again."""
    if sys.stdin.isatty():
        value = getpass.getpass(f"{name}: ")
        if twice and getpass.getpass(f"{name} again: ") != value:
            raise Problem("usage", "expected the same password twice, found two")
        return value.encode("utf-8", "surrogateescape")
    found = sys.stdin.buffer.read(wire.MAX_BODY_BYTES + 1)
    if len(found) > wire.MAX_BODY_BYTES:
        raise Problem("too_large", f"expected at most {wire.MAX_BODY_BYTES} bytes on stdin, found more")
    return trimmed(found)


def trimmed(found: bytes) -> bytes:
    """The value in what was read: editors and echo add one line end, so one that is to keep it must have two."""
    return found.removesuffix(b"\n").removesuffix(b"\r")


def _hash(value: bytes) -> bytes:
    """The hash of a login password; Problem("usage") for one that the login form would not accept."""
    try:
        password = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("usage", "expected a password in UTF-8, found other bytes") from error
    if password.startswith(passwords.PREFIX):
        raise Problem("usage", "expected a password, found a hash", "latticectl secret set NAME keeps a hash as it is")
    if fault := passwords.fault(password):
        raise Problem("usage", fault)
    return passwords.make_hash(password).encode("ascii")


def _delete(session: CtlSession) -> int:
    """Delete a secret; with --unbind also one that plugins are bound to."""
    query = {"unbind": "true"} if session.args.unbind else None
    plain = replies.mapping(session.client().delete("secrets", session.args.name, query=query), "secret")
    plugins = replies.texts(plain.get("plugins") or [])
    _told(session, "deleted", {"deleted": True, "plugins": plugins})
    if plugins:
        session.screen.note("it is gone from", ", ".join(plugins))
    return ExitCode.OK


def _bind(session: CtlSession, *, bound: bool) -> int:
    """Bind a secret to a plugin, or undo that."""
    name, plugin_id = session.args.name, ask.known_id(session.args.id)
    client = session.client()
    if bound:
        client.put("secrets", name, "plugins", plugin_id, body={})
    else:
        client.delete("secrets", name, "plugins", plugin_id)
    return _told(session, f"{'bound to' if bound else 'no longer bound to'} {plugin_id}", {"bound": bound})


def _told(session: CtlSession, done: str, record: dict[str, Any]) -> int:
    """Print `done` after the secret's name; with --json `record`, with the name in it."""
    if session.screen.json_wanted:
        session.screen.json({"name": session.args.name, **record})
    else:
        session.screen.line(session.args.name, done)
    return ExitCode.OK

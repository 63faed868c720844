"""latticectl kv: values that plugins and operators keep; bytes go in and out as they are."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from latticed import wire
from latticed.ctl import replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl kv set default motd 'hello'",
    "latticectl kv set default logo - < logo.png",
    "latticectl kv get default motd",
    "latticectl kv list plugin:acme.demo --prefix user.",
    "latticectl kv delete default motd",
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (("get", "print one value"), ("set", "store one value"), ("delete", "remove one value")):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("bucket", metavar="BUCKET", help="an operator's bucket, or plugin:<id>")
        action.add_argument("key", metavar="KEY", help="name of the value, 1 to 256 characters")
        if name == "set":
            action.add_argument("value", metavar="VALUE", type=str, help="the value, or - to read it from stdin")
    listing = actions.add_parser("list", help="print the keys of a bucket", description="print the keys of a bucket")
    listing.add_argument("bucket", metavar="BUCKET", help="an operator's bucket, or plugin:<id>")
    listing.add_argument("--prefix", default="", help="only keys that start with this")


def run(session: CtlSession) -> int:
    """Carry out the action; values go through as bytes."""
    actions = {"get": _get, "set": _set, "list": _list, "delete": _delete}
    return actions[session.args.action](session)


def _get(session: CtlSession) -> int:
    """Print a value: as it is, or in JSON as text (if it is UTF-8) and base64."""
    args = session.args
    value = session.client().get_bytes("kv", args.bucket, args.key)
    if not session.screen.json_wanted:
        session.screen.raw(value)
        return ExitCode.OK
    found: dict[str, Any] = {"bucket": args.bucket, "key": args.key, "value": None}
    with contextlib.suppress(UnicodeDecodeError):  # not text: only value_base64 is given
        found["value"] = value.decode("utf-8")
    session.screen.json({**found, "value_base64": base64.b64encode(value).decode("ascii")})
    return ExitCode.OK


def _set(session: CtlSession) -> int:
    """Store a value."""
    args = session.args
    # fsencode gives the argument's own bytes back, UTF-8 or not (PEP 383).
    value = _stdin() if args.value == "-" else os.fsencode(args.value)
    session.client().put_bytes("kv", args.bucket, args.key, body=value)
    return _told(session, "stored", {"bytes": len(value)})


def _delete(session: CtlSession) -> int:
    """Delete a key."""
    session.client().delete("kv", session.args.bucket, session.args.key)
    return _told(session, "deleted", {"deleted": True})


def _told(session: CtlSession, done: str, record: dict[str, Any]) -> int:
    """Print `done` after bucket and key; with --json `record`, with bucket and key in it."""
    args = session.args
    if session.screen.json_wanted:
        session.screen.json({"bucket": args.bucket, "key": args.key, **record})
    else:
        session.screen.line(f"{args.bucket}/{args.key}", done)
    return ExitCode.OK


def _list(session: CtlSession) -> int:
    """Print the keys of a bucket."""
    keys = _keys(session.client(), session.args.bucket, session.args.prefix)
    if session.screen.json_wanted:
        session.screen.json({"bucket": session.args.bucket, "keys": list(keys)})
        return ExitCode.OK
    key = None
    for key in keys:
        session.screen.line(key)
    if key is None:
        session.screen.note(f"no such keys in bucket {session.args.bucket}")
        if not session.args.bucket.startswith("plugin:"):
            session.screen.hint("what a plugin keeps is in plugin:ID")
    return ExitCode.OK


def _keys(client: ControlClient, bucket: str, prefix: str) -> Iterator[str]:
    """All keys of a bucket that begin with `prefix`, sorted, page by page."""
    after: str | None = None
    while True:
        page = replies.mapping(client.get("kv", bucket, query={"prefix": prefix or None, "after": after}), "keys")
        yield from replies.texts(page.get("keys"))
        following = page.get("next")
        # A cursor that does not advance would have this ask for ever.
        if not isinstance(following, str) or following == after:
            return
        after = following


def _stdin() -> bytes:
    """All of stdin; Problem too_large beyond what the API takes."""
    value = sys.stdin.buffer.read(wire.MAX_BODY_BYTES + 1)
    if len(value) > wire.MAX_BODY_BYTES:
        raise Problem("too_large", f"expected at most {wire.MAX_BODY_BYTES} bytes on stdin, found more")
    return value

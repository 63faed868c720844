"""latticectl notify: the notifications that plugins queued, and their channels: list, test, retry, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import render, replies
from latticed.ctl.arguments import Parser, examples, newest
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl notify list",
    "latticectl notify list --status failed --plugin acme.watch",
    "latticectl notify test phone                        # what the channel answers to a test message",
    "latticectl notify retry 5c0f…                       # a failed one, by its id",
    "latticectl notify prune --status failed",
)

_STATUSES: Final = ("queued", "delivering", "done", "failed")
_CHANNELS: Final = (
    Column(title="CHANNEL"),
    Column(title="STATE"),
    Column(title="WAITING", right=True),
    Column(title="OLDEST"),
    Column(title="LAST SUCCESS"),
    Column(title="REASON", shrinks=True),
)
_TABLE: Final = (
    Column(title="ID"),
    Column(title="STATUS"),
    Column(title="SEVERITY"),
    Column(title="PLUGIN"),
    Column(title="TRIES", right=True),
    Column(title="CREATED"),
    Column(title="TITLE", shrinks=True),
    Column(title="REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the newest notifications")
    listing.add_argument("--status", choices=_STATUSES, help="only those with this status")
    listing.add_argument("--plugin", metavar="ID", help="only those of this plugin")
    listing.add_argument("--last", metavar="N", type=newest(500), default=50, help="the newest so many (default 50)")
    test = actions.add_parser("test", help="send a test message to a channel")
    test.add_argument("channel", metavar="CHANNEL", help="name of a channel of the notification plugin")
    again = actions.add_parser("retry", help="have a failed one tried afresh")
    again.add_argument("item", metavar="NOTIFICATION", help="id of the notification, as notify list shows it")
    prune = actions.add_parser("prune", help="remove notifications")
    prune.add_argument(
        "--status",
        action="append",
        choices=("queued", "done", "failed"),
        default=[],
        help="only those with this status (repeatable)",
    )
    prune.add_argument("--plugin", metavar="ID", help="only those of this plugin")


def run(session: CtlSession) -> int:
    """List notifications, test a channel, retry a notification, or remove some."""
    args, screen, client = session.args, session.screen, session.client()
    if args.action == "list":
        return _list(session)
    if args.action == "test":
        return _test(session)
    if args.action == "retry":
        plain = client.post("notifications", args.item, "retry", body={})
        words = (args.item, "queued again")
    else:
        body: dict[str, Any] = {"statuses": args.status or ["done", "failed"]}
        plain = client.post("notifications", "prune", body={**body, **({"plugin": args.plugin} if args.plugin else {})})
        words = (str(replies.mapping(plain, "answer").get("removed")), "removed")
    if screen.json_wanted:
        screen.json(plain)
    else:
        screen.line(*words)
    return ExitCode.OK


def _list(session: CtlSession) -> int:
    """Print the newest notifications."""
    args = session.args
    # The API answers with 500 rows at most, and refuses a greater limit.
    query = {"status": args.status, "plugin": args.plugin, "limit": args.last}
    plain = replies.mapping(session.client().get("notifications", query=query), "notifications")
    rows = replies.rows(plain.get("notifications"), "list of notifications")
    if session.screen.json_wanted:
        session.screen.json(plain)
        return ExitCode.OK
    session.screen.rows(
        _TABLE,
        [
            (
                str(row.get("id") or ""),
                render.word(str(row.get("status") or "")),
                str(row.get("severity") or ""),
                str(row.get("plugin") or ""),
                str(row.get("attempts") or 0),
                session.screen.when(str(row.get("created_at") or "")),
                str(row.get("title") or ""),
                _reason(row),
            )
            for row in rows
        ],
    )
    if channels := replies.rows(plain.get("channels") or [], "list of channels"):
        session.screen.rows(
            _CHANNELS,
            [
                (
                    str(row.get("name") or ""),
                    render.word(str(row.get("state") or "")),
                    str(row.get("waiting") or 0),
                    session.screen.when(str(row.get("oldest_at") or "")),
                    session.screen.when(str(row.get("last_success_at") or "")),
                    _reason(row),
                )
                for row in channels
            ],
        )
    return ExitCode.OK


def _test(session: CtlSession) -> int:
    """Print what a channel made of a test message; exit code 1 unless it took it."""
    asked = {"channel": session.args.channel}
    plain = replies.mapping(session.client().post("notifications", "test", body=asked), "answer")
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        fields = ("outcome", "code", "reason", "answered")
        session.screen.fields([(name, str(plain[name])) for name in fields if plain.get(name)])
    return ExitCode.OK if plain.get("outcome") == "done" else ExitCode.FAILED


def _reason(row: dict[str, Any]) -> str:
    """`code: reason` of a row, or the one that it has."""
    return ": ".join(filter(None, (str(row.get("code") or ""), str(row.get("reason") or ""))))

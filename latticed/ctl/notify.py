"""latticectl notify: the notifications that plugins queued: list, retry, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl notify list",
    "latticectl notify list --status failed --plugin acme.watch",
    "latticectl notify retry 5c0f…                       # a failed one, by its id",
    "latticectl notify prune --status failed",
)

_STATUSES: Final = ("queued", "delivering", "done", "failed")
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
    listing.add_argument("--status", choices=_STATUSES)
    listing.add_argument("--plugin", metavar="ID")
    listing.add_argument("--last", metavar="N", type=int, default=50, help="the newest so many (default 50)")
    again = actions.add_parser("retry", help="have a failed one tried afresh")
    again.add_argument("item", metavar="NOTIFICATION")
    prune = actions.add_parser("prune", help="remove notifications")
    prune.add_argument("--status", action="append", choices=("queued", "done", "failed"), default=[])
    prune.add_argument("--plugin", metavar="ID")


def run(session: CtlSession) -> int:
    """List notifications, retry one, or remove some."""
    args, screen, client = session.args, session.screen, session.client()
    if args.action == "list":
        return _list(session)
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
    query = {"status": args.status, "plugin": args.plugin, "limit": max(1, min(args.last, 500))}
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
                ": ".join(filter(None, (str(row.get("code") or ""), str(row.get("reason") or "")))),
            )
            for row in rows
        ],
    )
    return ExitCode.OK

"""latticectl ddns: the DNS records that plugins keep up to date, and another try for one that was denied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, delegated, replies, times
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl ddns list",
    "latticectl ddns list acme.home",
    "latticectl ddns retry acme.home home.example.org      # once what it was denied for is mended",
)
_AT_ONCE_S: Final = 2.0
"""A try that is due so soon, in seconds, is one of now: asking the daemon takes time."""
_LIST: Final = delegated.DelegatedList(
    path="ddns",
    member="records",
    summary="DNS records and how they stand",
    columns=(
        (Column(title="PLUGIN"), "plugin"),
        (Column(title="NAME"), "name"),
        (Column(title="TYPE"), "type"),
        (Column(title="STATE"), delegated.state),
        (Column(title="ADDRESS"), "address"),
        (Column(title="PUBLISHED"), "published"),
        (Column(title="CHANGED"), delegated.time("last_change")),
        (
            Column(title="ERROR", shrinks=True),
            lambda session, row: "" if row.get("state") == "published" else delegated.last_error(session, row),
        ),
    ),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _LIST.add(actions)
    summary = "have records that are not published tried again as soon as may be, denied ones too"
    again = actions.add_parser("retry", help=summary, description=summary)
    again.add_argument("id", metavar="ID", help="the plugin's id")
    again.add_argument("name", metavar="NAME", help="the record's name")
    again.add_argument("--type", choices=("A", "AAAA"), help="only this type")


def run(session: CtlSession) -> int:
    """List records, or have one name tried again."""
    if session.args.action == "list":
        return _LIST.run(session)
    args, screen = session.args, session.screen
    body = {} if args.type is None else {"type": args.type}
    plain = replies.mapping(
        session.client().post("ddns", ask.known_id(args.id), args.name, "retry", body=body), "reply"
    )
    rows = replies.rows(plain.get("records"), "list of records")
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    for row in rows:
        screen.line(delegated.text(row, "name"), delegated.text(row, "type"), _outlook(session, row))
    if not rows:  # a daemon that names only what is tried again
        screen.line(args.name, "is published already")
    return ExitCode.OK


def _outlook(session: CtlSession, row: dict[str, Any]) -> str:
    """What becomes of a record after `retry`."""
    if row.get("state") == "published":
        return "is published already"
    if row.get("resting"):
        return "is tried again once its plugin may act"
    if row.get("state") == "no_address":
        return "has no address (no_address): it is tried once it has one"
    due = delegated.text(row, "next_try")
    later = due and times.is_later(due, session.screen.now_s + _AT_ONCE_S)
    return f"is tried again {session.screen.when(due) if later else 'now'}"

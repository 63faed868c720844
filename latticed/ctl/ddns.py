"""latticectl ddns: the DNS records that plugins keep up to date, and another try for one that was denied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, delegated, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl ddns list",
    "latticectl ddns list acme.home",
    "latticectl ddns retry acme.home home.example.org      # once what it was denied for is mended",
)
_TABLE: Final = (
    Column(title="PLUGIN"),
    Column(title="NAME"),
    Column(title="TYPE"),
    Column(title="STATE"),
    Column(title="ADDRESS"),
    Column(title="PUBLISHED"),
    Column(title="CHANGED"),
    Column(title="ERROR", shrinks=True),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    delegated.add_list(actions, "DNS records and how they stand")
    summary = "have records that are not published tried again now, denied ones too"
    again = actions.add_parser("retry", help=summary, description=summary)
    again.add_argument("id", metavar="ID", help="the plugin's id")
    again.add_argument("name", metavar="NAME", help="the record's name")
    again.add_argument("--type", choices=("A", "AAAA"), help="only this type")


def run(session: CtlSession) -> int:
    if session.args.action == "list":
        return delegated.listed(session, "ddns", "records", _TABLE, _row)
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
        resting = "once its plugin may act" if row.get("resting") else "now"
        screen.line(delegated.text(row, "name"), delegated.text(row, "type"), f"is tried again {resting}")
    if not rows:
        screen.line(args.name, "is published already")
    return ExitCode.OK


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    return (
        delegated.text(row, "plugin"),
        delegated.text(row, "name"),
        delegated.text(row, "type"),
        delegated.state(row),
        delegated.text(row, "address"),
        delegated.text(row, "published"),
        session.screen.when(delegated.text(row, "last_change")),
        delegated.fault(row) if row.get("state") != "published" else "",
    )

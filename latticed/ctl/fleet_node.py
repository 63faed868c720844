"""latticectl fleet node: everything that the controller knows of one node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_controller, fleet_nodes, fleet_status, render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.fleet_controller import moment, word
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl fleet node web-1", "latticectl fleet node web-1 --format json")
_PLUGINS: Final = (
    Column("PLUGIN"),
    Column("VERSION"),
    Column("STATUS"),
    Column("STATE"),
    Column("HEALTH"),
    Column("RESTARTS", right=True),
    Column("DENIED", right=True),
    Column("REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument("node", metavar="NODE", help="a node's name, as latticectl fleet nodes shows it")


def run(session: CtlSession) -> int:
    """Print one node: what it is to have, what it says that it has, its plugins, what has to be looked at."""
    plain = replies.mapping(fleet_controller.client(session).get("fleet", "nodes", session.args.node), "node")
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    row = replies.mapping(plain.get("node"), "node")
    screen.fields(_fields(session, plain, row))
    screen.rows(_PLUGINS, [_plugin(one) for one in replies.rows(plain.get("plugins") or [], "list of plugins")])
    if plans := replies.texts(plain.get("plans")):
        screen.hint(f"on {session.args.node}: latticectl plan show {plans[0][:12]}; a fleet approves no plan")
    fleet_status.show_alarms(session, replies.rows(plain.get("alarms") or [], "list of alarms"))
    return ExitCode.OK


def _fields(session: CtlSession, plain: dict[str, Any], row: dict[str, Any]) -> list[tuple[str, str | Cell | None]]:
    refused = ": ".join(filter(None, (str(row.get("refused") or ""), str(row.get("reason") or ""))))
    missed = plain.get("missed", 0)
    events = f"{plain.get('events', 0)}, head {fleet_controller.short(plain.get('head'))}"
    return [
        ("node", str(row.get("name") or "")),
        ("state", word(row.get("state"))),
        ("present", render.yes_no(row.get("present"))),
        ("labels", fleet_nodes.labels_of(row)),
        ("key", str(plain.get("key") or "")),
        ("is to have", str(row.get("assigned") or "")),
        ("  assignment", f"{row.get('generation', 0)}, ends {moment(session.screen, plain.get('expires'))}"),
        ("has", str(row.get("intent") or "")),
        ("  assignment", str(plain.get("reported", 0))),
        ("says no", Cell(refused, "bad") if refused else ""),
        ("rollout", str(plain.get("rollout") or "")),
        ("status of", moment(session.screen, plain.get("status_at"))),
        ("plans wait", str(len(replies.texts(plain.get("plans"))))),
        ("events", Cell(f"{events}, {missed} never came", "warn") if missed else events),
    ]


def _plugin(one: dict[str, Any]) -> tuple[str | Cell, ...]:
    return (
        str(one.get("id") or ""),
        str(one.get("version") or ""),
        render.word(str(one.get("status") or "")),
        render.word(str(one.get("state") or "")),
        render.word(str(one.get("health") or "")),
        str(one.get("restarts", 0)),
        str(one.get("denied", 0)),
        ": ".join(filter(None, (str(one.get("code") or ""), str(one.get("reason") or "")))),
    )

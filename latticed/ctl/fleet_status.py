"""latticectl fleet status: the fleet at a glance, as the controller has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_controller, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.fleet_controller import moment, word
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet status",
    "latticectl fleet status --check                    # exit code 3 when somebody has to look",
)
STATES: Final = ("settled", "pending", "unwell", "refused", "waiting", "unassigned", "away")
"""Of nodes: each is in one of them."""
_ALARMS: Final = (Column("ALARM"), Column("NODE"), Column("SINCE"), Column("REASON", shrinks=True))
_ROLLOUTS: Final = (
    Column("ROLLOUT"),
    Column("STATE"),
    Column("WAVE"),
    Column("GIVEN TO", right=True),
    Column("NODES", right=True),
    Column("REASON", shrinks=True),
)
_LATER: Final = Cell("is connected until its credentials end", "warn")
"""Where a controller has no credentials to hand a list of users to the servers."""


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 3 where there is an alarm, no message system, or no certificate that holds",
    )


def run(session: CtlSession) -> int:
    """Print who acts, what it stands on, how the nodes are, and what has to be looked at."""
    plain = replies.mapping(fleet_controller.client(session).get("fleet"), "fleet")
    alarms = replies.rows(plain.get("alarms") or [], "list of alarms")
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        _show(session, plain, alarms)
    return ExitCode.UNHEALTHY if session.args.check and _ails(plain, alarms) else ExitCode.OK


def _show(session: CtlSession, plain: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    screen = session.screen
    lease, engine, certificate, nodes = (
        replies.mapping(plain.get(name) or {}, name) for name in ("lease", "engine", "certificate", "nodes")
    )
    acting = "acts" if plain.get("leader") else f"waits: {lease.get('holder') or 'nobody is known to act'}"
    until = moment(screen, lease.get("until"))
    ends = moment(screen, certificate.get("expires"))
    away = Cell(f"away: {engine.get('reason')}", "bad")
    screen.fields(
        [
            ("fleet", str(plain.get("fleet") or "")),
            ("controller", f"{plain.get('controller')} {plain.get('version')}, {acting}"),
            ("lease", f"{lease['holder']}, ends {until} unless renewed" if lease.get("holder") else ""),
            ("messages", Cell("connected", "good") if engine.get("connected") else away),
            ("who is revoked", "is cut off at once" if engine.get("cuts_off") else _LATER),
            ("certificate", word(certificate.get("state"))),
            ("  ends", ends),
            ("nodes", counts(nodes)),
        ]
    )
    if rollouts := replies.rows(plain.get("rollouts") or [], "list of rollouts"):
        screen.rows(_ROLLOUTS, [rollout(one) for one in rollouts])
    show_alarms(session, alarms)


def show_alarms(session: CtlSession, alarms: list[dict[str, Any]]) -> None:
    """Print alarms as a table, and what helps; nothing where there is none."""
    screen = session.screen
    if not alarms:
        return
    screen.rows(_ALARMS, [_alarm(session, one) for one in alarms])
    for hint in dict.fromkeys(str(one.get("hint") or "") for one in alarms):
        if hint:
            screen.hint(hint)


def counts(nodes: dict[str, Any]) -> str:
    """`12: 10 settled, 2 away`, with what overlaps left out."""
    return f"{nodes.get('nodes', 0)}: {replies.counts({name: nodes.get(name) for name in STATES}) or 'none'}"


def rollout(one: dict[str, Any]) -> tuple[str | Cell, ...]:
    """The cells of a rollout; waves are counted from 1."""
    waves = replies.rows(one.get("waves") or [], "list of waves")
    at = one.get("wave")
    return (
        str(one.get("name") or ""),
        word(one.get("state")),
        f"{at + 1 if isinstance(at, int) else '?'} of {len(waves)}",
        str(one.get("touched", 0)),
        str(one.get("nodes", 0)),
        str(one.get("reason") or ""),
    )


def _alarm(session: CtlSession, one: dict[str, Any]) -> tuple[str | Cell, ...]:
    since = moment(session.screen, one.get("since"))
    return Cell(str(one.get("code") or ""), "bad"), str(one.get("node") or ""), since, str(one.get("reason") or "")


def _ails(plain: dict[str, Any], alarms: list[dict[str, Any]]) -> bool:
    """Whether somebody has to look."""
    connected = replies.mapping(plain.get("engine") or {}, "engine").get("connected")
    certified = replies.mapping(plain.get("certificate") or {}, "certificate").get("state") == "valid"
    return bool(alarms) or not connected or not certified

"""latticectl fleet roll: give an intent to the nodes that it selects, in waves, and show how it goes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_bundles, fleet_controller, fleet_rollouts, replies
from latticed.ctl.arguments import Parser, count, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet roll web.intent --bundle ./acme.demo",
    "latticectl fleet roll web.intent --wave 1 --wave 5 --wave 50 --gate settle_s=120",
    "latticectl fleet roll web.intent --no-wait",
    "latticectl fleet roll --follow r1                  # one that goes on",
)
GATE: Final = {
    "unwell_share": float,
    "away_share": float,
    "settle_s": float,
    "patience_s": float,
    "denials_per_minute": float,
    "restarts": int,
}
"""What a wave's gate can be told, and how it is written (`latticed.fleet.rollout.GatePolicy`)."""
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_READ_S: Final = 120.0


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument(
        "intent", metavar="INTENT", type=str, nargs="?", help="a signed intent's file, or the beginning of its SHA-256"
    )
    parser.add_argument("--name", metavar="NAME", help="what it is called (default: made from the intent)")
    parser.add_argument(
        "--wave",
        metavar="N",
        type=count,
        action="append",
        default=[],
        help="nodes of a wave; repeat it for the next, the last size counts for all that follow (default 10, 90, 400)",
    )
    parser.add_argument(
        "--gate",
        metavar="NAME=NUMBER",
        action="append",
        default=[],
        help=f"when a wave's gate opens (repeatable): {', '.join(GATE)}",
    )
    fleet_bundles.add_arguments(parser)
    parser.add_argument("--no-wait", action="store_true", help="begin, and do not wait for its end")
    parser.add_argument("--follow", metavar="ROLLOUT", help="begin nothing: show this one until its end")


def run(session: CtlSession) -> int:
    """Begin, and show waves until all is done, halted or back; exit code 1 unless it is done."""
    args = session.args
    if (args.intent is None) == (args.follow is None):
        raise Problem("usage", "expected INTENT or --follow ROLLOUT", "latticectl fleet roll --help shows how")
    name = args.follow if args.follow is not None else _begun(session)
    if args.follow is None and args.no_wait:
        return ExitCode.OK
    until = frozenset({"done", "returned", "halted"})
    return fleet_rollouts.ended(session, fleet_rollouts.follow(session, name, until=until))


def _begun(session: CtlSession) -> str:
    """Hand over what is missing and begin the rollout; its name."""
    args = session.args
    gate = dict(map(_gate, args.gate))
    fleet_bundles.send(session)
    asked = fleet_controller.client(session, read_s=_READ_S)
    body: dict[str, Any] = {"intent": fleet_controller.intent(session, asked, args.intent)}
    if args.name is not None:
        body["name"] = args.name
    if args.wave:
        body["sizes"] = args.wave
    if gate:
        body["policy"] = gate
    one = replies.mapping(asked.post("fleet", "rollouts", body=body), "rollout")
    if stuck := fleet_rollouts.without_way_back(one):
        session.screen.note(f"{stuck} of {one.get('nodes')} nodes have no way back: where it is bad they keep it")
    if args.no_wait:
        fleet_rollouts.show(session, one)
    return str(one.get("name") or "")


def _gate(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in GATE or not _NUMBER.fullmatch(value):
        raise Problem("usage", f"--gate: expected NAME=NUMBER with a name of {', '.join(GATE)}, found {text[:80]!r}")
    try:
        return name, GATE[name](value)
    except ValueError as error:
        raise Problem("usage", f"--gate: expected a whole number for {name}, found {value}") from error

"""latticectl fleet back: give each node that a rollout touched what it had before, without the operator's key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import fleet_rollouts, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet back                              # the one that is under way",
    "latticectl fleet back r1 --reason 'the shop is slow' --no-wait",
)
_MANY: Final = 3


def arguments(parser: Parser) -> None:
    fleet_rollouts.add_arguments(parser)
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the nodes have what they had")


def run(session: CtlSession) -> int:
    """Go back, and wait until the nodes that are there are back; exit code 1 where nodes have no way back."""
    one = fleet_rollouts.change(session, "back")
    if not session.args.no_wait:
        one = fleet_rollouts.follow(session, str(one.get("name") or ""), until=frozenset({"returned"}))
    fleet_rollouts.show(session, one)
    if stuck := replies.texts(one.get("stuck")):
        detail = f"{len(stuck)} nodes have no way back, such as {', '.join(stuck[:_MANY])}"
        hint = "their intent does not name in back_to what they had: sign one that says what they shall have"
        raise Problem("no_way_back", detail, hint)
    return ExitCode.OK

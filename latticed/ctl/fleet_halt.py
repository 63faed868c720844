"""latticectl fleet halt: give a rollout to no further node; those that have it keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import fleet_rollouts
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet halt                              # the one that is under way",
    "latticectl fleet halt r1 --reason 'the shop is slow'",
)


def arguments(parser: Parser) -> None:
    fleet_rollouts.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Halt it; one that is halted already stays so."""
    fleet_rollouts.show(session, fleet_rollouts.change(session, "halt"))
    return ExitCode.OK

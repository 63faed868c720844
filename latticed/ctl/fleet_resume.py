"""latticectl fleet resume: have a halted rollout go on; its wave is waited for anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import fleet_rollouts
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet resume",
    "latticectl fleet resume r1 && latticectl fleet roll --follow r1",
)


def arguments(parser: Parser) -> None:
    fleet_rollouts.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Resume it; one that runs goes on."""
    fleet_rollouts.show(session, fleet_rollouts.change(session, "resume"))
    return ExitCode.OK

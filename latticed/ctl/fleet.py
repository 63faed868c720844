"""latticectl fleet: many hosts that take what their operator signs; each action is a module `fleet_NAME`, as a verb is.

What an action needs of `latticed.fleet` it imports when it runs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from latticed.ctl import fleet_enroll, fleet_init, fleet_key, fleet_revoke, fleet_sign
from latticed.ctl.arguments import Parser, examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.ctl.session import CtlSession


class ActionModule(Protocol):
    """The interface of an action's module, which is that of a verb's (`main.VerbModule`)."""

    EXAMPLES: str

    def arguments(self, parser: Parser) -> None: ...

    def run(self, session: CtlSession) -> int: ...


class FleetAction(NamedTuple):
    """An action's help in one line, and its module."""

    summary: str
    module: ActionModule


ACTIONS: Final[Mapping[str, FleetAction]] = MappingProxyType(
    {
        # With the operator's key, without a network.
        "key": FleetAction("make the operator's key, or show its public half", fleet_key),
        "init": FleetAction("write what the servers and controllers of a new fleet need", fleet_init),
        "sign": FleetAction("sign what hosts shall run, or a controller's certificate", fleet_sign),
        "enroll": FleetAction("invite a host to be a node of this fleet", fleet_enroll),
        "revoke": FleetAction("have keys or documents count no more, for good", fleet_revoke),
    }
)
"""In the order of the help."""

EXAMPLES: Final = examples(
    *(line.strip() for _, module in ACTIONS.values() for line in module.EXAMPLES.splitlines()[1:])
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, module) in ACTIONS.items():
        module.arguments(actions.add_parser(name, help=summary, description=summary))


def run(session: CtlSession) -> int:
    """Carry out the action."""
    return ACTIONS[session.args.action].module.run(session)

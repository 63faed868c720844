"""latticectl fleet: many hosts that take what their operator signs; each action is a module `fleet_NAME`, as a verb is.

What an action needs of `latticed.fleet` it imports when it runs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from latticed.ctl import (
    fleet_back,
    fleet_backup,
    fleet_check,
    fleet_enroll,
    fleet_events,
    fleet_halt,
    fleet_init,
    fleet_invoke,
    fleet_key,
    fleet_node,
    fleet_nodes,
    fleet_plan,
    fleet_resume,
    fleet_revoke,
    fleet_roll,
    fleet_send,
    fleet_sign,
    fleet_status,
)
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
        "check": FleetAction("whether a message system is fit for the fleet, found out by trying", fleet_check),
        # By the controller's socket.
        "status": FleetAction("the fleet at a glance", fleet_status),
        "nodes": FleetAction("all nodes, one a line", fleet_nodes),
        "node": FleetAction("everything that is known of one node", fleet_node),
        "events": FleetAction("what nodes did, signed by each; with -f as it comes", fleet_events),
        "send": FleetAction("hand what an operator has signed over to the controller", fleet_send),
        "plan": FleetAction(
            "what an intent would change on each node, and what each is asked to consent to", fleet_plan
        ),
        "roll": FleetAction("give an intent to its nodes, in waves", fleet_roll),
        "halt": FleetAction("give a rollout to no further node", fleet_halt),
        "resume": FleetAction("have a halted rollout go on", fleet_resume),
        "back": FleetAction("give each node that a rollout touched what it had before", fleet_back),
        "invoke": FleetAction("one action of a plugin on one node, signed by the operator", fleet_invoke),
        "backup": FleetAction("have the controller write a verified copy of its database", fleet_backup),
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

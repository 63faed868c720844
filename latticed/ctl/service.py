"""latticectl service: the long-lived programs of plugins, and the password of a login in front of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import delegated, secret
from latticed.ctl.arguments import examples
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from latticed.ctl.arguments import Parser
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl service list",
    "latticectl service list acme.store --format json",
    "latticectl service password WEB_LOGIN      # asked for twice; only its hash is sent and kept",
)
_LIST: Final = delegated.DelegatedList(
    path="services",
    member="services",
    summary="services and how they are",
    columns=(
        (Column(title="PLUGIN"), "plugin"),
        (Column(title="NAME"), "name"),
        (Column(title="PROGRAM"), "program"),
        (Column(title="STATE"), delegated.state),
        (Column(title="PID", right=True), "pid"),
        (Column(title="RESTARTS", right=True), "restarts"),
        (Column(title="STARTED"), delegated.time("started_at")),
        (Column(title="ERROR", shrinks=True), delegated.last_error),
    ),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _LIST.add(actions)
    summary = "keep the password of a login as a secret: the same as latticectl secret set --password"
    password = actions.add_parser("password", help=summary, description=summary)
    password.add_argument(
        "name", metavar="NAME", help="of the secret that the login names: upper case letters, digits and _"
    )


def run(session: CtlSession) -> int:
    """Carry out the action."""
    return secret.keep(session, password=True) if session.args.action == "password" else _LIST.run(session)

"""latticectl fleet nodes: all nodes of the fleet, one a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_controller, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.fleet_controller import moment, short, word
from latticed.ctl.fleet_status import STATES
from latticed.ctl.table import Cell, Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet nodes",
    "latticectl fleet nodes --state unwell --state refused",
    "latticectl fleet nodes --label role=web --format json",
)
_PAGE: Final = 500
_COLUMNS: Final = (
    Column("NODE"),
    Column("STATE"),
    Column("HAS"),
    Column("TO HAVE"),
    Column("PLUGINS", right=True),
    Column("UNWELL", right=True),
    Column("PLANS", right=True),
    Column("SEEN"),
    Column("LABELS", shrinks=True),
    Column("REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument(
        "--state", choices=STATES, action="append", default=[], help="only nodes in this state (repeatable)"
    )
    parser.add_argument(
        "--label",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="only nodes with this certified label (repeatable: with all of them)",
    )


def run(session: CtlSession) -> int:
    """Print the nodes, by name."""
    args, screen = session.args, session.screen
    labels = dict(map(_label, args.label))
    rows = [one for one in every(fleet_controller.client(session)) if _wanted(one, args.state, labels)]
    if screen.json_wanted:
        screen.json(rows)
    else:
        screen.rows(_COLUMNS, [_cells(session, one) for one in rows])
    return ExitCode.OK


def every(asked: ControlClient) -> Iterator[dict[str, Any]]:
    """All nodes, page by page."""
    after = ""
    while True:
        page = replies.mapping(asked.get("fleet", "nodes", query={"after": after or None, "limit": _PAGE}), "nodes")
        yield from replies.rows(page.get("nodes"), "list of nodes")
        following = str(page.get("next") or "")
        # By name: what does not go on would go on for ever.
        if following <= after:
            return
        after = following


def _label(text: str) -> tuple[str, str]:
    name, is_there, value = text.partition("=")
    if not (name and is_there and value):
        raise Problem("usage", f"--label: expected NAME=VALUE, found {text[:80]!r}")
    return name, value


def _wanted(one: dict[str, Any], states: list[str], labels: dict[str, str]) -> bool:
    has = replies.mapping(one.get("labels") or {}, "labels")
    return (not states or one.get("state") in states) and labels.items() <= has.items()


def _cells(session: CtlSession, one: dict[str, Any]) -> tuple[str | Cell, ...]:
    unhealthy, plans = one.get("unhealthy", 0), one.get("plans", 0)
    refused = str(one.get("refused") or "")
    return (
        str(one.get("name") or ""),
        word(one.get("state")),
        short(one.get("intent")),
        short(one.get("assigned")),
        str(one.get("plugins", 0)),
        Cell(str(unhealthy), "bad" if unhealthy else ""),
        Cell(str(plans), "warn" if plans else ""),
        moment(session.screen, one.get("seen")),
        labels_of(one),
        ": ".join(filter(None, (refused, str(one.get("reason") or "")))),
    )


def labels_of(one: dict[str, Any]) -> str:
    """`role=web zone=eu`."""
    return " ".join(
        f"{name}={value}" for name, value in sorted(replies.mapping(one.get("labels") or {}, "labels").items())
    )

"""latticectl fleet plan: what an intent would change on each node, and what each is asked to consent to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_bundles, fleet_controller, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.fleet_controller import word
from latticed.ctl.table import Cell, Column
from latticed.model import capability

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet plan web.intent                   # hands it over, and gives it to no node",
    "latticectl fleet plan web.intent --bundle ./acme.demo --node web-1",
    "latticectl fleet plan 3f9c2a1b                     # an intent that the controller has, by its SHA-256",
)
_READ_S: Final = 120.0
_COLUMNS: Final = (
    Column("NODE"),
    Column("WAVE", right=True),
    Column("PLUGIN"),
    Column("CHANGE"),
    Column("FROM"),
    Column("TO"),
    Column("CONSENT", shrinks=True),
    Column("REASON", shrinks=True),
)


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument(
        "intent", metavar="INTENT", type=str, help="a signed intent's file, or the beginning of its SHA-256"
    )
    parser.add_argument("--node", metavar="NODE", action="append", default=[], help="only this node (repeatable)")
    fleet_bundles.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Print per node what would change; exit code 1 when a node would not take the intent up, or be stuck at it."""
    args, screen = session.args, session.screen
    fleet_bundles.send(session)
    asked = fleet_controller.client(session, read_s=_READ_S)
    body: dict[str, Any] = {"intent": fleet_controller.intent(session, asked, args.intent)}
    if args.node:
        body["nodes"] = args.node
    plain = replies.mapping(asked.post("fleet", "plan", body=body), "plan")
    nodes = replies.rows(plain.get("nodes"), "list of nodes")
    if screen.json_wanted:
        screen.json(plain)
    else:
        screen.rows(_COLUMNS, [row for one in nodes for row in _rows(one)])
        _summary(session, plain, nodes)
    return ExitCode.FAILED if any(map(_stuck, nodes)) else ExitCode.OK


def _rows(node: dict[str, Any]) -> Iterator[tuple[str | Cell, ...]]:
    """A line for each plugin of a node that would change; one for a node that would not take the intent up."""
    name, wave = str(node.get("node") or ""), node.get("wave")
    begins = (name, str(wave + 1) if isinstance(wave, int) else "")
    if node.get("refused"):
        reason = f"{node['refused']}: {node.get('reason') or ''}"
        yield (*begins, "", word("refused"), "", "", "", reason)
        return
    changes = _changes(node)
    if not changes:
        yield (*begins, "", "none", "", "", "", "")
    for one in changes:
        yield (*begins, *_change(one))


def _changes(node: dict[str, Any]) -> list[dict[str, Any]]:
    rows = replies.rows(node.get("changes") or [], "list of changes")
    return [one for one in rows if one.get("change") != "none"]


def _change(one: dict[str, Any]) -> tuple[str | Cell, ...]:
    begins, ends = (
        " ".join(filter(None, (str(one.get(f"{end}_version") or ""), str(one.get(f"{end}_status") or ""))))
        for end in ("from", "to")
    )
    return (
        str(one.get("plugin") or ""),
        word(one.get("change")),
        begins,
        ends,
        _consent(one),
        str(one.get("reason") or ""),
    )


def _consent(one: dict[str, Any]) -> Cell:
    """What the node is asked to consent to; what its present intent does not name has a plus."""
    added = set(replies.texts(one.get("added")))
    names = replies.texts(one.get("accept"))
    # What is new first: a narrow terminal cuts the rest.
    said = [f"+{_risky(name)}" for name in names if name in added] + [
        _risky(name) for name in names if name not in added
    ]
    said += [f"secret {name}" for name in replies.texts(one.get("secrets"))]
    return Cell(", ".join(said), "warn" if added else "")


def _risky(name: str) -> str:
    """A capability of host risk says so."""
    risk = capability.RISKS.get(name)
    return f"{name} (host)" if risk is capability.Risk.HOST else name


def _stuck(node: dict[str, Any]) -> bool:
    return bool(node.get("refused")) or any(one.get("change") == "blocked" for one in _changes(node))


def _summary(session: CtlSession, plain: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
    screen = session.screen
    changed, stuck, away = (
        sum(1 for one in nodes if test(one)) for test in (_changes, _stuck, lambda one: not one.get("present"))
    )
    sizes = plain.get("sizes") if isinstance(plain.get("sizes"), list) else []
    screen.note(
        f"{len(nodes)} nodes: {changed} would change, {stuck} cannot, {away} are away; "
        f"waves of {', '.join(map(str, sizes or [])) or 'none'}"
    )
    for one in [one for one in nodes if not one.get("way_back", True)][:3]:
        screen.note(f"{one.get('node')} could not go back by itself: the intent does not name in back_to what it has")
    for note in replies.texts(plain.get("notes")):
        screen.note(note)
    if changed:
        screen.hint(f"latticectl fleet roll {str(plain.get('intent'))[:12]}")

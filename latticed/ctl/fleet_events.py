"""latticectl fleet events: what the fleet's nodes did, signed by each, and with --follow what they do."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_controller, replies, stream
from latticed.ctl.arguments import Parser, count, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.fleet_controller import moment
from latticed.ctl.table import Cell
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet events                            # the last 20",
    "latticectl fleet events --node web-1 --last 200",
    "latticectl fleet events -f                         # from now on, until Ctrl-C",
)
_LAST: Final = 20
_PAGE: Final = 500
_MOST: Final = 1_000
"""That a controller gives at once."""
_WIDTHS: Final = (8, 10, 16, 20, 28)


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, across restarts")
    parser.add_argument("--node", metavar="NODE", help="only events of this node")
    parser.add_argument("--after", metavar="ID", type=count, help="only events after this one")
    parser.add_argument("--last", metavar="N", type=count, help=f"the newest so many (default {_LAST}; with -f: 0)")


def run(session: CtlSession) -> int:
    """Print events until the newest, or with --follow until Ctrl-C."""
    args = session.args
    if args.after is not None and args.last is not None:
        raise Problem("usage", "--after and --last exclude each other", "latticectl fleet events --help shows how")
    if (args.last or 0) > _MOST:
        raise Problem(
            "usage", f"--last: expected at most {_MOST}, found {args.last}", "--after ID leads on from older ones"
        )
    asked = fleet_controller.client(session)
    if args.after is not None:
        # A stream begins with the events that there are.
        _show(session, (_follow if args.follow else _following)(session, asked, args.after))
        return ExitCode.OK
    last = args.last if args.last is not None else 0 if args.follow else _LAST
    rows, newest = _newest(asked, last, args.node)
    _show(session, rows)
    if args.follow:
        _show(session, _follow(session, asked, newest, reached=True))
    return ExitCode.OK


def _page(asked: ControlClient, **query: str | int | None) -> tuple[list[dict[str, Any]], int]:
    page = replies.mapping(asked.get("fleet", "events", query=query), "events")
    following = page.get("next")
    return replies.rows(page.get("events"), "list of events"), following if isinstance(following, int) else 0


def _newest(asked: ControlClient, last: int, node: str | None) -> tuple[list[dict[str, Any]], int]:
    """The newest events, and the id after which the next ones come."""
    rows, following = _page(asked, node=node, limit=max(last, 1))
    return rows[-last:] if last else [], following


def _following(session: CtlSession, asked: ControlClient, after: int) -> Iterator[dict[str, Any]]:
    """All events after an id that are there now."""
    while True:
        rows, following = _page(asked, node=session.args.node, after=after, limit=_PAGE)
        yield from rows
        if not rows or following <= after:
            return
        after = following


def _follow(
    session: CtlSession, asked: ControlClient, after: int, *, reached: bool = False
) -> Iterator[dict[str, Any]]:
    """Events after an id as they come, without an end; a controller that is gone meanwhile is waited for.

    If it was never reached, the Problem is raised at once; `reached`: it has answered before.
    """
    pause_s, lost = stream.FIRST_PAUSE_S, False
    while True:
        try:
            query: dict[str, str | int | None] = {"after": after, "follow": 1, "node": session.args.node}
            with closing(
                asked.lines("fleet", "events", query=query, headers={"Accept": "application/x-ndjson"})
            ) as lines:
                for line in lines:
                    if lost:
                        session.screen.note("the controller is back")
                    pause_s, lost, reached = stream.FIRST_PAUSE_S, False, True
                    # An empty line says that the connection stands.
                    if line.strip():
                        row = _event(line)
                        after = row["id"]
                        yield row
        except Problem as problem:
            if not reached or not stream.passing(problem):
                raise
        if not lost:
            session.screen.note("the controller is gone; waiting for it to come back")
            lost = True
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, stream.LONGEST_PAUSE_S)


def _event(line: bytes) -> dict[str, Any]:
    try:
        row = replies.mapping(json.loads(line), "event")
    except (ValueError, RecursionError) as error:
        raise replies.bad("event") from error
    if not isinstance(row.get("id"), int):
        raise replies.bad("event")
    return row


def _show(session: CtlSession, rows: Iterable[dict[str, Any]]) -> None:
    """Print one line per event and flush it: a program may be reading a pipe."""
    screen = session.screen
    for row in rows:
        if screen.json_wanted:
            screen.json_line(row)
        else:
            screen.fixed(_cells(session, row), _WIDTHS)
        screen.flush()


def _cells(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    code = str(row.get("code") or "")
    return (
        str(row.get("id", "")).rjust(8),
        moment(session.screen, row.get("at")),
        str(row.get("node") or ""),
        str(row.get("action") or ""),
        str(row.get("target") or ""),
        Cell(": ".join(filter(None, (code, str(row.get("reason") or "")))), "warn" if code else ""),
    )

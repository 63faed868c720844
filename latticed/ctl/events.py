"""latticectl events: the newest audit events, and with --follow those to come."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, decode, event_table, render, replies, stream, times
from latticed.ctl.arguments import Parser, count, cursor, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession
    from latticed.ctl.table import Cell

EXAMPLES: Final = examples(
    "latticectl events                         # the last 20",
    "latticectl events -f                      # from now on, until Ctrl-C",
    "latticectl events -f --plugin acme.demo --host-calls",
    "latticectl events --after 1200 --format json",
)

_LAST: Final = 20
"""Events shown without an option."""
_WINDOWS: Final = (1, 16, 256)
"""How far back to look, in multiples of what is wanted: some events are not shown."""
_WIDTHS: Final = (8, 20, 15, 8, 24, 26)
"""Widths of the columns before the last one: events come one by one, so none can be measured."""


def arguments(parser: Parser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, across restarts")
    parser.add_argument(
        "--after", metavar="SEQ", type=cursor, help="only events after this one (with host calls: SEQ.CALL)"
    )
    parser.add_argument("--since", dest="since", type=cursor, help=argparse.SUPPRESS)
    parser.add_argument("--last", metavar="N", type=count, help=f"the newest so many (default {_LAST}; with -f: 0)")
    parser.add_argument("--host-calls", action="store_true", help="also the calls that plugins make")
    parser.add_argument("--plugin", metavar="ID", help="only events about or by this plugin")


def run(session: CtlSession) -> int:
    """Print events until the newest, or with --follow until Ctrl-C."""
    args = session.args
    if args.since is not None:
        session.screen.hint("--since is called --after now; the old name is taken for this version only")
    after: str | None = args.after if args.after is not None else args.since
    if after is not None and args.last is not None:
        raise Problem("usage", "--after and --last exclude each other", "latticectl events --help shows how")
    if args.plugin is not None:
        ask.known_id(args.plugin)
    client = session.client()
    query = {"host_calls": "1"} if args.host_calls else {}
    # --follow starts from now on, unless it is told how many events to show before.
    last = args.last if args.last is not None else 0 if args.follow else _LAST
    # First what there is, then what comes: the stream goes on where that ended, so no event is shown twice or left out.
    newest, shown = after is None and last > 0, 0
    if newest:
        found, after = _newest(client, last, query, args.plugin)
        shown = _show(session, found)
    elif after is not None and not args.follow:
        shown = _show_all(session, stream.backlog(client, after, query))
    missing = _missing(client, args.plugin) if args.plugin is not None and not shown else None
    if args.follow:  # the stream begins with the events after `after` that there are
        if missing is not None and missing.code == "not_found":
            session.screen.note(f"there is no plugin {args.plugin} yet")
        _show_all(session, stream.follow(client, after, query, note=session.screen.note, reached=newest))
    elif missing is not None:
        raise missing
    return ExitCode.OK


def _missing(client: ControlClient, plugin_id: str) -> Problem | None:
    """Why nothing is known of a plugin, Problem not_found unless the daemon says no more; None when something is."""
    try:
        ask.about(client, plugin_id)
    except Problem as missing:
        if missing.code != "not_found":
            return missing
        try:
            page = client.get("audit", query={"target": plugin_id, "limit": 1})
        except Problem:  # without the scope operate
            return missing
        return None if replies.mapping(page, "page of events").get("events") else missing
    return None


def _newest(client: ControlClient, last: int, query: dict[str, str], plugin: str | None) -> tuple[list[Any], str]:
    """The newest events that match, `last` at most, and the cursor from which a stream continues them."""
    status = replies.mapping(client.get("status"), "status")
    ends = [int(replies.mapping(status.get(name) or {}, "audit head").get("seq") or 0) for name in ("audit", "calls")]
    # A cursor has the form of the stream: without host calls a seq of the decisions alone.
    ends = ends if query else ends[:1]
    found: list[Any] = []
    upto = ".".join(map(str, ends))
    # From the seq that would do if every event were shown; further back when too few of them were.
    for factor in _WINDOWS:
        after = [max(0, end - last * factor) for end in ends]
        found = []
        for sent in stream.backlog(client, ".".join(map(str, after)), query):
            found += _wanted(sent, plugin)
            upto = sent.at
        if len(found) >= last or not any(after):
            break
    return found[-last:], upto


def _show_all(session: CtlSession, sents: Iterable[stream.Sent]) -> int:
    """Print events as they come; how many there were."""
    return sum(_show(session, _wanted(sent, session.args.plugin)) for sent in sents)


def _wanted(sent: stream.Sent, plugin: str | None) -> Iterator[dict[str, Any]]:
    """The event in `sent`, unless it has no data or is of another plugin."""
    if not sent.data:
        return
    try:
        row = replies.mapping(json.loads(sent.data), "event")
    except (ValueError, RecursionError) as error:
        raise replies.bad("event") from error
    if plugin is None or plugin == row.get("target") or row.get("actor") == f"plugin:{plugin}":
        yield row


def _show(session: CtlSession, rows: Iterable[dict[str, Any]]) -> int:
    """Print one line per event and flush it: a program may be reading a pipe. How many there were."""
    screen, shown = session.screen, 0
    for row in rows:
        shown += 1
        if screen.json_wanted:
            screen.json_line(row)
        else:
            screen.fixed(_cells(row), _WIDTHS)
        screen.flush()
    return shown


def _cells(row: dict[str, Any]) -> tuple[str | Cell, ...]:
    """The cells of one event."""
    event = decode.event({"detail": {}, **row})  # without the scope operate there is no detail
    said = event_table.reason(event)
    why = f"{event.code}: {said}".rstrip(": ") if event.code else said
    return (
        f"{event.seq:>8}",
        times.absolute(event.ts),
        event.action,
        render.word(event.decision),
        event.target,
        event.actor,
        why,
    )

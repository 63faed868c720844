"""latticectl logs: what a plugin wrote on stderr and through log.write, the newest lines that the daemon keeps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, replies, stream, times
from latticed.ctl.arguments import Parser, examples, newest
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl logs acme.demo",
    "latticectl logs acme.demo --last 20",
    "latticectl logs acme.demo -f              # and what comes, until Ctrl-C",
    "journalctl -t latticed-plugin:acme.demo   # older lines, under systemd",
)

_WAIT_S: Final = 20
"""How long the daemon holds a request open until a line comes; less than the client waits for an answer."""
_MOST: Final = 1_000
"""Lines of one request: the most that the API answers with."""


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, across restarts")
    parser.add_argument("--last", metavar="N", type=newest(_MOST), default=_MOST, help="the newest so many")


def run(session: CtlSession) -> int:
    """Print the lines that the daemon has, and with --follow those to come."""
    args, client = session.args, session.client()
    plugin_id = ask.known_id(args.id)
    found, after = _page(client, plugin_id, {"limit": args.last})
    if session.screen.json_wanted and not args.follow:
        session.screen.json(found)
        return ExitCode.OK
    _show(session, found)
    if not found:  # errors and `explain` advise this command also where a plugin ended without any output
        session.screen.note(f"{plugin_id} has written nothing since the daemon started")
        session.screen.hint(f"under systemd, journalctl -t latticed-plugin:{plugin_id} has what it wrote before")
    if args.follow:
        _follow(session, client, plugin_id, after)
    return ExitCode.OK


def _follow(session: CtlSession, client: ControlClient, plugin_id: str, after: int) -> None:
    """Print lines as they come, without an end; reconnects after the daemon was restarted."""
    pause_s, lost = stream.FIRST_PAUSE_S, False
    while True:
        try:
            found, after = _page(client, plugin_id, {"after": after, "wait_s": _WAIT_S})
        except Problem as problem:
            # Only faults that pass are waited for, such as a daemon that restarts; a refusal stays.
            if not stream.passing(problem):
                raise
            # Noted once, however long it takes.
            if not lost:
                session.screen.note("the daemon is gone; waiting for it to come back")
            lost = True
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, stream.LONGEST_PAUSE_S)
            continue
        if lost:
            session.screen.note("the daemon is back")
        pause_s, lost = stream.FIRST_PAUSE_S, False
        _show(session, found)


def _page(client: ControlClient, plugin_id: str, query: dict[str, int]) -> tuple[list[dict[str, Any]], int]:
    """The lines that a query selects, and the number to go on after."""
    plain = replies.mapping(client.get("plugins", "by-id", plugin_id, "logs", query=query), "logs")
    following = plain.get("next")
    if not isinstance(following, int):
        raise replies.bad("logs")
    return list(replies.rows(plain.get("lines"), "list of lines")), following


def _show(session: CtlSession, rows: list[dict[str, Any]]) -> None:
    """Print lines and flush, so that a pipe gets them as they come."""
    screen = session.screen
    for row in rows:
        if screen.json_wanted:
            screen.json_line(row)
        else:
            stream_name = str(row.get("stream") or "")
            screen.line(times.absolute(str(row.get("at") or "")), f"{stream_name:<6}", str(row.get("text") or ""))
    screen.flush()

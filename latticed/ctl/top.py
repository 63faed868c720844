"""latticectl top: activity of plugins, refreshed on a terminal; printed once elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import activity, decode, render, times
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode, of
from latticed.ctl.table import Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.client import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl top", "latticectl top --interval 5", "latticectl top --format json")

_COLUMNS: Final = (
    Column(title="ID", shrinks=True),
    Column(title="STATUS"),
    Column(title="RUNTIME"),
    Column(title="HEALTH"),
    Column(title="RESTARTS", right=True),
    Column(title="UPTIME", right=True),
    Column(title="CALLS/S", right=True),
    Column(title="CALLS", right=True),
    Column(title="DENIED", right=True),
)
# xterm's alternate screen (1049), so that the user's screen comes back, and no cursor (25).
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
"""Cursor to the upper left corner (ECMA-48): the screen is drawn over, not cleared, so that it does not flicker."""
_TO_LINE_END: Final = "\x1b[K"
_TO_SCREEN_END: Final = "\x1b[J"


def arguments(parser: Parser) -> None:
    parser.add_argument("--interval", metavar="S", type=_seconds, default=1.0, help="seconds between two looks")


def run(session: CtlSession) -> int:
    """Show activity until `q` on a terminal, elsewhere once."""
    client, screen = session.client(), session.screen
    if screen.out.isatty() and sys.stdin.isatty() and not screen.json_wanted:
        return _live(session, client)
    found, _ = _look(client, None)
    if screen.json_wanted:
        screen.json([row._asdict() for row in found])
    elif found:
        screen.rows(_COLUMNS, map(_cells, found))
    else:
        screen.note("no plugins")
    return ExitCode.OK


def _seconds(text: str) -> float:
    """An argument's type: 0.1 to 3600 seconds."""
    try:
        wanted = float(text)
    except ValueError:
        wanted = 0.0
    if not 0.1 <= wanted <= 3600:
        raise ArgumentTypeError(f"expected 0.1 to 3600 seconds, found {text[:40]!r}")
    return wanted


def _look(client: ControlClient, before: activity.Sample | None) -> tuple[list[activity.ActivityRow], activity.Sample]:
    """The rows of this moment, and the sample that the next ones need for their rates."""
    sample = activity.read(client.metrics(), time.monotonic())
    known = decode.plugins(client.get("plugins"))
    return activity.rows(known, sample, before, now_s=time.time()), sample


def _cells(row: activity.ActivityRow) -> tuple[Any, ...]:
    """The cells of one row."""
    return (
        row.id,
        render.word(row.status),
        render.word(row.runtime),
        render.word(row.health),
        str(row.restarts),
        times.duration(row.uptime_s) if row.uptime_s is not None else None,
        f"{row.calls_per_s:.1f}" if row.calls_per_s is not None else None,
        str(row.calls),
        str(row.denied),
    )


def _live(session: CtlSession, client: ControlClient) -> int:
    """Redraw until `q`, Ctrl-C or the end of input; restores the terminal's mode."""
    import termios
    import tty

    keys, out = sys.stdin.fileno(), session.screen.out
    kept = termios.tcgetattr(keys)
    try:
        # Keys come without Enter, while Ctrl-C still is a signal.
        tty.setcbreak(keys)
        out.write(_ENTER)
        _draw_until_told(session, client, keys)
    except KeyboardInterrupt:
        pass
    # In any case: a terminal that stays without echo and on the alternate screen is of no use to its user.
    finally:
        out.write(_LEAVE)
        out.flush()
        termios.tcsetattr(keys, termios.TCSADRAIN, kept)
    return ExitCode.OK


def _draw_until_told(session: CtlSession, client: ControlClient, keys: int) -> None:
    """Look, draw and wait for a key, until the user quits.

    Problems of the first look are raised; later ones are shown while the daemon does not answer.
    """
    before: activity.Sample | None = None
    shown = ""
    while True:
        try:
            found, before = _look(client, before)
            shown = _drawn(session, found)
        except Problem as problem:
            if of(problem) is not ExitCode.UNREACHABLE or not shown:
                raise
            shown = f"the daemon does not answer: {problem.reason}"
            # The counters of a restarted daemon begin at 0: a rate against the old sample would be wrong.
            before = None
        _paint(session, shown)
        if _told(keys, session.args.interval):
            return


def _told(keys: int, within_s: float) -> bool:
    """Wait `within_s` seconds for a key: True for q or the end of input; any other key returns False at once."""
    import select

    ready, _, _ = select.select([keys], [], [], within_s)
    # Ctrl-D comes as the byte 4, since without line mode it is no end of file (termios(3)).
    return bool(ready) and os.read(keys, 64) in {b"", b"q", b"Q", b"\x03", b"\x04"}


def _drawn(session: CtlSession, found: list[activity.ActivityRow]) -> str:
    """The header and the table as text, cut to the terminal's width."""
    text = io.StringIO()
    # Asked each time: the window may have been resized.
    width = os.get_terminal_size(session.screen.out.fileno()).columns or None
    screen = session.screen._replace(out=text, width=width)
    alive = sum(row.runtime == "armed" for row in found)
    rate = sum(row.calls_per_s or 0 for row in found)
    screen.line(f"latticed  {len(found)} plugins, {alive} armed, {rate:.1f} host calls/s, q: quit")
    screen.rows(_COLUMNS, map(_cells, found))
    return text.getvalue()


def _paint(session: CtlSession, shown: str) -> None:
    """Draw over the previous output, cut to the terminal's height so that it does not scroll."""
    height = os.get_terminal_size(session.screen.out.fileno()).lines or 24
    lines = shown.splitlines()[: max(1, height - 1)]
    body = "".join(f"{line}{_TO_LINE_END}\r\n" for line in lines)
    session.screen.out.write(_HOME + body + _TO_SCREEN_END)
    session.screen.flush()

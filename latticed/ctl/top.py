"""latticectl top: what plugins use and do, refreshed on a terminal; printed once elsewhere."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Final

from latticed.ctl import activity, decode, render, table, times
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode, of
from latticed.ctl.table import Cell, Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl top", "latticectl top --sort memory --filter acme.", "latticectl top --once --format json"
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
    keys = ", ".join(f"{key} {name}" for key, name in activity.KEYS.items())
    order = f"what the most of comes first (of uptime the least); on a terminal keys change it: {keys}"
    parser.add_argument("--sort", choices=[*activity.SORTS], default="cpu", help=order)
    parser.add_argument("--filter", metavar="TEXT", default="", help="only plugins with this in their id")
    parser.add_argument("--once", action="store_true", help="print once, also on a terminal")


def run(session: CtlSession) -> int:
    """Show activity until `q` on a terminal, elsewhere once: what was done between two looks."""
    client, screen = session.client(), session.screen
    view = activity.View(sort=session.args.sort, only=session.args.filter)
    if screen.out.isatty() and sys.stdin.isatty() and not screen.json_wanted and not session.args.once:
        return _Live(session, client, view).run()
    _, before = _look(client, None)
    time.sleep(session.args.interval)
    every, _ = _look(client, before)
    found = activity.seen(every, view)
    if screen.json_wanted:
        screen.json([row._asdict() for row in found])
    elif found:
        _print(screen, found, view)
    else:
        screen.note("no plugins" if not every else f"no plugin has {view.only!a} in its id")
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


def _print(screen: render.Screen, found: Sequence[activity.ActivityRow], view: activity.View) -> None:
    """The table of these rows, with the columns that the terminal has room for."""
    columns = activity.fitting(found, view.sort, screen.width)
    heads = [Column(title=one.title, shrinks=one.title == "ID", right=one.title in _NUMBERS) for one in columns]
    screen.rows(heads, ([_cell(one, row) for one in columns] for row in found))


_NUMBERS: Final = frozenset({"CPU%", "MEMORY", "RESTARTS", "UPTIME", "CALLS/S", "DENIED/S", "CALLS", "DENIED"})
_WORDS: Final = frozenset({"STATUS", "RUNTIME", "HEALTH"})


def _cell(column: activity.Shown, row: activity.ActivityRow) -> str | Cell | None:
    value = column.text(row)
    return render.word(value or "") if column.title in _WORDS else value


class _Live:
    """The picture on a terminal: looked at anew each interval, drawn anew at each key and change of the window."""

    def __init__(self, session: CtlSession, client: ControlClient, view: activity.View) -> None:
        self._session = session
        self._client = client
        self._view: activity.View | None = view
        self._out = session.screen.out
        self._keys = sys.stdin.fileno()
        self._found: list[activity.ActivityRow] | None = None
        self._sample: activity.Sample | None = None
        self._started_s = 0
        self._fault = ""

    def run(self) -> int:
        """Redraw until `q`, Ctrl-C or the end of input; restores the terminal's mode."""
        import termios
        import tty

        kept = termios.tcgetattr(self._keys)
        resized, woken = os.pipe()
        os.set_blocking(woken, False)
        wakeup = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        before = signal.signal(signal.SIGWINCH, lambda *_: None)
        try:
            # Keys come without Enter, while Ctrl-C still is a signal.
            tty.setcbreak(self._keys)
            self._out.write(_ENTER)
            self._draw_until_told(resized)
        except KeyboardInterrupt:
            pass
        # In any case: a terminal that stays without echo and on the alternate screen is of no use to its user.
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGWINCH, before)
            os.close(resized)
            os.close(woken)
            self._out.write(_LEAVE)
            self._out.flush()
            termios.tcsetattr(self._keys, termios.TCSADRAIN, kept)
        return ExitCode.OK

    def _draw_until_told(self, resized: int) -> None:
        """Look, draw and wait for keys, until the user quits."""
        interval_s = self._session.args.interval
        due_s = 0.0
        while self._view is not None:
            if (now_s := time.monotonic()) >= due_s:
                self._look()
                due_s = now_s + interval_s
            self._paint(self._view)
            self._wait(resized, max(due_s - time.monotonic(), 0.0))

    def _look(self) -> None:
        """Problems of the first look are raised; later ones are shown while the daemon does not answer."""
        try:
            self._found, self._sample = _look(self._client, self._sample)
        except Problem as problem:
            if of(problem) is not ExitCode.UNREACHABLE or self._found is None:
                raise
            self._fault = f"the daemon does not answer: {problem.reason}"
            # The counters of a restarted daemon begin at 0: a rate against the old sample would be wrong.
            self._sample = None
            return
        self._fault = ""
        # Said as long as it is shown: what was counted before is gone.
        if self._started_s == 0:
            self._started_s = self._sample.started_s

    def _wait(self, resized: int, within_s: float) -> None:
        """Wait so long for a key, which may change the view, or for another size of the window."""
        import select

        ready, _, _ = select.select([self._keys, resized], [], [], within_s)
        if resized in ready:
            os.read(resized, 4096)
        if self._keys in ready and self._view is not None:
            keys = os.read(self._keys, 64)
            # Nothing is the end of input: the terminal is gone.
            self._view = activity.pressed(self._view, keys.decode("utf-8", "replace")) if keys else None

    def _paint(self, view: activity.View) -> None:
        """Draw over the previous picture, cut to the terminal's size so that it neither scrolls nor wraps."""
        # Asked each time: the window may have been resized.
        size = os.get_terminal_size(self._out.fileno())
        width, height = size.columns or 80, size.lines or 24
        text = io.StringIO()
        screen = self._session.screen._replace(out=text, width=width)
        for line in self._head(view):
            screen.line(table.cut(line, width, "~"))
        if self._fault:
            screen.toned(table.cut(self._fault, width, "~"), "bad")
        else:
            # No more rows are laid out than are seen: there may be ten thousand.
            _print(screen, activity.seen(self._found or [], view)[: max(height - 4, 1)], view)
        lines = text.getvalue().splitlines()[: max(1, height - 1)]
        body = "".join(f"{line}{_TO_LINE_END}\r\n" for line in lines)
        self._out.write(_HOME + body + _TO_SCREEN_END)
        self._session.screen.flush()

    def _head(self, view: activity.View) -> list[str]:
        """The first lines: totals, and what keys do."""
        found = self._found or []
        alive = sum(row.runtime == "armed" for row in found)
        totals = (
            f"latticed  {len(found)} plugins, {alive} armed, {sum(row.calls_per_s or 0 for row in found):.1f} calls/s"
        )
        if self._sample is not None and self._sample.started_s != self._started_s:
            totals += f", daemon restarted {times.duration(time.time() - self._sample.started_s)} ago"
        if view.typing:
            return [totals, f"filter: {view.only}_  (Enter keeps it, Esc drops it)"]
        only = f", filter {view.only!r} (Esc drops it)" if view.only else ""
        return [totals, f"by {view.sort}{only}; q quits, / filters, {' '.join(activity.KEYS)} sort"]

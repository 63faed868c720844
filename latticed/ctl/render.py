"""latticectl's output: data on stdout, notes on stderr, all text escaped, colour on terminals only."""

from __future__ import annotations

import json
import os
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

from latticed.ctl import table, times
from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from latticed.model.errors import Problem

_SGR: Final = MappingProxyType({"good": "32", "warn": "33", "bad": "31", "dim": "2", "head": "1", "error": "1;31"})
"""Parameters of "select graphic rendition" (ECMA-48) by tone."""
_TONES: Final = MappingProxyType(
    {
        **dict.fromkeys(("active", "allow", "armed", "healthy", "ok", "yes", "verified ok"), "good"),
        **dict.fromkeys(("degraded", "disabled", "look", "starting", "stopped"), "warn"),
        **dict.fromkeys(("bad", "deny", "failed", "no", "refused", "unhealthy"), "bad"),
    }
)
"""Tones of words that several verbs print."""


def word(value: str) -> table.Cell:
    """A status, a health or a decision in its colour."""
    return table.Cell(value, _TONES.get(value, ""))


def yes_no(value: object) -> table.Cell:
    """`yes` or `no` in its colour."""
    return word("yes" if value else "no")


class Screen(NamedTuple):
    """The output of one run.

    `width`: columns of the terminal; None when stdout is none, and nothing is cut. `now_s`: seconds since the epoch.
    """

    out: TextIO
    err: TextIO
    json_wanted: bool = False
    absolute_times: bool = False
    colour_out: bool = False
    colour_err: bool = False
    width: int | None = None
    now_s: float = 0.0

    def json(self, value: Any) -> None:
        """Print `value` as indented ASCII JSON, which cannot contain control characters."""
        self.out.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")

    def line(self, *words: str) -> None:
        """Print one line of the non-empty `words`, joined by spaces."""
        self.out.write(text.escape(" ".join(filter(None, words))) + "\n")

    def toned(self, value: str, tone: str) -> None:
        """Print one line in the colour of `tone`."""
        self.out.write(_painted(text.escape(value), tone, wanted=self.colour_out) + "\n")

    def note(self, *words: str) -> None:
        """Print a line on stderr: information that is not part of the data."""
        self.err.write(text.escape(" ".join(words)) + "\n")

    def error(self, problem: Problem) -> None:
        """Print a problem on stderr: `error:` with its reason, and `hint:` if it has one."""
        self.err.write(_painted("error:", "error", wanted=self.colour_err) + f" {text.escape(problem.reason)}\n")
        if problem.hint:
            self.hint(problem.hint)

    def hint(self, what: str) -> None:
        """Print a `hint:` line on stderr."""
        self.err.write(_painted("hint:", "head", wanted=self.colour_err) + f" {text.escape(what)}\n")

    def rows(self, columns: Sequence[table.Column], rows: Iterable[Sequence[str | table.Cell | None]]) -> None:
        """Print a table with a header; on a terminal it is fitted to the width."""
        # Escaped before the layout: escaping makes texts longer.
        safe = [[table.cell(value) for value in row] for row in rows]
        for laid in table.lay_out(columns, safe, width=self.width, mark=self._mark()):
            shown = [_painted(part.value, part.tone, wanted=self.colour_out) + padding for part, padding in laid]
            self.out.write("  ".join(shown).rstrip() + "\n")

    def json_line(self, value: Any) -> None:
        """`value` as one line of ASCII JSON (NDJSON)."""
        self.out.write(json.dumps(value, separators=(",", ":"), ensure_ascii=True) + "\n")

    def fixed(self, cells: Sequence[str | table.Cell | None], widths: Sequence[int]) -> None:
        """Print one row of a streamed table, padded to fixed `widths`; the last cell is not padded.

        A longer cell shifts the rest of its line; on a terminal the line is cut.
        """
        left, shown = self.width, []
        for at, part in enumerate(map(table.cell, cells)):
            # The terminal's line is full.
            if left is not None and left <= 0:
                break
            value = part.value if left is None else table.cut(part.value, left, self._mark())
            # Two cells between columns, as in other tables.
            used = max(table.width_of(value), widths[at] if at < len(widths) else 0) + 2
            padding = " " * (used - table.width_of(value))
            left = None if left is None else left - used
            shown.append(_painted(value, part.tone, wanted=self.colour_out) + padding)
        self.out.write("".join(shown).rstrip() + "\n")

    def fields(self, pairs: Iterable[tuple[str, str | table.Cell | None]]) -> None:
        """Print a `name  value` line for each pair, with aligned values that are never cut."""
        safe = [(name, table.cell(value)) for name, value in pairs]
        widest = max((len(name) for name, _ in safe), default=0)
        for name, part in safe:
            label = _painted(name, "head", wanted=self.colour_out) + " " * (widest - len(name))
            self.out.write(f"{label}  {_painted(part.value, part.tone, wanted=self.colour_out)}\n")

    def when(self, moment: str | None) -> str:
        """An RFC 3339 time as the user wants times: `3m ago`, or with --abs-time the date. Empty for None or empty."""
        if not moment:
            return ""
        return times.absolute(moment) if self.absolute_times else times.relative(moment, self.now_s)

    def raw(self, data: bytes) -> None:
        """Write `data` unchanged to a pipe or file; on a terminal escaped, with a newline."""
        if self.out.isatty():
            for part in data.decode("utf-8", "backslashreplace").splitlines():
                self.line(part)
            return
        # `buffer` is below the text layer: what was printed before must come first.
        self.out.flush()
        self.out.buffer.write(data)

    def flush(self) -> None:
        """Write out both streams; BrokenPipeError when the reader of stdout is gone."""
        self.out.flush()
        self.err.flush()

    def _mark(self) -> str:
        """What stands for text that was cut: one that stdout can encode."""
        try:
            "…".encode(self.out.encoding or "utf-8")
        except UnicodeEncodeError:
            return "~"
        return "…"


def _painted(shown: str, tone: str, *, wanted: bool) -> str:
    """`shown` in the colour of `tone`, if wanted. It must be escaped already: nothing is escaped here."""
    return f"\x1b[{_SGR[tone]}m{shown}\x1b[0m" if wanted and tone in _SGR else shown


def screen(
    out: TextIO, err: TextIO, environ: Mapping[str, str], *, json_wanted: bool = False, absolute_times: bool = False
) -> Screen:
    """A screen on these streams; colour and width follow isatty() and NO_COLOR, TERM, COLUMNS in `environ`."""
    plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
    return Screen(
        out=out,
        err=err,
        json_wanted=json_wanted,
        absolute_times=absolute_times,
        colour_out=out.isatty() and not plain,
        colour_err=err.isatty() and not plain,
        width=_width(out, environ) if out.isatty() else None,
        now_s=time.time(),
    )


def _width(out: TextIO, environ: Mapping[str, str]) -> int | None:
    """Columns of the terminal; COLUMNS takes precedence. None when it is not known."""
    given = environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    try:
        # A pseudo-terminal whose size was never set has 0 columns.
        return os.get_terminal_size(out.fileno()).columns or None
    except OSError:
        return None

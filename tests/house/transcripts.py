"""What a page shows of a terminal, compared with what was printed there."""

from __future__ import annotations

import re
from collections.abc import Iterable

CUT = "…"
"""In a line of a page: anything. Alone in a line: any lines, also none."""
_AGO = r"\b\d+(\.\d+)?[smhd] ago\b"
_NUMBER = r"(?<![\w.:-])\d+(?![\w.:-])"
_HASH = rf"\b[0-9a-f]{{16,}}\b|\b[0-9a-f]{{8,}}{CUT}"


def plain(line: str) -> str:
    """A line without times, counts and spaces, which differ from run to run."""
    return " ".join(re.sub(_NUMBER, "N", re.sub(_AGO, "AGO", line)).split())


def differing(shown: Iterable[str], printed: Iterable[str]) -> str | None:
    """The first line of either that the other has not at its place, or None: everything printed is shown, in order."""
    left = [_plain(line) for line in printed]
    skipping = False
    for line in shown:
        if line == CUT:
            skipping = True
            continue
        wanted = re.compile(".*".join(re.escape(part) for part in _plain(line).split(CUT)))
        places = [place for place, found in enumerate(left) if wanted.fullmatch(found)]
        if not places or (places[0] > 0 and not skipping):
            return f"expected {line!r}, found {left[0] if left else 'nothing more'!r}"
        left, skipping = left[places[0] + 1 :], False
    return None if skipping or not left else f"printed, and not shown: {left[0]!r}"


def _plain(line: str) -> str:
    return plain(re.sub(_HASH, "HASH", line))

"""Small plots: values of equal steps as the path of an SVG. Pure.

A step of which nothing is known is a gap. What is not 0 is never drawn as 0, and no plot is higher than its frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH: Final = 240
HEIGHT: Final = 48
_EDGE: Final = 2
_LEAST: Final = 1.5
"""Units above the ground of the smallest value that is not 0."""


class Plot(NamedTuple):
    """`path`: the `d` of the line; `area`: of what is below it. `latest` and `most` in words, with the unit."""

    title: str
    path: str
    area: str
    latest: str
    most: str
    known: bool

    @property
    def label(self) -> str:
        """What a screen reader says in place of the picture."""
        return f"{self.title}: now {self.latest}, at most {self.most}" if self.known else f"{self.title}: not known yet"


def plot(title: str, values: Sequence[float | None], steps: int, words: Callable[[float], str]) -> Plot:
    """The last `steps` values, the newest at the right edge."""
    kept = [*[None] * (steps - len(values)), *values[-steps:]]
    seen = [one for one in kept if one is not None]
    if not seen:
        return Plot(title, "", "", "-", "-", known=False)
    top = max(seen)
    width = (WIDTH - 2 * _EDGE) / max(1, steps - 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for at, one in enumerate(kept):
        if one is None:
            runs.append([])
        else:
            runs[-1].append((_EDGE + at * width, _y(one, top)))
    drawn = [run for run in runs if run]
    ground = HEIGHT - _EDGE
    line = "".join(_line(run) for run in drawn)
    area = "".join(f"{_line(run)}L{run[-1][0]:.1f} {ground}L{run[0][0]:.1f} {ground}Z" for run in drawn)
    latest = kept[-1]
    return Plot(title, line, area, "-" if latest is None else words(latest), words(top), known=True)


def _y(value: float, top: float) -> float:
    """From the upper edge, as SVG has it."""
    room = HEIGHT - 2 * _EDGE
    up = 0.0 if value <= 0 or top <= 0 else max(_LEAST, min(1.0, value / top) * room)
    return HEIGHT - _EDGE - up


def _line(run: Sequence[tuple[float, float]]) -> str:
    """One run; a single value as a short line, since a move alone draws nothing."""
    points = run if len(run) > 1 else [run[0], (run[0][0] + 0.5, run[0][1])]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def percent(value: float) -> str:
    return f"{value:.1f} %"


def mebibytes(value: float) -> str:
    return f"{value / (1 << 20):.1f} MiB"


def a_minute(value: float) -> str:
    return f"{value:.1f} a minute" if value % 1 else f"{value:.0f} a minute"


def times(value: float) -> str:
    return f"{value:.0f}"

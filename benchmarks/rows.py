"""What a bench found: one row of the table, and the arithmetic of interleaved pairs."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Samples of ours and of the reference, taken in turn; both in one unit, and there are as many of each."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours by theirs, pair by pair."""
        return tuple(our / their for our, their in zip(self.ours, self.theirs, strict=True))

    @property
    def our_median(self) -> float:
        return statistics.median(self.ours)

    @property
    def their_median(self) -> float:
        return statistics.median(self.theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio over all pairs. Its meaning (ours by theirs, or the other way round) is the row's."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{_short(self.median)}× ({_short(self.least)}–{_short(self.most)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `met` None: nothing is promised, the line is there to be read beside the others."""

    target: str
    what: str
    ours: str
    reference: str = "-"
    ratio: Ratio | None = None
    wanted: str = "-"
    met: bool | None = None
    samples: dict[str, list[float]] | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def row_of(plain: dict[str, Any]) -> Row:
    """The row that `Row.plain` wrote."""
    ratio = Ratio(**plain["ratio"]) if plain["ratio"] else None
    return Row(**{**plain, "ratio": ratio})


def interleave(ours: Callable[[], float], theirs: Callable[[], float], *, count: int) -> Pairs:
    """`count` pairs; who goes first changes from pair to pair, so that a drift of the machine favours nobody."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            found[which].append((ours, theirs)[which]())
    return Pairs(ours=tuple(found[0]), theirs=tuple(found[1]))


def at_most(pairs: Pairs, factor: float) -> tuple[Ratio, bool]:
    """Ours by theirs, and whether the median keeps to `factor`: for what ours must not cost more than."""
    found = spread(pairs.ratios)
    return found, found.median <= factor


def times_faster(pairs: Pairs, factor: float) -> tuple[Ratio, bool]:
    """Theirs by ours of two durations, and whether the median reaches `factor`."""
    found = spread([1 / ratio for ratio in pairs.ratios])
    return found, found.median >= factor


def spread(ratios: Sequence[float]) -> Ratio:
    return Ratio(median=statistics.median(ratios), least=min(ratios), most=max(ratios))


def samples(pairs: Pairs) -> dict[str, list[float]]:
    return {"ours": list(pairs.ours), "reference": list(pairs.theirs)}


def seconds(value_s: float) -> str:
    """A duration as a person reads it."""
    if value_s >= 1:
        return f"{value_s:.2f} s"
    return f"{value_s * 1e3:.2f} ms" if value_s >= 1e-3 else f"{value_s * 1e6:.0f} µs"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

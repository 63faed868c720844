"""Aligned columns; widths are counted in terminal cells, since characters may take two, one or none."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final, NamedTuple

from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EMPTY: Final = "-"
"""Stands for a value that is absent, so that columns can be counted."""
_GAP: Final = 2
"""Cells between two columns."""
_NARROWEST: Final = 8
"""A column is not made narrower than this; then lines get longer than the terminal."""
_WIDE: Final = frozenset({"W", "F"})
"""Classes of characters that take two cells (Unicode Standard Annex 11)."""


class Column(NamedTuple):
    """One column: `shrinks` may be cut to fit a terminal, `right` aligns numbers."""

    title: str
    shrinks: bool = False
    right: bool = False


class Cell(NamedTuple):
    """One value, not yet escaped, and its style: good, warn, bad, dim, or empty for plain."""

    value: str
    tone: str = ""


def cell(value: str | Cell | None) -> Cell:
    """`value` as an escaped cell; None or empty becomes `-`."""
    found = value if isinstance(value, Cell) else Cell(value or "")
    shown = text.escape(found.value)
    return Cell(shown, found.tone) if shown.strip() else Cell(EMPTY, "dim")


def width_of(shown: str) -> int:
    """Terminal cells that `shown` takes (escaped text: no control characters left)."""
    if shown.isascii():
        return len(shown)
    return sum(_cells(char) for char in shown)


def _cells(char: str) -> int:
    """Terminal cells of one character: 0 for combining ones, 2 for wide ones."""
    # The categories as well: some marks have combining class 0.
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in _WIDE else 1


def cut(shown: str, width: int, mark: str) -> str:
    """`shown` in at most `width` cells, ending in `mark` where something was cut.

    `cut("abcdef", 4, "…")` is `abc…`.
    """
    if width_of(shown) <= width:
        return shown
    kept, used = [], len(mark)
    for char in shown:
        used += _cells(char)
        if used > width:
            break
        kept.append(char)
    return "".join(kept) + mark


def lay_out(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, width: int | None, mark: str
) -> Iterator[list[tuple[Cell, str]]]:
    """The rows, header first, as (cell, padding to its right); nothing is cut when `width` is None."""
    header = [Cell(column.title, "head") for column in columns]
    grid = [header, *rows]
    widths = [max(width_of(row[at].value) for row in grid) for at in range(len(columns))]
    if width is not None:
        _shrink(columns, widths, width)
    for row in grid:
        yield [_fitted(part, columns[at], widths[at], mark) for at, part in enumerate(row)]


def _fitted(part: Cell, column: Column, width: int, mark: str) -> tuple[Cell, str]:
    """One cell cut to its column, with the padding to its right (none where the padding is to the left)."""
    shown = cut(part.value, width, mark)
    padding = " " * (width - width_of(shown))
    return (Cell(padding + shown, part.tone), "") if column.right else (Cell(shown, part.tone), padding)


def _shrink(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Narrow the widest shrinkable column, step by step, until the row fits or none can shrink any more."""
    over = sum(widths) + _GAP * (len(widths) - 1) - width
    while over > 0:
        able = [at for at, column in enumerate(columns) if column.shrinks and widths[at] > _NARROWEST]
        if not able:
            return
        # Cell by cell, so that columns of the same width shrink alike.
        widest = max(able, key=lambda at: widths[at])
        widths[widest] -= 1
        over -= 1

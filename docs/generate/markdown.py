"""A page of Markdown: headings, anchors that stay, tables, examples."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOTE: Final = "<!-- Made from the code by `make reference`; what is changed here is overwritten. -->"


_AS_IT_IS: Final = r"[a-z]+[._:]\w|(?:http|tcp|ping|rfc2136|service|template|invoke|static|latticectl|latticed)\b[:, ]"
"""How texts begin whose first word is a name, which stays as it is."""


class Page:
    """Its text, built line by line. Paragraphs are separated by blank lines."""

    def __init__(self, title: str, *about: str) -> None:
        self._lines = [f"# {title}", "", NOTE, ""]
        self.text(*about)

    def text(self, *paragraphs: str) -> None:
        """Paragraphs, each on one line however it was written; a list keeps its lines."""
        for one in paragraphs:
            lines = one.strip().splitlines()
            listed = any(line.lstrip().startswith("- ") for line in lines)
            self._lines += [*(lines if listed else [" ".join(one.split())]), ""]

    def heading(self, title: str, *, level: int = 2, anchor: str = "") -> None:
        """A heading; with `anchor` it can be linked to by that name, whatever the title becomes."""
        made = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")  # the anchor that a heading has by itself
        self._lines += [
            *([f'<a id="{anchor}"></a>', ""] if anchor not in {"", made} else []),
            f"{'#' * level} {title}",
            "",
        ]

    def block(self, language: str, text: str) -> None:
        """A fenced block."""
        self._lines += [f"```{language}", *text.strip("\n").splitlines(), "```", ""]

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table, without the columns in which nothing stands."""
        found = [[cell(one) for one in row] for row in rows]
        used = [place for place in range(len(columns)) if any(row[place] not in {"", "-"} for row in found)]
        self._lines.append("| " + " | ".join(columns[place] for place in used) + " |")
        self._lines.append("|" + "---|" * len(used))
        self._lines += ["| " + " | ".join(row[place] for place in used) + " |" for row in found]
        self._lines.append("")

    def items(self, lines: Iterable[str]) -> None:
        """A list."""
        self._lines += [*(f"- {' '.join(line.split())}" for line in lines), ""]

    def __str__(self) -> str:
        return "\n".join(self._lines).rstrip("\n") + "\n"


def cell(text: str) -> str:
    """Text in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: object) -> str:
    """Between backticks; empty text stays empty."""
    return f"`{text}`" if str(text) else ""


def anchored(anchor: str, text: str) -> str:
    """Text that can be linked to by `anchor`."""
    return f'<a id="{anchor}"></a>{text}'


def slug(*parts: str) -> str:
    """The anchor of a thing by its kind and name: `setting-limits-bundles`; `_` stays."""
    return re.sub(r"[^a-z0-9_]+", "-", "-".join(parts).lower()).strip("-")


def plain(text: str | None) -> str:
    """A docstring or help as one line of Markdown, without where the rule is from, which is for who changes it."""
    return re.sub(r" \((?:contracts|architecture,)[^()]*\)", "", " ".join((text or "").split()))


def sentence(text: str | None) -> str:
    """The same, beginning with a capital and ending in a full stop."""
    said = plain(text)
    if not said:
        return ""
    first = said[0].upper() + said[1:] if said[0].isalpha() and not re.match(_AS_IT_IS, said) else said
    return first if first[-1] in ".!?:" else f"{first}."


def or_dash(text: str) -> str:
    """`-` where there is nothing."""
    return text or "-"

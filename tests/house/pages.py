"""The README and the docs, parsed: their code blocks, their tables, their links."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = (
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted(page for page in (CHECKOUT / "docs").rglob("*.md") if page.parent.name != "adr"),
)

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block; `words` is what stands after its opening fence: the language, then flags."""

    page: Path
    words: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def exits(self) -> int:
        """The exit code that the block's last command is to have (flag `exits=N`)."""
        return next((int(word.partition("=")[2]) for word in self.words if word.startswith("exits=")), 0)


def blocks(page: Path) -> list[Block]:
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(page=page, words=tuple(one["info"].split()), text=one["text"]) for one in found]


def named(*words: str) -> list[Block]:
    """The blocks of all pages that open with exactly these words."""
    return [block for page in PAGES for block in blocks(page) if block.words == words]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    return [one["target"] for one in _LINK.finditer(prose(page))]


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """What of a page can be linked to: headings, by the names that GitHub gives them, and what names itself."""
    text = page.read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = (re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads)
    return frozenset({*slugs, *re.findall(r'<a id="([^"]+)"></a>', text)})


def table(page: str, first: str) -> list[tuple[str, ...]]:
    """The rows below the header of the one table of `page` whose first column is called `first`; no backticks."""
    lines = (CHECKOUT / page).read_text(encoding="utf-8").splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith(f"| {first} |")]
    assert len(starts) == 1, f"expected one table of {first!r} in {page}, found {len(starts)}"
    rows: list[tuple[str, ...]] = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|")))
    return rows


def column(page: str, first: str, place: int = 0) -> list[str]:
    """One column of that table."""
    return [row[place] for row in table(page, first)]

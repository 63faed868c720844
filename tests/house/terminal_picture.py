"""The README's picture of a terminal, drawn of the demo's transcript: python -P tests/house/terminal_picture.py

`tests/docs/test_tour.py` compares the transcript with what the demo prints, and the picture with the transcript.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.house import pages

PICTURE: Final = pages.CHECKOUT / "docs/start/terminal.svg"
TRANSCRIPT: Final = pages.CHECKOUT / "docs/start/demo.md"
SHOWN: Final = ("# A verified bundle", "# It runs as a process", "# One byte of it", "# The byte is put back")
"""How the sections of the transcript begin that are drawn."""
CHARACTER_PX, LINE_PX, MARGIN_PX = 7.83, 18, 14
_STYLE: Final = """
    text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre; fill: #1f2328 }
    rect { fill: #f6f8fa; stroke: #d1d9e0 }
    .comment { fill: #59636e }
    .command { font-weight: bold; fill: #0550ae }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      rect { fill: #161b22; stroke: #3d444d }
      .comment { fill: #9198a1 }
      .command { fill: #79c0ff }
    }
"""


def lines() -> list[str]:
    """The sections of the transcript that are drawn, each with an empty line before it."""
    (block,) = [one for one in pages.blocks(TRANSCRIPT) if one.language == "console"]
    sections = block.text.split("\n\n")
    chosen = [next(one for one in sections if one.startswith(begin)) for begin in SHOWN]
    return "\n\n".join(one.strip("\n") for one in chosen).split("\n")


def draw(text: list[str]) -> str:
    width = round(2 * MARGIN_PX + CHARACTER_PX * max(map(len, text)))
    height = 2 * MARGIN_PX + LINE_PX * len(text)
    rows = [
        f'  <text x="{MARGIN_PX}" y="{MARGIN_PX + LINE_PX * number + 13}"{_class(line)}>{escape(line)}</text>'
        for number, line in enumerate(text)
        if line
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            "  <title>A plugin is installed, one byte of it changes on disk, and it is stopped with the reason</title>",
            f"  <style>{_STYLE}  </style>",
            f'  <rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
            *rows,
            "</svg>\n",
        ]
    )


def _class(line: str) -> str:
    return {"#": ' class="comment"', "$": ' class="command"'}.get(line[:1], "")


if __name__ == "__main__":
    PICTURE.write_text(draw(lines()), encoding="utf-8")

"""Writes docs/reference and docs/troubleshooting.md from the code: `make reference`.

One module a page. A fact is where the code has it: parsers, dataclasses, structs, tables, docstrings, and the strings
below fields, which nothing keeps at run time. codes.txt of latticectl says what to do about each code, events.txt what
an event means that is no warning. What the code does not know belongs on a written page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parents[1]
PAGES: Final = DOCS / "reference"


def pages() -> dict[Path, str]:
    """All generated pages, by path."""
    from generate import cli, codes, events, host_calls, http_api, manifest, metrics, sdk, settings

    return {
        PAGES / "cli.md": cli.page(),
        PAGES / "manifest.md": manifest.page(),
        PAGES / "settings.md": settings.page(),
        PAGES / "host-calls.md": host_calls.page(),
        PAGES / "sdk.md": sdk.page(),
        PAGES / "codes.md": codes.page(),
        PAGES / "events.md": events.page(),
        PAGES / "metrics.md": metrics.page(),
        PAGES / "http-api.md": http_api.page(),
        DOCS / "troubleshooting.md": codes.troubleshooting(),
    }

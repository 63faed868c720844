"""The rows as an aligned table, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rows import Row

HEADINGS: Final = ("target", "what", "ours", "reference", "ratio (min–max)", "wanted", "met")
_MET: Final = {True: "yes", False: "NO", None: "-"}


def text(rows: Sequence[Row]) -> str:
    """Aligned columns; a missed target says NO."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def machine() -> str:
    """Where and when: figures of two machines are not to be compared."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"{when}; {_processor()}, {os.cpu_count()} cores; Linux {platform.release()}; load before: {load}"


def document(rows: Sequence[Row], *, where: str, failed: Sequence[str]) -> str:
    """All of it, every sample included."""
    return json.dumps({"machine": where, "failed": list(failed), "rows": [row.plain() for row in rows]}, indent=1)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = str(row.ratio) if row.ratio else "-"
    return row.target, row.what, row.ours, row.reference, ratio, row.wanted, _MET[row.met]


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

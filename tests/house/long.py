"""Long loops: `make test` runs a sample of them, `make test-long` all (LATTICED_LONG=1)."""

from __future__ import annotations

import os


def times(sample: int, whole: int) -> int:
    """The number of rounds in this run."""
    return whole if os.environ.get("LATTICED_LONG") else sample

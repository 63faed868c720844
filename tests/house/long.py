"""Long loops, matrices and searches: `make test` runs a sample of them, `make test-long` all (LATTICED_LONG=1)."""

from __future__ import annotations

import os
from typing import Any

LONG = bool(os.environ.get("LATTICED_LONG"))


def only(*points: Any) -> tuple[Any, ...]:
    """These points of a parametrized test, in the long run; none else."""
    return points if LONG else ()


def times(sample: int, whole: int) -> int:
    """The number of rounds in this run."""
    return whole if LONG else sample

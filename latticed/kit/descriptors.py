"""How many descriptors this process may have open (getrlimit(2), RLIMIT_NOFILE)."""

from __future__ import annotations

import resource
from typing import Final

WANTED: Final = 16_384
"""What is asked for, as far as the hard limit goes: clients must not use up what the ledger and scans need."""


def raise_limit(wanted: int = WANTED) -> None:
    """Lift the soft limit of this process to `wanted`, at most to the hard limit; it is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))


def limit() -> int:
    """How many descriptors this process may have open: the soft limit; WANTED when there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft

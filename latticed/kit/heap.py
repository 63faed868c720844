"""The memory that malloc keeps for the process, beside Python's own pools (mallopt(3), malloc_trim(3)).

Both are extensions of the GNU C library; with others this does nothing.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h


def use_one_arena() -> None:
    """Have all threads allocate from one heap: call it before the first thread.

    A heap per thread keeps what each once needed, 0.7 MiB after a start. They are there for threads that allocate at
    the same moment, which Python's lock rarely lets ours do. Called by the program, as MALLOC_ARENA_MAX would have to
    be set by whatever starts it.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Return to the kernel what was freed in the middle of the heap, which would else stay resident."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)

"""Resource limits of one child (setrlimit(2)), which need no cgroup."""

from __future__ import annotations

import resource
from typing import Final

from latticed.kit.value import Value

STACK_BYTES: Final = 8 << 20  # the usual default of distributions
PENDING_SIGNALS: Final = 256
SHARED_TASKS: Final = 4096
"""RLIMIT_NPROC where tasks of other children with the same uid count too: high enough for all but fork bombs."""
_ADDRESS_SPACE: Final = 128 << 30
_TABLES: Final = 512  # what is read once in each 2 MiB takes a page of 4 KiB for its table
MIN_OPEN_FILES: Final = 16
MAX_OPEN_FILES: Final = 4096


class ResourceLimits(Value, frozen=True, kw_only=True):
    """Limits of one child. `tasks` are threads and processes together, itself included.

    `memory_bytes` is per process (private writable memory; page tables where no cgroup counts them, up to 256 MiB or
    as much again if that is more) and, with a cgroup, for the whole tree too; `cpu_percent` of
    one core needs a cgroup, None for no limit. `scratch_bytes` and `scratch_inodes` are what /scratch holds. ValueError
    for a number that no child could run with.
    """

    memory_bytes: int = 256 << 20
    tasks: int = 32
    open_files: int = 64
    cpu_percent: int | None = None
    scratch_bytes: int = 16 << 20
    scratch_inodes: int = 1024

    def __post_init__(self) -> None:
        if not MIN_OPEN_FILES <= self.open_files <= MAX_OPEN_FILES:
            raise ValueError(f"open_files: expected {MIN_OPEN_FILES} to {MAX_OPEN_FILES}, found {self.open_files}")
        small = [
            name for name in ("memory_bytes", "tasks", "scratch_bytes", "scratch_inodes") if getattr(self, name) < 1
        ]
        if small or (self.cpu_percent is not None and self.cpu_percent < 1):
            raise ValueError(f"{(*small, 'cpu_percent')[0]}: expected at least 1")


def table(
    limits: ResourceLimits, *, counted_alone: bool, memory_group: bool, file_bytes: int | None
) -> list[tuple[int, int]]:
    """(resource, value) for the stub; soft and hard limits are equal, so that the child cannot raise any.

    `counted_alone`: this child's tasks are not mixed with those of others (own user namespace, or own uid).
    `memory_group`: its cgroup counts memory, page tables too.
    `file_bytes`: the largest file it may write, None for no limit. Values are capped by the daemon's own hard limits
    (some hosts allow 3,900 processes), since raising a hard limit fails.
    """
    rows = [
        (resource.RLIMIT_CORE, 0),
        # Not RLIMIT_AS, which counts address space that is only reserved too: V8 and Go reserve far more than they use.
        (resource.RLIMIT_DATA, limits.memory_bytes),
        # But for page tables, which RLIMIT_DATA does not count where what they are for is only read. V8 reserves 10 GiB
        # for each WebAssembly memory, wasmtime 4, and neither does with less; Go programs, Node and Python have 1 to 3.
        *([] if memory_group else [(resource.RLIMIT_AS, max(_ADDRESS_SPACE, _TABLES * limits.memory_bytes))]),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_FSIZE, resource.RLIM_INFINITY if file_bytes is None else file_bytes),
        (resource.RLIMIT_NPROC, limits.tasks if counted_alone else max(limits.tasks, SHARED_TASKS)),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, PENDING_SIGNALS),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        # Last: descriptors above it stay open, but no new ones can be opened.
        (resource.RLIMIT_NOFILE, limits.open_files),
    ]
    return [(which, least(value, resource.getrlimit(which)[1])) for which, value in rows]


def least(value: int, hard: int) -> int:
    """The lower of a value and a hard limit."""
    if resource.RLIM_INFINITY in {value, hard}:  # -1 in Python, so max() gives the other one
        return max(value, hard)
    return min(value, hard)

"""Whether a service has written more than its quota, and how often that is to be looked at. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.host.program.rules import ProgramEnded
from latticed.kit.value import Value

if TYPE_CHECKING:
    from latticed.host.program.data_tree import DataUse

DATA_FULL: Final = "data_full"
"""The code of a program that was ended because its directory holds more than its quota."""
RESERVE_BYTES: Final = 64 << 20
"""Free space of the disk below which no service with a directory runs: the daemon's own state is on it too."""
LOOK_S: Final = 5.0
"""Seconds between two measurements at most, whatever the free space says."""
_REST: Final = 20  # a measurement is followed by a pause of so many times what it took, at `LOOK_S`
_PART: Final = 4  # measured again when the free space fell by this part of what the service may still write


class FreeSpace(Value, frozen=True, kw_only=True):
    """What a file system has free, for others than root: `bytes` and `files` (inodes; some have no number of them)."""

    bytes: int
    files: int


class Looked(Value, frozen=True, kw_only=True):
    """One measurement: what was found, the free space just before, when it ended (monotonic) and how long it took."""

    use: DataUse
    free: FreeSpace
    at_s: float
    took_s: float


def scan_due(last: Looked, free: FreeSpace, most: DataUse, *, now_s: float) -> bool:
    """Whether to measure again, `free` being the free space now and `most` the quota.

    Others write to the same disk, so a fall is only a reason to look; and a rise may hide one, so time is a reason too.
    """
    since_s = now_s - last.at_s
    if since_s >= max(LOOK_S, _REST * last.took_s):
        return True
    # Even the nearest quota may not keep the daemon measuring all the time, because others write.
    if since_s < 2 * last.took_s:
        return False
    left_bytes, left_files = most.bytes - last.use.bytes, most.files - last.use.files
    return last.free.bytes - free.bytes > left_bytes // _PART or last.free.files - free.files > left_files // _PART


def ended(use: DataUse, most: DataUse) -> ProgramEnded | None:
    """The end of a program that has this much in its directory, with a quota of `most`; None while it may go on."""
    if use.bytes > most.bytes:
        return _full(f"expected at most {most.bytes} bytes in its directory, found more")
    if use.files > most.files:
        return _full(f"expected at most {most.files} files and directories in its directory, found more")
    return None


def too_deep(levels: int) -> ProgramEnded:
    """The end of a program whose directory has more than so many directories within each other."""
    return _full(f"expected at most {levels} directories within each other, found more")


def hidden() -> ProgramEnded:
    """The end of a program that does not let the daemon see which files it has open: what it takes is not known."""
    return _full("expected to see which files its processes have open, found one that hides them")


def no_space(free: FreeSpace) -> ProgramEnded | None:
    """The end of a program because the disk is nearly full; None while it is not."""
    if free.bytes >= RESERVE_BYTES:
        return None
    return ProgramEnded(
        code="disk_full",
        message=f"expected {RESERVE_BYTES >> 20} MiB free where its directory is, found {free.bytes >> 20}",
        excused=True,
    )


def _full(message: str) -> ProgramEnded:
    return ProgramEnded(code=DATA_FULL, message=message, final=True)

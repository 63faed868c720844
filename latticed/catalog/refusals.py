"""The refusals of bundles, and the messages for directories, that could not be read or have no slot."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from latticed.bundle import refusal
from latticed.catalog.scanner import DirectoryEntry
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


def surplus(max_bundles: int) -> DirectoryEntry:
    """The entry of a bundle beyond `max_bundles`; it was not read."""
    reason = f"expected at most {max_bundles} bundles in the directory, found more"
    hint = "remove bundles, or raise limits.bundles in the settings"
    return DirectoryEntry(verdict=Refused(code=Code.UNREADABLE, reason=reason, hint=hint), surplus=True)


def no_answer(deadline_s: float) -> DirectoryEntry:
    """The entry of a bundle whose read did not return within the deadline."""
    return _unreadable(f"expected an answer of the disk within {deadline_s:g} s, found none")


def failed(error: Exception) -> DirectoryEntry:
    """The entry of a bundle whose judgement raised: an OSError of the disk, or a fault of ours, which is logged."""
    if isinstance(error, OSError):
        return DirectoryEntry(verdict=refusal.unreadable("the bundle directory", error).fault)
    _log.error("judgement_failed", exc_info=error)
    return _unreadable(f"expected to judge the bundle, found: {error}")


def in_unreadable_directory() -> DirectoryEntry:
    """The entry of a bundle that was there while its directory could still be read."""
    reason = "expected to read the plugin directory, found that it cannot be read"
    return DirectoryEntry(
        verdict=Refused(code=Code.UNREADABLE, reason=reason, hint="`latticectl health` says what is wrong")
    )


def directory(path: Path, error: Exception | None) -> str:
    """Why a directory could not be listed, in one line; `error` None for one that did not answer in time."""
    if error is None:
        return f"expected the directory {path} to answer, found no answer in time"
    if isinstance(error, Problem):
        return error.reason
    _log.error("scan_failed", exc_info=error)
    return f"expected to scan the directory {path}, found: {error}"


def _unreadable(reason: str) -> DirectoryEntry:
    hint = "check the disk and the file system it is on; the next scan tries again"
    return DirectoryEntry(verdict=Refused(code=Code.UNREADABLE, reason=reason, hint=hint))

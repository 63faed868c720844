"""Signed heads of audit chains that this host's journal has, of the daemon's own unit.

journald itself says which unit an entry came from (`_SYSTEMD_UNIT`, systemd.journal-fields(7)); what a program says of
itself does not count. So whoever changes the ledger, the daemon included, cannot take back a head that was logged.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Final

from latticed.kit import text
from latticed.kit.clock import rfc3339
from latticed.model import chain
from latticed.model.errors import Problem

UNIT: Final = "latticed.service"
READ_S: Final = 120.0
"""How long journalctl may take: it looks at each entry of the unit."""
# Not the caller's: the output must not depend on its language, nor PATH lead to another journalctl.
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
_ALLOWED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")


@dataclass(frozen=True, slots=True)
class JournalHeads:
    """`heads`, oldest first, and when journald got the first of them (µs since 1970)."""

    heads: tuple[chain.Head, ...]
    since_us: int


def read(unit: str = UNIT, *, since: str = "") -> JournalHeads:
    """Those of a unit that journald got `since` (RFC 3339 in UTC, empty: ever).

    Problem usage, no_heads: none, or the journal may not be read.
    """
    if not unit or not _ALLOWED.issuperset(unit):
        raise Problem("usage", f"expected a unit's name, found {unit[:80]!r}")
    words = ["journalctl", "--no-pager", "--all", "--output=json", "--output-fields=MESSAGE"]
    try:
        # A fixed program; the unit's name is part of one argument.
        ended = subprocess.run(  # noqa: S603
            [*words, f"_SYSTEMD_UNIT={unit}", f"LATTICED_EVENT={chain.HEAD_EVENT}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=_ENVIRONMENT,
            timeout=READ_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Problem("no_heads", f"journalctl cannot be run: {error}", "give a log with --heads LOG") from error
    found: list[chain.Head] = []
    since_us = 0
    for line in ended.stdout.splitlines():
        if (one := _decoded(line)) is not None and rfc3339(one[1]) >= since:
            since_us = since_us or one[1]
            found.append(one[0])
    if not found:
        said = text.sanitise(ended.stderr.decode("utf-8", "replace").strip(), 200) or "no entry"
        hint = "run it as root or as a member of systemd-journal; or name the unit: --journal UNIT"
        then = f" since {since}" if since else ""
        raise Problem("no_heads", f"expected signed heads of {unit}{then} in the journal, found none ({said})", hint)
    return JournalHeads(tuple(found), since_us)


def _decoded(line: bytes) -> tuple[chain.Head, int] | None:
    """A head and when journald got it; None for anything else."""
    try:
        entry = json.loads(line)
        head, at_us = chain.logged_head(entry["MESSAGE"]), int(entry["__REALTIME_TIMESTAMP"])
    # TypeError: a message that is no text.
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return None if head is None else (head, at_us)

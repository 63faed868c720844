"""The trust policy in force: the operator's file, joined with every revocation the daemon has ever seen.

With a missing or bad file at boot no publisher is trusted; a bad reload keeps the old policy. Health shows either.
The file is polled every second rather than watched: a stat costs microseconds, and it sees what inotify(7) does not
(a link swapped in a parent directory, a network mount).
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
from typing import TYPE_CHECKING, Any

from latticed.kit import trusted_files
from latticed.model.errors import Problem
from latticed.trust import policy as trust

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.trust.policy import Revoked, TrustPolicy

MAX_BYTES = 1 << 20
"""A larger policy file is refused unread."""
MISSING = "policy_missing"
UNREADABLE = "policy_unreadable"
HINT = "see `latticectl trust`; until it is mended nothing new is trusted"


class PolicyKeeper:
    """Reads the policy file when it changes; a file that uids other than `owners` could change is refused.

    `remembered` are the revocations on record. `problem` says why the file was not used last; None when it was.
    """

    def __init__(self, file: Path, *, owners: frozenset[int], remembered: Revoked) -> None:
        self.file = file
        self.problem: Problem | None = None
        self.own: TrustPolicy = trust.NOBODY
        """The file's policy as last read without a problem, without remembered revocations."""
        self.owner = -1
        """The uid that owns the file, recorded as the author of its changes; -1 before it was found."""
        self.told: TrustPolicy | None = None
        """The file's policy as last recorded in the audit chain; None before that."""
        self.unrecorded: Mapping[str, Revoked] = {}
        """By market source ("" for the file), what counts though it is not on record yet."""
        self._owners = owners
        self._remembered = remembered
        self._seen: Any = None
        """The fingerprint when the file was last read; `()` equals none, so that it is read again."""

    @property
    def current(self) -> TrustPolicy:
        """The policy to judge by: the file's, with every revocation that is on record or is to be."""
        revoked = functools.reduce(operator.or_, self.unrecorded.values(), self._remembered)
        return trust.with_revocations(self.own, revoked)

    @property
    def remembered(self) -> Revoked:
        """Every revocation on record: those of the file and of sources that were not lifted since."""
        return self._remembered

    @property
    def recorded(self) -> bool:
        """Whether the file's policy and all its revocations are in the ledger."""
        return self.told == self.own and self.remembered == self.current.revoked

    def remember(self, revoked: Revoked) -> None:
        """Replace the remembered revocations by those that are on record now."""
        self._remembered = revoked
        self.unrecorded = {source: left for source, one in self.unrecorded.items() if (left := one - revoked)}

    def foresee(self, source: str, revoked: Revoked) -> None:
        """Have what `source` ("" for the file) revokes count from now on, before it is on record."""
        if revoked:
            self.unrecorded = {**self.unrecorded, source: self.unrecorded.get(source, trust.Revoked()) | revoked}

    def look(self, *, always: bool = False) -> bool:
        """Read the file if it has changed, or `always`; True when the policy or its usability has changed.

        Blocks. Raises nothing: what is wrong with the file is `problem`, and the policy of before stays in force.
        """
        # Before the file is read: a change in between shows at the next call.
        seen = self._fingerprint()
        if seen == self._seen and not always:
            return False
        self._seen = seen
        # Also whether it can be used: health shows that, and a new problem is logged.
        before = (self.own, self.problem is None)
        try:
            self.own = self._read()
            self.problem = None
        except Problem as problem:
            self.problem = problem
            if problem.code == UNREADABLE:
                self._seen = ()  # retry: an I/O error may pass without a change of metadata
        return (self.own, self.problem is None) != before

    def _fingerprint(self) -> tuple[int, ...] | None:
        """Metadata of the file and of the directories above it; None without a file. Sets `owner`.

        The directories count because their owner and mode decide whether the file is trusted (`trusted_files`).
        """
        try:
            found = self.file.stat()
            # Without times: those of /etc change whenever anything in it is renamed.
            above = [(place.st_ino, place.st_mode, place.st_uid) for place in map(os.stat, self.file.parents)]
        except OSError:
            return None
        self.owner = found.st_uid
        own = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return (*own, *itertools.chain.from_iterable(above))

    def _read(self) -> TrustPolicy:
        """The file's policy; Problem with a code for each way in which there is none."""
        try:
            data = trusted_files.read(self.file, MAX_BYTES, owners=self._owners)
        except FileNotFoundError as error:
            raise Problem(MISSING, f"expected a trust policy at {self.file}, found no such file", HINT) from error
        except (OSError, ValueError) as error:
            raise Problem(UNREADABLE, f"cannot read {self.file}: {error}", HINT) from error
        except trusted_files.ForeignFile as fault:
            raise Problem("policy_unsafe", f"cannot trust {self.file}: {fault}", HINT) from fault
        try:
            return trust.decode(data)
        except Problem as problem:
            raise Problem(problem.code, f"{self.file}: {problem.reason}", problem.hint) from problem

"""The uids of children: a pool in which each is leased to one child, of all daemons on this host.

RLIMIT_NPROC and signals go by uid, so children of two daemons must not share one. A lease is a lock on the byte of that
number in one file (fcntl_locking(2), open file description locks): it ends with the daemon that holds it, however that
ends, and ranges of settings may overlap.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import secrets
import struct
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import trusted_files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEASES: Final = Path("/run/latticed-uids")
"""The directory of the file with the leases; root's."""
_FILE: Final = "leases"
_HELD: Final = frozenset({errno.EAGAIN, errno.EACCES})


class UidLeases:
    """The leases of one daemon in `directory`, which is made where it is missing.

    Problem uids_unusable when they cannot be had: without them two daemons could give their children the same uid.
    """

    def __init__(self, directory: Path = LEASES) -> None:
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
            trusted_files.check_directory(directory)
            # Kept from others: who can open it can lock it.
            self._fd = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except (OSError, trusted_files.ForeignFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise Problem(
                "uids_unusable",
                f"the uids of children are leased in {directory}: {reason}",
                f"as root: install -d -m 755 -o {os.geteuid()} {directory}",
            ) from error
        # Locks are the open file's: the kernel grants us again what we hold, and two pools of a daemon may overlap
        # after a reload of its settings.
        self._ours: set[int] = set()

    def take(self, uid: int) -> bool:
        """Lease a uid; False when it is leased, by another daemon or another pool of ours. Problem uids_unusable."""
        if uid in self._ours:
            return False
        try:
            self._lock(fcntl.F_WRLCK, uid)
        except OSError as error:
            if error.errno in _HELD:
                return False
            raise Problem("uids_unusable", f"the uid of a child cannot be leased: {error.strerror}") from error
        self._ours.add(uid)
        return True

    def give_back(self, uid: int) -> None:
        """End the lease of a uid."""
        self._lock(fcntl.F_UNLCK, uid)
        self._ours.discard(uid)

    def _lock(self, kind: int, uid: int) -> None:
        # struct flock: type, whence, start, length, pid; the last must be 0.
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, uid, 1, 0))

    def close(self) -> None:
        """End all of them; done too when the process ends."""
        os.close(self._fd)


@functools.cache
def shared() -> UidLeases:
    """Those of this process, opened when the first child needs a uid. Problem uids_unusable."""
    return UidLeases()


class Uids:
    """A pool of `count` uids from `first` on, each leased to one child at a time; a returned uid is reused last.

    It starts at a random place: two daemons seldom meet, and a uid is not soon used again after a restart.
    """

    def __init__(self, first: int, count: int, leases: Callable[[], UidLeases] = shared) -> None:
        start = first + secrets.randbelow(count)
        self._leases = leases
        self._fresh = itertools.chain(range(start, first + count), range(first, start))
        self._back: deque[int] = deque()

    def take(self) -> int:
        """A uid that no other child has. Problem too_many_children when all are in use, uids_unusable."""
        # At the first child: most daemons have no uids to give, and never ask.
        leases = self._leases()
        for uid in self._candidates():
            if leases.take(uid):
                return uid
            # Another daemon's, or that of a child from before a reload; it may be free later.
            self._back.append(uid)
        raise Problem("too_many_children", "expected a uid for another child, found all in use")

    def _candidates(self) -> Iterator[int]:
        # Those that were never used, as long as there are any; then each of the others once.
        yield from self._fresh
        for _ in range(len(self._back)):
            yield self._back.popleft()

    def give_back(self, uid: int) -> None:
        """Make a uid available again. Its former processes must be gone."""
        with contextlib.suppress(OSError):  # it stays leased until the daemon ends, which harms nobody
            self._leases().give_back(uid)
        self._back.append(uid)

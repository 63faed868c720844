"""Writes where the reader may block: a pipe that is not read, a stuck journald, a file on a dead mount.

A thread writes, so that callers never wait. Entries wait for it in memory, up to a bound; the rest is dropped and
counted, and one entry says how many once writing works again.
"""

from __future__ import annotations

import collections
import os
import select
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY_BYTES: Final = 512 << 10
"""How many bytes of entries may wait, half of it of what others write; one entry of any size may always wait alone."""
CLOSE_S: Final = 0.5
"""How long, in seconds, `close` waits for entries that were put, so that stopping is not delayed."""


class NonBlockingWriter:
    """Has entries written by a thread of its own, which runs until `close`.

    `write` takes one entry and may block; False when it was not written. `gap(n)` gives the entry that says that n are
    missing. `dropped` counts what was not written, since this was made.
    """

    def __init__(
        self, write: Callable[[bytes], bool], gap: Callable[[int], bytes], *, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self.dropped = 0
        self._write = write
        self._gap = gap
        self._capacity_bytes = capacity_bytes
        self._waiting: collections.deque[bytes] = collections.deque()
        self._waiting_bytes = 0
        self._overflowed = 0  # entries that came while the queue was full, since it was last empty
        self._ours_overflowed = False  # and some of them were not of others
        self._failed = 0  # entries that `write` refused, since it last took one
        self._idle = True
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="latticed-log", daemon=True)
        self._thread.start()

    def put(self, entry: bytes, *, of_others: bool = False) -> None:
        """Have `entry` written, or drop it; never waits. From any thread.

        Those `of_others` leave half of the capacity to the rest: whoever causes them cannot have the rest dropped.
        """
        with self._changed:
            capacity = self._capacity_bytes // 2 if of_others else self._capacity_bytes
            # Not full while nothing waits: an entry larger than the capacity is written too.
            full = self._waiting and self._waiting_bytes + len(entry) > capacity
            # All of a kind until the queue is empty: one gap, not many.
            if self._closed or full or (self._overflowed if of_others else self._ours_overflowed):
                self._overflowed += 1
                self._ours_overflowed |= not of_others
                self.dropped += 1
            else:
                self._waiting.append(entry)
                self._waiting_bytes += len(entry)
            self._changed.notify_all()

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Whether everything that was put is written, or refused, within `timeout_s` seconds; blocks meanwhile."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle and not self._waiting, timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what was put, as far as that goes within `timeout_s` seconds. A thread that still writes then is left
        behind: it is a daemon thread, and ends when its write returns.
        """
        ended = self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if ended:
            self._thread.join()

    # On the thread.

    def _run(self) -> None:
        """Write entries until closed. `_failed` belongs to this thread; what other threads read is under `_changed`."""
        while (entry := self._next()) is not None:
            # What is missing is reported first, so that the entry stands where it belongs.
            gap_written = not self._failed or self._write(self._gap(self._failed))
            if gap_written:
                self._failed = 0
            if entry and not (gap_written and self._write(entry)):
                self._failed += 1
                with self._changed:
                    self.dropped += 1

    def _next(self) -> bytes | None:
        """Wait for the next entry: b"" when only a gap is to be written, None once closed."""
        with self._changed:
            self._idle = not self._waiting and not self._overflowed
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._overflowed or self._closed)
            if self._closed:
                return None
            self._idle = False
            # Empty again: now the entries that found it full are reported, as one gap.
            if not self._waiting:
                self._failed, self._overflowed = self._failed + self._overflowed, 0
                self._ours_overflowed = False
                return b""
            entry = self._waiting.popleft()
            self._waiting_bytes -= len(entry)
            return entry


def write_fd(fd: int, data: bytes) -> bool:
    """Write all of `data` to a descriptor, and wait while it takes none, even where somebody else made it non-blocking;
    False when writing failed.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError:
            return False
    return True

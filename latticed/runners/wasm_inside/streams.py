"""stdin, stdout and stderr of a module. Blocking on them stops the budget's clock; a new message restarts it."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.runners.wasm_inside.budget import Budget

_CHUNK_BYTES: Final = 1 << 16  # what a pipe holds by default (pipe(7))
ALL: Final = {0: 0, 1: 1, 2: 2}
"""The streams of a WASI command: those of the process."""
LOG_ALONE: Final = {2: 2}
"""The streams of a module that is called: stderr; 0 and 1 are `HostSession`'s."""


class Streams:
    """The standard streams of one module. `fds` maps its descriptors (of 0, 1 and 2) to those of this process.

    `renew` is called when a message begins to be read: at the first byte after a newline.
    """

    def __init__(self, budget: Budget, renew: Callable[[], None], fds: Mapping[int, int]) -> None:
        self._budget = budget
        self._renew = renew
        self._fds = dict(fds)
        self._open = dict(fds)
        self._rest = memoryview(b"")
        self._between = True  # what was given to the module so far ended with a newline
        self._poll = select.poll()
        if 0 in fds:
            self._poll.register(fds[0], select.POLLIN)

    def has(self, fd: int) -> bool:
        """Whether the module's descriptor `fd` is open."""
        return fd in self._open

    def close(self, fd: int) -> bool:
        """Forget `fd` and return whether it was open; the process's own descriptor stays open."""
        return self._open.pop(fd, None) is not None

    def reopen(self) -> None:
        """All are open again, for another instance of the module."""
        self._open = dict(self._fds)

    @property
    def buffered(self) -> int:
        """Bytes that were read from the pipe and not yet given to the module."""
        return len(self._rest)

    def readable(self) -> bool:
        """Whether a read would not block."""
        return bool(self._rest) or bool(self._poll.poll(0))

    def wait(self, longest_s: float, *, reading: bool) -> None:
        """Wait until there is input, if asked for with `reading`, or for `longest_s` seconds."""
        milliseconds = max(longest_s, 0) * 1000
        # Waiting is not computing: within this the budget's clock stands still, here and below.
        with self._budget:
            if reading:
                self._poll.poll(milliseconds)
            else:
                select.poll().poll(milliseconds)  # without descriptors: a sleep

    def read(self, most: int) -> bytes:
        """Read at least one byte and at most `most`; b"" at end of file. Blocks while there is no input."""
        if not self._rest:
            with self._budget:
                self._rest = memoryview(os.read(self._open[0], _CHUNK_BYTES))
        given, self._rest = bytes(self._rest[:most]), self._rest[most:]
        # A newline before the last byte: another message begins within what is given.
        if given and (self._between or b"\n" in given[:-1]):
            self._renew()
        self._between = given.endswith(b"\n")
        return given

    def write(self, fd: int, data: memoryview) -> None:
        """Write all of `data` to the module's descriptor `fd`, which must be open; blocks while the pipe is full."""
        while data:
            with self._budget:
                count = os.write(self._open[fd], data[:_CHUNK_BYTES])
            data = data[count:]

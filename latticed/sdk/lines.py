"""Lines of JSON over two descriptors, without the buffers of sys.stdin and sys.stdout.

`claim` takes over descriptors 0 and 1: what the plugin's own code prints, or a library writes to descriptor 1, goes to
stderr and cannot mix with the protocol's lines.
"""

from __future__ import annotations

import json
import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CHUNK_BYTES = 1 << 16
"""Read at once: 64 KiB, what a pipe holds by default (pipe(7))."""
UNFIT = (TypeError, ValueError, RecursionError)
"""What `encode` raises for a value that is no JSON; UnicodeEncodeError (a lone surrogate) is a ValueError."""

# ensure_ascii=False: a lone surrogate then fails in encode() here, and is not sent as an escape.
_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode(message: Any) -> bytes:
    """`message` as a line of JSON in UTF-8, newline included; UNFIT for what the host refuses: NaN, lone surrogates."""
    return _dumps(message).encode("utf-8") + b"\n"


def encode_or(message: Any, instead: Callable[[str], Any]) -> bytes:
    """`message` as a line; when it cannot be one, the line of what `instead(reason)` returns, which must be JSON."""
    try:
        return encode(message)
    except UNFIT as error:
        return encode(instead(f"the result is no JSON: {type(error).__name__}: {error}"))


class LineStream:
    """Lines read from descriptor `reading` and written to `writing`; one thread may read while others write.

    A signal handler may raise at any moment, as one of SIGALRM does that limits how long something takes. Nothing that
    was read is lost then, and the rest of a line that was written in part comes before the next one.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        # What was read and not returned yet. Only the last one may hold a newline: each byte is searched once.
        self._chunks: list[bytes] = []
        # The line that was written last, and how many bytes of it each write took.
        self._line: tuple[bytes, list[int]] = (b"", [])
        self._one_writes = threading.Lock()

    def read_line(self) -> bytes | None:
        """The next line without its newline; None at end of file. A last line without a newline counts as a line."""
        while not self._chunks or b"\n" not in self._chunks[-1]:
            self.readable()
            # `map` calls os.read within the call of `extend`: between the two no handler runs, which would lose bytes.
            self._chunks.extend(map(os.read, (self._reading,), (CHUNK_BYTES,)))
            if not self._chunks[-1]:
                rest = b"".join(self._chunks)
                self._chunks = []
                return rest or None
        line, _, rest = b"".join(self._chunks).partition(b"\n")
        self._chunks = [rest] if rest else []
        return line

    def readable(self) -> None:
        """Called before each read, which blocks. Overridden in tests to add a deadline."""

    def writable(self) -> None:
        """Called before each write, which blocks. Overridden in tests to add a deadline."""

    def write(self, line: bytes) -> None:
        """Write all of `line`, not interleaved with other threads' lines; BrokenPipeError when the host has gone."""
        # write(2) may take a part of a line; another thread's line must not come between the parts.
        with self._one_writes:
            if any(self._line[1]):
                self._finish()
            self._line = (line, [])
            self._finish()

    def _finish(self) -> None:
        """Write what is left of the line."""
        line, taken = self._line
        while (done := sum(taken)) < len(line):
            self.writable()
            # As in `read_line`: how many bytes were taken is known whatever a handler raises.
            taken.extend(map(os.write, (self._writing,), (memoryview(line)[done:],)))


def claim() -> LineStream:
    """The stream to the host; from here on descriptor 0 is at end of file and descriptor 1 is stderr."""
    reading, writing = os.dup(0), os.dup(1)  # os.dup: children of the plugin do not inherit them
    # The read end of a pipe whose write end is closed: at end of file at once.
    nothing, end = os.pipe()  # not /dev/null: a plugin need not be able to open anything
    os.close(end)
    os.dup2(nothing, 0)
    os.close(nothing)
    # After `os.dup`, which has kept the pipe to the host.
    os.dup2(2, 1)
    sys.stdout.flush()  # what was printed before this goes there too
    # One object with one buffer from here on, so that what is printed and what goes to stderr keep their order.
    sys.stdout = sys.stderr
    return LineStream(reading, writing)

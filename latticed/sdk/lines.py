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
    """Lines read from descriptor `reading` and written to `writing`; one thread may read while others write."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        # Bytes that were read and not returned yet; `_searched` of them are known to hold no newline.
        self._held = bytearray()
        self._searched = 0
        self._one_writes = threading.Lock()

    def read_line(self) -> bytes | None:
        """The next line without its newline; None at end of file. A last line without a newline counts as a line."""
        while (end := self._held.find(b"\n", self._searched)) == -1:
            # A long line comes in many chunks: search each byte once.
            self._searched = len(self._held)
            more = self.more()
            self._held += more
            if not more:
                rest = bytes(self._held)
                self._held.clear()
                self._searched = 0
                return rest or None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        self._searched = 0
        return line

    def more(self) -> bytes:
        """The next bytes, at least one; empty at end of file. Blocks. Overridden in tests to add a deadline."""
        return os.read(self._reading, CHUNK_BYTES)

    def put(self, data: memoryview) -> int:
        """Write some of `data`, blocking until there is room; returns how many bytes were written."""
        return os.write(self._writing, data)

    def write(self, line: bytes) -> None:
        """Write all of `line`, not interleaved with other threads' lines; BrokenPipeError when the host has gone."""
        # write(2) may take a part of a line; another thread's line must not come between the parts.
        with self._one_writes:
            left = memoryview(line)
            while left:
                left = left[self.put(left) :]


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

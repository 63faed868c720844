"""Bytes from a plugin, cut into lines of a bounded length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.kit import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH: Final = 100
"""How deeply a message may be nested, so that decoded values can be encoded again without a RecursionError."""

MAX_VALUES: Final = 50_000
"""Values in one message: 1 MiB of `[],[],…` would be 350,000 lists, which take 25 MB and tens of milliseconds."""
TOO_MANY: Final = f"more than {MAX_VALUES} values"
VALUE_BYTES: Final = 64
"""What a small value takes in memory, with its place in a list (an empty dict is 64 bytes)."""

encode: Final = msgspec.json.Encoder().encode
"""Encodes values for plugins: compact JSON."""


class LineTooLong(ValueError):
    """A line is longer than the limit, which the message names."""


class LineSplitter:
    r"""Cuts the bytes fed to it into complete lines without their newline, and keeps the rest.

    `feed(b"a\nb")` gives `a`, then `feed(b"\n")` gives `b`. A caller that stops iterating gets the remaining lines from
    the next `ready`. Time and memory are linear in the bytes, however small the pieces are: each byte is searched once.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add `data`; return the complete lines (see `ready`)."""
        self._held += data
        return self.ready()

    def ready(self) -> Iterator[bytes]:
        """Iterate over the complete lines not yet taken; LineTooLong when a line, even unfinished, is too long."""
        while (end := self._held.find(b"\n", self._searched)) != -1:
            self._check(end)
            line = bytes(self._held[:end])
            del self._held[: end + 1]
            self._searched = 0
            yield line
        self._searched = len(self._held)
        self._check(self._searched)

    @property
    def rest(self) -> bytes:
        """The bytes of the last line, which has no newline yet."""
        return bytes(self._held)

    def _check(self, length: int) -> None:
        """LineTooLong for a line of `length` bytes beyond the limit."""
        if length > self._max_bytes:
            raise LineTooLong(f"expected lines of at most {self._max_bytes} bytes, found a longer one")


def weight(line: bytes) -> int:
    """An upper estimate of the bytes that `line` and its decoded value take in memory: the text itself, once more as
    values, and VALUE_BYTES for each value.
    """
    return 2 * len(line) + VALUE_BYTES * _marks(line)


def too_many(line: bytes) -> bool:
    """Whether `line` holds more than MAX_VALUES values; judged before anything is decoded, in a few milliseconds."""
    if len(line) <= MAX_VALUES or _marks(line) <= MAX_VALUES:  # nearly all there is
        return False
    # Commas and brackets inside strings do not count. More strings than values are allowed, keys included, are refused
    # without splitting the line at each of them.
    plain = strict_json.without_escapes(line)
    if plain.count(b'"') > 2 * MAX_VALUES:
        return True
    bare = strict_json.bare(plain)
    # A container of n values has n - 1 commas and one opening bracket; an empty one has a bracket and no value.
    return _marks(bare) - bare.count(b"[]") - bare.count(b"{}") > MAX_VALUES


def _marks(text: bytes) -> int:
    """The number of commas and opening brackets, inside strings too: an upper bound on the number of values."""
    return len(text) - len(text.translate(None, b",[{"))


def too_deep(line: bytes, value: Any) -> bool:
    """Whether `value`, decoded from `line`, is nested deeper than MAX_DEPTH. Level by level, without recursion."""
    if line.count(b"{") + line.count(b"[") <= MAX_DEPTH:  # nearly all there is
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _inside(value: Any) -> Any:
    """The values in a container, () for anything else."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()

"""Bytes from a plugin, cut into lines of a bounded length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LineTooLong(ValueError):
    """A line went beyond the limit; the message says which."""


class Lines:
    """Feed it what arrives; it gives back complete lines without their newline, and keeps the rest."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes; LineTooLong as soon as one cannot fit any more."""
        start = 0
        while (end := data.find(b"\n", start)) != -1:
            if self._rest:
                self._rest += data[start:end]
                line = bytes(self._rest)
                self._rest.clear()
            else:
                line = data[start:end]
            self._check(len(line))
            yield line
            start = end + 1
        self._rest += data[start:]
        self._check(len(self._rest))

    @property
    def rest(self) -> bytes:
        """What has arrived of a line that has no end yet."""
        return bytes(self._rest)

    def _check(self, length: int) -> None:
        if length > self._max_bytes:
            raise LineTooLong(f"expected lines of at most {self._max_bytes} bytes")

"""A socket with a deadline and a byte limit for a whole answer.

`http.client` applies its timeout to each recv(), reads any number of interim responses (1xx) and trailers, and trusts
lengths. All of that reads from the socket, so the limits are enforced there.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from latticed.model.errors import Problem


class BoundedSocket(socket.socket):
    """A socket that can be used only after `within` has set its limits."""

    _until_s = 0.0
    _left_bytes = 0

    def within(self, seconds: float, most_bytes: int) -> None:
        """Set the limits from now on: TimeoutError after `seconds`, Problem("bad_reply") beyond `most_bytes` read."""
        self._until_s = time.monotonic() + seconds
        self._left_bytes = most_bytes

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As socket.sendall, within the deadline of `within`; TimeoutError after it."""
        self._hurry()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.recv_into; TimeoutError after the deadline of `within`, Problem bad_reply beyond its size."""
        self._hurry()
        count = super().recv_into(buffer, nbytes, flags)
        # Counted after reading, so up to one buffer more than the limit is read.
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise reply_too_long()
        return count

    def _hurry(self) -> None:
        """Give the next call what is left of the deadline; TimeoutError when nothing is."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)


def reply_too_long() -> Problem:
    """Problem("bad_reply") for an answer longer than any of the daemon's."""
    detail = "the answer is longer than any of the daemon's"
    return Problem("bad_reply", detail, "is the socket really latticed's?")

"""A unix socket that gives up by itself: however slowly, or however much, the other side sends.

`http.client` waits for each piece of an answer anew, reads interim answers (1xx) and trailers without an end, and
trusts lengths. All of that reads from the socket, so the socket is what is bounded.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from latticed.model.errors import Problem


class BoundedSocket(socket.socket):
    """See `within`; before the first call nothing may be read or sent."""

    _until_s = 0.0
    _left_bytes = 0

    def within(self, seconds: float, most_bytes: int) -> None:
        """What follows has to be over in so many seconds (else TimeoutError), and bring at most so many bytes."""
        self._until_s = time.monotonic() + seconds
        self._left_bytes = most_bytes

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        self._hurry()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.recv_into; Problem("bad_reply") when it is more than was agreed."""
        self._hurry()
        count = super().recv_into(buffer, nbytes, flags)
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise reply_too_long()
        return count

    def _hurry(self) -> None:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)


def reply_too_long() -> Problem:
    """The other side sends more than the daemon would."""
    detail = "the answer is longer than any of the daemon's"
    return Problem("bad_reply", detail, "is the socket really latticed's?")

"""A socket that was made beforehand, for the one connection that an aiohttp request of this task makes.

aiohttp makes its sockets by a function without an await, and passes it no argument: what needs a socket from elsewhere
gets it first, and leaves it here.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

# A list, so that the task that aiohttp makes for the connection, which has a copy of the context, takes it for all.
_left: Final[ContextVar[list[socket.socket] | None]] = ContextVar("latticed_made_socket", default=None)


@contextlib.contextmanager
def left(sock: socket.socket) -> Iterator[None]:
    """Leave `sock`, non-blocking and not connected, for `take` in the block; closed at its end if nobody took it."""
    held = [sock]
    token = _left.set(held)
    try:
        yield
    finally:
        _left.reset(token)
        for one in held:
            one.close()


def take() -> socket.socket | None:
    """The socket that was left for this request, None when there is none. PermissionError when it was taken before."""
    held = _left.get()
    if held is None:
        return None
    if not held:
        raise PermissionError("expected one connection of this request")
    return held.pop()

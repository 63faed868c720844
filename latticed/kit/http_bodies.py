"""Checks of request bodies that aiohttp's parser does not make, for the connections of our listeners.

When a body does not parse, aiohttp reports it as a further request: the handler that reads the body waits in vain. It
also takes an empty Transfer-Encoding for none (RFC 9112, section 6.1: a message with both framings is to be refused).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo  # how a connection is told of what does not parse; there is no public name

if TYPE_CHECKING:
    from collections import deque

_MESSAGE = "expected one framing of the body: Content-Length or Transfer-Encoding: chunked"


class Bodies:
    """Watches the body that one connection's parser is reading; call `check` each time the parser was given bytes."""

    def __init__(self) -> None:
        self._open: StreamReader | None = None

    def check(self, messages: deque[Any]) -> bool:
        """After the parser was fed: judge what it appended to `messages`. True when the body under way is broken.

        Its reader gets web.RequestPayloadError at once, and the connection must be closed after the answer: where
        another request would begin is unknown.
        """
        for place, (message, body) in enumerate(messages):
            if isinstance(message, _ErrInfo):
                # No body is being read: the error is about the next request, and aiohttp answers it by itself.
                if self._open is None or self._open.is_eof():
                    return False
                _cut(messages, place)
                # The handler that reads the body gets this, now or at its next read.
                self._open.set_exception(web.RequestPayloadError("the body does not parse"))
                self._open.feed_eof()
                return True
            codings = message.headers.getall(hdrs.TRANSFER_ENCODING, [])
            if codings and [one.strip().lower() for one in codings] != ["chunked"]:
                _cut(messages, place)
                error = BadHttpMessage(_MESSAGE)
                messages.append((_ErrInfo(status=400, exc=error, message=_MESSAGE), EMPTY_PAYLOAD))
                return False
            self._open = body
        return False


def _cut(messages: deque[Any], place: int) -> None:
    """Remove what the parser appended from `place` on."""
    while len(messages) > place:
        messages.pop()

"""One request and its answer over a unix socket, in HTTP/1.1.

`http.client` does this too, but importing it takes latticectl 10 ms at every start (it reads headers with `email`),
and it trusts its peer: lengths, any number of interim answers and trailers. Here the whole answer has one deadline
and one size limit, whatever the peer sends.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from latticed.client import socket_peer
from latticed.client.bounded_socket import BoundedSocket
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REALLY: Final = "is the socket really latticed's?"
"""Hint where an answer is not one of the daemon's."""
_LONGEST_LINE: Final = 64 << 10
"""Bytes of one line of a head, or of one with a chunk's size."""
_HEAD_BYTES: Final = 256 << 10
"""Bytes of a head; what is read ahead counts as well."""
_READ_BYTES: Final = 64 << 10
_BACKLOG_PAUSE_S: Final = 0.01
"""Between two attempts while the daemon's backlog is full."""


class ConnectionCut(ConnectionError):
    """The peer closed the connection before its answer was complete."""


class Exchange:
    """One connection for one request. `status`, `length` (None: not announced) and `undone` (Retry-After: nothing was
    done) are set by `ask`.
    """

    def __init__(self, path: str, *, connect_s: float, owner: Callable[[], str]) -> None:
        self.status = 0
        self.length: int | None = None
        self.undone = False
        self._path = path
        self._connect_s = connect_s
        self._owner = owner
        self._chunked = False
        self._wire = BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._reader = self._wire.makefile("rb")

    def ask(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], within_s: float) -> None:
        """Connect, send one request, and read the head of its answer.

        OSError when the daemon cannot be reached or closes the connection, TimeoutError after `within_s` seconds,
        Problem bad_reply for what is no HTTP, Problem socket_foreign when an untrusted user serves the socket.
        """
        self._connect()
        head = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            head.append(f"Content-Length: {len(body)}")
        self._wire.within(within_s, _HEAD_BYTES)
        # A refusal may come before the body was read to its end: it is read all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._wire.sendall("\r\n".join([*head, "", ""]).encode("ascii") + (body or b""))
        self._read_head()

    def within(self, seconds: float, most_bytes: int) -> None:
        """From now on: TimeoutError after `seconds`, Problem bad_reply beyond `most_bytes` more."""
        self._wire.within(seconds, most_bytes)

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives. ConnectionCut when the peer closes the connection before the body's announced end."""
        if self._chunked:
            return self._chunks()
        return self._plain(self.length)

    def cut(self) -> None:
        """End the answer for whoever reads it in another thread: ConnectionCut. Not before there is a connection."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; twice is fine."""
        self._reader.close()
        self._wire.close()

    def _connect(self) -> None:
        deadline_s = time.monotonic() + self._connect_s
        self._wire.settimeout(self._connect_s)
        while True:
            try:
                self._wire.connect(self._path)
                break
            except BlockingIOError:
                # A socket with a timeout is non-blocking: connect(2) fails with EAGAIN while the backlog is full.
                if time.monotonic() > deadline_s:
                    raise TimeoutError from None
                time.sleep(_BACKLOG_PAUSE_S)
        socket_peer.check(self._wire, self._path, self._owner)

    def _read_head(self) -> None:
        """The status line and the headers. Interim answers (1xx) are not asked for, so they are no answer of ours."""
        words = self._line().split(b" ", 2)
        if len(words) < 2 or words[0] not in {b"HTTP/1.1", b"HTTP/1.0"} or len(words[1]) != 3 or not _digits(words[1]):
            raise Problem("bad_reply", "the daemon's answer is no HTTP", REALLY)
        self.status = int(words[1])
        lengths = []
        codings = []
        while line := self._line():
            name, _, value = line.partition(b":")
            match name.lower():
                case b"content-length":
                    lengths.append(value.strip())
                case b"transfer-encoding":
                    codings.append(value.strip().lower())
                case b"retry-after":
                    self.undone = True
        self._chunked = codings == [b"chunked"]
        # Two lengths, or one beside chunks, can be read in two ways (RFC 9112, section 6.3).
        if self.status < 200 or (codings and not self._chunked) or len(lengths) + len(codings) > 1:
            raise Problem("bad_reply", "the daemon's answer has no proper length", REALLY)
        if lengths:
            if not _digits(lengths[0]) or len(lengths[0]) > 18:
                raise Problem("bad_reply", "the daemon's answer has no proper length", REALLY)
            self.length = int(lengths[0])

    def _plain(self, length: int | None) -> Iterator[bytes]:
        """A body of `length` bytes; None: until the connection ends."""
        left = _READ_BYTES if length is None else length
        while left and (piece := self._reader.read1(min(left, _READ_BYTES))):
            yield piece
            if length is not None:
                left -= len(piece)
        if left and length is not None:
            raise ConnectionCut

    def _chunks(self) -> Iterator[bytes]:
        """A body in chunks (RFC 9112, section 7.1); extensions and trailers are skipped."""
        while True:
            size, _, _ = self._line().partition(b";")
            size = size.strip()
            if not 0 < len(size) <= 16 or size.strip(b"0123456789abcdefABCDEF"):
                raise Problem("bad_reply", "the daemon's answer is no HTTP", REALLY)
            if not (count := int(size, 16)):
                break
            yield from self._plain(count)
            if self._line():
                raise Problem("bad_reply", "the daemon's answer is no HTTP", REALLY)
        while self._line():
            pass

    def _line(self) -> bytes:
        """The next line, without its end."""
        line = self._reader.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            if len(line) < _LONGEST_LINE:
                raise ConnectionCut
            raise Problem("bad_reply", "the daemon's answer is no HTTP", REALLY)
        return line.removesuffix(b"\n").removesuffix(b"\r")


def _digits(text: bytes) -> bool:
    return text.isdigit()  # of bytes: ASCII digits alone

"""Asks the API of a proxy core who is connected, and has it end connections. A core that hangs costs that once.

A look, an offer, an apply and its commit each ask, one after the other: with a whole wait for each, users who have to
go would go too late. So a core that has just been silent for ANSWER_S is given SILENT_S by whoever asks next.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem
from latticed.plans.effects import parsed
from latticed.system.proxy import api

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.system.proxy.usage import Connection

ANSWER_S: Final = 1.5
"""For a core to tell who is connected."""
SILENT_S: Final = 0.3
"""The same for one that has not answered in that time."""
REMEMBERED_S: Final = 5.0
"""How long that is held against it: a busy machine may be the reason."""
HANGS_S: Final = 6.0
"""After how long without an answer a core is started anew though nobody has to go: that costs everybody."""
CLOSE_S: Final = 3.0
"""To tell who is connected and to close those who have to go."""
CLOSING_S: Final = 2.0
"""How long connections are closed in one apply: a user may have any number of them. The next look has the rest."""
_MAX_ANSWER_BYTES: Final = 64 << 10


class CoreApi:
    """The API of whatever core runs; `service`: as its file has it."""

    def __init__(self) -> None:
        self._pid = 0  # of the core that has not answered
        self._since = 0.0  # when it was asked first without an answer
        self._last = 0.0  # until when it was given all the time it may take
        self._until = 0.0

    def is_silent(self, pid: int) -> bool:
        """Whether the process `pid` was asked in vain a moment ago: nor would it end when it is asked to."""
        return bool(pid) and self._pid == pid and time.monotonic() < self._until

    def hangs(self, pid: int) -> bool:
        """Whether it has not answered for so long that it will not by itself; at the end ANSWER_S were not enough,
        since a core with much to tell is late for SILENT_S each time.
        """
        return bool(pid) and self._pid == pid and self._last - self._since >= HANGS_S

    def connections(self, service: dict[str, Any], pid: int) -> tuple[Connection, ...] | None:
        """Who is connected to the core `pid`; None where it does not answer."""
        was_silent, began = self.is_silent(pid), time.monotonic()
        is_due = began - self._since >= HANGS_S and not self.hangs(pid)
        try:
            wait_s = ANSWER_S if is_due or not was_silent else SILENT_S
            answer = asked(service, api.LIST_PATH, api.list_request(), began + wait_s, first=True)
            told = tuple(parsed(api.connections, answer))
        except Problem:
            if is_due or not was_silent:
                self._note(pid, began)
            return None
        self._pid = 0
        return told

    def _note(self, pid: int, began: float) -> None:
        # Not asked for a while, nobody knows that it did not answer all that time.
        if self._pid != pid or began > self._until + REMEMBERED_S:
            self._pid, self._since = pid, began
        self._last = time.monotonic()
        self._until = self._last + REMEMBERED_S

    def closed(self, service: dict[str, Any], pid: int, ids: Iterable[str], until: float) -> bool:
        """End these connections, as many as CLOSING_S is enough for; False for a core that does not until `until`.

        Each that is closed is an answer: a core with too many of them does not hang, and is not started anew.
        """
        began = time.monotonic()
        connection = _TimedConnection(service["listen"], service["listen_port"], until)
        try:
            with contextlib.closing(connection):
                for one in ids:
                    if parsed(api.refusal, _answer(connection, service, api.CLOSE_PATH, api.close_request(one))):
                        return False
                    if time.monotonic() >= began + CLOSING_S:
                        break
        except Problem:
            self._note(pid, began)
            return False
        return True


class _TimedSocket(socket.socket):
    """Whose reads end at one moment, however slowly bytes come: a timeout alone begins again with each."""

    until = 0.0

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)
        return super().recv_into(*arguments, **named)


class _TimedConnection(http.client.HTTPConnection):
    """HTTP that ends at `until`, of the monotonic clock."""

    def __init__(self, host: str, port: int, until: float) -> None:
        super().__init__(host, port)
        self._until = until

    def connect(self) -> None:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        plain = socket.create_connection((self.host, self.port), left_s)
        # A request is sent in two parts: the second would wait for the first one's acknowledgement.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = _TimedSocket(fileno=plain.detach())
        self.sock.until = self._until
        self.sock.settimeout(left_s)


def asked(service: dict[str, Any], path: str, body: bytes, until: float, *, first: bool = False) -> bytes:
    """An answer of the core's API; `first`: the message of its first frame, for what would go on without an end.

    Problem tool_failed, `until` the latest.
    """
    with contextlib.closing(_TimedConnection(service["listen"], service["listen_port"], until)) as connection:
        return _answer(connection, service, path, body, first=first)


def _answer(
    connection: http.client.HTTPConnection, service: dict[str, Any], path: str, body: bytes, *, first: bool = False
) -> bytes:
    headers = {"Content-Type": api.CONTENT_TYPE, "Authorization": f"Bearer {service['secret']}"}
    try:
        connection.request("POST", path, body, headers)
        with connection.getresponse() as answer:
            if first:
                length = parsed(api.frame_length, answer.read(api.HEADER_BYTES))
                return answer.read(length)
            return answer.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Problem("tool_failed", f"the core's API does not answer: {type(error).__name__}") from error

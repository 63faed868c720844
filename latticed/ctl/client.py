"""The control API over its unix socket, with http.client (contracts §7).

One connection per request: a request that changes something is never sent into a connection that the daemon may be
closing just now. A GET whose connection breaks is asked once more; nothing else is.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from latticed.ctl.plain_http import client as http
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

CONNECT_S: Final = 5.0
READ_S: Final = 30.0
QUIET_S: Final = 45.0
LONG_S: Final = 600.0
MAX_REPLY_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 256 << 10
_LINE_BYTES: Final = 1 << 20
_BACKLOG_PAUSE_S: Final = 0.01
_SERVICE_UNAVAILABLE: Final = 503


class Refusal(Problem):
    """The daemon answered with a problem document; `status` is the HTTP status."""

    def __init__(self, status: int, code: str, detail: str, hint: str) -> None:
        super().__init__(code, detail, hint)
        self.status = status


class Reply(NamedTuple):
    status: int
    body: bytes


class _UnixConnection(http.HTTPConnection):
    """HTTP over a unix socket. `timeout` bounds the connect, then each wait for bytes."""

    def __init__(self, path: str, *, connect_s: float, read_s: float) -> None:
        super().__init__("localhost", timeout=connect_s)
        self._path = path
        self._read_s = read_s

    def connect(self) -> None:
        deadline_s = time.monotonic() + (self.timeout or CONNECT_S)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        while True:
            try:
                self.sock.connect(self._path)
                break
            except BlockingIOError:
                # unix(7): a full backlog is EAGAIN for a socket with a timeout, not a wait.
                if time.monotonic() > deadline_s:
                    raise TimeoutError from None
                time.sleep(_BACKLOG_PAUSE_S)
        self.sock.settimeout(self._read_s)


class Client:
    """Asks the daemon. Path parts are percent-encoded; answers are decoded JSON unless said otherwise.

    Raises Refusal for what the daemon refuses, Problem("unreachable") when there is no daemon or no answer,
    Problem("socket_denied") when the socket is not for the caller, Problem("bad_reply") for anything else.
    """

    def __init__(self, path: str, *, connect_s: float = CONNECT_S, read_s: float = READ_S) -> None:
        self.path = path
        self._connect_s = connect_s
        self._read_s = read_s

    def get(self, *parts: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        return _json(self._checked("GET", parts, query=query))

    def get_bytes(self, *parts: str) -> bytes:
        return self._checked("GET", parts).body

    def post(self, *parts: str, body: Mapping[str, Any]) -> Any:
        return _json(self._checked("POST", parts, body=_dumped(body), kind="application/json"))

    def put(self, *parts: str, body: Mapping[str, Any]) -> Any:
        return _json(self._checked("PUT", parts, body=_dumped(body), kind="application/json"))

    def put_bytes(self, *parts: str, body: bytes) -> None:
        self._checked("PUT", parts, body=body, kind="application/octet-stream")

    def delete(self, *parts: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        return _json(self._checked("DELETE", parts, query=query))

    def health(self) -> Any:
        """`GET /api/health`; 503 is an answer here, not a failure."""
        reply = self._ask("GET", ("health",))
        if reply.status == _SERVICE_UNAVAILABLE:
            plain = _json(reply)
            if isinstance(plain, dict) and isinstance(plain.get("status"), str):  # a number: a problem document
                return plain
        return _json(_accepted(reply))

    def metrics(self) -> str:
        """`GET /metrics`, the one text there is."""
        return _accepted(self._send("GET", "/metrics", None, "")).body.decode("utf-8", "replace")

    def lines(
        self,
        *parts: str,
        query: Mapping[str, str | int | None] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Generator[bytes, None, None]:
        """The lines of an answer that goes on, as they come, until the daemon ends it; close it when done.

        Nothing at all for QUIET_S, though the daemon says every few seconds that it is there, is "unreachable".
        """
        connection = _UnixConnection(self.path, connect_s=self._connect_s, read_s=QUIET_S)
        try:
            target = _target(parts, query)
            connection.request("GET", target, headers={"Accept": "text/event-stream", **(headers or {})})
            response = connection.getresponse()
            if response.status >= 400:
                _accepted(Reply(status=response.status, body=_read(response, time.monotonic() + self._read_s)))
            while line := response.readline(_LINE_BYTES):
                yield line
        except (http.HTTPException, OSError) as error:
            raise self._lost(error, "GET") from error
        finally:
            connection.close()

    def chunks(self, *parts: str) -> Generator[bytes, None, None]:
        """The bytes of a long answer as they come, the whole of the length it announced or Problem("unreachable").

        Making it may take the daemon minutes before the first byte: the wait for each chunk is LONG_S.
        """
        connection = _UnixConnection(self.path, connect_s=self._connect_s, read_s=LONG_S)
        try:
            connection.request("GET", _target(parts, None), headers={"Connection": "close"})
            response = connection.getresponse()
            if response.status >= 400:
                _accepted(Reply(status=response.status, body=_read(response, time.monotonic() + self._read_s)))
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
            if response.length != 0:  # cut short, or of no length at all
                raise http.IncompleteRead(b"", response.length)
        except (http.HTTPException, OSError) as error:
            raise self._lost(error, "GET") from error
        finally:
            connection.close()

    def _checked(self, method: str, parts: tuple[str, ...], **how: Any) -> Reply:
        return _accepted(self._ask(method, parts, **how))

    def _ask(
        self,
        method: str,
        parts: tuple[str, ...],
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: bytes | None = None,
        kind: str = "",
    ) -> Reply:
        return self._send(method, _target(parts, query), body, kind)

    def _send(self, method: str, target: str, body: bytes | None, kind: str) -> Reply:
        try:
            return self._once(method, target, body, kind)
        except (http.HTTPException, ConnectionError) as error:
            if isinstance(error, ConnectionRefusedError) or method != "GET":
                raise self._lost(error, method) from error
        except OSError as error:
            raise self._lost(error, method) from error
        try:
            return self._once(method, target, body, kind)
        except (http.HTTPException, OSError) as error:
            raise self._lost(error, method) from error

    def _once(self, method: str, target: str, body: bytes | None, kind: str) -> Reply:
        connection = _UnixConnection(self.path, connect_s=self._connect_s, read_s=self._read_s)
        headers = {"Accept": "application/json", "Connection": "close"}
        if kind:
            headers["Content-Type"] = kind
        deadline_s = time.monotonic() + self._connect_s + self._read_s
        try:
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            return Reply(status=response.status, body=_read(response, deadline_s))
        finally:
            connection.close()

    def _lost(self, error: Exception, method: str) -> Problem:
        where = f"it was looked for at {self.path}; name another with --socket or LATTICED_SOCKET"
        match error:
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                return Problem("unreachable", "the daemon is not running", f"systemctl start latticed; {where}")
            case PermissionError():
                hint = f"join the group of {self.path} ([access] socket_group), or run this as root"
                return Problem("socket_denied", "the daemon may be running, but you may not use its socket", hint)
            case TimeoutError():
                return Problem("unreachable", f"no answer within {self._read_s:g} s", _unsure(method))
            case http.HTTPException() | ConnectionError():
                return Problem("unreachable", "the daemon closed the connection before it answered", _unsure(method))
            case _:
                return Problem("unreachable", f"cannot talk to the daemon at {self.path}: {error}", where)


def _unsure(method: str) -> str:
    if method == "GET":
        return "see journalctl -t latticed"
    return "whether the change was made is not known: look with latticectl info or latticectl audit query"


def _target(parts: tuple[str, ...], query: Mapping[str, str | int | None] | None) -> str:
    for part in parts:
        if part in {"", ".", ".."}:  # would be taken for a path of another meaning
            raise Problem("not_found", f"nothing is named {part!r}")
    path = "/api/" + "/".join(quote(os.fsencode(part), safe="") for part in parts)
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _read(response: http.HTTPResponse, deadline_s: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            raise Problem("bad_reply", f"the daemon's answer is longer than {MAX_REPLY_BYTES >> 20} MiB")
        if time.monotonic() > deadline_s:
            raise TimeoutError
        chunks.append(chunk)
    if response.length:
        raise http.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _dumped(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode("ascii")


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise Problem("bad_reply", "the daemon's answer is not JSON", "is the socket really latticed's?") from error


def _accepted(reply: Reply) -> Reply:
    if reply.status < 400:
        return reply
    try:
        plain = json.loads(reply.body)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        plain = {}
    detail = plain.get("detail") or plain.get("title") or f"the daemon answered with HTTP status {reply.status}"
    raise Refusal(reply.status, str(plain.get("code") or "bad_reply"), str(detail), str(plain.get("hint") or ""))

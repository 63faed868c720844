"""The control API over its unix socket (contracts §7).

One connection per request: on a kept-alive one that the daemon closes meanwhile, it would be unknown whether a
change was carried out. A GET whose connection breaks is retried once; other methods never. What a daemon that stops did
not do is asked again of the next one, and so is what it broke off where doing it twice is as doing it once (RFC 9110,
9.2.2).
"""

from __future__ import annotations

import json
import math
import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.client import bounded_socket
from latticed.client.exchange import REALLY, ConnectionCut, Exchange
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

CONNECT_S: Final = 5.0
"""To connect, waiting for a place in the daemon's backlog included."""
READ_S: Final = 60.0
"""For a whole answer, unless said otherwise. Longer than it takes to end a daemon that hangs (WatchdogSec=30) and to
start the next one, or to replace its package: who has connected waits in systemd's socket meanwhile.
"""
# Three of the daemon's heartbeats (`HEARTBEAT_S` in rpc/events.py).
QUIET_S: Final = 45.0
STOPPING_S: Final = 60.0
"""For how long it is asked again while daemons stop: longer than the unit's drain and plugins' grace by default."""
_PAUSE_S: Final = 0.2
_IDEMPOTENT: Final = frozenset({"GET", "PUT", "DELETE"})
LONG_S: Final = 600.0
"""For answers that take the daemon minutes: a backup's first byte, an invocation."""
MAX_REPLY_BYTES: Final = 64 << 20
"""Bounds memory: far more than a list of ten thousand plugins takes."""
_LINE_BYTES: Final = 1 << 20
"""Longest line of a stream; an audit event takes a few KiB."""
# Twice as much: sizes of HTTP chunks, and what is read ahead, count as well.
_MOST_A_LINE: Final = 2 * _LINE_BYTES
_MOST_A_PIECE: Final = 1 << 20
_NOT_FOUND: Final = 404
_SERVICE_UNAVAILABLE: Final = 503
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class ApiRefusal(Problem):
    """The daemon answered with a problem document; `status` is the HTTP status.

    `errors`: all that is wrong with what was sent, where the daemon lists it; `more` when it is not all.
    """

    def __init__(self, status: int, code: str, detail: str, hint: str) -> None:
        super().__init__(code, detail, hint)
        self.status = status
        self.errors: list[dict[str, str]] = []
        self.more = False


class AskedServer(NamedTuple):
    """Who is asked, in the words of what is said when it does not answer.

    `unit`: of systemd, and the name in its journal; `option`: what names another socket; `group`: the setting that
    opens it to a group; `look`: the commands that show whether a change was made.
    """

    name: str = "the daemon"
    unit: str = "latticed"
    option: str = "--socket or LATTICED_SOCKET"
    group: str = "[access] socket_group"
    look: str = "latticectl info or latticectl audit query"


DAEMON: Final = AskedServer()


class ApiReply(NamedTuple):
    """An answer: HTTP status and body; `undone`: nothing was done, and it may be asked again (Retry-After)."""

    status: int
    body: bytes
    undone: bool = False


class ControlClient:
    """Client of the control API. Path parts are percent-encoded; answers are decoded JSON unless stated otherwise.

    Raises ApiRefusal for a problem document, Problem("unreachable") when there is no daemon or no whole answer within
    `read_s` seconds, or by `until_s` of the monotonic clock, Problem("socket_denied") without permission to connect,
    Problem("socket_foreign") when an untrusted user serves the socket (`owner` returns the configured one),
    Problem("bad_reply") for other answers.
    """

    def __init__(
        self,
        path: str,
        *,
        connect_s: float = CONNECT_S,
        read_s: float = READ_S,
        until_s: float = math.inf,
        owner: Callable[[], str] = lambda: "",
        asked: AskedServer = DAEMON,
    ) -> None:
        self.path = path
        self._asked = asked
        self._connect_s = connect_s
        self._read_s = read_s
        self._until_s = until_s
        self._owner = owner

    def get(self, *parts: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        """`GET`, decoded; None in `query` leaves that parameter out."""
        return _json(self._checked("GET", parts, query=query))

    def get_bytes(self, *parts: str) -> bytes:
        """`GET`, the body as it came."""
        return self._checked("GET", parts).body

    def post(self, *parts: str, body: Mapping[str, Any]) -> Any:
        """`POST` of a JSON object; the decoded answer."""
        return _json(self._checked("POST", parts, body=_dumped(body), kind="application/json"))

    def put(self, *parts: str, body: Mapping[str, Any]) -> Any:
        """`PUT` of a JSON object; the decoded answer."""
        return _json(self._checked("PUT", parts, body=_dumped(body), kind="application/json"))

    def put_bytes(self, *parts: str, body: bytes) -> None:
        """`PUT` of raw bytes; the answer is dropped."""
        self._checked("PUT", parts, body=body, kind="application/octet-stream")

    def delete(self, *parts: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        """`DELETE`; the decoded answer. None in `query` leaves that parameter out."""
        return _json(self._checked("DELETE", parts, query=query))

    def health(self) -> Any:
        """`GET /api/health`; a report that comes with 503 is returned, not raised."""
        reply = self._ask("GET", ("health",))
        if reply.status == _SERVICE_UNAVAILABLE:
            plain = _json(reply)
            if isinstance(plain, dict) and isinstance(plain.get("status"), str):  # a number: a problem document
                return plain
        return _json(_accepted(reply))

    def metrics(self) -> str:
        """`GET /metrics`, as text."""
        return _accepted(self._send("GET", "/metrics", None, "")).body.decode("utf-8", "replace")

    def lines(
        self,
        *parts: str,
        query: Mapping[str, str | int | None] | None = None,
        headers: Mapping[str, str] | None = None,
        opened: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> Generator[bytes, None, None]:
        """The lines of an endless answer as they arrive; close the generator when done.

        Problem("unreachable") after QUIET_S without data: the daemon sends a heartbeat more often than that. `opened`
        gets a function that ends it from another thread.
        """
        exchange = self._exchange()
        try:
            opened(exchange.cut)
            exchange.ask(
                "GET", _target(parts, query), None, {"Accept": "text/event-stream", **(headers or {})}, self._read_s
            )
            if exchange.status >= 400:
                _accepted(self._whole(exchange))
            exchange.within(QUIET_S, _MOST_A_LINE)
            part = b""
            for piece in exchange.pieces():
                *lines, part = (part + piece).split(b"\n")
                for line in lines:
                    yield line + b"\n"
                if len(part) > _LINE_BYTES:
                    raise bounded_socket.reply_too_long()
                # The limits are set anew after each piece, since the caller may take its time between two lines.
                exchange.within(QUIET_S, _MOST_A_LINE)
            if part:
                yield part
        except OSError as error:
            raise self._lost(error, "GET", QUIET_S) from error
        finally:
            exchange.close()

    def chunks(self, *parts: str, query: Mapping[str, str | int | None] | None = None) -> Generator[bytes, None, None]:
        """The bytes of a long answer as they arrive; Problem("unreachable") when fewer come than its Content-Length.

        The timeout for each chunk is LONG_S, because the daemon may need minutes before the first byte.
        """
        exchange = self._exchange()
        try:
            exchange.ask("GET", _target(parts, query), None, {}, LONG_S)
            if exchange.status >= 400:
                _accepted(self._whole(exchange))
            if exchange.length is None:  # without a length a truncated answer would look complete
                raise ConnectionCut
            exchange.within(LONG_S, _MOST_A_PIECE)
            for piece in exchange.pieces():
                yield piece
                exchange.within(LONG_S, _MOST_A_PIECE)
        except OSError as error:
            raise self._lost(error, "GET", LONG_S) from error
        finally:
            exchange.close()

    def _checked(self, method: str, parts: tuple[str, ...], **how: Any) -> ApiReply:
        """The answer to a request; ApiRefusal for a status of 400 or higher."""
        return _accepted(self._ask(method, parts, **how))

    def _ask(
        self,
        method: str,
        parts: tuple[str, ...],
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: bytes | None = None,
        kind: str = "",
    ) -> ApiReply:
        """Send a request and return the answer, whatever its status. `kind`: the Content-Type of `body`, empty for
        none.
        """
        return self._send(method, _target(parts, query), body, kind)

    def _send(self, method: str, target: str, body: bytes | None, kind: str) -> ApiReply:
        """Send one request, and again while daemons answer that they stop, STOPPING_S at most."""
        until = time.monotonic() + self._left(STOPPING_S)
        begun: ApiReply | None = None
        while True:
            reply = self._sent(method, target, body, kind)
            # The attempt that was broken off may have removed it: that it is not there would be no answer to that.
            if begun is not None and method == "DELETE" and reply.status == _NOT_FOUND:
                return begun
            again = _is_stopping(reply) and (reply.undone or method in _IDEMPOTENT)
            if not again or time.monotonic() + _PAUSE_S >= until:
                return reply
            if not reply.undone:
                begun = reply
            # With systemd's socket the next attempt waits for the next daemon; without, this one still answers.
            time.sleep(_PAUSE_S)

    def _sent(self, method: str, target: str, body: bytes | None, kind: str) -> ApiReply:
        """Send one request; a GET is sent once more if its connection broke."""
        try:
            return self._once(method, target, body, kind)
        # Only a broken connection is worth a second attempt: after a timeout it would double the wait.
        except ConnectionError as error:
            if isinstance(error, ConnectionRefusedError) or method != "GET":
                raise self._lost(error, method) from error
        except OSError as error:
            raise self._lost(error, method) from error
        try:
            return self._once(method, target, body, kind)
        except OSError as error:
            raise self._lost(error, method) from error

    def _once(self, method: str, target: str, body: bytes | None, kind: str) -> ApiReply:
        """Send one request on a connection of its own, and return the whole answer; OSError, Problem."""
        exchange = self._exchange()
        headers = {"Accept": "application/json"}
        if kind:
            headers["Content-Type"] = kind
        try:
            exchange.ask(method, target, body, headers, self._left(self._read_s))
            return self._whole(exchange)
        finally:
            exchange.close()

    def _exchange(self) -> Exchange:
        """A connection to the control socket that is not open yet; `Exchange.ask` opens it."""
        return Exchange(self.path, connect_s=self._left(self._connect_s), owner=self._owner)

    def _left(self, seconds: float) -> float:
        """`seconds`, or what is left until `until_s`."""
        return min(seconds, max(0.0, self._until_s - time.monotonic()))

    def _whole(self, exchange: Exchange) -> ApiReply:
        """The answer with its whole body, of at most MAX_REPLY_BYTES."""
        # By the announced length, before anything is read.
        if (exchange.length or 0) > MAX_REPLY_BYTES:
            raise bounded_socket.reply_too_long()
        exchange.within(self._left(self._read_s), MAX_REPLY_BYTES)
        return ApiReply(status=exchange.status, body=b"".join(exchange.pieces()), undone=exchange.undone)

    def _lost(self, error: Exception, method: str, within_s: float | None = None) -> Problem:
        """The Problem for a request that got no answer, or none that makes sense.

        The hint depends on `method`. `within_s`: how long it was waited for; None: as long as this client waits.
        """
        who, within_s = self._asked, within_s or self._read_s
        where = f"it was looked for at {self.path}; name another with {who.option}"
        # Classes before their base classes: ConnectionRefusedError is a ConnectionError.
        match error:
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                start = f"systemctl start {who.unit}, or without a unit, in another terminal: {who.unit}"
                return Problem("unreachable", f"{who.name} is not running", f"{start}; {where}")
            case PermissionError():
                hint = f"join the group of {self.path} ({who.group}), or run this as root"
                return Problem("socket_denied", f"{who.name} may be running, but you may not use its socket", hint)
            case TimeoutError():
                when = "in time" if time.monotonic() >= self._until_s else f"within {within_s:g} s"
                return Problem("unreachable", f"no answer {when}", _unsure(method, who))
            case ConnectionError():
                return Problem(
                    "unreachable", f"{who.name} closed the connection before it answered", _unsure(method, who)
                )
            case _:
                return Problem("unreachable", f"cannot talk to {who.name} at {self.path}: {error}", where)


def _is_stopping(reply: ApiReply) -> bool:
    """Whether a daemon answered that it stops."""
    if reply.status != _SERVICE_UNAVAILABLE:
        return False
    try:
        plain = json.loads(reply.body)
    except (ValueError, RecursionError):
        return False
    return isinstance(plain, dict) and plain.get("code") == "stopping"


def _unsure(method: str, who: AskedServer) -> str:
    """The hint after a request whose connection broke. A change may have been made all the same, unlike with GET."""
    if method == "GET":
        return f"see journalctl -t {who.unit}"
    return f"whether the change was made is not known: look with {who.look}"


def _target(parts: tuple[str, ...], query: Mapping[str, str | int | None] | None) -> str:
    """The path and query of a request, percent-encoded; Problem not_found for a part that no path can have."""
    for part in parts:
        if part in {"", ".", ".."}:  # dot segments and empty ones would name another path
            raise Problem("not_found", f"nothing is named {part!r}")
    # fsencode: an argument that is not UTF-8 holds surrogates (PEP 383), which UTF-8 cannot encode.
    path = "/api/" + "/".join(_quoted(os.fsencode(part)) for part in parts)
    given = {name: value for name, value in (query or {}).items() if value is not None}
    asked = "&".join(f"{_quoted(name.encode())}={_quoted(os.fsencode(str(value)))}" for name, value in given.items())
    return f"{path}?{asked}" if asked else path


def _quoted(text: bytes) -> str:
    """Percent-encoded (RFC 3986, section 2): all but unreserved characters. Importing urllib.parse would take 2 ms."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text)


def _dumped(body: Mapping[str, Any]) -> bytes:
    """A body as JSON."""
    return json.dumps(body).encode("ascii")


def _json(reply: ApiReply) -> Any:
    """The body as JSON; Problem bad_reply otherwise."""
    try:
        return json.loads(reply.body)
    # RecursionError: json's decoder, for very deeply nested lists.
    except (ValueError, RecursionError) as error:
        raise Problem("bad_reply", "the daemon's answer is not JSON", REALLY) from error


def _accepted(reply: ApiReply) -> ApiReply:
    """The reply, if its status is below 400; ApiRefusal otherwise."""
    if reply.status < 400:
        return reply
    try:
        plain = json.loads(reply.body)
    except (ValueError, RecursionError):
        plain = None
    # Something else than latticed may answer with an error: then the status is all there is to show.
    if not isinstance(plain, dict):
        plain = {}
    detail = plain.get("detail") or plain.get("title") or f"the daemon answered with HTTP status {reply.status}"
    refusal = ApiRefusal(reply.status, str(plain.get("code") or "bad_reply"), str(detail), str(plain.get("hint") or ""))
    if isinstance(errors := plain.get("errors"), list):
        refusal.errors = [{str(k): str(v) for k, v in one.items()} for one in errors if isinstance(one, dict)]
        refusal.more = bool(plain.get("more"))
    raise refusal

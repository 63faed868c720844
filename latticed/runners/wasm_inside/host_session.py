"""The child's own end of latticed-stdio-1, for modules that do not speak it: one request at a time, in order."""

from __future__ import annotations

import json
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from latticed.runners.wasm_inside.budget import Budget
    from latticed.runners.wasm_inside.calls import GuestCalls

_CHUNK_BYTES: Final = 1 << 16
_LINE_BYTES: Final = 1 << 20
"""The longest line, in bytes, that the host accepts; a longer one would end the session."""
_UNKNOWN_METHOD, _BAD_REPLY = -32601, -32603  # "method not found" and "internal error" of JSON-RPC 2.0


class HostGone(Exception):
    """The host closed stdin, or sent `shutdown`."""


class HostSession:
    """Answers the host by calling the module; host calls of the module go out in between."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._rest = bytearray()  # the beginning of a line that has not ended
        self._lines: deque[bytes] = deque()  # lines that were read and not taken yet
        self._later: deque[dict[str, Any]] = deque()  # requests that came during a host call
        self._asked = 0
        self._config: dict[str, Any] = {}

    def serve(self, calls: GuestCalls) -> NoReturn:
        """Answer requests until HostGone is raised, or the process ends. GuestFailed when the module failed."""
        while True:
            message = self._later.popleft() if self._later else self._next()
            method, number = message.get("method"), message.get("id")
            if method == "invoke":
                self._invoke(calls, number, message.get("params", {}))
            elif method == "initialize":
                self._config = message.get("params", {}).get("config") or {}
                calls.try_out()  # a module that cannot start fails the plugin's start, not its first invocation
                self._budget.stop()
                self._send({"id": number, "result": {}})
            elif method is not None:
                self._simple(method, number)

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Make one host call: `{"result": …}`, or `{"error": {"code", "message"}}`. Blocks until it is answered.

        A call that is too long for a line gets `too_large` without being sent. Requests that arrive meanwhile are
        answered if `_simple` can, else queued. The budget's clock stands still.
        """
        self._asked += 1
        number = f"call-{self._asked}"  # text: the host's own ids are numbers
        line = _line({"id": number, "method": method, "params": params})
        if len(line) > _LINE_BYTES:
            return {"error": {"code": "too_large", "message": f"expected at most {_LINE_BYTES} bytes as JSON"}}
        with self._budget:
            _write(line)
            while (message := self._next()).get("id") != number or "method" in message:
                if message.get("method") in {"invoke", "initialize"}:
                    self._later.append(message)
                elif "method" in message:
                    self._simple(message["method"], message.get("id"))
        if "error" not in message:
            return {"result": message.get("result")}
        error = message["error"]
        return {"error": {"code": error.get("data", {}).get("code", "internal"), "message": error.get("message", "")}}

    def _invoke(self, calls: GuestCalls, number: Any, params: dict[str, Any]) -> None:
        """Answer one invocation; an answer of the module that is not usable becomes an error for the host.

        GuestFailed when the module failed, or was too late.
        """
        request = {"action": params.get("action"), "payload": params.get("payload")}
        if self._config:
            request["config"] = self._config
        try:
            line = _line({"id": number, "result": calls.invoke(request)})
            if len(line) > _LINE_BYTES:  # the message around it, and escapes, make it longer than the module's answer
                raise ValueError(f"expected at most {_LINE_BYTES} bytes as JSON, found {len(line)}")
        except (ValueError, RecursionError) as error:
            words = f"expected the module to answer with a JSON object, found something else: {error}"
            line = _line({"id": number, "error": {"code": _BAD_REPLY, "message": words[:300]}})
        # Before it is written, which waits for the host. Raises when the time was over only after wasm had returned.
        self._budget.stop()
        _write(line)

    def _simple(self, method: str, number: Any) -> None:
        """Answer requests that need no call of the module, such as `health`: a child that answers is healthy."""
        if method == "health":
            self._send({"id": number, "result": {"status": "healthy", "message": ""}})
        elif method == "shutdown":
            self._send({"id": number, "result": {}})
            raise HostGone
        else:
            self._send({"id": number, "error": {"code": _UNKNOWN_METHOD, "message": "there is no such method"}})

    def _next(self) -> dict[str, Any]:
        """The next message of the host, read from stdin; HostGone at its end."""
        while not self._lines:
            data = os.read(0, _CHUNK_BYTES)
            if not data:
                raise HostGone
            *lines, rest = data.split(b"\n")
            # The first line that ends here may have begun in what was read before.
            if lines:
                self._lines.append(bytes(self._rest) + lines[0])
                self._lines.extend(lines[1:])
                self._rest.clear()
            self._rest += rest
        # Not checked: the daemon is trusted to write valid lines.
        message: dict[str, Any] = json.loads(self._lines.popleft())
        return message

    def _send(self, message: dict[str, Any]) -> None:
        _write(_line(message))


def _line(message: dict[str, Any]) -> bytes:
    """A message as one line of JSON."""
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _write(line: bytes) -> None:
    """Write all of a line to stdout; blocks while the pipe is full."""
    data = memoryview(line)
    while data:
        data = data[os.write(1, data) :]

"""latticed-stdio-1: a long-lived plugin on two pipes, JSON-RPC 2.0 in lines.

The host's requests are answered one at a time, in their order, in the thread that called `run`. Host calls may come
from any thread: one of the waiting threads reads for all, until its own answer has come. No thread is started here.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque

from latticed.sdk import lines
from latticed.sdk.base import TalkingThreads, failed, printable, show_traceback
from latticed.sdk.calls import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from latticed.sdk.base import PluginBase
    from latticed.sdk.lines import LineStream

MAX_LINE_BYTES = 1 << 20
"""Of one line, newline included: the host ends a plugin that sends a longer one (`message_too_large`)."""
# JSON-RPC 2.0, section 5.1; -32000 to -32099 are left to implementations.
METHOD_NOT_FOUND = -32601
NOT_STARTED = -32000


def run(plugin: PluginBase, stream: LineStream) -> None:
    """Answer the host until it says shutdown or hangs up; SystemExit(1) when the plugin does not start."""
    session = Session(stream)
    plugin.connect(session.call)
    try:
        while (request := session.next_request()) is not None:
            if not _serve(plugin, session, request):
                return
    except BrokenPipeError:
        return  # the host has gone
    finally:
        # The interpreter joins the plugin's threads at exit: none may go on waiting for an answer.
        session.end()


def _serve(plugin: PluginBase, session: Session, request: dict[str, Any]) -> bool:
    """Answer one request of the host; False after `shutdown`, which is the last."""
    method, params = request["method"], request.get("params") or {}
    if method == "initialize":
        # All before `started` is called, which may use them.
        plugin.id = params.get("id", "")
        plugin.capabilities = tuple(params.get("capabilities") or ())
        plugin.config = params.get("config") or {}
        _start(plugin, session, request)
        session.answer(request, {})
    elif method == "health":
        found = plugin.check()
        session.answer(request, {"status": found.status, "message": found.message})
    elif method == "invoke":
        session.answer(request, plugin.answer(str(params.get("action", "")), params.get("payload")))
    elif method == "shutdown":
        _stop(plugin)
        session.answer(request, {})
        return False
    else:
        # A later host may have methods that this version does not know; it can go on without them.
        session.refuse(request, METHOD_NOT_FOUND, f"no such method: {method}")
    return True


def _start(plugin: PluginBase, session: Session, request: dict[str, Any]) -> None:
    """Call `started`; when it raises, the host gets the error and SystemExit(1) is raised."""
    try:
        plugin.started()
    except Exception as error:  # noqa: BLE001 - reported to the host, then the process ends
        show_traceback()
        session.refuse(request, NOT_STARTED, f"{type(error).__name__}: {error}")
        sys.exit(1)


def _stop(plugin: PluginBase) -> None:
    """Call `stopping`; an exception is only shown."""
    try:
        plugin.stopping()
    except Exception:  # noqa: BLE001 - it ends anyway
        show_traceback()


class Session:
    """The host's requests, and calls to it, over one stream of lines; used from several threads."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream
        self._changed = threading.Condition()  # guards what follows
        self._reading = False
        self._ended = False
        self._requests: deque[dict[str, Any]] = deque()
        # By the number of a call under way; None until its answer has come.
        self._answers: dict[int, dict[str, Any] | None] = {}
        self._last_id = 0
        self._threads = TalkingThreads()

    def next_request(self) -> dict[str, Any] | None:
        """Wait for the host's next request; None once the host has closed stdin."""
        found: dict[str, Any] | None = self._threads.talk(self._next_request)
        return found

    def _next_request(self) -> dict[str, Any] | None:
        with self._changed:
            self._read_until(lambda: bool(self._requests))
            return self._requests.popleft() if self._requests else None

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """The result of one host call; HostError when it is refused, or when it cannot be asked."""
        return _result(self._threads.talk(lambda: self._called(method, params)))

    def _called(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to one host call, as it came."""
        with self._changed:
            if self._ended:
                raise HostError("service_unavailable", "the host has ended the conversation")
            self._last_id += 1
            number = self._last_id
            # Before the request is written: another thread may read its answer before this one gets to.
            self._answers[number] = None
        try:
            self._stream.write(_call(number, method, params))
            with self._changed:
                self._read_until(lambda: self._answers[number] is not None)
        finally:
            with self._changed:
                # Also when writing failed; an answer that comes later is then dropped by `_take`.
                answer = self._answers.pop(number)
        if answer is None:
            raise HostError("service_unavailable", "the host has ended the conversation")
        return answer

    def answer(self, request: dict[str, Any], result: dict[str, Any]) -> None:
        """Answer a request; an action whose result is no JSON, or too long, has failed."""

        def instead(reason: str) -> dict[str, Any]:
            return {"jsonrpc": "2.0", "id": request.get("id"), "result": failed(reason)}

        # A notification is not answered (JSON-RPC 2.0, section 4.1).
        if request.get("id") is None:
            return
        line = lines.encode_or({"jsonrpc": "2.0", "id": request["id"], "result": result}, instead)
        if len(line) > MAX_LINE_BYTES:
            reason = f"expected a result of at most {MAX_LINE_BYTES} bytes as JSON, found {len(line)}"
            line = lines.encode(instead(reason))
        self._write(line)

    def refuse(self, request: dict[str, Any], code: int, message: str) -> None:
        """Answer a request with a JSON-RPC error; a notification is not answered."""
        if request.get("id") is not None:
            error = {"code": code, "message": printable(message)}
            self._write(lines.encode({"jsonrpc": "2.0", "id": request["id"], "error": error}))

    def _write(self, line: bytes) -> None:
        self._threads.talk(lambda: self._stream.write(line))

    def end(self) -> None:
        """Refuse further calls, and wake the threads that wait."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read_until(self, met: Callable[[], bool]) -> None:
        """Return when `met`, or when the session has ended. Called, and returns, with the lock held."""
        while not met() and not self._ended:
            if self._reading:
                self._changed.wait()
                continue
            self._reading = True
            # Read without the lock, so that other threads can make their calls meanwhile.
            # The lock of a Condition is re-entrant; callers hold it once, so this frees it.
            line = None
            try:
                self._changed.release()
                line = self._stream.read_line()
            finally:
                self._changed.acquire()
                self._reading = False
                self._changed.notify_all()
            # Those woken wait for the lock, which is held until this line is in its place.
            self._take(line)

    def _take(self, line: bytes | None) -> None:
        """Put a line where it is waited for: a request into the queue, an answer to its call. None ends the session."""
        message = None if line is None else json.loads(line)
        if message is None:
            self._ended = True
        elif "method" in message:
            self._requests.append(message)
        elif message.get("id") in self._answers:
            self._answers[message["id"]] = message


def _call(number: int, method: str, params: dict[str, Any]) -> bytes:
    """The line of one host call; HostError bad_params, or too_large for one over MAX_LINE_BYTES."""
    try:
        line = lines.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
    except lines.UNFIT as error:
        raise HostError("bad_params", f"expected parameters that JSON can carry: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise HostError("too_large", f"expected at most {MAX_LINE_BYTES} bytes as JSON, found {len(line)}")
    return line


def _result(answer: dict[str, Any]) -> Any:
    """The result in an answer; HostError with the code in `error.data.code` (docs/write/sdk.md)."""
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    data = error.get("data") or {}
    raise HostError(str(data.get("code", "internal")), str(error.get("message", "")))

"""stdio-json-v1: one request line on stdin, host calls and one reply on stdout, host answers on a third descriptor."""

from __future__ import annotations

import contextlib
import json
import os
import threading

from latticed.sdk import lines
from latticed.sdk.base import TalkingThreads, failed, show_traceback
from latticed.sdk.calls import HostError
from latticed.sdk.lines import LineStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from latticed.sdk.base import PluginBase


def run(plugin: PluginBase, stream: LineStream, answers_fd: int) -> None:
    """Carry out the one action that was asked for and write its reply; `answers_fd` is where the host answers calls."""
    # Inherited from the host across exec; programs that the plugin starts must not read the answers.
    os.set_inheritable(answers_fd, False)
    # -1: nothing is written to the descriptor of the answers.
    caller = Caller(stream, LineStream(answers_fd, -1))
    plugin.connect(caller.call)
    # Without a request the action is empty, and the reply says that there is no such action.
    request = json.loads(stream.read_line() or b"{}")
    reply = _reply(plugin, str(request.get("action", "")), request.get("payload"))
    caller.end(lines.encode_or(reply, failed))


def _reply(plugin: PluginBase, action: str, payload: Any) -> dict[str, Any]:
    """The reply `{ok, message, result, error}` of one action; exceptions become its error."""
    try:
        plugin.started()
        # These two must be answered by every plugin (docs/write/sdk.md).
        if action == "describe" and not hasattr(plugin, "do_describe"):
            return {"ok": True, "message": "", "result": plugin.describe(), "error": None}
    except Exception as error:  # noqa: BLE001 - the one action's outcome
        show_traceback()
        return failed(f"{type(error).__name__}: {error}")
    if action != "health":
        return plugin.answer(action, payload)
    found = plugin.check()
    ok = found.status != "unhealthy"
    return {
        "ok": ok,
        "message": found.message,
        "result": {"status": found.status},
        "error": None if ok else found.message or found.status,
    }


class Caller:
    """Makes host calls, from any thread, one at a time: the next call is written once the last is answered."""

    def __init__(self, calls: LineStream, answers: LineStream) -> None:
        self._calls = calls
        self._answers = answers
        self._call_lock = threading.Lock()
        self._last_id = 0
        self._ended = False
        self._threads = TalkingThreads()

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """The result of one host call; HostError when it is refused, or when it cannot be asked."""
        answer = self._threads.talk(lambda: self._called(method, params))
        if answer["ok"]:
            return answer.get("result")
        # This protocol carries an error as one text, `code: message`.
        code, _, message = str(answer.get("error")).partition(": ")
        raise HostError(code, message)

    def _called(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to one host call, as it came."""
        with self._call_lock:
            if self._ended:  # the reply is the last line
                raise HostError("service_unavailable", "the action has been answered")
            self._last_id += 1
            called = str(self._last_id)
            asked = {"host_call": {"id": called, "method": method, "params": params}}
            try:
                line = lines.encode(asked)
            except lines.UNFIT as error:
                raise HostError("bad_params", f"expected parameters that JSON can carry: {error}") from error
            self._calls.write(line)
            return self._answer(called)

    def _answer(self, called: str) -> dict[str, Any]:
        """The answer to the call of that id; those of calls that a signal handler broke off come before it."""
        while (found := self._answers.read_line()) is not None:
            answer: dict[str, Any] = json.loads(found)["host_response"]
            if answer["id"] == called:
                return answer
        raise HostError("service_unavailable", "the host has ended the conversation")

    def end(self, reply: bytes) -> None:
        """Write the reply; host calls after it are refused."""
        self._threads.talk(lambda: self._end(reply))

    def _end(self, reply: bytes) -> None:
        with self._call_lock:
            # With the lock held no call is under way, so the reply is the last line.
            self._ended = True
            with contextlib.suppress(BrokenPipeError):  # the host has gone
                self._calls.write(reply)

"""stdio-json-v1: one process per invocation, lines of JSON (contracts §10). No I/O.

The plugin writes host calls and then one reply on stdout; each call is answered with a line on a descriptor of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.host.call import HostError
from latticed.kit import text
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import internal_errors, lines, message_memory, replies, unrepresentable
from latticed.runners.lines import LineSplitter, LineTooLong
from latticed.runners.unrepresentable import Unrepresentable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from latticed.runners.unrepresentable import PartialMessage

MAX_AT_ONCE: Final = 16
"""Host calls carried out at the same time; the others wait."""
LINES_A_TURN: Final = 32
"""Lines that are taken before the event loop runs other tasks."""
METHOD_CHARACTERS: Final = 128
ID_CHARACTERS: Final = 128
"""The longest method and id of a call: both are kept while it is under way, and the id is sent back."""


_NO_PARAMS: Final = msgspec.Raw(b"null")  # what a call without `params` has


class HostCall(msgspec.Struct, frozen=True, kw_only=True):
    """One host call of the plugin; `params` may be left out, and are decoded by the service that is called."""

    id: int | str
    method: str
    params: msgspec.Raw = _NO_PARAMS


class PluginLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line that is a host call, `{"host_call": {"id": "1", "method": "kv.get", "params": {"key": "a"}}}`, or none."""

    host_call: HostCall | msgspec.UnsetType = msgspec.UNSET


_decode: Final = msgspec.json.Decoder(PluginLine).decode
_decode_reply: Final = msgspec.json.Decoder(dict[str, Any]).decode


def request(action: str, payload: Any) -> bytes:
    """The line written to the plugin's stdin; `action` comes first, so that a shell script can find it."""
    return lines.encode({"action": action, "payload": payload}) + b"\n"


async def _at_once() -> None:
    """The default `drain`: returns at once, for writers that never wait."""


class Invocation:
    """One invocation, over functions that the caller provides: from its request to `close`.

    `answer` takes lines for the descriptor of answers, `serve(method, params)` carries out host calls, whose params are
    a JSON object; at most `max_host_calls` of them. `refuse(method, line, error)` refuses one whose line cannot be
    passed on. `flow(False)` pauses the reading of the plugin's stdout, `flow(True)` resumes it; `drain` waits until the
    plugin has read enough of its answers. `answer` and `drain` may raise OSError once nobody reads.

    `outcome` is a future of the reply as `{ok, message, result, error}`, or of the Problem that the plugin made:
    `output_too_large`, `too_many_host_calls`, `protocol_error`, the code of its exit, or `plugin_error` for a reply
    whose value JSON cannot represent (Unrepresentable). Calls are answered in the order in which they came.
    """

    def __init__(
        self,
        *,
        answer: Callable[[bytes], None],
        serve: Callable[[str, bytes], Awaitable[Any]],
        refuse: Callable[[str, bytes, HostError], Awaitable[Any]],
        max_line_bytes: int,
        max_host_calls: int,
        flow: Callable[[bool], None] = lambda _: None,
        drain: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        self.outcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._serve = serve
        self._refuse = refuse
        self._drain = drain
        self._lines = LineSplitter(max_bytes=max_line_bytes)
        self._left_calls = max_host_calls
        self._max_host_calls = max_host_calls
        self._flow = flow
        self._paused = False
        self._end: tuple[str, str] | None = None  # code and message of its end, once that has come
        self._serving: dict[asyncio.Task[None], int] = {}  # bytes of each, oldest first
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self.outcome.add_done_callback(lambda _: self._pause(False))  # read on, to see the end of its output

    def feed(self, data: bytes) -> None:
        """Take bytes from the plugin's stdout, in pieces of any size; ignored after the reply or a fault."""
        if self.outcome.done():
            return
        found = self._lines.feed(data)
        if not self._paused:
            self._take_all(found)

    def ended(self, code: str, message: str) -> None:
        """Its stdout is closed or it has exited; a last line without a newline counts.

        `code` and `message` become the outcome when there is no reply; lines that are still waiting are handled first.
        """
        self._end = (code, message)
        if not self._paused:  # else `_take_all` does it, after the lines that wait
            self._finish(code, message)

    async def close(self) -> None:
        """Cancel the calls under way; nothing more is answered."""
        if not self.outcome.done():
            self.outcome.cancel()
        elif not self.outcome.cancelled():
            self.outcome.exception()  # retrieved, even if its caller was cancelled
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _take_all(self, found: Iterable[bytes]) -> None:
        """Handle lines until none is left, enough calls are under way, or it is time to yield to the event loop."""
        try:
            for taken, line in enumerate(found, 1):
                self._take(line)
                if self.outcome.done():
                    return
                if sum(self._serving.values()) >= message_memory.OF_ONE_BYTES:  # what follows stays in the pipe
                    self._pause(True)
                    return
                if taken == LINES_A_TURN:
                    self._pause(True)  # or input would pile up faster than it is handled
                    asyncio.get_running_loop().call_soon(self._go_on)
                    return
        except LineTooLong as error:
            self.fail("output_too_large", f"{error} on stdout")
            return
        self._pause(False)
        if self._end is not None:
            self._finish(*self._end)

    def _finish(self, code: str, message: str) -> None:
        """Nothing more comes: handle the last line, then fail if that was no reply."""
        if not self.outcome.done():
            self._take(self._lines.rest)
        self.fail(code, message)

    def _pause(self, paused: bool) -> None:  # noqa: FBT001 - a state, set
        """Pause or resume the reading of the plugin's stdout; only a change is passed on."""
        if paused != self._paused:
            self._paused = paused
            self._flow(not paused)

    def _take(self, line: bytes) -> None:
        """Handle one line: a host call, the reply, or a fault. Blank lines are ignored."""
        if not line.strip():
            return
        if lines.too_many(line):  # before decoding, which would take the memory
            self._take_partial(unrepresentable.unread_call(line, lines.TOO_MANY), line, lines.TOO_MANY)
            return
        try:
            if not line.isascii():
                line.decode("utf-8")  # of the whole line: parameters are not decoded here
            call = _decode(line).host_call
            message = _decode_reply(line) if call is msgspec.UNSET else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._take_partial(unrepresentable.read(line), line, text.sanitise(str(error), 100))
        else:
            if call is not msgspec.UNSET:
                self._call(call, lines.weight(line))
            elif lines.too_deep(line, message):
                self._take_partial(unrepresentable.read(line), line, "nesting")
            else:
                self._reply(message, line)

    def _take_partial(self, partial: PartialMessage | None, line: bytes, why: str) -> None:
        """Refuse the call whose parameters cannot be carried on; a reply like that is the outcome `plugin_error`."""
        if partial is None:
            found = unrepresentable.noise(line)
            self.fail("protocol_error", f"expected a host call or a reply as one line of JSON, found {found} ({why})")
        elif "host_call" not in partial.members:
            self._fail(Unrepresentable(partial.found))
        else:
            # Id and method are all that an answer needs. Without them there is no call to refuse.
            try:
                call = msgspec.convert({**partial.members["host_call"], "params": _NO_PARAMS}, HostCall)
            except (msgspec.DecodeError, TypeError):
                self._fail(Unrepresentable(partial.found))
            else:
                refused = HostError(Denial.BAD_PARAMS, f"params: expected values, found {partial.found}")
                self._begin(call, len(line), lambda: self._refuse(call.method, line, refused))

    def _reply(self, message: dict[str, Any], line: bytes) -> None:
        """Set the outcome to the reply in `message`, or fail with its Problem, which quotes `line`.

        `plan` is accepted for a `result` that is absent or null (docs/write/sdk.md).
        """
        result = message.get("result")
        try:
            reply = replies.reply({**message, "result": message.get("plan") if result is None else result})
        except Problem as problem:
            self.fail(problem.code, f"{problem.reason}: {unrepresentable.noise(line)}")
        else:
            self.outcome.set_result(reply)

    def _call(self, call: HostCall, size: int) -> None:
        """Begin a host call; `size`: bytes it takes meanwhile."""
        params = b"{}" if call.params == _NO_PARAMS else bytes(call.params)
        call = msgspec.structs.replace(call, params=_NO_PARAMS)  # these refer to the whole line, and would keep it
        if not params.startswith(b"{"):
            self.fail("protocol_error", "expected params that are an object, found something else")
            return
        self._begin(call, size, lambda: self._serve(call.method, params))

    def _begin(self, call: HostCall, size: int, serve: Callable[[], Awaitable[Any]]) -> None:
        """Have `serve` carry out a host call and answer it, unless there were too many; `size` as above."""
        self._left_calls -= 1
        if self._left_calls < 0:
            self.fail("too_many_host_calls", f"expected at most {self._max_host_calls} host calls, found more")
            return
        if len(call.method) > METHOD_CHARACTERS or len(str(call.id)) > ID_CHARACTERS:
            self.fail("protocol_error", "expected a host call with a short id and method, found a long one")
            return
        before = next(reversed(self._serving), None)  # the newest under way, after which this one is answered
        work = self._answer_call(call, serve, before)
        task = fenced(work, lambda error: _tell(call, error), name="host call")
        self._serving[task] = size
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        """A call has been answered: there may be room for further lines."""
        del self._serving[task]
        self._go_on()

    def _go_on(self) -> None:
        """Handle the lines that wait, if it had paused."""
        if self._paused and not self.outcome.done():
            self._take_all(self._lines.ready())

    async def _answer_call(
        self, call: HostCall, serve: Callable[[], Awaitable[Any]], before: asyncio.Task[None] | None
    ) -> None:
        """Carry out one call, wait for the answer of the one `before` it, and write the answer."""
        # The semaphore is fair, so a call that waits here for an earlier one never keeps that one out.
        async with self._room:
            line = await _answered(call, serve)
            # Calls run at the same time, but are answered in the order in which they came.
            if before is not None:
                await asyncio.wait({before})
            with contextlib.suppress(OSError):  # it no longer reads answers, but may still write its reply
                self._answer(line)
                await self._drain()

    def fail(self, code: str, detail: str) -> None:
        """Set this Problem as the outcome, unless there is one already."""
        self._fail(Problem(code, detail))

    def _fail(self, problem: Problem) -> None:
        """As `fail`: the first outcome counts."""
        if not self.outcome.done():
            self.outcome.set_exception(problem)


async def _answered(call: HostCall, serve: Callable[[], Awaitable[Any]]) -> bytes:
    """The answer to one call; for an exception of the host's own, an error that says so."""
    try:
        result = await serve()
        return lines.encode({"host_response": {"id": call.id, "ok": True, "result": result, "error": None}}) + b"\n"
    except HostError as error:
        return _refusal(call, error)
    except (Exception, asyncio.CancelledError) as error:
        if (task := asyncio.current_task()) is not None and task.cancelling():  # this task, not what it awaits
            raise
        return _refusal(call, internal_errors.report(call.method, error))


def _tell(call: HostCall, error: BaseException) -> None:
    """Log an exception that escaped a call; the call gets no answer."""
    internal_errors.report(call.method, error)


def _refusal(call: HostCall, error: HostError) -> bytes:
    """The answer to a call that failed; `error` is `code: text`."""
    words = f"{error.code.value}: {error.reason}"
    return lines.encode({"host_response": {"id": call.id, "ok": False, "result": None, "error": words}}) + b"\n"

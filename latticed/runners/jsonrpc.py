"""latticed-stdio-1: JSON-RPC 2.0, one message a line, in both directions (contracts §10). No I/O.

The plugin is untrusted: input that is not a message ends the session with a reason, and affects nothing else. A
message with a value that JSON cannot represent (`unrepresentable`) fails only that answer or call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from latticed.host.call import HostError
from latticed.kit import text
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import internal_errors, lines, message_memory, unrepresentable
from latticed.runners.lines import LineSplitter, LineTooLong
from latticed.runners.unrepresentable import Unrepresentable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from latticed.runners.unrepresentable import PartialMessage

    Answer: TypeAlias = Callable[[Any, BaseException | None], None]
    """Takes the result of a host call, or why there is none."""
    Serve: TypeAlias = Callable[[Answer], Coroutine[Any, Any, Any] | None]
    """Carries out one host call: has its answer told, or returns what is to be awaited for it."""

MAX_LINE_BYTES: Final = 1 << 20
"""The longest message of a plugin in bytes, without its newline; a longer one ends the session."""
MAX_IN_FLIGHT: Final = 256
"""Host calls of one plugin under way at once; further input is not read until one is answered."""
SERVED_AT_ONCE: Final = 32
"""Those of them carried out at a time, while it reads, in their order: bounds the number of buffered results."""
LINES_A_TURN: Final = 32
"""Messages of one plugin handled before yielding to the event loop."""
UNREAD_S: Final = 60.0
"""How long, in seconds, a plugin may leave its pipe full of unread answers before it is ended."""
MAX_GIVEN_UP: Final = 1_024
"""How many abandoned requests are remembered, so that their late answers are ignored."""
METHOD_CHARACTERS: Final = 128
ID_CHARACTERS: Final = 128
"""The longest method and id of a call: both are kept while it is under way, and the id is sent back."""
HOST_REFUSED: Final = -32000
"""The error code of every refused call: the first of those that JSON-RPC 2.0 leaves to servers."""
_GONE: Final = "the plugin has ended"

_OF_A_CALL: Final = frozenset({"jsonrpc", "id", "method", "params"})
_NO_PARAMS: Final = msgspec.Raw(b"null")  # what a message without `params` has


class JsonRpcMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request (method), or a response (result or error). Of duplicate names the last one counts.

    `params` are not decoded here; the service that is called does that.
    """

    jsonrpc: Literal["2.0"]
    id: int | str | None = None
    method: str | None = None
    params: msgspec.Raw = _NO_PARAMS
    result: Any | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, Any] | None = None


_decode: Final = msgspec.json.Decoder(JsonRpcMessage).decode


async def _at_once() -> None:
    """The default `drain`: returns at once, for writers that never wait."""


class JsonRpcSession:
    """One session of latticed-stdio-1 with one plugin, over functions that the caller provides.

    `write` takes bytes for the plugin. `serve(method, params, answer)` carries out one of its host calls, whose params
    are a JSON object: it has `answer(result, error)` called, or returns what is awaited for the result (`Gate.begin`).
    `refuse(method, line, error, answer)` refuses one whose line cannot be passed on (`Gate.refuse`).
    Calls are started in the order in which they came, and answers of one turn of the event loop are written together.
    `flow(False)` pauses the reading of the plugin's stdout, `flow(True)` resumes it; what arrives meanwhile is kept.
    `drain` waits until the plugin has read enough of what was written, `may_write` says whether it has. Until then a
    call is under way and no other is started, so that a plugin that never reads cannot fill the daemon's memory
    (`message_memory`). `write` and `drain` may raise OSError once the plugin no longer reads.

    `broken(code, reason)` is called at most once, when the plugin sent an invalid message (`message_too_large`,
    `protocol_error`) or left its answers unread for UNREAD_S (`answers_unread`); the session is over then.

    `answers`: how many requests the plugin has answered so far, those that nobody waited for any more too.
    """

    def __init__(
        self,
        *,
        write: Callable[[bytes], None],
        serve: Callable[[str, bytes, Answer], Coroutine[Any, Any, Any] | None],
        refuse: Callable[[str, bytes, HostError, Answer], None],
        flow: Callable[[bool], None],
        broken: Callable[[str, str], None],
        may_write: Callable[[], bool] = lambda: True,
        drain: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        self._write = write
        self._serve = serve
        self._refuse = refuse
        self._flow = flow
        self._broken = broken
        self._may_write = may_write
        self._drain = drain
        self.answers = 0
        self._lines = LineSplitter(max_bytes=MAX_LINE_BYTES)
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}  # our requests, by id
        self._given_up: dict[int, None] = {}  # ids of those whose caller was cancelled, oldest first
        self._queue: deque[tuple[Serve, Answer]] = deque()  # the plugin's host calls that are not started yet
        self._started = 0  # those that are, until their answer was read
        self._answers: list[bytes] = []  # of this turn
        self._answered = 0  # calls among the started whose answer was not read yet, and their bytes of memory
        self._answered_bytes = 0
        self._tasks: set[asyncio.Task[Any]] = set()  # of calls whose service waits, and `_until_read`
        self._until_read: asyncio.Task[None] | None = None  # while answers wait to be read
        self._share = message_memory.ALL.share(self._go_on)
        self._paused = False
        self._next_turn: asyncio.Handle | None = None  # set while lines are left for the next turn of the loop
        self._open = True

    @property
    def under_way(self) -> int:
        """How many host calls of the plugin are under way: read, and not answered, or their answer not read."""
        return self._started + len(self._queue)

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Send a request, return its result; Problem("plugin_error") for an error, ("plugin_gone") when it ends.

        Unrepresentable when JSON cannot represent the answer's value. When the session breaks, Problem with that code
        (see `broken`). After a cancellation the late answer is ignored.
        """
        self._check_open()
        # Before writing, so that requests do not pile up in memory for a plugin that does not read.
        try:
            await self._drain()
        except OSError as error:
            raise _gone() from error
        self._check_open()  # again: the session may have ended while waiting
        self._last_id += 1
        number, answer = self._last_id, asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"id": number, "method": method, "params": params})
            return await answer
        except OSError as error:
            raise _gone() from error
        except asyncio.CancelledError:
            self._give_up(number)
            raise
        finally:
            del self._waiting[number]
            if answer.done() and not answer.cancelled():
                answer.exception()  # mark it retrieved, even if the caller was cancelled

    def feed(self, data: bytes) -> None:
        """Take bytes that the plugin wrote, in pieces of any size. Ignored once the session is over."""
        if self._open:
            # While paused, or with lines left for the next turn, bytes are only kept.
            found = self._lines.feed(data)
            if not self._paused and self._next_turn is None:
                self._take_some(found)

    async def close(self) -> None:
        """End the session: nothing more is answered, host calls under way are cancelled and waited for, callers of
        `ask` get Problem("plugin_gone"). `broken` is not called.
        """
        self._open = False  # first: calls that are cancelled below must not write an answer
        self._share.close()
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._tell_waiting("plugin_gone", _GONE)
        self._queue.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_some(self, found: Iterable[bytes]) -> None:
        """Handle lines until none is left, enough calls are under way, or it is time to yield to the event loop."""
        try:
            for taken, line in enumerate(found, 1):
                self._take_line(line)
                if not self._open:  # this line broke the session
                    return
                if self._is_full():
                    self._pause(True)
                    return
                if taken == LINES_A_TURN:
                    self._pause(True)  # or input would pile up faster than it is handled
                    self._next_turn = asyncio.get_running_loop().call_soon(self._turn)
                    return
        except LineTooLong as error:
            self._break("message_too_large", f"{error}, which begins {unrepresentable.noise(self._lines.rest)}")
        else:
            self._pause(False)

    def _turn(self) -> None:
        """The next turn of the event loop has come: go on with the lines that were left."""
        self._next_turn = None
        self._go_on()

    def _go_on(self) -> None:
        """Handle further lines, if there is room for their calls. Also called when other plugins have freed memory."""
        if not self._open or self._next_turn is not None:
            return
        if self._is_full():
            self._pause(True)
        else:
            self._take_some(self._lines.ready())

    def _is_full(self) -> bool:
        """Whether no further call may begin: too many are under way, or their messages take too much memory."""
        return self.under_way >= MAX_IN_FLIGHT or self._share.must_wait()

    def _pause(self, paused: bool) -> None:  # noqa: FBT001 - a state, set
        """Pause or resume the reading of the plugin's stdout; only a change is passed on."""
        if paused != self._paused:
            self._paused = paused
            self._flow(not paused)

    def _take_line(self, line: bytes) -> None:
        """Handle one message. First whether it is safe to decode at all, then whether its values can be passed on."""
        if lines.too_many(line):
            self._take_unreadable(unrepresentable.unread(line, lines.TOO_MANY), line, "too many values")
            return
        try:
            if not line.isascii():
                line.decode("utf-8")  # of the whole line: `params` are not decoded here
            message = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            partial, why = unrepresentable.read(line), text.sanitise(str(error), 100)
        else:
            # Parameters of a call are judged where they are decoded, by the service.
            if message.method is not None or not lines.too_deep(line, [message.result, message.error]):
                self._take(message, lines.weight(line))
                return
            partial, why = unrepresentable.read(line), "nesting"
        self._take_unreadable(partial, line, why)

    def _take_unreadable(self, partial: PartialMessage | None, line: bytes, why: str) -> None:
        """Handle a line that cannot be decoded; `partial` if only one of its values is at fault."""
        if partial is None or not self._take_partial(partial, line):
            found = unrepresentable.noise(line)
            self._break("protocol_error", f"expected one JSON-RPC 2.0 message a line, found {found} ({why})")

    def _take_partial(self, partial: PartialMessage, line: bytes) -> bool:
        """Refuse the call, or fail the answer, that holds the unrepresentable value; False when it is neither."""
        number, method = partial.members.get("id"), partial.members.get("method")
        if partial.members.get("jsonrpc") != "2.0":
            return False
        # A call: refused like one with bad parameters, which needs its id.
        if method is not None:
            is_method = isinstance(method, str) and len(method) <= METHOD_CHARACTERS
            if not is_method or not _is_id(number) or not partial.members.keys() <= _OF_A_CALL:
                return False
            refused = HostError(
                Denial.BAD_PARAMS, f"params: expected values that can be carried, found {partial.found}"
            )
            self._begin(number, method, lambda answer: self._refuse(method, line, refused, answer), len(line))
            return True
        # An answer, which needs a request. Not isinstance: true is an int to Python.
        if type(number) is not int or number not in self._waiting.keys() | self._given_up.keys():
            return False
        self.answers += 1
        self._given_up.pop(number, None)
        answer = self._waiting.get(number)
        # Given up or cancelled: ignored. Done otherwise: a second answer, which breaks the session.
        if answer is None or answer.done():
            return answer is None or answer.cancelled()
        answer.set_exception(Unrepresentable(partial.found))
        return True

    def _take(self, message: JsonRpcMessage, size: int) -> None:
        """Handle a message that was decoded: a call, an answer that is waited for, or a late one; `size` is its weight
        in bytes.
        """
        if message.method is not None:
            self._call(message, message.method, size)
        elif isinstance(message.id, int) and message.id in self._waiting:
            self.answers += 1
            self._answer(self._waiting[message.id], message)
        elif isinstance(message.id, int) and message.id in self._given_up:
            self.answers += 1
            del self._given_up[message.id]
        else:
            found = text.sanitise(str(message.id), 40)
            self._break("protocol_error", f"expected an answer to something that was asked, found the id {found}")

    def _answer(self, answer: asyncio.Future[Any], message: JsonRpcMessage) -> None:
        """Set `answer`, which the caller of `ask` awaits, from `message`; a malformed one breaks the session."""
        if answer.cancelled():
            return  # the caller was cancelled in this turn of the loop
        if answer.done():
            self._break("protocol_error", f"expected one answer to the request {message.id}, found two")
        elif message.params != _NO_PARAMS:
            self._break("protocol_error", "expected no params in an answer, found some")
        elif message.error is not None:
            words = text.sanitise(str(message.error.get("message", "no message")), 500)
            answer.set_exception(Problem("plugin_error", f"the plugin answered with an error: {words}"))
        elif message.result is msgspec.UNSET:
            self._break("protocol_error", "expected a result or an error in an answer, found neither")
        else:
            answer.set_result(message.result)

    def _call(self, message: JsonRpcMessage, method: str, size: int) -> None:
        """Begin a host call; a message with a method that is no request with an id breaks the session."""
        is_request = message.id is not None and message.error is None and message.result is msgspec.UNSET
        if not is_request or len(method) > METHOD_CHARACTERS or len(str(message.id)) > ID_CHARACTERS:
            self._break("protocol_error", "expected a call with an id and a method, found something else")
            return
        # A copy: msgspec.Raw refers to the whole line and would keep it in memory. It begins at the value itself.
        params = b"{}" if message.params == _NO_PARAMS else bytes(message.params)
        if not params.startswith(b"{"):
            self._break("protocol_error", "expected params that are an object, found something else")
            return
        self._begin(message.id, method, lambda answer: self._serve(method, params, answer), size)

    def _begin(self, number: int | str | None, method: str, serve: Serve, size: int) -> None:
        """Carry out a host call in its turn; `size` counts as pending memory until it is answered."""
        self._share.add(size)
        self._queue.append((serve, functools.partial(self._take_answer, number, method, size)))
        self._start_some()

    def _start_some(self) -> None:
        """Start calls in the order in which they came, as many as there is room for the results of."""
        may_write = self._may_write()  # once: nothing is written here
        while may_write and self._queue and self._started < SERVED_AT_ONCE:
            self._started += 1
            serve, answer = self._queue.popleft()
            try:
                rest = serve(answer)
            except Exception as error:  # noqa: BLE001 - answered and logged
                answer(None, error)
                continue
            if rest is not None:
                self._run(rest).add_done_callback(functools.partial(_tell, answer))
        if self._queue and not may_write:
            self._wait_for_room()

    def _take_answer(
        self, number: int | str | None, method: str, size: int, result: Any, error: BaseException | None
    ) -> None:
        """Have an answer written with the others of this turn, or none once the session is over.

        For an exception in the daemon, or a result that is no JSON, the plugin gets `internal`.
        """
        if not self._open:
            return
        try:
            line = _line({"id": number, "result": result} if error is None else _refusal(number, method, error))
        except Exception as fault:  # noqa: BLE001 - answered and logged
            line = _line(_refusal(number, method, fault))
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._write_answers)
        self._answers.append(line)
        self._answered += 1
        self._answered_bytes += size

    def _write_answers(self) -> None:
        """Write the answers of a turn."""
        answers, self._answers = self._answers, []
        with contextlib.suppress(OSError):  # the plugin no longer reads: it is about to exit
            if self._open:
                self._write(b"".join(answers))
        self._free()

    def _free(self) -> None:
        """Free what answered calls took, and go on; until the plugin has read enough, they count as under way."""
        if not self._open:
            return
        if not self._may_write():
            self._wait_for_room()
            return
        answered, size, self._answered, self._answered_bytes = self._answered, self._answered_bytes, 0, 0
        self._started -= answered
        self._share.remove(size)
        self._start_some()
        if self._paused:  # there may be room again
            self._go_on()

    def _wait_for_room(self) -> None:
        """Have `_free` called once the plugin has read enough."""
        if self._until_read is None:
            self._until_read = self._run(self._read_on())

    async def _read_on(self) -> None:
        """Wait until the plugin has read enough; the session breaks if it reads nothing."""
        try:
            async with asyncio.timeout(UNREAD_S):
                await self._drain()
        # Without this limit MAX_IN_FLIGHT calls would stay under way for ever, and nothing more would be read.
        except TimeoutError:
            self._break(
                "answers_unread", f"expected the plugin to read its answers, found none read for {UNREAD_S:g} s"
            )
        except OSError:
            pass  # the plugin no longer reads: it is about to exit
        self._until_read = None
        self._free()

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that `close` ends."""
        task = asyncio.get_running_loop().create_task(work, name="host call")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _send(self, message: dict[str, Any]) -> None:
        """Write a message, unless the session is over. OSError when the plugin no longer reads."""
        if self._open:
            self._write(_line(message))

    def _give_up(self, number: int) -> None:
        """Remember a request whose caller was cancelled: its late answer must not count as one to an unknown id."""
        self._given_up[number] = None
        if len(self._given_up) > MAX_GIVEN_UP:  # the oldest; a plugin that never answers must not fill memory
            del self._given_up[next(iter(self._given_up))]

    def _check_open(self) -> None:
        """Problem plugin_gone once the session is over."""
        if not self._open:
            raise _gone()

    def _tell_waiting(self, code: str, reason: str) -> None:
        """Fail all requests that are not answered yet with this Problem."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Problem(code, reason))

    def _break(self, code: str, reason: str) -> None:
        """End the session for what the plugin did; the first reason counts."""
        if self._open:
            self._open = False  # first: callbacks must find the session closed
            self._tell_waiting(code, reason)
            self._broken(code, reason)


def _tell(answer: Answer, task: asyncio.Task[Any]) -> None:
    """Answer a call whose service waited: the task has ended."""
    # Cancelled by `close`, which makes `answer` do nothing, or because of what the service awaited.
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    answer(None if error else task.result(), error)


def _is_id(number: Any) -> bool:
    """Whether a value may be the id of a call: text or an integer, no bool, short and printable."""
    return type(number) in {int, str} and len(str(number)) <= ID_CHARACTERS and str(number).isprintable()


def _line(message: dict[str, Any]) -> bytes:
    return lines.encode({"jsonrpc": "2.0", **message}) + b"\n"


def _refusal(number: int | str | None, method: str, error: BaseException) -> dict[str, Any]:
    """The answer to a call that failed: the code of the Denial is in `error.data.code`, as docs/write/sdk.md says."""
    if not isinstance(error, HostError):
        error = internal_errors.report(method, error)
    fault = {"code": HOST_REFUSED, "message": error.reason, "data": {"code": error.code.value}}
    return {"id": number, "error": fault}


def _gone() -> Problem:
    return Problem("plugin_gone", _GONE)

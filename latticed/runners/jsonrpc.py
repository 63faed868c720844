"""latticed-stdio-1: JSON-RPC 2.0, one message a line, in both directions (contracts §10). No transport, no process.

The plugin is a stranger: whatever it sends that is not a message breaks the session with a reason, and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from latticed.host.service import HostError
from latticed.kit import text
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem
from latticed.runners.lines import Lines, LineTooLong

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_LINE_BYTES: Final = 1 << 20
MAX_IN_FLIGHT: Final = 256
METHOD_CHARACTERS: Final = 128

INVALID_PARAMS: Final = -32602
HOST_REFUSED: Final = -32000


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request (method), or a response (result or error)."""

    jsonrpc: Literal["2.0"]
    id: int | str | None = None
    method: str | None = None
    params: dict[str, Any] | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, Any] | None = None


_decode: Final = msgspec.json.Decoder(Message).decode
_encode: Final = msgspec.json.Encoder().encode


class Session:
    """One conversation. `write` takes bytes for the plugin, `serve` carries out its calls.

    `flow(False)` asks whoever reads for us to stop for a while, `flow(True)` to go on. `broken(reason)` is called at
    most once, when the plugin has sent what is no message; the session is over then.
    """

    def __init__(
        self,
        *,
        write: Callable[[bytes], None],
        serve: Callable[[str, dict[str, Any]], Awaitable[Any]],
        flow: Callable[[bool], None],
        broken: Callable[[str], None],
    ) -> None:
        self._write = write
        self._serve = serve
        self._flow = flow
        self._broken = broken
        self._lines = Lines(max_bytes=MAX_LINE_BYTES)
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._open = True

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        """The plugin's answer; Problem("plugin_error") when it answers with an error, ("plugin_gone") when it ends."""
        if not self._open:
            raise Problem("plugin_gone", "the plugin has ended")
        self._next_id += 1
        number, answer = self._next_id, asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            return await answer
        finally:
            self._waiting.pop(number, None)

    def feed(self, data: bytes) -> None:
        """Take what the plugin wrote."""
        if not self._open:
            return
        try:
            for line in self._lines.feed(data):
                self._take(_decode(line))
        except LineTooLong as error:
            self._break(str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._break(f"expected one JSON-RPC 2.0 message a line, found: {text.sanitise(str(error), 200)}")

    async def close(self) -> None:
        """End it: nothing more is answered, whoever waits is told."""
        self._open = False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Problem("plugin_gone", "the plugin has ended"))
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _take(self, message: Message) -> None:
        if not self._open:
            return
        if message.method is not None:
            self._call(message)
        elif isinstance(message.id, int) and message.id in self._waiting:
            self._answer(self._waiting[message.id], message)
        elif isinstance(message.id, int) and 0 < message.id <= self._next_id:
            return  # too late: nobody waits for it any more
        else:
            self._break(f"expected an answer to something that was asked, found the id {str(message.id)[:40]!r}")

    def _answer(self, answer: asyncio.Future[Any], message: Message) -> None:
        if answer.done():
            return
        if message.error is not None:
            words = text.sanitise(str(message.error.get("message", "no message")), 500)
            answer.set_exception(Problem("plugin_error", f"the plugin answered with an error: {words}"))
        elif isinstance(message.result, msgspec.UnsetType):
            self._break("expected a result or an error in an answer, found neither")
        else:
            answer.set_result(msgspec.json.decode(message.result))

    def _call(self, message: Message) -> None:
        if message.id is None or message.error is not None or len(message.method or "") > METHOD_CHARACTERS:
            self._break("expected a call with an id and a method, found something else")
            return
        work = self._answer_call(message.id, message.method or "", message.params or {})
        task = fenced(work, lambda error: self._break(f"a host call failed: {type(error).__name__}"), name="host call")
        self._serving.add(task)
        task.add_done_callback(self._served)
        if len(self._serving) == MAX_IN_FLIGHT:
            self._flow(False)

    def _served(self, task: asyncio.Task[None]) -> None:
        if len(self._serving) == MAX_IN_FLIGHT and self._open:
            self._flow(True)
        self._serving.discard(task)

    async def _answer_call(self, number: int | str, method: str, params: dict[str, Any]) -> None:
        try:
            result = await self._serve(method, params)
        except HostError as error:
            fault = {"code": HOST_REFUSED, "message": error.message, "data": {"code": error.code.value}}
            self._send({"jsonrpc": "2.0", "id": number, "error": fault})
        else:
            self._send({"jsonrpc": "2.0", "id": number, "result": result})

    def _send(self, message: dict[str, Any]) -> None:
        if self._open:
            self._write(_encode(message) + b"\n")

    def _break(self, reason: str) -> None:
        if self._open:
            self._open = False
            self._broken(reason)

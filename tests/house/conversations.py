"""The host's side of both plugin protocols without a process: tests feed the plugin's lines and read the host's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from latticed.host.call import HostError
from latticed.runners.jsonrpc import JsonRpcSession
from latticed.runners.stdio_json import Invocation
from tests.house import processes


async def until(condition: Callable[[], object], *, deadline_s: float = processes.PATIENCE_S) -> None:
    """Let the loop run until `condition` holds."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        await asyncio.sleep(0)


class _Plugin:
    """What reaches the plugin, parsed, in `said`; the calls carried out for it in `calls`."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.writes: list[int] = []
        """How many lines each write has had."""
        self.calls: list[tuple[str, Any]] = []
        self.refused: list[tuple[str, bytes]] = []
        """Methods and lines of calls that were refused for their values."""
        self.serve: Callable[..., Any] = self._echo
        self.room = asyncio.Event()
        self.room.set()
        self.fail = ""
        """`write` or `drain`: the next one fails as on a closed pipe."""

    async def until_said(self, count: int) -> None:
        await until(lambda: len(self.said) >= count)

    async def _echo(self, method: str, params: dict[str, Any]) -> Any:
        return [method, params]

    async def _served(self, method: str, params: dict[str, Any] | bytes, _answer: object = None) -> Any:
        found = json.loads(params) if isinstance(params, bytes) else params
        self.calls.append((method, found))
        return await self.serve(method, found)

    async def _refused(self, method: str, line: bytes, error: HostError) -> Any:
        self.refused.append((method, line))
        raise error

    def _write(self, data: bytes) -> None:
        self._maybe_fail("write")
        assert data.endswith(b"\n")
        lines = data.splitlines()
        self.writes.append(len(lines))
        self.said += map(json.loads, lines)

    async def _drain(self) -> None:
        self._maybe_fail("drain")
        await self.room.wait()

    def _maybe_fail(self, what: str) -> None:
        if self.fail == what:
            self.fail = ""
            raise BrokenPipeError("nobody reads")


class Talk(_Plugin):
    """A session of latticed-stdio-1."""

    def __init__(self) -> None:
        super().__init__()
        self.flows: list[bool] = []
        self.broken: list[tuple[str, str]] = []
        self.session = JsonRpcSession(
            write=self._write,
            serve=self._served,
            refuse=self._refused_at_once,
            flow=self.flows.append,
            broken=lambda code, reason: self.broken.append((code, reason)),
            may_write=lambda: self.room.is_set() and self.fail != "drain",
            drain=self._drain,
        )

    def _refused_at_once(self, method: str, line: bytes, error: HostError, answer: Callable[..., None]) -> None:
        self.refused.append((method, line))
        answer(None, error)

    def hear(self, *messages: dict[str, Any]) -> None:
        """What the plugin sends, in one piece."""
        self.session.feed(b"".join(json.dumps({"jsonrpc": "2.0", **one}).encode() + b"\n" for one in messages))

    def broken_code(self) -> str:
        ((code, _),) = self.broken
        return code


class Call(_Plugin):
    """An invocation of stdio-json-v1."""

    def __init__(self, *, max_line_bytes: int = 1 << 20, max_host_calls: int = 64) -> None:
        super().__init__()
        self.flows: list[bool] = []
        self.invocation = Invocation(
            answer=self._write,
            serve=self._served,
            refuse=self._refused,
            max_line_bytes=max_line_bytes,
            max_host_calls=max_host_calls,
            flow=self.flows.append,
            drain=self._drain,
        )

    def hear(self, *messages: dict[str, Any]) -> None:
        self.invocation.feed(b"".join(json.dumps(one).encode() + b"\n" for one in messages))

    def call(self, number: int | str, method: str, **params: Any) -> None:
        self.hear({"host_call": {"id": number, "method": method, "params": params}})


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[Talk]:
    talk = Talk()
    try:
        yield talk
    finally:
        talk.room.set()
        await talk.session.close()


@contextlib.asynccontextmanager
async def invocation(**limits: int) -> AsyncIterator[Call]:
    call = Call(**limits)
    try:
        yield call
    finally:
        call.room.set()
        await call.invocation.close()

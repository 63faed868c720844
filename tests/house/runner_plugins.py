"""The same test plugins for each runner: one calls its host, one exits, one never answers, one never starts.

Add a new runner to WAYS. For what a runner cannot do, WAYS has the reason instead of the plugin.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wasmtime import wat2wasm

from latticed.system.plugin import SystemPlugin
from tests.house import builtins, in_process, wasms

PYTHON = b"""#!/usr/bin/env python3
import os
from latticed.sdk import Plugin

class Test(Plugin):
    def do_get(self, payload):
        return self.call("kv.get", key="a")

    def do_crash(self, payload):
        os._exit(3)

    def do_spin(self, payload):
        while True:
            pass

Test().run()
"""

_NEVER_ANSWERS = b"#!/bin/sh\nwhile read -r line; do :; done\n"
_NEVER_ENDS = b"#!/bin/sh\nread -r line <&3\n"
_CALL, _PREFIX = '{"method":"kv.get","params":{"key":"a"}}', '{"ok":true,"message":"","result":'
_CALLS = '(import "latticed" "call" (func $call (param i32 i32) (result i64)))'
_INVOKE = f"""
  (local $answer i64) (local $size i32) (local $reply i32) (local $first i32)
  ;; {{"action": "...: the first letter tells them apart
  (local.set $first (i32.load8_u offset=12 (local.get $at)))
  (if (i32.eq (local.get $first) (i32.const {ord("c")})) (then (unreachable)))
  (if (i32.eq (local.get $first) (i32.const {ord("s")})) (then (loop $for_ever (br $for_ever))))
  (local.set $answer (call $call (i32.const 16) (i32.const {len(_CALL)})))
  (local.set $size (i32.wrap_i64 (local.get $answer)))
  (local.set $reply (call $alloc (i32.add (local.get $size) (i32.const {len(_PREFIX) + 1}))))
  (memory.copy (local.get $reply) (i32.const 256) (i32.const {len(_PREFIX)}))
  (memory.copy (i32.add (local.get $reply) (i32.const {len(_PREFIX)}))
    (i32.wrap_i64 (i64.shr_u (local.get $answer) (i64.const 32))) (local.get $size))
  (i32.store8 (i32.add (local.get $reply) (i32.add (local.get $size) (i32.const {len(_PREFIX)}))) (i32.const 125))
  (i64.or (i64.shl (i64.extend_i32_u (local.get $reply)) (i64.const 32))
    (i64.extend_i32_u (i32.add (local.get $size) (i32.const {len(_PREFIX) + 1}))))
"""
_MODULE = wasms.module(_INVOKE, imports=_CALLS, more=wasms.says(16, _CALL) + wasms.says(256, _PREFIX))
_LOOPS = wasms.module(more='(func (export "_initialize") (loop $for_ever (br $for_ever)))')


class Built(SystemPlugin):
    """The same as PYTHON, as a built-in plugin."""

    async def started(self) -> None:
        self.over = asyncio.Event()

    async def run(self) -> None:
        await self.over.wait()

    async def do_get(self, _payload: Any) -> Any:
        return await self.host.call("kv.get", key="a")

    async def do_crash(self, _payload: Any) -> Any:
        self.over.set()
        await self.do_spin(None)

    async def do_spin(self, _payload: Any) -> Any:
        await asyncio.sleep(3600)


class BuiltNever(Built):
    """Does not come to an end with its start."""

    async def started(self) -> None:
        await asyncio.sleep(3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A plugin for one runner: its bundle, and the outcomes of its invocations.

    `calls`: the invocation that calls kv.get, and whether a denial shows in the reply; `declares` is enough for it,
    `declares_less` is not. `crash`: the invocation that ends the plugin, and its code; `dies`: it is restarted.
    `never`: an artifact that fails to start, and its code. `limit`: the invocation that exceeds a limit, and its code.
    `tampered`: changing the artifact on disk stops it. In place of each of these there may be the reason why this
    runner has none.

    `builtin`: the class of a built-in plugin, which has no artifact; `never` has a class, too, then.
    """

    runner: str
    artifact: bytes = b""
    builtin: type[SystemPlugin] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    declares: tuple[str, ...] = ("kv:read",)
    declares_less: tuple[str, ...] = ("log:write",)
    health: str = "healthy"
    calls: str | tuple[str, bool] = ("get", True)
    crash: str | tuple[str, str] = ("crash", "exited")
    dies: bool = True
    never: str | tuple[Any, str] = "it is not executed"
    limit: str | tuple[str, str] = ("spin", "deadline_exceeded")
    tampered: str | bool = True
    toml: str = ""

    def id(self, name: str = "demo") -> str:
        """The id of its plugin `name`: demo, or less, which declares less."""
        return f"{'latticed' if self.builtin else 'acme'}.{name}"


_SWIFT = "[plugin_limits]\ninvoke_timeout_s = 1\n"
_NO_TIME = "[supervision]\nstart_deadline_s = 1\n"

WAYS = {
    "noop": Way(
        runner="noop",
        artifact=PYTHON,
        toml='[runners]\nsystem = "noop"\n',
        health="unknown",
        calls="it is not executed",
        crash="nothing runs",
        limit="nothing is carried out",
    ),
    "process-stdio-json-v1": Way(
        runner="process",
        artifact=PYTHON,
        dies=False,
        never=(_NEVER_ENDS, "start_timeout"),
        toml=_SWIFT,
    ),
    "process-latticed-stdio-1": Way(
        runner="process",
        artifact=PYTHON,
        fields={"v2": True, "runtime": {"protocol": "latticed-stdio-1"}},
        never=(_NEVER_ANSWERS, "start_timeout"),
        toml=_SWIFT,
    ),
    "wasm": Way(
        runner="wasm",
        artifact=bytes(wat2wasm(_MODULE)),
        fields={"type": "wasm"},
        crash=("crash", "wasm_trap"),
        never=(bytes(wat2wasm(_LOOPS)), "deadline_exceeded"),
        toml=_SWIFT,
    ),
    "worker": Way(
        runner="worker",
        artifact=b"{{kv:default/a}}" * 64,
        fields={"type": "worker"},
        declares=("worker:route", "kv:read"),
        declares_less=("worker:route",),
        calls=("render", False),
        crash="a template is data",
        never="a template is data",
        limit=("render", "output_too_large"),
        toml='[http]\nlisten = "127.0.0.1:0"\n',
    ),
    "builtin": Way(
        runner="builtin",
        builtin=Built,
        never=(BuiltNever, "start_timeout"),
        tampered="its files are read at the daemon's start, and compared once when its code is loaded",
        toml=_SWIFT,
    ),
}
"""`noop` and templates have nothing that could end, hang or compute without end."""


ABLE = ("calls", "crash", "never", "limit", "tampered")


@contextlib.asynccontextmanager
async def opened(way: Way, toml: str, artifact: Any = None) -> AsyncIterator[in_process.Home]:
    """A daemon with the settings `toml`; for a built-in's way it brings latticed.demo (by `artifact`, if that is given)
    and latticed.less, which declares less.
    """
    with tempfile.TemporaryDirectory(prefix="latticed-") as folder:
        brought = ()
        if way.builtin is not None:
            kinds = {"demo": (artifact or way.builtin, way.declares), "less": (way.builtin, way.declares_less)}
            brought = tuple(
                builtins.made(Path(folder), kind, name=name, capabilities=list(declares))
                for name, (kind, declares) in kinds.items()
            )
        async with in_process.opened(real=True, toml=toml, builtins=brought) as home:
            yield home


def reason(way: Way, what: str) -> str:
    """Why this runner cannot do that; empty if it can."""
    found = getattr(way, what)
    return found if isinstance(found, str) else ""


def start_toml(way: Way) -> str:
    """Settings under which `never` fails soon: by the supervisor, or by the limit of a module's own start."""
    return way.toml if way.never[1] == "deadline_exceeded" else way.toml + _NO_TIME

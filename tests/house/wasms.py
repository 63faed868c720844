"""Wasm plugins without a daemon: the real runner, sandbox, wasmtime, broker and ledger; modules are written as text.

async with wasms.bench(tmp_path) as bench:
    instance = await bench.start(wasms.module(invoke="..."))
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import wasmtime

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.bundle import read
from latticed.host import call as service
from latticed.host.call import Caller
from latticed.host.kv import KvCalls, quota_of
from latticed.host.log import LogCalls
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.model.audit import Event
from latticed.model.manifest import Manifest
from latticed.runners.child_spawner import ChildSpawner
from latticed.runners.contract import PluginToRun
from latticed.runners.kept_copies import KeptCopies
from latticed.runners.output import Outputs
from latticed.runners.stdio_child import StdioChild
from latticed.runners.wasm import Caps, WasmRunner
from latticed.sandbox.levels import Level, Provided
from latticed.settings import HostCallSettings, PluginLimitSettings, SandboxSettings
from tests.house import bundles, children

ALLOC = """
  (global $free (mut i32) (i32.const 4096))
  (func $alloc (export "alloc") (param $length i32) (result i32) (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (local.get $at) (local.get $length)))
    (local.get $at))
"""
CAPABILITIES = ("kv:read", "kv:write", "log:write")


def module(invoke: str = "(i64.const 0)", *, more: str = "", imports: str = "", alloc: str = ALLOC) -> str:
    """A small module: `invoke` is the body of the function, `more` is added beside it."""
    return f"""(module {imports} (memory (export "memory") 2) {alloc} {more}
      (func (export "invoke") (param $at i32) (param $length i32) (result i64) {invoke}))"""


def says(at: int, text: str) -> str:
    """A data segment of that text."""
    quoted = text.replace('"', '\\"')
    return f'(data (i32.const {at}) "{quoted}")'


def packed(at: int, length: int) -> str:
    """What `invoke` returns for those bytes."""
    return f"(i64.const {at << 32 | length})"


def command(start: str, *, more: str = "", imports: str = "") -> str:
    """A WASI command: `start` is the body of `_start`."""
    return f'(module {imports} (memory (export "memory") 2) {more} (func (export "_start") {start}))'


def wasi(name: str, parameters: str, results: str = "(result i32)") -> str:
    """An import of preview 1, as $name."""
    return f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {parameters}) {results}))'


@dataclass(kw_only=True)
class Bench:
    """`exits` has the reported exits of plugins; `lines` what they wrote to stderr or logged."""

    root: Path
    wasm: WasmRunner
    spawner: ChildSpawner
    broker: Broker
    exits: list[tuple[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    instances: list[StdioChild] = field(default_factory=list)

    @property
    def entries(self) -> list[Path]:
        """The files of the cache, sorted."""
        return sorted((self.root / "state/cache/wasm").glob("*"))

    def plugin(self, source: str | bytes, **fields: Any) -> tuple[PluginToRun, Path]:
        """A plugin and the directory of its pair; `fields` go into a v2 manifest."""
        artifact = source if isinstance(source, bytes) else bytes(wasmtime.wat2wasm(source))
        raw = bundles.manifest_v2(type="wasm", capabilities=list(CAPABILITIES), **fields)
        raw |= {"publisher": "acme", "digest_sha256": hashlib.sha256(artifact).hexdigest(), "signature_ed25519": "x"}
        directory = bundles.write(self.root / raw["digest_sha256"][:16], raw, artifact)
        return PluginToRun(id=raw["id"], identity="1" * 64, manifest=msgspec.convert(raw, Manifest)), directory

    async def start(self, source: str | bytes, **fields: Any) -> StdioChild:
        """Start it, as the supervisor does; it is stopped when the bench is cleared."""
        plugin, directory = self.plugin(source, **fields)
        rights = Rights(declared=frozenset(CAPABILITIES), granted=frozenset(CAPABILITIES))
        gate = self.broker.gate(Caller(plugin_id=plugin.id), rights)
        owners = frozenset({os.getuid()})
        with read.open_bundle(directory, limits=read.ReadLimits(), owners=owners) as pair:
            instances = await self.wasm.start(plugin, pair, gate, lambda *said: self.exits.append(said))
        self.instances.append(instances)
        return instances


@contextlib.asynccontextmanager
async def bench(root: Path, *, level: str = "", caps: Caps | None = None, **limits: Any) -> AsyncIterator[Bench]:
    """`level`: the host gives no more than that; `limits` are of [plugin_limits]."""
    probed = children.probed()
    if level:
        probed = replace(probed, provided=Provided(level=Level.of(level), features=frozenset({"threads"})))
    spawner = ChildSpawner(probed, SandboxSettings(floor=level or "isolated"), PluginLimitSettings(**limits))
    state = root / "state"
    state.mkdir(exist_ok=True)
    lines: list[str] = []
    events: list[Event] = []
    async with open_ledger(state, clock=SystemClock()) as ledger:

        def record(event: Event, done: Callable[[Any, BaseException | None], None]) -> None:
            events.append(event)
            ledger.note(event, done)

        kv = KvCalls(ledger, quota=quota_of(HostCallSettings()))
        log = LogCalls(lambda _level, _plugin_id, message, _fields: lines.append(message))
        services = service.table((*kv.calls(), *log.calls()))
        broker = Broker(services, record=record, clock=SystemClock(), gate_limits=GateLimits())
        outputs = Outputs(SystemClock(), lambda _plugin_id, line: lines.append(line))
        wasm = WasmRunner(spawner, outputs, KeptCopies(), state, caps=caps)
        one = Bench(root=root, wasm=wasm, spawner=spawner, broker=broker, lines=lines, events=events)
        try:
            yield one
        finally:
            for instances in one.instances:
                await instances.stop(5)

"""P11: loading compiled wasm beside compiling it, and a call of a small module beside wasmtime without us.

Measured in this process: what the sandbox costs on top is a child's start, once in its life. Both sides are given the
same engine settings for compiling; for calls the reference is wasmtime as its own documentation uses it.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import wasmtime

from benchmarks import rows
from benchmarks.bench import REPOSITORY
from latticed.runners.wasm_cache import Cache, Subject
from latticed.runners.wasm_inside import engine as engines
from latticed.runners.wasm_inside import status, streams
from latticed.runners.wasm_inside.calls import GuestCalls
from latticed.runners.wasm_inside.run import GuestHost, Orders
from latticed.sandbox import artifact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.bench import Bench

FASTER = 300
WANTED_CALL = 1.0
_SAMPLES = REPOSITORY / "plugins-sample"
_SUBJECT = Subject(sha256="0" * 64, engine="bench", flags="", target="")
_REQUEST = {"action": "greet", "payload": {"name": "Ada"}}
_ECHO = """(module
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 1024))
  (data (i32.const 0) "{\\"ok\\":true,\\"message\\":\\"hello\\"}")
  (func (export "alloc") (param $length i32) (result i32)
    (global.get $free)
    (global.set $free (i32.add (global.get $free) (local.get $length))))
  (func (export "invoke") (param i32 i32) (result i64) (i64.const 29)))"""
_ORDERS = Orders(
    fuel=0, start_s=3600, message_s=3600, memory_bytes=256 << 20, table_elements=100_000, arguments=("bench",)
)


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        return [*_loading(bench, place), _calling(bench)]


def _loading(bench: Bench, place: Path) -> list[rows.Row]:
    """The sample in Zig: loaded as a running child does, and found in the cache as the daemon does."""
    module = (_SAMPLES / "hello-wasi" / "artifact").read_bytes()
    engine = engines.make(fuel=False)
    code = bytes(wasmtime.Module(engine, module).serialize())
    cache = Cache(place / "cache", place / "key")
    _keep(cache, code)
    bench_pairs = max(bench.pairs, 3)
    loads = rows.interleave(
        lambda: _timed(lambda: wasmtime.Module.deserialize(engine, code), 20),
        lambda: _timed(lambda: wasmtime.Module(engine, module), 1),
        count=bench_pairs,
    )
    finds = rows.interleave(
        lambda: _timed(lambda: _find(cache), 20), lambda: _timed(lambda: _find(cache), 20), count=bench_pairs
    )
    ratio, met = rows.times_faster(loads, FASTER)
    return [
        rows.Row(
            target="P11",
            what=f"loading compiled code ({len(code) >> 10} KiB, of a module of {len(module) >> 10} KiB)",
            ours=rows.seconds(loads.our_median),
            reference=f"{rows.seconds(loads.their_median)} compiling it",
            ratio=ratio,
            wanted=f"≥ {FASTER}× faster",
            met=met,
            samples=rows.samples(loads),
        ),
        rows.Row(
            target="P11", what="finding it in the cache: read, MAC, sealed memfd", ours=rows.seconds(finds.our_median)
        ),
    ]


def _calling(bench: Bench) -> rows.Row:
    """One invocation in a fresh instance, request and reply as JSON on both sides."""
    count = bench.some(2_000, 300)
    binary = bytes(wasmtime.wat2wasm(_ECHO))
    ours, theirs = _our_call(binary), _bare_call(binary)
    if ours() != theirs():
        raise RuntimeError("the two sides answer differently")
    pairs = rows.interleave(lambda: _timed(ours, count), lambda: _timed(theirs, count), count=bench.pairs)
    ratio, met = rows.at_most(pairs, WANTED_CALL)
    return rows.Row(
        target="P11",
        what="a call of a small module in a fresh store, limits and deadline in force",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} wasmtime alone, no limits",
        ratio=ratio,
        wanted=f"≤ {WANTED_CALL}×",
        met=met,
        samples=rows.samples(pairs),
    )


def _our_call(binary: bytes) -> Callable[[], Any]:
    host = GuestHost(_ORDERS, engines.make(fuel=False))

    def fresh(store: wasmtime.Store) -> None:
        host.limit(store)
        host.budget.renew(_ORDERS.message_s)

    log = streams.Streams(host.budget, lambda: None, streams.LOG_ALONE)
    module = wasmtime.Module(host.engine, binary)
    calls = GuestCalls(module, host.engine, streams=log, fresh=fresh, ask=lambda method, params: {method: params})

    def call() -> Any:
        answer = calls.invoke(_REQUEST)
        host.budget.stop()
        return answer

    return call


def _bare_call(binary: bytes) -> Callable[[], Any]:
    engine = wasmtime.Engine()
    linker, module = wasmtime.Linker(engine), wasmtime.Module(engine, binary)

    def call() -> Any:
        store = wasmtime.Store(engine)
        exports = linker.instantiate(store, module).exports(store)
        memory, alloc, invoke = exports["memory"], exports["alloc"], exports["invoke"]
        assert isinstance(memory, wasmtime.Memory)
        assert isinstance(alloc, wasmtime.Func)
        assert isinstance(invoke, wasmtime.Func)
        data = json.dumps(_REQUEST).encode()
        at = alloc(store, len(data))
        memory.write(store, data, at)
        packed = invoke(store, at, len(data))
        start, length = packed >> 32, packed & 0xFFFFFFFF
        return json.loads(memory.read(store, start, start + length))

    return call


def _keep(cache: Cache, code: bytes) -> None:
    fd = artifact.memory()
    try:
        os.write(fd, code)
        artifact.close_for_good(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        cache.keep(_SUBJECT, fd)
    finally:
        os.close(fd)


def _find(cache: Cache) -> None:
    fd = cache.find(_SUBJECT)
    if fd is None:
        raise RuntimeError("expected it in the cache")
    status.read_all(fd)


def _timed(work: Callable[[], object], times: int) -> float:
    """Seconds for one of `times`."""
    began_s = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began_s) / times

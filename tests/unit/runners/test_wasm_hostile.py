"""Hostile wasm modules: each ends with a code for what it did, within its limits, and no other plugin ends."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest
import wasmtime

from latticed.model.errors import Problem
from latticed.runners import wasm_children
from latticed.runners.wasm import Caps
from latticed.runners.wasm_compiler import Bounds
from tests.house import children, in_process, wasms

FOREVER = "(loop $again (br $again))"
_A_DAY = {"start_s": 86_400, "message_s": 86_400}
NO_PLUGIN = {  # refused by the compiler: bytes or text, code, words
    "nothing": (b"", "wasm_invalid", "expected a WebAssembly module"),
    "a script": (b"#!/bin/sh\nexit 0\n", "wasm_invalid", "expected a WebAssembly module"),
    "text": (b"(module (func))", "wasm_invalid", "expected a WebAssembly module"),
    "a component": (b"\0asm\x0d\0\x01\0", "wasm_invalid", "found a component"),
    "cut off": (b"\0asm\x01\0\0\0\x01\x05\x01", "wasm_invalid", "unexpected end"),
    "ill typed": (
        b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x0a\x04\x01\x02\0\x0b",
        "wasm_invalid",
        "type mismatch",
    ),
    "no way in": ('(module (func (export "run")))', "wasm_invalid", "expected the module to export _start.*found run"),
    "a start with an argument": ('(module (func (export "_start") (param i32)))', "wasm_invalid", "to export _start"),
    "invoke of another type": (
        wasms.module("(i32.const 0)").replace("(result i64)", "(result i32)"),
        "wasm_invalid",
        "to export _start",
    ),
    "a foreign import": (
        wasms.command("", imports='(import "env" "system" (func (param i32)))'),
        "wasm_import",
        "found env.system",
    ),
    "another preview": (
        wasms.command("", imports='(import "wasi_unstable" "fd_write" (func))'),
        "wasm_import",
        "found wasi_unstable.fd_write",
    ),
    "no such call": (
        wasms.command("", imports='(import "wasi_snapshot_preview1" "fd_steal" (func))'),
        "wasm_import",
        "found wasi_snapshot_preview1.fd_steal",
    ),
    "the host's call from a command": (
        wasms.command("", imports='(import "latticed" "call" (func (param i32 i32) (result i64)))'),
        "wasm_import",
        "found latticed.call",
    ),
    "a call of another type": (
        wasms.module(imports='(import "latticed" "call" (func (param i32) (result i64)))'),
        "wasm_import",
        "found another type",
    ),
    "a table of somebody else": (
        wasms.module(imports='(import "latticed" "call" (table 1 funcref))'),
        "wasm_import",
        "found another type",
    ),
    "an import whose name is long in bytes": (
        wasms.command("", imports=f'(import "{chr(0x1F600) * 400}" "x" (func))'),
        "wasm_import",
        "found .",
    ),
    "a reactor's start that is no function": (
        wasms.module(more='(global (export "_initialize") i32 (i32.const 0))'),
        "wasm_invalid",
        "_initialize to be a function",
    ),
    "a reactor's start with an argument": (
        wasms.module(more='(func (export "_initialize") (param i32))'),
        "wasm_invalid",
        "_initialize to be a function",
    ),
    "threads": (
        '(module (memory (export "memory") 1 1 shared) (func (export "_start")))',
        "wasm_invalid",
        "threads|shared",
    ),
    "two memories": ('(module (memory 1) (memory 1) (func (export "_start")))', "wasm_invalid", "multi"),
    "a 64-bit memory": ('(module (memory i64 1) (func (export "_start")))', "wasm_invalid", "memory64"),
}
AT_START = {  # ends before it has answered `initialize`: text, code, words
    "a start function that never returns": (
        wasms.module(more=f"(func $f {FOREVER}) (start $f)"),
        "deadline_exceeded",
        "still computing",
    ),
    "a command that never reads": (wasms.command(FOREVER), "deadline_exceeded", "still computing"),
    "a reactor that never returns": (
        wasms.module(more=f'(func (export "_initialize") {FOREVER})'),
        "deadline_exceeded",
        "still computing",
    ),
    "a memory that does not fit": (
        wasms.command("").replace('"memory") 2', '"memory") 129'),
        "out_of_memory",
        "129 pages",
    ),
    "a table that does not fit": (
        wasms.command("", more="(table 200000 funcref)"),
        "out_of_memory",
        "200000 elements",
    ),
    "many tables": (wasms.command("", more="(table 1 funcref)" * 5), "out_of_memory", "table count"),
    "a trap": (wasms.command("unreachable"), "wasm_trap", "`unreachable`.*KiB"),
    "recursion": (wasms.command("(call $r)", more="(func $r (call $r))"), "stack_overflow", "stack"),
    "a data segment outside": (
        wasms.module(more='(data (i32.const 131072) "x")'),
        "wasm_trap",
        "out of bounds",
    ),
    "an end": (wasms.command(""), "exited", "exited 0"),
    "an end with a status": (
        wasms.command("(call $proc_exit (i32.const 7))", imports=wasms.wasi("proc_exit", "i32", "")),
        "exited",
        "exited 7",
    ),
    "a command that has no memory to write from": (  # errno 21: fault
        f"""(module {wasms.wasi("fd_write", "i32 i32 i32 i32")} (func (export "_start")
          (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0))
          (if (i32.ne (i32.const 21)) (then unreachable))))""",
        "exited",
        "exited 0",
    ),
    "an end in the small way": (
        wasms.module(
            more="(func $f (call $proc_exit (i32.const 0))) (start $f)", imports=wasms.wasi("proc_exit", "i32", "")
        ),
        "exited",
        "before it was asked",
    ),
}
CHATTER = wasms.wasi("fd_write", "i32 i32 i32 i32")
WRITE = "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
AT_INVOKE = {  # ends when it is invoked: body, what stands beside it, code, words
    "a loop": (FOREVER + "(i64.const 0)", "", "deadline_exceeded", "still computing"),
    "recursion": ("(call $r) (i64.const 0)", "(func $r (call $r))", "stack_overflow", "stack"),
    "a division by zero": ("(i64.div_u (i64.const 1) (i64.const 0))", "", "wasm_trap", "divide by zero"),
    "an answer that is not there": (wasms.packed(131_000, 1_000), "", "wasm_trap", "to be in the module's memory"),
    "a wild address": ("(i64.const 0xfffffff000000001)", "", "wasm_trap", "to be in the module's memory"),
}
BAD_ANSWERS = {  # keeps running: text at 16
    "not JSON": ("hello", "JSON object"),
    "a list": ("[]", "JSON object"),
    "another line": ('{"ok":true}\\0a{"id":1}', "JSON object"),
    "depth": ("[" * 30_000, "JSON object"),
    "no reply": ("{}", "ok, message and result"),
}


UNCARRIED = {  # keeps running: the bytes of an answer that some readers of JSON would take
    "NaN": b'{"ok":true,"result":NaN}',
    "Infinity": b'{"ok":true,"result":[-Infinity]}',
    "a number too large": b'{"ok":true,"result":1e400}',
    "a lone surrogate": rb'{"ok":true,"message":"\ud800"}',
    "a lone surrogate in a name": rb'{"ok":true,"result":{"\udfff":1}}',
    "UTF-16": '{"ok":true}'.encode("utf-16"),
    "UTF-32": '{"ok":true}'.encode("utf-32"),
    "bytes that are no text": b'{"ok":true,"message":"\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"ok":true}',
    "deeper than we take": b'{"ok":true,"result":' + b"[" * 150 + b"]" * 150 + b"}",
    "longer than a line once it is written again": b'{"ok":true,"result":[1' + b",1e15" * 60_000 + b"]}",
}


@pytest.mark.parametrize("name", NO_PLUGIN)
async def test_invalid_module_is_refused_by_the_compiler(tmp_path, name):
    """It is never run, and nothing is cached."""
    source, code, words = NO_PLUGIN[name]
    artifact = source if isinstance(source, bytes) else bytes(wasmtime.wat2wasm(source))
    async with wasms.bench(tmp_path) as bench:
        with pytest.raises(Problem, match=words) as refused:
            await bench.start(artifact)
        assert refused.value.code == code
        assert bench.entries == []
        assert bench.exits == []


async def test_compiler_out_of_memory_is_not_wasm_invalid(tmp_path):
    """It may run out at any step: the module is too large, not invalid."""
    data = "x" * (8 << 20)
    module = bytes(
        wasmtime.wat2wasm(f'(module (memory (export "memory") 200) (func (export "_start")) (data "{data}"))')
    )
    codes = set()
    for mib in range(28, 64, 5):
        async with wasms.bench(tmp_path, caps=Caps(compile=Bounds(memory_bytes=mib << 20))) as bench:
            with pytest.raises(Problem) as failed:
                await bench.start(module)
            codes.add(failed.value.code)
    assert "out_of_memory" in codes
    assert codes <= {"out_of_memory", "exited"}  # `exited`: it was compiled, and has nothing to say


@pytest.mark.parametrize("name", AT_START)
async def test_module_that_fails_at_start_fails_start_with_its_reason(tmp_path, name):
    """No exit is reported to the supervisor, and no process is left."""
    source, code, words = AT_START[name]
    async with wasms.bench(tmp_path, memory_mib=8, caps=Caps(start_s=0.3)) as bench:
        with pytest.raises(Problem, match=words) as failed:
            await bench.start(source)
        assert failed.value.code == code
        assert bench.exits == []
        assert not children.descendants(os.getpid())


@pytest.mark.parametrize("name", AT_INVOKE)
async def test_module_that_ends_during_invocation_fails_it_and_reports_exit(tmp_path, name):
    """Both have the same code; the plugin can be started again."""
    body, more, code, words = AT_INVOKE[name]
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(wasms.module(body, more=more), runtime={"limits": {"invoke_timeout_s": 1}})
        with pytest.raises(Problem) as failed:
            await instance.invoke("go", {})
        assert failed.value.code == code
        await in_process.until(lambda: bench.exits, "the exit")
        (exit_,) = bench.exits
        assert exit_[0] == code
        assert words in exit_[1]
        assert not children.descendants(os.getpid())
        await bench.start(wasms.module(body, more=more))


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_invalid_answer_fails_only_its_invocation(tmp_path, name):
    """The plugin keeps running: its next answer may be valid."""
    answer, words = BAD_ANSWERS[name]
    size = len(answer.replace("\\0a", "\n"))
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(wasms.module(wasms.packed(16, size), more=wasms.says(16, answer)))
        for _ in range(2):
            with pytest.raises(Problem, match=words):
                await instance.invoke("go", {})
        assert (await instance.check()).health == "healthy"
        assert bench.exits == []


@pytest.mark.parametrize("name", UNCARRIED)
async def test_unrepresentable_answer_is_plugin_error(tmp_path, name):
    """docs/write/wasm.md says so; any client may have caused it, so the plugin keeps running."""
    answer = UNCARRIED[name]
    vector = "".join(f"\\{byte:02x}" for byte in answer)
    more = f'(data (i32.const 16) "{vector}")'
    source = wasms.module(wasms.packed(16, len(answer)), more=more).replace('"memory") 2)', '"memory") 24)')
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(source)
        for _ in range(2):
            with pytest.raises(Problem) as failed:
                await instance.invoke("go", {})
            assert failed.value.code == "plugin_error"
        assert (await instance.check()).health == "healthy"
        assert bench.exits == []


async def test_answer_over_the_message_limit_is_refused(tmp_path):
    """The module has more memory than that."""
    async with wasms.bench(tmp_path) as bench:
        source = wasms.module(wasms.packed(0, 1_500_000)).replace('"memory") 2', '"memory") 32')
        instance = await bench.start(source)
        with pytest.raises(Problem, match="at most 1048576 bytes"):
            await instance.invoke("go", {})
        assert bench.exits == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x" * 65_000, "message_too_large"),
        ("hello\\0a", "protocol_error"),
        ('{"jsonrpc":"2.0","id":7,"result":1}\\0a', "protocol_error"),
    ],
    ids=["no newline", "no message", "an answer to nothing"],
)
async def test_wasi_command_that_writes_no_messages_fails_to_start(tmp_path, text, code):
    """Lines without an end, text, answers without a request: each has its code, and no process is left."""
    size = len(text.replace("\\0a", "\n"))
    vector = "".join(f"\\{byte:02x}" for byte in struct.pack("<II", 16, size))
    head = f'(data (i32.const 0) "{vector}")'
    more = head + wasms.says(16, text)
    async with wasms.bench(tmp_path, caps=Caps(start_s=2)) as bench:
        with pytest.raises(Problem) as failed:
            await bench.start(wasms.command(f"(loop $again {WRITE} (br $again))", imports=CHATTER, more=more))
        assert failed.value.code == code
        assert not children.descendants(os.getpid())


async def test_wasm_memory_grow_fails_beyond_the_limit(tmp_path):
    """It returns -1, as WebAssembly specifies, and the module continues."""
    grow = """(loop $again (br_if $again (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0))))
      (if (i32.ne (memory.size) (i32.const 128)) (then unreachable))"""
    answer = '{"ok":true,"message":"128 pages"}'
    async with wasms.bench(tmp_path, memory_mib=8) as bench:
        instance = await bench.start(wasms.module(grow + wasms.packed(16, len(answer)), more=wasms.says(16, answer)))
        for _ in range(2):
            assert (await instance.invoke("go", {}))["message"] == "128 pages"


async def test_all_wasm_memory_up_to_the_limit_is_usable(tmp_path):
    fill = """(drop (memory.grow (i32.sub (i32.const 1024) (memory.size))))
      (memory.fill (i32.const 1024) (i32.const 7) (i32.const 67107840))"""
    answer = '{"ok":true,"message":"full"}'
    async with wasms.bench(tmp_path, memory_mib=64) as bench:
        instance = await bench.start(wasms.module(fill + wasms.packed(16, len(answer)), more=wasms.says(16, answer)))
        assert (await instance.invoke("go", {}))["message"] == "full"


async def test_wasm_table_grow_fails_beyond_the_limit(tmp_path):
    """The limit is 100,000 elements."""
    grow = """(loop $again (br_if $again (i32.ge_s (table.grow (ref.null func) (i32.const 1000)) (i32.const 0))))
      (if (i32.ne (table.size) (i32.const 100000)) (then unreachable))"""
    answer = '{"ok":true}'
    more = wasms.says(16, answer) + "(table 0 funcref)"
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(wasms.module(grow + wasms.packed(16, len(answer)), more=more))
        assert (await instance.invoke("go", {}))["ok"]


async def test_used_up_fuel_ends_the_wasm_plugin(tmp_path):
    """The manifest's fuel is for each message; the plugin ends with fuel_exhausted, long before its deadline."""
    spend = f"""(local $left i32) (local.set $left (i32.load8_u (i32.add (local.get $at) (i32.const 12))))
      (if (i32.eq (local.get $left) (i32.const 98)) (then {FOREVER}))"""
    answer = '{"ok":true}'
    source = wasms.module(spend + wasms.packed(16, len(answer)), more=wasms.says(16, answer))
    limits = {"limits": {"fuel": 100_000, "invoke_timeout_s": 30}}
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(source, runtime=limits)
        for _ in range(3):
            assert (await instance.invoke("a", {}))["ok"]
        with pytest.raises(Problem) as failed:
            await instance.invoke("bb", {})
        assert failed.value.code == "fuel_exhausted"
        await in_process.until(lambda: bench.exits, "the exit")
        assert bench.exits[0][0] == "fuel_exhausted"


LARGE_OR_LOOP = f"""(if (i32.eq (i32.load8_u (i32.add (local.get $at) (i32.const 12))) (i32.const 98)) (then {FOREVER}))
  (memory.fill (i32.const 65536) (i32.const 120) (i32.const 900000))
  (memory.copy (i32.const 65536) (i32.const 16) (i32.const 21))
  (memory.copy (i32.const 965536) (i32.const 37) (i32.const 2))
  {wasms.packed(65_536, 900_002)}"""  # the action "b" loops, any other gets an answer that no pipe holds


async def test_deadline_counts_after_an_answer_that_the_host_read_late(tmp_path):
    """Waiting for the host uses none of the message's time; what is invoked then is ended in its own."""
    source = wasms.module(LARGE_OR_LOOP, more=wasms.says(16, '{"ok":true,"result":""}')).replace(
        '"memory") 2', '"memory") 20'
    )
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(source, runtime={"limits": {"invoke_timeout_s": 1}})
        assert (await instance.invoke("a", {}))["ok"]
        instance._child.stdout.pause_reading()
        for _ in range(2):  # the second begins once the first one's time is over
            with pytest.raises(Problem, match="deadline_exceeded"):
                await instance.invoke("a", {})
        instance._child.stdout.resume_reading()
        with pytest.raises(Problem, match="deadline_exceeded"):
            await instance.invoke("b", {})
        await in_process.until(lambda: bench.exits, "the exit")
        assert [code for code, _ in bench.exits] == ["deadline_exceeded"]


async def test_wasm_child_that_does_not_end_a_loop_is_ended_by_the_daemon(tmp_path, monkeypatch):
    """Its own clock is set to a day here, as if the module had taken over the process."""
    request = wasm_children.request
    monkeypatch.setattr(
        wasm_children,
        "request",
        lambda name, orders, **fields: request(name, {**orders, **_A_DAY} if name == "run" else orders, **fields),
    )
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(
            wasms.module(FOREVER + "(i64.const 0)"), runtime={"limits": {"invoke_timeout_s": 1}}
        )
        with pytest.raises(Problem, match="deadline_exceeded: expected a reply within 1 s"):
            await instance.invoke("go", {})
        waiting = asyncio.create_task(instance.invoke("go", {}))
        await asyncio.sleep(0)
        assert await instance.check() is None
        with pytest.raises(Problem):  # not None, as while it is only busy
            await instance.check()
        with pytest.raises(Problem, match="deadline_exceeded"):
            await waiting
        await in_process.until(lambda: bench.exits, "the exit")
        assert bench.exits == [
            ("deadline_exceeded", "expected it to be done with a message within 1 s, found it still computing")
        ]


async def test_alloc_that_makes_a_host_call_is_wasm_trap(tmp_path):
    """The answer to that call would need alloc again, without end."""
    imports = '(import "latticed" "call" (func $call (param i32 i32) (result i64)))'
    alloc = """(func (export "alloc") (param i32) (result i32)
      (drop (call $call (i32.const 16) (i32.const 2))) (i32.const 64))"""
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(wasms.module(imports=imports, alloc=alloc, more=wasms.says(16, "{}")))
        with pytest.raises(Problem, match="alloc to make no host call") as failed:
            await instance.invoke("go", {})
        assert failed.value.code == "wasm_trap"


async def test_looping_plugin_does_not_delay_another(tmp_path):
    """The other plugin answers until the looping one is ended."""
    good_answer = '{"ok":true,"message":"here"}'
    good_source = wasms.module(wasms.packed(16, len(good_answer)), more=wasms.says(16, good_answer))
    async with wasms.bench(tmp_path) as bench:
        bad = await bench.start(wasms.module(FOREVER + "(i64.const 0)"), runtime={"limits": {"invoke_timeout_s": 1}})
        good = await bench.start(good_source, id="acme.good")
        looping = asyncio.create_task(bad.invoke("go", {}))
        answers = 0
        while not looping.done():
            assert (await good.invoke("go", {}))["message"] == "here"
            answers += 1
        assert isinstance(looping.exception(), Problem)
        assert answers > 1

"""Well-behaved wasm plugins: both ABIs, their environment, their limits, compiled code from the cache."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from latticed.bundle import read
from latticed.ctl import scaffold
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners import wasm_children
from latticed.runners.wasm import Caps
from latticed.runners.wasm_compiler import Bounds, Module
from latticed.sandbox.artifact import memory
from tests.house import children, in_process, leftovers, pages, processes, wasms

SAMPLES = pages.CHECKOUT / "plugins-sample"
HOST = '(import "latticed" "call" (func $call (param i32 i32) (result i64)))'
ANSWER = '{"ok":true,"message":"here"}'
CALLS_AND_ANSWERS = {  # the request of a host call, and what of its answer shows
    '{"method":"kv.put","params":{"key":"a","value":"b"}}': '"result": {"ok": true}',
    '{"method":"kv.get","params":{"key":"missing"}}': '"ok": false',
    '{"method":"kv.get"}': '"code": "bad_params"',
    '{"method":"http.do","params":{}}': '"code": "capability_denied"',
    '{"method":1}': '"code": "bad_params"',
    '{"method":"kv.get","params":[]}': '"code": "bad_params"',
    "[]": '"code": "bad_params"',
    "{": '"code": "bad_params"',
}


async def test_function_module_is_invoked_checked_and_stopped(tmp_path):
    """The sample hello-wasm; its log lines arrive, and no process is left."""
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start((SAMPLES / "hello-wasm/artifact").read_bytes())
        asked = {"action": "greet", "payload": {"name": "Ada ☺"}}
        for _ in range(3):
            answer = await instance.invoke(**asked)
            assert answer == {"ok": True, "message": "hello, host", "result": asked, "error": None}
        assert bench.lines == ["hello, host"] * 3
        assert (await instance.check()).health is Health.HEALTHY
        assert instance.sandbox.startswith(("isolated", "dedicated"))
        assert instance.pid in children.descendants(os.getpid())
        await instance.stop(5)
        assert not children.descendants(os.getpid())
        assert bench.exits == []


async def test_wasi_command_answers_concurrent_invocations_and_keeps_kv_values(tmp_path):
    """The sample hello-wasi, which implements latticed-stdio-1 itself; its count is in kv and survives a restart."""
    async with wasms.bench(tmp_path) as bench:
        fields = json.loads((SAMPLES / "hello-wasi/manifest.json").read_text())
        artifact = (SAMPLES / "hello-wasi/artifact").read_bytes()
        instance = await bench.start(artifact, runtime=fields["runtime"])
        answer = await instance.invoke("greet", {"name": 'Ada "☺"'})
        assert answer == {"ok": True, "message": 'Hello, Ada "☺"!', "result": {"count": 1}, "error": None}
        assert (await instance.invoke("dance", {}))["error"] == "unknown action"
        await instance.stop(5)
        instance = await bench.start(artifact, runtime=fields["runtime"])
        many = await asyncio.gather(*(instance.invoke("greet", None) for _ in range(8)), instance.check())
        assert [one["result"]["count"] for one in many[:-1]] == list(range(2, 10))
        assert bench.lines == ['Hello, Ada "☺"!', *["Hello, world!"] * 8]
        assert bench.exits == []


async def test_module_from_latticectl_new_wasm_answers_any_payload(tmp_path):
    plain = scaffold.manifest("wasm", "c", plugin_id="acme.demo", name="Demo", publisher=None)
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(scaffold.project("wasm", "c", plain)["artifact"])
        for payload in ({}, "x" * 300_000, None, [{"name": "x"}]):
            assert (await instance.invoke("greet", payload))["error"] == 'expected {"name": text}'
        for name in ("x" * 300_000, '"\\', "ä☺"):
            assert (await instance.invoke("greet", {"a": {"name": "}"}, "name": name}))["result"]["hello"] == name


async def test_each_invocation_of_function_module_has_fresh_memory(tmp_path):
    text = '{"ok":true,"result":0}'
    at = text.index("0")
    count = f"(i32.store8 (i32.const {at}) (i32.add (i32.load8_u (i32.const {at})) (i32.const 1)))"
    source = wasms.module(count + wasms.packed(0, len(text)), more=wasms.says(0, text))
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(source)
        assert [(await instance.invoke("count", {}))["result"] for _ in range(3)] == [1, 1, 1]


async def test_stderr_that_one_invocation_closes_is_open_in_the_next(tmp_path):
    """The answer is the errno of a write to it, made before it is closed."""
    text = '{"ok":true,"result":0}'
    at = 64 + text.index("0")
    body = f"""(i32.store8 (i32.const {at}) (i32.add (i32.const 48)
        (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8))))
      (drop (call $fd_close (i32.const 2))) {wasms.packed(64, len(text))}"""
    more = f'(data (i32.const 0) "\\10\\00\\00\\00\\04\\00\\00\\00") {wasms.says(16, "log.")} {wasms.says(64, text)}'
    imports = wasms.wasi("fd_write", "i32 i32 i32 i32") + wasms.wasi("fd_close", "i32")
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(wasms.module(body, more=more, imports=imports))
        assert [(await instance.invoke("any", {}))["result"] for _ in range(3)] == [0, 0, 0]
        await instance.stop(5)
        assert "".join(bench.lines) == "log." * 3


async def test_function_module_may_use_wasi_at_start(tmp_path):
    """Its start function and `_initialize` run for each invocation: stderr is the log, stdout is closed."""
    write = "(call $fd_write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8))"
    more = f"""(data (i32.const 0) "\\10\\00\\00\\00\\03\\00\\00\\00") {wasms.says(16, "up.")} {wasms.says(32, ANSWER)}
      (func $start (drop {write.format(fd=2)})) (start $start)
      (func (export "_initialize") (if (i32.ne {write.format(fd=1)} (i32.const 8)) (then unreachable)))"""
    source = wasms.module(wasms.packed(32, len(ANSWER)), more=more, imports=wasms.wasi("fd_write", "i32 i32 i32 i32"))
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(source)
        assert [(await instance.invoke("any", {}))["message"] for _ in range(2)] == ["here"] * 2
        await instance.stop(5)
        assert "".join(bench.lines) == "up.up.up."


@pytest.mark.parametrize("request_", CALLS_AND_ANSWERS, ids=lambda text: text[:40])
async def test_host_call_of_function_module_returns_result_or_error_code(tmp_path, request_):
    """The answer is JSON, written to the module's memory."""
    size = len(request_)
    more = wasms.says(0, request_) + wasms.says(512, '{"ok":true,"result":')
    body = f"""(local $answer i64)
      (local.set $answer (call $call (i32.const 0) (i32.const {size})))
      (local.set $length (i32.wrap_i64 (local.get $answer)))
      (memory.copy (i32.const 532) (i32.wrap_i64 (i64.shr_u (local.get $answer) (i64.const 32))) (local.get $length))
      (i32.store8 (i32.add (i32.const 532) (local.get $length)) (i32.const 125))
      (i64.or (i64.const {512 << 32}) (i64.extend_i32_u (i32.add (local.get $length) (i32.const 21))))"""
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start(wasms.module(body, more=more, imports=HOST))
        answer = (await instance.invoke("ask", {}))["result"]
        assert CALLS_AND_ANSWERS[request_] in json.dumps(answer)
        assert len(answer) == 1


async def test_wasi_command_gets_id_and_arguments_and_logs_on_stderr(tmp_path):
    """The first argument is the plugin's id, the others are the manifest's."""
    imports = wasms.wasi("args_get", "i32 i32") + wasms.wasi("fd_write", "i32 i32 i32 i32")
    write = """(drop (call $args_get (i32.const 64) (i32.const 128)))
      (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))"""
    more = '(data (i32.const 0) "\\80\\00\\00\\00\\10\\00\\00\\00")'
    async with wasms.bench(tmp_path) as bench:
        with pytest.raises(Problem) as ended:
            await bench.start(wasms.command(write, imports=imports, more=more), runtime={"args": ["one", "zwei"]})
        assert ended.value.code == "exited"
        assert bench.lines == ["acme.demo\\x00one\\x00zw"]


async def test_wasm_plugin_runs_at_sandbox_level_filtered(tmp_path):
    """Hosts that refuse user namespaces provide no higher level."""
    processes.reachable_python()
    async with wasms.bench(tmp_path, level="filtered") as bench:
        instance = await bench.start((SAMPLES / "hello-wasm/artifact").read_bytes())
        assert (await instance.invoke("greet", {}))["ok"]
        assert instance.sandbox.startswith("filtered")


async def test_payload_larger_than_a_memory_page_is_echoed(tmp_path):
    """Its size is limited by the protocol's line length."""
    async with wasms.bench(tmp_path) as bench:
        instance = await bench.start((SAMPLES / "hello-wasm/artifact").read_bytes())
        payload = {"text": "x" * 400_000}
        assert (await instance.invoke("greet", payload))["result"]["payload"] == payload


async def test_compiled_code_is_loaded_from_the_cache_by_the_next_daemon(tmp_path, monkeypatch):
    """With a fuel limit the module is compiled separately."""
    artifact = (SAMPLES / "hello-wasm/artifact").read_bytes()
    async with wasms.bench(tmp_path) as bench:
        await bench.start(artifact)
        (entry,) = bench.entries
        assert (tmp_path / "state/wasm-cache.key").stat().st_mode & 0o777 == 0o600
    async with wasms.bench(tmp_path) as bench:

        async def never(*_):
            raise AssertionError("compiled again")

        monkeypatch.setattr(bench.wasm._compiler, "_make", never)
        instance = await bench.start(artifact)
        assert (await instance.invoke("greet", {}))["ok"]
        monkeypatch.undo()
        await bench.start(artifact, runtime={"limits": {"fuel": 1_000_000}})
        assert len(bench.entries) == 2
        assert entry in bench.entries


async def test_damaged_cache_entry_is_compiled_again(tmp_path):
    """One bit is flipped: the entry is not loaded but replaced."""
    artifact = (SAMPLES / "hello-wasm/artifact").read_bytes()
    async with wasms.bench(tmp_path) as bench:
        await bench.start(artifact)
        (entry,) = bench.entries
        good = entry.read_bytes()
        entry.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        instance = await bench.start(artifact)
        assert (await instance.invoke("greet", {}))["ok"]
        assert bench.entries == [entry]
        assert entry.read_bytes() == good


async def test_cache_entry_that_does_not_load_is_compiled_again(tmp_path):
    """It was kept by this daemon, so that it verifies, and is no code of this engine: the same start replaces it."""
    artifact = (SAMPLES / "hello-wasm/artifact").read_bytes()
    async with wasms.bench(tmp_path) as bench:
        await bench.start(artifact)
        (entry,) = bench.entries
        good, cache, compiler = entry.read_bytes(), bench.wasm._compiler._cache, bench.wasm._compiler
        module = Module(fd=-1, sha256=hashlib.sha256(artifact).hexdigest(), fuel=False, owner="acme.demo")
        fd = memory()
        os.write(fd, b"code of another engine")
        os.lseek(fd, 0, os.SEEK_SET)
        cache.keep(compiler._subject(module, wasm_children.Package.find()), fd)
        os.close(fd)
        assert bench.entries == [entry]
        instance = await bench.start(artifact)
        assert (await instance.invoke("greet", {}))["ok"]
        assert entry.read_bytes() == good
        assert bench.exits == []


async def test_code_that_does_not_load_once_compiled_anew_fails_the_start(tmp_path, monkeypatch):
    """It is tried no third time, and no process is left."""
    request, made = wasm_children.request, []

    def for_another_engine(name, orders, **fields):
        made.append(name)
        return request(name, {**orders, "fuel": 1} if name == "run" else orders, **fields)

    monkeypatch.setattr(wasm_children, "request", for_another_engine)
    async with wasms.bench(tmp_path) as bench:
        with pytest.raises(Problem, match="wasm_code"):
            await bench.start(wasms.module())
        assert made == ["ahead", "run"] * 2
        assert not children.descendants(os.getpid())


async def test_module_is_compiled_at_each_start_if_cache_is_unwritable(tmp_path):
    async with wasms.bench(tmp_path) as bench:
        (tmp_path / "state/cache").write_text("in the way")
        for _ in range(2):
            instance = await bench.start((SAMPLES / "hello-wasm/artifact").read_bytes())
            assert (await instance.invoke("greet", {}))["ok"]


def left(before):
    """What is left over since `before`, except the helper threads of the event loop."""
    return [line for line in leftovers.survey().new_since(before) if not line.startswith("thread 'asyncio_")]


async def test_cancelled_start_leaves_no_child_or_descriptor(tmp_path):
    """It is cancelled while compiling and while starting."""
    artifact = (SAMPLES / "hello-wasm/artifact").read_bytes()
    async with wasms.bench(tmp_path) as bench:
        turns, finished = 0, False
        while not finished:
            before = leftovers.survey()
            starting = asyncio.create_task(bench.start(artifact))
            await asyncio.wait({starting}, timeout=0.004 * 1.5**turns)
            starting.cancel()
            outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
            turns, finished = turns + 1, not isinstance(outcome, asyncio.CancelledError)
            if finished:
                await outcome.stop(5)
            assert not children.descendants(os.getpid())
            await in_process.until(lambda before=before: left(before) == [], "nothing left")
            if turns == 4:
                shutil.rmtree(tmp_path / "state/cache", ignore_errors=True)


async def test_artifact_with_other_digest_is_refused_at_start(tmp_path):
    """The stored artifact is hashed again before it is compiled."""
    async with wasms.bench(tmp_path) as bench:
        plugin, directory = bench.plugin(wasms.module())
        with (directory / "artifact").open("ab") as artifact:
            artifact.write(b"\0")
        with (
            read.open_bundle(directory, limits=read.ReadLimits(), owners=frozenset({os.getuid()})) as pair,
            pytest.raises(Problem) as refused,
        ):
            await bench.wasm.start(plugin, pair, None, bench.exits.append)
        assert refused.value.code == "digest_mismatch"


async def test_plugin_that_host_cannot_run_is_not_admitted(tmp_path, monkeypatch):
    """A sandbox level that the host does not reach, another protocol, a host without wasmtime."""
    async with wasms.bench(tmp_path, level="filtered") as bench:
        plugin, _ = bench.plugin(wasms.module())
        await bench.wasm.admit(plugin, None)
        isolated, _ = bench.plugin(wasms.module(), runtime={"sandbox": {"level": "isolated"}})
        with pytest.raises(Problem, match="sandbox_unavailable: needs isolated"):
            await bench.wasm.admit(isolated, None)
        one_shot, _ = bench.plugin(wasms.module(), runtime={"protocol": "stdio-json-v1"})
        with pytest.raises(Problem, match="protocol_unsupported"):
            await bench.wasm.admit(one_shot, None)
        monkeypatch.setattr(wasm_children.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(Problem, match="sandbox_unavailable: needs the Python package wasmtime"):
            await bench.wasm.admit(plugin, None)


def test_daemon_never_imports_wasmtime():
    """Only child processes import it and the package that runs modules."""
    script = "import sys, latticed.daemon, latticed.app, latticed.runners.wasm as w; w.Package.find();"
    script += "print([name for name in sys.modules if name.startswith(('wasmtime', 'latticed.runners.wasm_inside'))])"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"


async def test_compiling_beyond_its_limits_is_refused(tmp_path):
    """Time, memory and size of the compiled code each have an error; nothing is cached, and no process is left."""
    long = "(module (func) " + "(func (drop (i64.div_u (i64.const 1) (i64.const 3))))" * 40_000 + ")"
    artifact = bytes(await asyncio.to_thread(wasms.wasmtime.wat2wasm, long))
    cases = [
        (Bounds(time_s=0.15), artifact, "deadline_exceeded", "within 0.15 s"),
        (Bounds(memory_bytes=40 << 20), artifact, "out_of_memory", "40 MiB|memory limit"),
        (Bounds(code_bytes=1000), wasms.module(), "out_of_memory", "1000 bytes of compiled code"),
    ]
    for bounds, source, code, words in cases:
        async with wasms.bench(tmp_path, caps=Caps(compile=bounds)) as bench:
            with pytest.raises(Problem, match=words) as refused:
                await bench.start(source)
            assert refused.value.code == code
            assert bench.entries == []
            assert not children.descendants(os.getpid())

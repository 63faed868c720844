"""Samples with sources: the artifact is the source, and each behaves as described, over real pipes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latticed.ctl import main as ctl
from latticed.processes import child
from latticed.runners import stdio_json
from latticed.sdk.testing import Gate, LongLived, run_once
from tests.house import bundles, children, pages, plugins, processes

SAMPLES = pages.CHECKOUT / "plugins-sample"
SOURCES = SAMPLES / "sources"
HELLO_PY = [sys.executable, str(SOURCES / "hello.py")]
HELLO_SH = ["/bin/sh", str(SOURCES / "hello.sh")]
pytestmark = pytest.mark.timeout(300)
COMPILE_S = 240.0
"""The compiler in the wheel first builds a C library, which takes minutes."""
ALL_OF_KV = ("kv:read", "kv:write", "log:write")


@pytest.mark.parametrize(("source", "sample"), [("hello.py", "hello-python"), ("hello.sh", "hello-sh")])
def test_sample_artifact_equals_its_source(source, sample):
    assert (SAMPLES / sample / "artifact").read_bytes() == (SOURCES / source).read_bytes()


@pytest.mark.parametrize("name", ["hello.py", "hello.sh", "hello.c"])
def test_sample_sources_are_short(name):
    """Each has under 60 lines of at most 120 characters."""
    lines = (SOURCES / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 120


# Python.


def _python(gate):
    return LongLived(HELLO_PY, gate, env=plugins.ENVIRONMENT)


def test_hello_python_counts_across_restarts():
    gate = Gate(ALL_OF_KV)
    for count in (1, 2):
        with _python(gate) as plugin:
            greeted = plugin.invoke("greet", {"name": "Ada"})
            assert (greeted["message"], greeted["result"]) == ("Hello, Ada!", {"count": count})
            assert plugin.health() == {"status": "healthy", "message": f"{count} greetings"}
        assert (plugin.returncode, plugin.stderr) == (0, "")
    assert gate.lines == [("info", "greeted")] * 2
    with _python(gate) as plugin:
        assert plugin.invoke("forget")["result"] == {"existed": True}
        assert plugin.invoke("forget")["result"] == {"existed": False}
        assert plugin.invoke("greet", "Bob")["result"] == {"count": 1}


def test_hello_python_refuses_a_payload_that_is_no_name():
    with _python(Gate(ALL_OF_KV)) as plugin:
        for odd in (5, {"name": None}, "x" * 81, ["Ada"]):
            assert plugin.invoke("greet", odd)["error"] == "expected a name of at most 80 characters"
        assert plugin.health()["message"] == "0 greetings"


def test_hello_python_greets_without_log_write():
    """It writes the denial to stderr."""
    with _python(Gate(["kv:read", "kv:write"])) as plugin:
        assert plugin.invoke("greet")["ok"]
    assert plugin.stderr == "not logged: capability_denied: the manifest does not declare log:write\n"


def test_hello_python_does_not_count_a_greeting_that_was_not_stored():
    gate = Gate(["kv:read", "log:write"])
    with _python(gate) as plugin:
        assert plugin.invoke("greet")["error"].startswith("capability_denied: ")
        assert plugin.health()["message"] == "0 greetings"
    assert gate.lines == []


# sh.


def test_hello_sh_describes_itself_and_is_healthy():
    assert run_once(HELLO_SH, Gate(), "describe")["result"] == {"actions": ["look"]}
    assert run_once(HELLO_SH, Gate(), "health")["ok"]


@pytest.mark.parametrize(
    "value", [b"plain", b"", b'"}},"error":null}}', b"\\", b"\xff\x00", "grüße\n%s $HOME `id`".encode(), b"x" * 60_000]
)
def test_hello_sh_returns_a_stored_value_unchanged(value):
    """The shell expands nothing in it."""
    gate = Gate(["kv:read"])
    gate.kv["a key"] = value
    assert run_once(HELLO_SH, gate, "look", {"key": "a key"})["result"] == gate.call("kv.get", {"key": "a key"})


def test_hello_sh_reports_a_missing_key():
    assert run_once(HELLO_SH, Gate(["kv:read"]), "look", {"key": "grüße"})["result"] == {"ok": False}


def test_hello_sh_reports_a_denial():
    expected = "capability_denied: the manifest does not declare kv:read"
    found = run_once(HELLO_SH, Gate(), "look", {"key": "a"})
    assert found == {"ok": False, "message": expected, "result": None, "error": expected}


@pytest.mark.parametrize(
    ("action", "payload", "words"),
    [
        ("dance", {}, "no such action"),
        ("loo", {}, "no such action"),
        ("look ", {"key": "a"}, "no such action"),
        ('look","payload":{"key":"a"}}', None, "no such action"),
        ("look", None, "expected a payload of"),
        ("look", {}, "expected a payload of"),
        ("look", {"key": 5}, "expected a payload of"),
        ("look", {"other": 1, "key": "a"}, "expected a payload of"),
        ("look", {"key": "a", "other": 1}, "expected a payload of"),
        ("look", {"key": "a", "other": "b"}, "expected a key without"),
        ("look", {"key": 'a"'}, "expected a key without"),
        ("look", {"key": "a\\"}, "expected a key without"),
        ("look", {"key": "a\n"}, "expected a key without"),
        ("look", {"key": {"key": "a"}}, "expected a payload of"),
        ("look", {"key": "../a"}, "bad_params: "),
        ("look", {"key": ""}, "bad_params: "),
    ],
)
def test_hello_sh_refuses_input_that_it_cannot_parse(action, payload, words):
    """Only a single key ever reaches the host."""
    gate = Gate(["kv:read"])
    found = run_once(HELLO_SH, gate, action, payload)
    assert not found["ok"]
    assert found["error"].startswith(words)
    assert all(set(one.params) == {"key"} for one in gate.calls)


async def _confined(first_line):
    """The output of hello.sh with this first line, in the sandbox without the feature `processes`."""
    said, gate = children.Heard(), Gate(["kv:read"])
    gate.kv["a"] = b"1"
    source = (SOURCES / "hello.sh").read_bytes()
    program = source.replace(b"#!/bin/sh\n", b"#!/bin/sh\nLATTICE_HOST_RESPONSE_FD=3\n" + first_line + b"\n", 1)
    with children.spec_of(program, features=(), descriptors=(3,)) as spec:
        sh = await child.spawn(spec, on_exit=lambda _: None, stdout=said, stderr=children.Heard())
    try:
        with contextlib.suppress(BrokenPipeError):
            sh.stdin.write(stdio_json.request("look", {"key": "a"}))
        async with asyncio.timeout(processes.PATIENCE_S):
            done = asyncio.create_task(said.over.wait())
            await asyncio.wait([done, any_ := asyncio.create_task(said.any.wait())], return_when="FIRST_COMPLETED")
            any_.cancel()
            if said.data:
                call = json.loads(said.data)["host_call"]
                result = gate.call(call["method"], call["params"])
                answer = {"host_response": {"id": call["id"], "ok": True, "result": result, "error": None}}
                sh.inputs[3].write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
            await done
    finally:
        await sh.stop(0)
    return [json.loads(line) for line in said.data.splitlines()]


async def test_hello_sh_starts_no_process():
    """It answers although the sandbox lets it start none."""
    call, reply = await _confined(b":")
    assert call["host_call"]["params"] == {"key": "a"}
    assert reply["result"]["value"] == "1"
    assert await _confined(b"(:)") == [], "a fork is refused there"


# C.


def _compiler():
    """The system's C compiler, or zig from its wheel."""
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    wheel = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False, timeout=30)
    if wheel.returncode == 0:
        return [sys.executable, "-m", "ziglang", "cc", "-target", "native-linux-musl"]
    return pytest.skip("no C compiler is here")


@pytest.fixture(scope="module")
def hello_c(tmp_path_factory):
    """The bundle, built from its source without a warning, statically, and signed."""
    bundle = tmp_path_factory.mktemp("hello-c") / "hello-c"
    bundle.mkdir()
    flags = ["-O2", "-std=gnu99", "-Wall", "-Wextra", "-Werror", "-static"]
    command = [*_compiler(), *flags, "-o", str(bundle / "artifact"), str(SOURCES / "hello.c")]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_S)
    assert built.returncode == 0, built.stderr
    shutil.copy(SOURCES / "hello-c.json", bundle / "manifest.json")
    return bundle


def test_hello_c_verifies_once_signed_with_latticectl(hello_c, tmp_path, capsys):
    """Its key is made and shown by `latticectl key`, and trusted in a policy file."""
    key, trust = tmp_path / "author.key", tmp_path / "trust.json"
    assert ctl.main(["key", "generate", str(key)]) == 0
    assert ctl.main(["sign", "--key", str(key), "--publisher", "sample", str(hello_c)]) == 0
    capsys.readouterr()
    assert ctl.main(["key", "show", str(key)]) == 0
    public = capsys.readouterr().out.strip()
    trust.write_text(json.dumps({"trusted_publishers": {"sample": public}}))
    trust.chmod(0o600)
    assert ctl.main(["verify", "--trust", str(trust), str(hello_c)]) == 0
    assert "verified sample.hello-c 1.0.0" in capsys.readouterr().out


def test_hello_c_answers_latticed_stdio_1(hello_c):
    with LongLived([str(hello_c / "artifact")], Gate(["log:write"])) as plugin:
        assert plugin.health() == {"status": "healthy", "message": ""}
        for payload in (None, 5, -1.5, True, 'ä"\\\n}', [], {}, [{"a": [1, "]"]}, {"id": 7, "method": "shutdown"}]):
            assert plugin.invoke("echo", payload)["result"] == payload
        assert not plugin.invoke("dance", {"action": "echo"})["ok"]
    assert (plugin.returncode, plugin.stderr) == (0, "")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "method", "action", "params", "x"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    asked=st.lists(st.tuples(st.integers(0, 99) | st.text(min_size=1, max_size=5), values), min_size=1, max_size=8),
    order=st.permutations(["jsonrpc", "id", "method", "params"]),
    spaced=st.booleans(),
)
def test_hello_c_parses_members_in_any_order(hello_c, asked, order, spaced):
    """They come with spaces or without, and with anything inside the payload."""
    separators = (" , ", " : ") if spaced else (",", ":")
    lines = []
    for number, payload in asked:
        params = {"x": payload, "action": "echo", "payload": payload}
        message = {"jsonrpc": "2.0", "id": number, "method": "invoke", "params": params}
        ordered = {name: message[name] for name in order}
        lines.append(json.dumps(ordered, separators=separators, ensure_ascii=False) + "\n")
    done = subprocess.run(
        [hello_c / "artifact"], input="".join(lines).encode(), capture_output=True, check=False, timeout=30
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["id"], one["result"]["result"]) for one in said] == asked
    assert done.returncode == 0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.binary(max_size=200) | st.text('{}[]":,\\ idmetho\n', max_size=60).map(str.encode))
def test_hello_c_does_not_crash_on_random_input(hello_c, data):
    """The host can be trusted, but a sample should not teach careless parsing."""
    done = subprocess.run([hello_c / "artifact"], input=data, capture_output=True, check=False, timeout=30)
    assert done.returncode == 0
    assert done.stderr == b""


def test_samples_are_signed_with_the_public_test_key():
    """Ed25519 is deterministic: signing them again gives the same bytes."""
    from tests.docs.test_samples import TEST_1_SECRET

    author = bundles.author("sample", seed=bytes.fromhex(TEST_1_SECRET))
    for name in ("hello-python", "hello-sh"):
        raw = json.loads((SAMPLES / name / "manifest.json").read_text())
        unsigned = {key: value for key, value in raw.items() if key != "signature_ed25519"}
        assert bundles.signed(unsigned, (SAMPLES / name / "artifact").read_bytes(), author) == raw

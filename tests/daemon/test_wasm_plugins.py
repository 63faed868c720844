"""Wasm plugins in the real daemon: samples work, bad modules fail with a code, compiled code is cached."""

from __future__ import annotations

import json

import pytest
import wasmtime

from tests.house import bundles, daemons, hosting, pages, wasms

pytestmark = pytest.mark.daemon

SAMPLES = pages.CHECKOUT / "plugins-sample"
ID = "acme.module"
LOOP = "(loop $for_ever (br $for_ever)) (unreachable)"
QUICK = "[supervision]\nbackoff_base_s = 0.1\n"


def sample(host, name):
    """A sample with its manifest, signed by the author of this test; its id."""
    raw, artifact = (
        json.loads((SAMPLES / name / "manifest.json").read_bytes()),
        (SAMPLES / name / "artifact").read_bytes(),
    )
    own = {"publisher", "digest_sha256", "signature_ed25519"}
    fresh = bundles.signed({key: raw[key] for key in raw.keys() - own}, artifact, host.author)
    bundles.write(host.daemon.place.plugins / raw["id"], fresh, artifact)
    return str(raw["id"])


def module(host, source, plugin_id=ID, **fields):
    """The answer to the activation of a module, as text or bytes."""
    artifact = source if isinstance(source, bytes) else bytes(wasmtime.wat2wasm(source))
    return host.activated(plugin_id, artifact, type="wasm", capabilities=["kv:read"], **fields)


def invoke(host, plugin_id, action, payload="null"):
    """The result that latticectl prints."""
    done = host.daemon.ctl("invoke", plugin_id, action, payload)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def entries(place):
    """The entries in the cache of compiled code."""
    return sorted((place.state / "cache/wasm").glob("*"))


@pytest.fixture(scope="module")
def host():
    with hosting.hosting(QUICK) as found:
        yield found


def test_hello_wasm_answers_and_logs(host):
    """It is invoked through latticectl, returns its payload, and writes a line to the log."""
    plugin_id = sample(host, "hello-wasm")
    assert host.daemon.activate(plugin_id)["runtime"]["runner"] == "wasm"
    found = invoke(host, plugin_id, "greet", '{"name": "world"}')
    assert found == {"action": "greet", "payload": {"name": "world"}}
    assert "info: hello, host" in host.lines(plugin_id, "log")
    (call,) = host.daemon.events(action="host.call", actor=f"plugin:{plugin_id}")
    assert (call["target"], call["decision"]) == ("log.write", "allow")
    assert host.runtime(plugin_id)["sandbox"].startswith(("isolated", "dedicated"))


def test_hello_wasi_counts_greetings_in_kv(host):
    """Once it is trimmed, its next host call is refused, and it keeps running."""
    plugin_id = sample(host, "hello-wasi")
    host.daemon.activate(plugin_id)
    assert [invoke(host, plugin_id, "greet", '{"name": "a"}') for _ in range(2)] == [{"count": 1}, {"count": 2}]
    assert host.daemon.ctl("kv", "get", f"plugin:{plugin_id}", "greetings").stdout.strip() == "2"
    assert host.daemon.ctl("caps", "trim", plugin_id, "kv:write").returncode == 0
    refused = host.daemon.ctl("--format", "json", "invoke", plugin_id, "greet", "{}")
    assert (refused.returncode, json.loads(refused.stdout)["error"]) == (1, "capability_not_granted")
    assert host.daemon.ctl("caps", "grant", plugin_id, "kv:write").returncode == 0
    assert invoke(host, plugin_id, "greet", "{}") == {"count": 3}
    assert host.story(plugin_id) == ["armed"], "no restart for that"


@pytest.mark.parametrize(
    ("name", "source", "code"),
    [
        ("text", b"(module)", "wasm_invalid"),
        ("cut", bytes(wasmtime.wat2wasm(wasms.module()))[:-5], "wasm_invalid"),
        ("empty", "(module)", "wasm_invalid"),
        ("greedy", wasms.module(imports='(import "env" "system" (func))'), "wasm_import"),
        ("huge", '(module (memory (export "memory") 60000) (func (export "_start")))', "out_of_memory"),
        ("trap", wasms.command("(unreachable)"), "wasm_trap"),
    ],
)
def test_module_that_cannot_start_fails_to_arm_with_its_code(host, name, source, code):
    """The answer is 200 and active; a retry is due; the daemon is not affected."""
    plugin_id = f"acme.bad-{name}"
    with host.answering():
        answer = module(host, source, plugin_id)
    record = answer.json()
    assert (answer.status, record["status"], record["runtime"]["state"]) == (200, "active", "failed")
    assert record["runtime"]["last_error"]["code"] == code
    assert record["runtime"]["last_error"]["message"]
    assert host.daemon.set_status("disabled", plugin_id).status == 200


@pytest.mark.parametrize(
    ("name", "body", "limits", "code"),
    [
        ("loop", LOOP, {"invoke_timeout_s": 1}, "deadline_exceeded"),
        ("fuel", LOOP, {"fuel": 100_000}, "fuel_exhausted"),
        ("deep", "(call $deep (local.get $at))", {}, "stack_overflow"),
    ],
)
def test_endless_loop_in_wasm_is_ended(host, name, body, limits, code):
    """The invocation gets the code; meanwhile the daemon answers. The plugin is restarted, and can be stopped."""
    plugin_id = f"acme.{name}"
    deep = "(func $deep (param i32) (result i64) (i64.add (call $deep (local.get 0)) (i64.const 1)))"
    answer = module(host, wasms.module(body, more=deep), plugin_id, runtime={"limits": limits})
    assert answer.json()["runtime"]["state"] == "armed", answer
    before = host.runtime(plugin_id)["pid"]
    with host.answering():
        found = host.invoke(plugin_id, "anything")
    assert found.code == code
    host.until_story(plugin_id, "armed", f"failed {code}", "armed")
    assert host.runtime(plugin_id)["pid"] != before
    assert host.daemon.set_status("disabled", plugin_id).status == 200
    hosting.until_gone({before})


def test_wasm_memory_grow_fails_beyond_the_plugins_limit(host):
    """It returns -1, and the module keeps running."""
    grow = """(local $pages i32)
      (block $full (loop $more
        (br_if $full (i32.lt_s (memory.grow (i32.const 16)) (i32.const 0)))
        (br $more)))
      (i32.store8 (i32.const 8) (i32.const 123)) """
    reply = '{"ok":true,"message":"full","result":null}'
    source = wasms.module(grow + wasms.packed(8, len(reply)), more=wasms.says(8, reply))
    assert module(host, source, runtime={"limits": {"memory_mib": 16}}).json()["runtime"]["state"] == "armed"
    for _ in range(2):
        assert host.invoke(ID, "grow").json()["message"] == "full"
    assert host.story(ID) == ["armed"]
    assert host.daemon.set_status("disabled", ID).status == 200


def test_compiled_code_is_cached_and_verified():
    """The next daemon loads it; an entry with one changed byte is not loaded, and compiled anew."""
    acme = bundles.author("acme")
    with daemons.placed() as place:
        place.trust_us(acme)
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=acme)
            plugin_id = sample(host, "hello-wasm")
            daemon.activate(plugin_id)
            (entry,) = entries(place)
            made = entry.stat()
            assert daemon.stop() == 0
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=acme)
            daemon.until_state("armed", plugin_id)
            assert entries(place) == [entry]
            kept = entry.stat()
            assert (kept.st_ino, kept.st_ctime_ns > made.st_ctime_ns) == (made.st_ino, True), "used, and not made anew"
            assert daemon.log("wasm_cache_entry_refused") == []
            assert daemon.stop() == 0
        bundles.tamper(entry, offset=made.st_size // 2)
        tampered = entry.read_bytes()
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=acme)
            daemon.until_state("armed", plugin_id)
            assert [one["entry"] for one in daemon.logged("wasm_cache_entry_refused")] == [entry.name[:16]]
            assert entry.read_bytes() != tampered
            assert invoke(host, plugin_id, "greet") == {"action": "greet", "payload": None}
            bundles.tamper(place.plugins / plugin_id / "artifact", offset=20)
            daemon.until_state("failed", plugin_id, code="digest_mismatch")

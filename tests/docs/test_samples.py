"""The committed bundles: their verdicts under their own trust policy, and what their artifacts do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.house import pages

SAMPLES = pages.CHECKOUT / "plugins-sample"
TEST_1_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
TEST_1_SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"  # RFC 8032, section 7.1: public
VERDICTS = {
    "hello-python": None,
    "hello-sh": None,
    "hello-system": None,
    "hello-wasi": None,
    "hello-wasm": None,
    "hello-worker": None,
    "host-status": None,
    "refused-tampered": "digest_mismatch",
    "refused-unknown-capability": "unknown_capability",
    "refused-untrusted": "publisher_untrusted",
    "web-check": None,
}


def _verify(tour, *words):
    samples = tour.checkout / "plugins-sample"
    command = [
        sys.executable,
        "-P",
        "-m",
        "latticed.ctl.main",
        "verify",
        "--trust",
        str(samples / "trust.json"),
        *words,
    ]
    return subprocess.run(command, cwd=samples, capture_output=True, text=True, check=False, timeout=30)


def test_each_sample_has_its_expected_verdict(tour):
    """Some verify, the others are each refused with their own code."""
    assert {path.parent.name for path in SAMPLES.glob("*/manifest.json")} == set(VERDICTS)
    done = _verify(tour, "--format", "json", *sorted(VERDICTS))
    rows = {row["path"]: row for row in json.loads(done.stdout)}
    assert {name: row["code"] for name, row in rows.items()} == VERDICTS
    assert done.returncode == 6
    passing = [name for name, code in VERDICTS.items() if code is None]
    assert _verify(tour, *passing).returncode == 0


def test_samples_cover_both_schemas_and_all_types():
    found = [json.loads((SAMPLES / name / "manifest.json").read_text()) for name, code in VERDICTS.items() if not code]
    assert {one["type"] for one in found} == {"system", "wasm", "worker"}
    assert {one.get("schema") for one in found} == {None, "latticed.manifest.v2"}
    assert any("http:egress" in one["capabilities"] for one in found)


def test_no_private_key_is_committed():
    """The public key is that of RFC 8032's first test; no file has its private half, or another private key."""
    import base64

    keys = json.loads((SAMPLES / "trust.json").read_text())["trusted_publishers"]["sample"]["keys"]
    assert [base64.b64decode(key).hex() for key in keys] == [TEST_1_PUBLIC]
    secret = bytes.fromhex(TEST_1_SECRET)
    forms = (secret, TEST_1_SECRET.encode(), base64.b64encode(secret), b"PRIVATE KEY")
    for path in SAMPLES.rglob("*"):
        assert path.suffix not in {".key", ".pem"}, path
        if path.is_file():
            assert not [form for form in forms if form in path.read_bytes()], path


def _length(data, at):
    """(value, place after it) of an unsigned LEB128 number."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


@pytest.mark.parametrize(("name", "export"), [("hello-wasm", b"\x06invoke"), ("hello-wasi", b"\x06_start")])
def test_wasm_samples_are_well_formed_modules(name, export):
    """Magic, version, then sections in ascending order that fill the file exactly; the names section is last."""
    data = (SAMPLES / name / "artifact").read_bytes()
    assert data[:8] == b"\0asm\x01\0\0\0"
    at, seen = 8, []
    while at < len(data):
        seen += [data[at]] if data[at] else []
        size, start = _length(data, at + 1)
        at = start + size
    assert at == len(data)
    assert seen == sorted(set(seen), key=lambda number: 9.5 if number == 12 else number), "12 stands before the code"
    assert {1, 2, 3, 5, 6, 7, 10, 11} <= set(seen), "type, import, function, memory, global, export, code, data"
    assert export in data


class Host:
    """The other side of stdio-json-v1, with real values in it."""

    def __init__(self):
        self.values = {}
        self.lines = []

    def answer(self, call):
        params = call["params"]
        match call["method"]:
            case "kv.get":
                value = self.values.get(params["key"])
                return {"ok": value is not None, "value": value}
            case "kv.put":
                self.values[params["key"]] = params["value"]
                return {"ok": True}
            case "log.write":
                self.lines.append(params["message"])
                return {"ok": True}
        return None

    def invoke(self, action, payload):
        """Run hello-system once; its final reply."""
        ours, theirs = os.pipe()
        command = [sys.executable, str(SAMPLES / "hello-system" / "artifact")]
        env = {"PATH": os.defpath, "LATTICE_HOST_RESPONSE_FD": str(ours)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with (
            os.fdopen(theirs, "w") as answers,
            subprocess.Popen(command, env=env, pass_fds=[ours], **pipes) as process,
        ):
            os.close(ours)
            process.stdin.write(json.dumps({"action": action, "payload": payload}) + "\n")
            process.stdin.close()
            for line in process.stdout:
                message = json.loads(line)
                if "host_call" not in message:
                    return message
                result = self.answer(message["host_call"])
                ok = {"ok": True, "result": result} if result else {"ok": False, "error": "capability_denied: no"}
                answers.write(json.dumps({"host_response": {"id": message["host_call"]["id"], **ok}}) + "\n")
                answers.flush()
            pytest.fail(process.stderr.read())


def test_hello_system_answers_stdio_json_v1():
    """It describes itself, is healthy, counts over invocations, and refuses unknown actions."""
    host = Host()
    assert host.invoke("describe", {})["result"] == {"actions": ["greet"]}
    assert host.invoke("health", {})["ok"]
    assert host.invoke("greet", {"name": "Ada"})["result"] == {"count": 1}
    again = host.invoke("greet", {"name": "Ada"})
    assert (again["message"], again["result"]) == ("Hello, Ada!", {"count": 2})
    assert host.lines == ["greeted Ada", "greeted Ada"]
    assert not host.invoke("dance", {})["ok"]


def test_hello_system_reports_a_denial():
    host = Host()
    host.answer = lambda call: None
    assert host.invoke("greet", {}) == {"ok": False, "error": "kv.get: capability_denied: no"}


def test_web_check_answers_latticed_stdio_1():
    """Requests that arrive while it waits for the host are answered meanwhile; it exits with 0 at shutdown."""
    told = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocol": "latticed-stdio-1"}},
        {"jsonrpc": "2.0", "id": 2, "method": "invoke", "params": {"action": "check", "payload": {}}},
        {"jsonrpc": "2.0", "id": 3, "method": "health", "params": {}},
        {"jsonrpc": "2.0", "id": "call-1", "result": {"status_code": 204}},
        {"jsonrpc": "2.0", "id": "call-2", "result": {"ok": True}},
        {"jsonrpc": "2.0", "id": 4, "method": "invoke", "params": {"action": "check", "payload": {}}},
        {"jsonrpc": "2.0", "id": "call-3", "error": {"message": "no", "data": {"code": "egress_blocked"}}},
        {"jsonrpc": "2.0", "id": 5, "method": "dance"},
        {"jsonrpc": "2.0", "id": 6, "method": "shutdown", "params": {}},
    ]
    done = subprocess.run(
        [sys.executable, str(SAMPLES / "web-check" / "artifact")],
        input="".join(json.dumps(one) + "\n" for one in told),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    answers = {one["id"]: one.get("result", one.get("error")) for one in said if "method" not in one}
    assert [one["method"] for one in said if "method" in one] == ["http.do", "kv.put", "http.do"]
    assert [one["id"] for one in said if "method" not in one] == [1, 3, 2, 4, 5, 6]
    assert answers[2] == {"ok": True, "message": "answered 204", "result": {"status": 204}}
    assert answers[4] == {"ok": False, "error": "egress_blocked"}
    assert answers[5]["code"] == -32601
    assert (done.returncode, done.stderr) == (0, "")

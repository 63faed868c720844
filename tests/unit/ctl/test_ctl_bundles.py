from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import bundles, processes

FIELDS = ["path", "ok", "code", "reason", "hint", "id", "version", "digest_sha256", "capabilities"]


@pytest.fixture
def acme():
    return bundles.author("acme")


@pytest.fixture
def trust(tmp_path, acme):
    """A trust.json that trusts acme."""
    path = tmp_path / "trust.json"
    path.write_bytes(bundles.policy_bytes(acme))
    return str(path)


def test_verify_prints_a_verdict_for_each_bundle(ctl, tmp_path, acme, trust):
    """JSON: an array of objects with all keys; exit 0 when all pass, 6 when any fails."""
    good = bundles.drop(tmp_path, "good", author=acme)
    bad = bundles.drop(tmp_path, "bad", author=acme, id="acme.bad", capabilities=["kv:write"])
    bundles.tamper(bad.artifact_path)
    ran = ctl("verify", "--trust", trust, "--format", "json", str(good.path))
    assert ran.code == 0
    assert ran.json == [
        {
            "path": str(good.path),
            "ok": True,
            "code": None,
            "reason": None,
            "hint": None,
            "id": "acme.demo",
            "version": "1.0.0",
            "digest_sha256": good.raw["digest_sha256"],
            "capabilities": [{"name": "kv:read", "risk": "read"}, {"name": "log:write", "risk": "write"}],
        }
    ]
    ran = ctl("verify", "--trust", trust, "--format", "json", str(good.path), str(bad.path), str(tmp_path / "none"))
    assert ran.code == 6
    assert [list(row) for row in ran.json] == [FIELDS] * 3
    assert [row["code"] for row in ran.json] == [None, "digest_mismatch", "manifest_missing"]
    assert ran.json[1]["id"] == "acme.bad"
    assert ran.json[2]["id"] is None


def test_verify_in_text_names_bundle_and_reason(ctl, tmp_path, acme, trust):
    good = bundles.drop(tmp_path, "good", author=acme)
    assert ctl("verify", "--trust", trust, str(good.path)).out == f"{good.path}: verified acme.demo 1.0.0\n"
    stranger = bundles.drop(tmp_path, "e\x1bvil", author=bundles.author("evil"))
    ran = ctl("verify", "--trust", trust, str(stranger.path))
    assert ran.code == 6
    assert ran.out.startswith(f"{tmp_path}/e\\x1bvil: refused publisher_untrusted: expected ")
    assert "\n  hint: if you trust it: latticectl trust add evil KEY\n" in ran.out


def test_two_bundles_of_one_id_both_pass_offline_verification(ctl, tmp_path, acme, trust):
    """Duplicate ids are refused by the daemon only."""
    paths = [str(bundles.drop(tmp_path, name, author=acme).path) for name in ("one", "two")]
    assert ctl("verify", "--trust", trust, *paths).code == 0


def test_verify_does_not_follow_symlink_even_with_a_final_slash(ctl, tmp_path, acme, trust):
    bundle = bundles.drop(tmp_path, "real", author=acme)
    link = tmp_path / "link"
    link.symlink_to(bundle.path)
    ran = ctl("verify", "--trust", trust, "--format", "json", f"{link}/", str(link), f"{bundle.path}/")
    assert [row["code"] for row in ran.json] == ["unreadable", "unreadable", None]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "found no file"),
        (b"{", "no valid JSON"),
        (b'{"trusted": {}}', "unknown key"),
        (b'{"trusted_publishers": {"acme": "AAAA"}}', "trusted_publishers.acme"),
    ],
)
def test_unreadable_policy_exits_2(ctl, tmp_path, content, told):
    path = tmp_path / "policy.json"
    if content is not None:
        path.write_bytes(content)
    ran = ctl("verify", "--trust", str(path), str(tmp_path))
    assert (ran.code, ran.data) == (2, b"")
    assert told in ran.err
    assert str(path) in ran.err


def test_policy_writable_by_others_exits_2(ctl, tmp_path, trust):
    os.chmod(trust, 0o646)  # noqa: S103 - the very thing that is refused
    ran = ctl("verify", "--trust", trust, str(tmp_path))
    assert ran.code == 2
    assert "is writable by others" in ran.err


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_policy_that_is_not_a_regular_file_exits_2_without_blocking(ctl, tmp_path, kind):
    path = tmp_path / "policy"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    assert ctl("verify", "--trust", str(path), str(tmp_path)).code == 2


def test_verify_takes_policy_and_limits_from_the_settings_by_default(ctl, tmp_path, acme, trust):
    bundle = bundles.drop(tmp_path, "good", author=acme, artifact=b"#!/bin/sh\n" + b"#" * 2000)
    config = tmp_path / "latticed.toml"
    config.write_text("[limits]\nartifact_bytes = 1024\n")
    assert ctl("verify", str(bundle.path), LATTICED_TRUST=trust).code == 0
    ran = ctl("verify", "--config", str(config), "--format", "json", str(bundle.path), LATTICED_TRUST=trust)
    assert ran.json[0]["code"] == "artifact_too_large"
    assert ctl("verify", str(bundle.path), LATTICED_TRUST=str(tmp_path / "none")).code == 2


def test_new_key_sign_trust_and_verify_give_a_verified_bundle(ctl, tmp_path, monkeypatch):
    """Author's and operator's steps, with latticectl alone."""
    monkeypatch.chdir(tmp_path)
    assert ctl("key", "generate", "acme.key").code == 0
    public = ctl("key", "show", "acme.key").out.strip()
    assert len(base64.b64decode(public)) == 32
    assert Path("acme.key").stat().st_mode & 0o777 == 0o600
    for kind in ("system", "wasm", "worker"):
        ran = ctl("new", kind, f"acme.{kind}")
        assert ran.out == f"acme.{kind}: new {kind} plugin acme.{kind}\n"
        assert "latticectl sign --key FILE --publisher NAME" in ran.err
        signed = ctl("sign", "--key", "acme.key", "--publisher", "acme", f"acme.{kind}", "--format", "json").json
        assert signed[0]["public_key"] == public
    assert ctl("trust", "add", "acme", public, "--ids", "acme.*", "--trust", "trust.json").out == "trusted: acme\n"
    ran = ctl("verify", "--trust", "trust.json", "acme.system", "acme.wasm", "acme.worker")
    assert (ran.code, ran.out.count("verified")) == (0, 3)


def test_v1_signature_covers_the_payload_that_the_contract_states(ctl, tmp_path, acme):
    """The result equals that of another implementation, `bundles.signed`, also with characters beyond ASCII."""
    key = tmp_path / "key"
    key.write_bytes(_pem(acme))
    raw = bundles.manifest_v1(name="Ünïcode")
    bundles.write(tmp_path / "b", raw)
    assert ctl("sign", "--key", str(key), "--publisher", "acme", str(tmp_path / "b")).code == 0
    assert json.loads((tmp_path / "b/manifest.json").read_bytes()) == bundles.signed(raw, bundles.ARTIFACT, acme)


def _pem(author: bundles.Author) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return author.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (b"{", "manifest.json"),
        (b"[]", "expected manifest.json to hold one JSON object"),
        (json.dumps(bundles.manifest_v1(publisher="acme", capabilities=["kv:reed"])).encode(), "did you mean kv:read?"),
        (json.dumps(bundles.manifest_v1()).encode(), "name one: --publisher"),
        (None, "expected a file manifest.json"),
    ],
)
def test_invalid_manifest_is_not_signed(ctl, tmp_path, acme, manifest, told):
    """The manifest is unchanged, and the error names the bundle."""
    (tmp_path / "key").write_bytes(_pem(acme))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/artifact").write_bytes(b"x")
    if manifest is not None:
        (tmp_path / "b/manifest.json").write_bytes(manifest)
    ran = ctl("sign", "--key", str(tmp_path / "key"), str(tmp_path / "b"))
    assert ran.code == 1
    assert told in ran.err
    assert f"{tmp_path}/b: " in ran.err
    assert sorted(os.listdir(tmp_path / "b")) == ["artifact"] + ["manifest.json"] * (manifest is not None)


def test_schedule_of_an_action_that_the_code_no_longer_has_is_not_signed(ctl, tmp_path, monkeypatch):
    """Its decorator is gone, and `sign` wrote it there; what the author wrote of an action that there is stays."""
    monkeypatch.chdir(tmp_path)
    ctl("key", "generate", "acme.key")
    ctl("new", "system", "acme.demo", "--publisher", "acme")
    source, manifest = tmp_path / "acme.demo/artifact", tmp_path / "acme.demo/manifest.json"
    head = "#!/usr/bin/env python3\nfrom latticed.sdk import Plugin, schedule\n\n\nclass Demo(Plugin):\n"

    def sign(methods):
        source.write_text(f"{head}{methods}\n\nDemo().run()\n")
        return ctl("sign", "--key", "acme.key", "acme.demo")

    assert (
        "schedule clean_up@every_s:60@clean_up"
        in sign("    @schedule(every_s=60)\n    def do_clean_up(self, payload): pass").out
    )
    before = manifest.read_bytes()
    ran = sign("    def do_other(self, payload): pass")
    assert (ran.code, manifest.read_bytes()) == (1, before)
    assert "a method do_ACTION for, found 'clean_up'" in ran.err
    for methods in (
        "    def do_clean_up(self, payload): pass",
        "    do_clean_up = print",
        "    def invoke(self, action, payload): pass",
        "    invoke = print",
        "    def __getattr__(self, name): return print",
        "    pass\n\n\nsetattr(Demo, 'do_' + 'clean_' + 'up', print)",
        "    pass\n\n\nDemo = type('Demo', (Demo,), {'do_' + one: print for one in ACTIONS})",
        "    for one in ACTIONS:\n        locals()[f'do_{one}'] = print",
        "    exec('\\n'.join('do_%s = print' % one for one in ACTIONS))",
    ):
        assert sign(methods).code == 0, methods
    raw = json.loads(before)
    manifest.write_text(json.dumps({**raw, "schedules": [{**raw["schedules"][0], "action": "clean-up"}]}))
    assert sign("    def do_clean_up(self, payload): pass").code == 0
    for action in ("describe", "health"):  # the SDK answers both
        manifest.write_text(json.dumps({**raw, "schedules": [{**raw["schedules"][0], "action": action}]}))
        assert sign("    def do_other(self, payload): pass").code == 0
    manifest.write_text(json.dumps({**raw, "schedules": [1]}))
    assert sign("    def do_other(self, payload): pass").code == 1


def test_key_new_does_not_overwrite_and_bad_key_is_an_error(ctl, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    assert ctl("key", "generate", str(path)).code == 1
    assert path.read_bytes() == b"secret"
    assert "expected a private key" in ctl("key", "show", str(path)).err
    assert ctl("key", "show", str(tmp_path / "none")).code == 4
    shown = ctl("key", "generate", str(tmp_path / "new"), "--format", "json").json
    assert shown == ctl("key", "show", str(tmp_path / "new"), "--format", "json").json


@pytest.mark.parametrize(
    "words",
    [
        ("system", "{dir}/X"),
        ("system", "{dir}/ok.id", "--id", "latticed.x"),
        ("system", "{dir}/ok.id", "--publisher", "latticed"),
        ("lambda", "{dir}/ok.id"),
    ],
)
def test_new_refuses_invalid_plugin_names(ctl, tmp_path, words):
    assert ctl("new", *(word.format(dir=tmp_path) for word in words)).code == 2
    assert os.listdir(tmp_path) == []


def test_new_does_not_replace_an_existing_directory(ctl, tmp_path):
    assert ctl("new", "system", str(tmp_path), "--id", "acme.demo").code == 1
    assert ctl("new", "system", str(tmp_path / "none/demo"), "--id", "acme.demo").code == 1


def test_artifact_of_new_system_plugin_speaks_its_protocol(ctl, tmp_path):
    """It answers initialize, health, invoke and an unknown method, and exits at shutdown."""
    ctl("new", "system", str(tmp_path / "acme.demo"))
    calls = [
        ("initialize", {"protocol": "latticed-stdio-1", "id": "acme.demo", "capabilities": [], "config": {}}),
        ("health", {}),
        ("invoke", {"action": "describe", "payload": None}),
        ("nonsense", {}),
        ("shutdown", {}),
    ]
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        for number, (method, params) in enumerate(calls)
    ]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "acme.demo/artifact")],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=processes.PATIENCE_S,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [0, 1, 2, 3, 4]
    assert answers[1]["result"]["status"] == "healthy"
    assert answers[2]["result"]["result"]["actions"] == ["greet"]
    assert answers[3]["error"]["code"] == -32601


def test_artifact_of_new_wasm_plugin_is_well_formed(ctl, tmp_path):
    """Its sections, type to data, fill the file exactly (WebAssembly core, binary format); it has no debugging data."""
    ctl("new", "wasm", str(tmp_path / "acme.demo"))
    module = (tmp_path / "acme.demo/artifact").read_bytes()
    assert module[:8] == b"\0asm\x01\0\0\0"
    place, sections = 8, []
    while place < len(module):
        sections.append(module[place])
        size, shift = 0, 0  # LEB128
        while True:
            place += 1
            size |= (module[place] & 0x7F) << shift
            shift += 7
            if module[place] < 0x80:
                break
        place += 1 + size
    assert (place, sections) == (len(module), [1, 2, 3, 4, 5, 6, 7, 10, 11])

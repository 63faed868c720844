"""Decoding manifests, and the code of each refusal."""

from __future__ import annotations

import json

import msgspec
import pytest

from latticed.bundle import decode
from latticed.bundle.refusal import BundleRefused
from tests.house import bundles


def _schedule(**fields):
    return {"name": "disk", "every_s": 60, "action": "check", **fields}


def _refused(raw):
    data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    with pytest.raises(BundleRefused) as caught:
        decode.decode(data)
    assert caught.value.reason
    assert caught.value.hint
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) <= 300
    return caught.value


def _v2(**fields):
    signed = {"publisher": "acme", "digest_sha256": "ab" * 32, "signature_ed25519": "x"}
    return bundles.manifest_v2(**{**signed, **fields})


def test_v1_manifest_is_decoded_with_empty_defaults():
    """Absent strings become empty."""
    raw, found = decode.decode(json.dumps(bundles.manifest_v1(version=None, entrypoint=None)).encode())
    assert (found.id, found.name, found.type) == ("acme.demo", "Demo", "system")
    assert found.capabilities == ("kv:read", "log:write")
    assert (found.version, found.entrypoint, found.publisher, found.digest_sha256) == ("", "", "", "")
    assert not found.is_v2
    assert raw["id"] == "acme.demo"


def test_v2_manifest_is_decoded_with_all_its_parts():
    """Every optional part of §3, at once."""
    _, found = decode.decode(
        json.dumps(
            _v2(
                description="Shows ☂ what there is",
                homepage="https://example.org",
                license="MIT",
                critical=True,
                runtime={
                    "protocol": "stdio-json-v1",
                    "args": ["--fast"],
                    "health": {"interval_s": 5, "timeout_s": 1, "failures": 2},
                    "limits": {"memory_mib": 64, "fuel": 1000},
                    "sandbox": {"level": "isolated", "features": ["threads"]},
                },
                egress={"hosts": ["api.example.org:443", "*.example.net:443", "[::1]:8080", "127.0.0.1:1"]},
                routes={"prefixes": ["/demo"], "content_type": "text/html"},
                config={"type": "object", "properties": {"note": {"default": "two\nlines", "const": None}}},
                dependencies=[{"id": "acme.other", "version": "^1.2", "optional": True}],
                requires_host=">=0.1 <1",
            )
        ).encode()
    )
    assert found.is_v2
    assert found.critical
    assert found.runtime.health.interval_s == 5
    assert found.runtime.limits.memory_mib == 64
    assert found.runtime.sandbox.features == ("threads",)
    assert found.dependencies[0].optional


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"{} {}",
        b"{}x",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        b'{"id": "a", "id": "b"}',
        b'{"runtime": {"args": [], "args": []}}',
        b'{"x": 1.0}',
        b'{"x": 1e3}',
        b'{"x": 9007199254740992}',
        b'{"x": NaN}',
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b"[" * 50000,
        b"{'id': 1}",
        b'{"id": "a",}',
        b'// comment\n{"id": "a"}',
    ],
)
def test_bytes_other_than_one_strict_json_object_are_invalid_json(data):
    """Parsers disagree about them, so a signature would mean two things."""
    assert _refused(data).code == "manifest_invalid_json"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"id": None}, "id"),
        ({"name": None}, "name"),
        ({"type": None}, "type"),
        ({"capabilities": None}, "capabilities"),
        ({"Id": "acme.demo"}, "did you mean `id`"),
        ({"description": "v2 only"}, "description"),
        ({"schema": "latticed.manifest.v3"}, "schema"),
        ({"schema": ""}, "schema"),
        ({"id": "ab"}, "id"),
        ({"id": "a" * 129}, "id"),
        ({"id": "Acme.demo"}, "id"),
        ({"id": ".acme"}, "id"),
        ({"id": "acme-"}, "id"),
        ({"id": "acme..demo"}, "id"),
        ({"id": "acme/demo"}, "id"),
        ({"id": "acme.demo\n"}, "id"),
        ({"id": "latticed.kv"}, "reserved"),
        ({"id": "latticed"}, "reserved"),
        ({"id": 5}, "str"),
        ({"publisher": "latticed"}, "reserved"),
        ({"publisher": "Acme"}, "publisher"),
        ({"name": ""}, "name"),
        ({"name": " \u3000 "}, "name"),
        ({"name": "x" * 81}, "80"),
        ({"name": "De\u200bmo"}, "U+200B"),
        ({"name": "De\u202emo"}, "U+202E"),
        ({"name": "De\u2028mo"}, "U+2028"),
        ({"name": "De\x7fmo"}, "U+007F"),
        ({"name": "De\nmo"}, "U+000A"),
        ({"name": "\u3164Demo"}, "U+3164"),
        ({"version": "x" * 65}, "64"),
        ({"version": "1.0\n"}, "U+000A"),
        ({"version": 1}, "str"),
        ({"entrypoint": "x" * 256}, "255"),
        ({"entrypoint": "a\x00b"}, "U+0000"),
        ({"type": "System"}, "System"),
        ({"type": "native"}, "native"),
        ({"capabilities": []}, "capabilities"),
        ({"capabilities": "kv:read"}, "array"),
        ({"capabilities": [1]}, "str"),
        ({"digest_sha256": "ab" * 31}, "digest_sha256"),
        ({"digest_sha256": "xy" * 32}, "digest_sha256"),
        ({"digest_sha256": " " + "ab" * 32}, "digest_sha256"),
    ],
)
def test_v1_manifest_that_breaks_a_rule_is_invalid(fields, word):
    """The reason says what was expected."""
    refused = _refused(bundles.manifest_v1(**fields))
    assert refused.code == "manifest_invalid"
    assert word in refused.reason


@pytest.mark.parametrize("field", ["version", "publisher", "digest_sha256", "signature_ed25519", "entrypoint"])
def test_null_in_v1_manifest_is_refused(field):
    """A field is a string or absent."""
    assert _refused({**bundles.manifest_v1(), field: None}).code == "manifest_invalid"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"version": None}, "version"),
        ({"publisher": None}, "publisher"),
        ({"digest_sha256": None}, "digest_sha256"),
        ({"signature_ed25519": None}, "signature_ed25519"),
        ({"entrypoint": "artifact"}, "entrypoint"),
        ({"version": "1.0"}, "SemVer"),
        ({"version": "v1.0.0"}, "SemVer"),
        ({"critical": 1}, "bool"),
        ({"runtime": {"protocol": "latticed-stdio-2"}}, "latticed-stdio-2"),
        ({"runtime": {"argv": []}}, "argv"),
        ({"runtime": {"args": ["a\x00b"]}}, "runtime.args[0]"),
        ({"runtime": {"limits": {"memory_mib": 0}}}, "1"),
        ({"runtime": {"limits": {"memory_mib": True}}}, "int"),
        ({"runtime": {"sandbox": {"features": ["root"]}}}, "root"),
        ({"description": "a\u202eb"}, "U+202E"),
        ({"description": "a\u115fb"}, "U+115F"),
        ({"homepage": "https://a\r\nb"}, "U+000D"),
        ({"license": "MIT\x1b"}, "U+001B"),
        ({"config": {"title": "\x1b[31m"}}, "U+001B"),
        ({"config": []}, "object"),
        ({"egress": {"hosts": ["example.org"]}}, "egress.hosts[0]"),
        ({"egress": {"hosts": ["a:1", "example.org:0"]}}, "egress.hosts[1]"),
        ({"egress": {"hosts": ["example.org:65536"]}}, "egress.hosts[0]"),
        ({"egress": {"hosts": ["https://example.org:443"]}}, "egress.hosts[0]"),
        ({"egress": {"hosts": ["a.*.org:443"]}}, "egress.hosts[0]"),
        ({"routes": {"prefixes": ["demo"]}}, "routes.prefixes[0]"),
        ({"dependencies": [{"id": "X"}]}, "dependencies[0].id"),
        ({"dependencies": [{"id": "acme.demo"}]}, "dependencies[0].id"),
        ({"dependencies": [{"id": "a.b"}, {"id": "a.b"}]}, "dependencies[1].id"),
        ({"dependencies": [{"id": "a.b", "version": "newest"}]}, "dependencies[0].version"),
        ({"requires_host": "newest"}, "requires_host"),
        ({"schedules": [_schedule(name=f"n{number}") for number in range(17)]}, "at most 16 `schedules`, found 17"),
        ({"schedules": [_schedule(every_s=0)]}, "schedules[0].every_s"),
        ({"schedules": [_schedule(every_s=9)]}, "schedules[0].every_s"),
        ({"schedules": [_schedule(every_s=366 * 86_400 + 1)]}, "schedules[0].every_s"),
        ({"schedules": [_schedule(every_s=True)]}, "schedules[0].every_s"),
        ({"schedules": [_schedule(daily="03:30")]}, "one of every_s, daily, cron, found every_s, daily"),
        ({"schedules": [{"name": "disk", "action": "check"}]}, "one of every_s, daily, cron, found none"),
        ({"schedules": [_schedule(), _schedule()]}, "schedules[1].name"),
        ({"schedules": [_schedule(name="a@b")]}, "schedules[0].name"),
        ({"schedules": [_schedule(name="x" * 65)]}, "schedules[0].name"),
        ({"schedules": [_schedule(action="")]}, "schedules[0].action"),
        ({"schedules": [_schedule(action="do it")]}, "schedules[0].action"),
        ({"schedules": [_schedule(weekly=1)]}, "weekly"),
        ({"schedules": [_schedule(every_s=None)]}, "schedules[0].every_s"),
        ({"schedules": [_schedule(payload="x" * 17_000)]}, "schedules[0].payload"),
        ({"schedules": [_schedule(payload={"a": "\x1b"})]}, "U+001B"),
        ({"schedules": [{"name": "d", "action": "a", "daily": "24:00"}]}, "schedules[0].daily"),
        ({"schedules": [{"name": "d", "action": "a", "cron": "0 0 30 2 *"}]}, "schedules[0].cron"),
        ({"schedules": [{"name": "d", "action": "a", "cron": "@daily"}]}, "schedules[0].cron"),
        ({"schedules": [_schedule()], "type": "worker", "capabilities": ["kv:read"]}, "no `schedules` in a worker"),
        ({"schedules": {}}, "schedules"),
    ],
)
def test_v2_manifest_that_breaks_a_rule_is_invalid(fields, word):
    """The rules are of required fields, SemVer, shapes of every part, and text without control characters."""
    refused = _refused(_v2(**fields))
    assert refused.code == "manifest_invalid"
    assert word in refused.reason


def test_null_in_v2_manifest_is_refused_outside_config():
    """`memory_mib: null` is invalid; a default of null in the author's own `config` is not."""
    raw = {**_v2(), "runtime": {"limits": {"memory_mib": None}}}
    assert "runtime.limits.memory_mib" in _refused(raw).reason
    decode.decode(json.dumps({**_v2(), "config": {"default": None}}).encode())


def test_payload_of_a_schedule_is_the_authors_own_json():
    """Null and lines are valid in it, and it survives being kept in a record."""
    payload = {"a": [None, "two\nlines", {"b": False}]}
    found = decode.decode(json.dumps(_v2(schedules=[_schedule(payload=payload)])).encode())[1]
    kept = msgspec.json.decode(msgspec.json.encode(found), type=type(found))
    assert (found.schedules[0].payload, kept.schedules) == (payload, found.schedules)


def test_unknown_capability_takes_precedence_over_duplicate():
    """The order of codes; the refusal carries the manifest, so that it can be shown under its id."""
    refused = _refused(bundles.manifest_v1(capabilities=["kv:read", "kv:read", "kv:reed"]))
    assert refused.code == "unknown_capability"
    assert "kv:read" in refused.hint
    assert refused.fault.manifest is not None
    assert refused.fault.manifest.id == "acme.demo"


def test_duplicate_capability_is_refused():
    """Names are case-sensitive."""
    assert _refused(bundles.manifest_v1(capabilities=["kv:read", "kv:read"])).code == "duplicate_capability"
    assert _refused(bundles.manifest_v1(capabilities=["KV:read"])).code == "unknown_capability"


def test_broken_rule_takes_precedence_over_unknown_capability():
    """The order of codes says so."""
    assert _refused(bundles.manifest_v1(name="", capabilities=["root"])).code == "manifest_invalid"


def test_digest_is_accepted_in_either_case():
    """It is kept as written, because the payload covers that."""
    _, found = decode.decode(json.dumps(bundles.manifest_v1(digest_sha256="AbCd" * 16)).encode())
    assert found.digest_sha256 == "AbCd" * 16


def test_manifest_of_unknown_schema_is_reported_as_such():
    """Its other members do not matter; the hint is not to sign it again."""
    found = _refused({"schema": "lattice.plugin.manifest.v2", "id": "acme.demo", "unknown": {"x": 1}})
    assert found.code == "manifest_invalid"
    assert found.reason.startswith("expected the schema latticed.manifest.v2")
    assert found.reason.endswith("found lattice.plugin.manifest.v2")
    assert "sign" not in found.hint
    assert "found 2" in _refused({"schema": 2}).reason
    assert "found ''" in _refused({"schema": ""}).reason

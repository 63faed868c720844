"""More than two hundred hostile bundles: the real reader and verifier refuse each with its code.

Those that need a daemon (whole directories, owners, names of any bytes) are in `test_bundles_on_disk.py`.
"""

from __future__ import annotations

import base64
import functools
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import rfc8785

from latticed.bundle import read
from latticed.bundle.refusal import BundleRefused
from latticed.model.verdict import Refused
from latticed.trust import policy, verify
from tests.house import bundles, supervisors

ACME, OTHER, SPARE = (
    bundles.author(name, seed=bytes([seed]) * 32) for name, seed in (("acme", 1), ("other", 2), ("acme", 3))
)
LIMIT_S = 1.0
ORDER = 2**252 + 27742317777372353535851937790883648493
"""The order of Ed25519's base point: S plus this verifies too if a verifier does not check S < L."""
MAKES = {"v1": bundles.manifest_v1, "v2": bundles.manifest_v2}


def _honest(version="v1", by=ACME, **fields):
    return bundles.signed(MAKES[version](**fields), bundles.ARTIFACT, by)


def _written(raw, artifact=bundles.ARTIFACT):
    return lambda path: bundles.write(path, raw, artifact)


def _signed(version, fields):
    """Signed by the trusted publisher over whatever it says, as far as that can be signed at all."""
    raw = MAKES[version](**fields)
    try:
        return bundles.signed(raw, bundles.ARTIFACT, ACME)
    except (KeyError, TypeError, AttributeError, rfc8785.CanonicalizationError):
        return {
            **bundles.with_digest(raw, bundles.ARTIFACT),
            "publisher": "acme",
            "signature_ed25519": "AA" * 43 + "==",
        }


def _special(kind):
    def make(path):
        if kind == "link":
            path.symlink_to(path.parent / "aside" / path.name)
        elif kind == "link within":
            shutil.copy(path.parent / "aside" / path.name, path.with_suffix(".real"))
            path.symlink_to(path.with_suffix(".real").name)
        elif kind == "magic link":
            path.symlink_to("/proc/self/exe")
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                os.chdir(path.parent)  # such a path is short, or it is none
                sock.bind(path.name)
        else:
            _KINDS[kind](path)

    return make


_KINDS = {
    "link to nothing": lambda path: path.symlink_to("/nonexistent"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a secret": lambda path: path.symlink_to("/etc/shadow"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "fifo": os.mkfifo,
    "directory": lambda path: path.mkdir(),
}


def _instead(name, make):
    """`make` puts something else in place of the file `name` of a valid bundle."""

    def prepare(path):
        for place in (path, path / "aside"):
            bundles.write(place, _honest())
        (path / name).unlink()
        make(path / name)

    return prepare


def _on_disk():
    for name in ("manifest.json", "artifact"):
        part = name.partition(".")[0]
        for kind in [*_KINDS, "link", "link within", "magic link", "socket"]:
            yield f"{part}: {kind}", _instead(name, _special(kind)), f"{part}_not_regular"
        yield f"{part}: missing", _instead(name, lambda _: None), f"{part}_missing"
        limit = 64 << (10 if part == "manifest" else 20)
        yield f"{part}: too large", _instead(name, functools.partial(_sparse, limit + 1)), f"{part}_too_large"
        yield f"{part}: endless", _instead(name, functools.partial(_sparse, 1 << 42)), f"{part}_too_large"
    yield "manifest: empty", _instead("manifest.json", Path.touch), "manifest_invalid_json"
    yield "artifact: empty", _instead("artifact", Path.touch), "digest_mismatch"
    yield "artifact: its own manifest", _instead("artifact", _copy_of("manifest.json")), "digest_mismatch"
    yield "manifest: the artifact", _instead("manifest.json", _copy_of("artifact")), "manifest_invalid_json"
    yield "nothing", lambda _: None, "manifest_missing"
    yield "a file", Path.touch, "unreadable"
    yield "a fifo", os.mkfifo, "unreadable"
    yield "a link to a bundle", _linked, "unreadable"
    yield "a link to itself", lambda path: path.symlink_to(path.name), "unreadable"


def _sparse(size, path):
    path.touch()
    os.truncate(path, size)


def _copy_of(name):
    return lambda path: shutil.copy(path.parent / name, path)


def _linked(path):
    bundles.write(path.with_name("honest"), _honest())
    path.symlink_to("honest")


_JSON = {
    "nothing": b"",
    "white space": b" \n\t ",
    "null": b"null",
    "true": b"true",
    "a number": b"7",
    "a string": b'"x"',
    "an array": b"[]",
    "an array of one": b"[{}]",
    "unfinished": b"{",
    "unfinished string": b'{"id": "',
    "two objects": b"{} {}",
    "an object and more": b"{}x",
    "a mark of order": b"\xef\xbb\xbf{}",
    "UTF-16": '{"id": "acme.demo"}'.encode("utf-16"),
    "UTF-32": '{"id": "acme.demo"}'.encode("utf-32"),
    "latin-1": b'{"id": "\xff"}',
    "an overlong form": b'{"id": "\xc0\xaf"}',
    "an encoded surrogate": b'{"id": "\xed\xa0\x80"}',
    "a lone surrogate": b'{"id": "\\ud800"}',
    "two surrogates, reversed": b'{"id": "\\udc00\\ud800"}',
    "a key twice": b'{"id": "a", "id": "b"}',
    "a key twice, once escaped": b'{"id": "a", "\\u0069d": "b"}',
    "a key twice, deeper": b'{"runtime": {"args": [], "args": []}}',
    "a fraction": b'{"x": 1.0}',
    "an exponent": b'{"x": 1e3}',
    "beyond 2^53": b'{"x": 9007199254740992}',
    "below -2^53": b'{"x": -9007199254740992}',
    "an endless number": b'{"x": ' + b"9" * 60_000 + b"}",
    "NaN": b'{"x": NaN}',
    "Infinity": b'{"x": -Infinity}',
    "a number with a zero": b'{"x": 01}',
    "33 deep": b'{"a":' * 33 + b"1" + b"}" * 33,
    "10,000 deep": b'{"a":' * 10_000,
    "60,000 arrays": b"[" * 60_000,
    "single quotes": b"{'id': 1}",
    "a comma too many": b'{"id": "a",}',
    "a comment": b'// comment\n{"id": "a"}',
    "a control character": b'{"id": "a\nb"}',
    "a NUL": b'{"id": "a"}\x00',
    "an escape that is none": b'{"id": "\\x41"}',
}

_V1 = {
    "id: none": {"id": None},
    "name: none": {"name": None},
    "type: none": {"type": None},
    "capabilities: none": {"capabilities": None},
    "Id": {"Id": "acme.demo"},
    "a field of v2": {"description": "x"},
    "runtime in v1": {"runtime": {"sandbox": {"features": ["processes"]}}},
    "another schema": {"schema": "latticed.manifest.v3"},
    "an empty schema": {"schema": ""},
    "id: short": {"id": "ab"},
    "id: long": {"id": "a" * 129},
    "id: upper case": {"id": "Acme.demo"},
    "id: a dot first": {"id": ".acme"},
    "id: two dots": {"id": "acme..demo"},
    "id: a path": {"id": "acme/demo"},
    "id: a way up": {"id": "../../etc"},
    "id: a line": {"id": "acme.demo\n"},
    "id: a NUL": {"id": "acme.demo\0"},
    "id: another alphabet": {"id": "\u0430cme.demo"},
    "id: ours": {"id": "latticed.kv"},
    "id: a number": {"id": 5},
    "publisher: ours": {"publisher": "latticed"},
    "publisher: upper case": {"publisher": "Acme"},
    "publisher: a line": {"publisher": "acme\nother"},
    "name: empty": {"name": ""},
    "name: blank": {"name": " \u3000 "},
    "name: long": {"name": "x" * 81},
    "name: invisible": {"name": "De\u200bmo"},
    "name: right to left": {"name": "De\u202emo"},
    "name: a line": {"name": "De\nmo"},
    "name: a terminal's escape": {"name": "\x1b[2JDemo"},
    "version: long": {"version": "x" * 65},
    "version: a line": {"version": "1.0\n"},
    "version: a number": {"version": 1},
    "entrypoint: long": {"entrypoint": "x" * 256},
    "entrypoint: a NUL": {"entrypoint": "a\x00b"},
    "type: another": {"type": "native"},
    "type: upper case": {"type": "System"},
    "capabilities: empty": {"capabilities": []},
    "capabilities: a string": {"capabilities": "kv:read"},
    "capabilities: a number": {"capabilities": [1]},
    "digest: short": {"digest_sha256": "ab" * 31},
    "digest: no hex": {"digest_sha256": "xy" * 32},
    "digest: a space": {"digest_sha256": " " + "ab" * 32},
}

_V2 = {
    "version: none": {"version": None},
    "entrypoint": {"entrypoint": "artifact"},
    "version: no SemVer": {"version": "1.0"},
    "version: a v": {"version": "v1.0.0"},
    "critical: a number": {"critical": 1},
    "protocol: unknown": {"runtime": {"protocol": "latticed-stdio-2"}},
    "runtime: argv": {"runtime": {"argv": []}},
    "args: a NUL": {"runtime": {"args": ["a\x00b"]}},
    "memory: none": {"runtime": {"limits": {"memory_mib": 0}}},
    "memory: negative": {"runtime": {"limits": {"memory_mib": -1}}},
    "memory: true": {"runtime": {"limits": {"memory_mib": True}}},
    "features: root": {"runtime": {"sandbox": {"features": ["root"]}}},
    "level: open": {"runtime": {"sandbox": {"level": "open"}}},
    "description: right to left": {"description": "a\u202eb"},
    "homepage: a header": {"homepage": "https://a\r\nb"},
    "license: an escape": {"license": "MIT\x1b"},
    "config: an array": {"config": []},
    "config: an escape": {"config": {"title": "\x1b[31m"}},
    "hosts: no port": {"egress": {"hosts": ["example.org"]}},
    "hosts: port 0": {"egress": {"hosts": ["example.org:0"]}},
    "hosts: port 65536": {"egress": {"hosts": ["example.org:65536"]}},
    "hosts: a URL": {"egress": {"hosts": ["https://example.org:443"]}},
    "hosts: a star within": {"egress": {"hosts": ["a.*.org:443"]}},
    "prefixes: no slash": {"routes": {"prefixes": ["demo"]}},
    "dependencies: bad id": {"dependencies": [{"id": "X"}]},
    "dependencies: itself": {"dependencies": [{"id": "acme.demo"}]},
    "dependencies: twice": {"dependencies": [{"id": "a.b"}, {"id": "a.b"}]},
    "dependencies: no range": {"dependencies": [{"id": "a.b", "version": "newest"}]},
    "requires_host: no range": {"requires_host": "newest"},
    "an unknown field": {"sudo": True},
}


def _contents():
    for what, data in _JSON.items():
        yield f"json: {what}", _written(data), "manifest_invalid_json"
    for version, table in (("v1", _V1), ("v2", _V2)):
        for what, fields in table.items():
            yield f"{version}: {what}", _written(_signed(version, fields)), "manifest_invalid"
    for version in MAKES:
        for names, code in (
            (["kv:reed"], "unknown_capability"),
            (["KV:READ"], "unknown_capability"),
            (["kv:read "], "unknown_capability"),
            (["*"], "unknown_capability"),
            (["kv:read", "kv:read"], "duplicate_capability"),
        ):
            yield f"{version}: {names}", _written(_honest(version, capabilities=names)), code
    for kind, name in (("wasm", "node:admin"), ("wasm", "task:run"), ("worker", "kv:write"), ("worker", "http:egress")):
        yield f"{kind}: {name}", _written(_honest(type=kind, capabilities=[name])), "capability_not_allowed"


def _flipped(raw, bit):
    signature = bytearray(base64.b64decode(raw["signature_ed25519"]))
    signature[bit // 8] ^= 1 << bit % 8
    return base64.b64encode(signature).decode()


def _malleable(raw):
    signature = base64.b64decode(raw["signature_ed25519"])
    second = int.from_bytes(signature[32:], "little") + ORDER
    return base64.b64encode(signature[:32] + second.to_bytes(32, "little")).decode()


def _signatures():
    raw = _honest()
    right = raw["signature_ed25519"]
    point_one = base64.b64encode(b"\x01" + bytes(63)).decode()
    for what, text, code in (
        ("none", None, "signature_missing"),
        ("empty", "", "signature_missing"),
        ("short", right[:-8], "signature_malformed"),
        ("long", base64.b64encode(base64.b64decode(right) + b"x").decode(), "signature_malformed"),
        ("hex", base64.b64decode(right).hex(), "signature_malformed"),
        ("a space within", right[:40] + " " + right[40:], "signature_malformed"),
        ("a line behind", right + "\n", "signature_malformed"),
        ("dots", "." * 86 + "==", "signature_malformed"),
        ("zeros", base64.b64encode(bytes(64)).decode(), "signature_invalid"),
        ("ones", base64.b64encode(b"\xff" * 64).decode(), "signature_invalid"),
        ("a point of small order", point_one, "signature_invalid"),
        ("plus the group's order", _malleable(raw), "signature_invalid"),
        ("its halves exchanged", _exchanged(right), "signature_invalid"),
        ("of another bundle", _honest(name="Another")["signature_ed25519"], "signature_invalid"),
        ("of the artifact", ACME.sign(bundles.ARTIFACT), "signature_invalid"),
        ("of the digest", ACME.sign(raw["digest_sha256"].encode()), "signature_invalid"),
        ("of nothing", ACME.sign(b""), "signature_invalid"),
        ("of a key that is not trusted", SPARE.sign(bundles.payload(raw)), "signature_invalid"),
        ("of another trusted publisher", OTHER.sign(bundles.payload(raw)), "signature_invalid"),
        *((f"bit {bit}", _flipped(raw, bit), "signature_invalid") for bit in range(0, 512, 32)),
    ):
        lie = {key: value for key, value in {**raw, "signature_ed25519": text}.items() if value is not None}
        yield f"signature: {what}", _written(lie), code
    as_v1 = {key: value for key, value in _honest("v2").items() if key not in {"schema", "signature_ed25519"}}
    crossed = {**_honest("v2"), "signature_ed25519": ACME.sign(bundles.payload(as_v1))}
    yield "signature: of v1 in v2", _written(crossed), "signature_invalid"
    yield "publisher: none", _written({key: raw[key] for key in raw if key != "publisher"}), "publisher_missing"
    stranger = bundles.author("stranger", seed=bytes([9]) * 32)
    yield "publisher: a stranger", _written(_honest(by=stranger)), "publisher_untrusted"
    yield "publisher: one with our name's letters", _written({**raw, "publisher": "acme-"}), "manifest_invalid"


def _exchanged(text):
    signature = base64.b64decode(text)
    return base64.b64encode(signature[32:] + signature[:32]).decode()


_LATER = {
    "id": "acme.other",
    "name": "Another",
    "type": "worker",
    "version": "9.9.9",
    "publisher": "other",
    "capabilities": ["kv:read"],
}
_LATER_V2 = {
    "runtime": {"limits": {"memory_mib": 4096}},
    "egress": {"hosts": ["evil.example:443"]},
    "critical": True,
    "config": {"a": 1},
    "description": "x",
    "dependencies": [{"id": "evil.one"}],
}


def _after_signing():
    for version in MAKES:
        for name, value in {**_LATER, **(_LATER_V2 if version == "v2" else {})}.items():
            lie = {**_honest(version, capabilities=["kv:read", "log:write"]), name: value}
            code = "capability_not_allowed" if value == "worker" else "signature_invalid"
            yield f"{version}, after signing: {name}", _written(lie), code
    yield "v1, after signing: entrypoint", _written({**_honest(), "entrypoint": "/bin/sh"}), "signature_invalid"
    more = {**_honest(), "capabilities": ["kv:read", "log:write", "http:egress"]}
    yield "v1, after signing: one capability more", _written(more), "signature_invalid"
    size = len(bundles.ARTIFACT)
    for place in (0, 1, size // 2, size - 1):
        data = bytearray(bundles.ARTIFACT)
        data[place] ^= 1
        yield f"artifact: byte {place} of {size}", _written(_honest(), bytes(data)), "digest_mismatch"
    for what, data in {
        "one byte less": bundles.ARTIFACT[:-1],
        "one byte more": bundles.ARTIFACT + b"\n",
        "twice": bundles.ARTIFACT * 2,
        "a command before it": b"#!/bin/sh\nid\n" + bundles.ARTIFACT,
    }.items():
        yield f"artifact: {what}", _written(_honest(), data), "digest_mismatch"
    lie = {**_honest(), "digest_sha256": "00" * 32}
    yield "digest: of something else, after signing", _written(lie), "signature_invalid"
    yield "digest: of something else, signed", _written(_honest(digest_sha256="00" * 32)), "digest_mismatch"
    yield "digest: none", _written({**_honest(), "digest_sha256": ""}), "digest_missing"
    yield "host: a later one", _written(_honest("v2", requires_host=">=9")), "host_incompatible"


CASES = {
    name: (prepare, code)
    for family in (_on_disk, _contents, _signatures, _after_signing)
    for name, prepare, code in family()
}

TRUST = policy.decode(bundles.policy_bytes(ACME, OTHER))
DIGEST = str(_honest()["digest_sha256"])


def judge(path, trust=TRUST):
    """The verdict of the real reader and verifier, as the catalog has it."""
    try:
        with read.open_bundle(path, limits=read.ReadLimits(), owners=supervisors.owners()) as found:
            return verify.verify(found, trust, host_version="0.1.0")
    except BundleRefused as refused:
        return Refused(code=refused.code, reason=refused.reason, hint=refused.hint)


@pytest.mark.parametrize("name", CASES)
def test_hostile_bundle_is_refused_with_its_code(tmp_path, monkeypatch, name):
    """The problem has a reason and a hint; nothing that the bundle refers to is opened, waited for or shown."""
    monkeypatch.chdir(tmp_path)
    prepare, code = CASES[name]
    prepare(tmp_path / "bundle")
    monkeypatch.chdir("/")
    began_s = time.process_time()
    found = judge(tmp_path / "bundle")
    assert isinstance(found, Refused), found
    assert (found.code, bool(found.reason), bool(found.hint)) == (code, True, True), found
    assert "root:" not in found.reason
    assert time.process_time() - began_s < LIMIT_S


REVOCATIONS = {
    "the key": ({"keys": [ACME.public]}, "key_revoked"),
    "the id": ({"plugins": ["acme.demo@*"]}, "plugin_revoked"),
    "the version": ({"plugins": ["acme.demo@1.0.0"]}, "plugin_revoked"),
    "the digest": ({"digests": [DIGEST]}, "digest_revoked"),
    "the digest in capitals": ({"digests": [DIGEST.upper()]}, "digest_revoked"),
}


@pytest.mark.parametrize("what", REVOCATIONS)
@pytest.mark.parametrize("version", MAKES)
def test_valid_bundle_is_refused_once_revoked(tmp_path, version, what):
    """Each kind of revocation in the policy refuses it."""
    fields, code = REVOCATIONS[what]
    bundles.write(tmp_path / "bundle", _honest(version))
    found = judge(tmp_path / "bundle", policy.decode(bundles.policy_bytes(ACME, revoked=fields)))
    assert found.code == code


@pytest.mark.parametrize("version", MAKES)
def test_unmodified_bundle_verifies(tmp_path, version):
    """Otherwise the refusals above would prove nothing."""
    bundles.write(tmp_path / "bundle", _honest(version))
    assert not isinstance(judge(tmp_path / "bundle"), Refused)

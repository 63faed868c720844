"""Signing manifests, and private key files."""

from __future__ import annotations

import hashlib
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from latticed.bundle import decode, write
from latticed.model.errors import Problem
from latticed.trust import key_files, payload, sign
from tests.house import bundles

DIGEST = hashlib.sha256(bundles.ARTIFACT).hexdigest()


@pytest.mark.parametrize("make", [bundles.manifest_v1, bundles.manifest_v2])
def test_signature_equals_that_of_an_independent_signer(make):
    """It is equal byte for byte, made from contracts §2 and §3."""
    acme = bundles.author()
    found = sign.sign(make(name="Größe ☂"), DIGEST, acme.key, publisher="acme")
    assert found == bundles.signed(make(name="Größe ☂"), bundles.ARTIFACT, acme)
    raw, manifest = decode.decode(write.render(found))
    assert payload.signing_payload(raw, manifest) == bundles.payload(found)
    assert payload.identity(b"") == hashlib.sha256(b"").hexdigest()


def test_signing_replaces_old_signature_and_digest():
    """The publisher is kept unless another one is given."""
    acme = bundles.author()
    first = sign.sign(bundles.manifest_v1(publisher="acme"), "0" * 64, acme.key)
    assert sign.sign(first, DIGEST, acme.key) == bundles.signed(bundles.manifest_v1(), bundles.ARTIFACT, acme)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": ""}, "manifest_invalid"),
        ({"capabilities": ["x"]}, "unknown_capability"),
        ({"capabilities": ["kv:read", "kv:read"]}, "duplicate_capability"),
        ({"type": "worker", "capabilities": ["worker:route", "kv:write"]}, "capability_not_allowed"),
        ({"publisher": ""}, "publisher_missing"),
        ({"publisher": None}, "publisher_missing"),
    ],
)
def test_manifest_that_hosts_would_refuse_is_not_signed(fields, code):
    """The Problem has the verdict's code."""
    with pytest.raises(Problem) as caught:
        sign.sign(bundles.manifest_v1(**{"publisher": "acme", **fields}), DIGEST, bundles.author().key)
    assert caught.value.code == code


def test_key_file_is_private_and_never_overwritten(tmp_path):
    """It is PEM, has mode 0600, and can be read back."""
    key = key_files.generate()
    path = tmp_path / "acme.pem"
    key_files.create(path, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_files.public_text(key_files.read(path)) == key_files.public_text(key)
    with pytest.raises(Problem) as caught:
        key_files.create(path, key_files.generate())
    assert caught.value.code == "exists"
    assert key_files.public_text(key_files.read(path)) == key_files.public_text(key)
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_unusable_key_file_is_reported(tmp_path):
    """It is missing, garbage, too large, of another kind or encrypted: each has its own message."""
    encrypted = key_files.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data, said, code in (
        (b"garbage", "no PEM", "key_invalid"),
        (b"x" * 20000, "at most", "key_invalid"),
        (other, "another kind", "key_invalid"),
        (encrypted, "passphrase", "key_encrypted"),
    ):
        (tmp_path / "key.pem").write_bytes(data)
        with pytest.raises(Problem, match=said) as caught:
            key_files.read(tmp_path / "key.pem")
        assert caught.value.code == code
    with pytest.raises(Problem) as caught:
        key_files.read(tmp_path / "none.pem")
    assert caught.value.code == "not_found"
    with pytest.raises(Problem) as caught:
        key_files.read(tmp_path / "key.pem" / "below")
    assert caught.value.code == "io_error"
    with pytest.raises(Problem) as caught:
        key_files.create(tmp_path / "none" / "key.pem", key_files.generate())
    assert caught.value.code == "io_error"

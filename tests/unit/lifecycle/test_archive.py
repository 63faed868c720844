"""What a backup's manifest may contain, even with a valid signature."""

from __future__ import annotations

import base64
import io
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from latticed.bundle.read import ReadLimits
from latticed.kit import tar
from latticed.lifecycle import archive
from latticed.model.chain import encode
from latticed.model.errors import Problem

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
FILES = [[name, 0, EMPTY] for name in archive.NEEDED]
PAIR = "store/" + "ab" * 32
SOUND = {
    "format": archive.FORMAT,
    "created_at": "2026-01-02T03:04:05.000000Z",
    "version": "1",
    "ledger_version": 2,
    "public_key": PUBLIC,
    "last_seq": 0,
    "last_hash": "",
    "files": [*FILES, [f"{PAIR}/manifest.json", 0, EMPTY], [f"{PAIR}/artifact", 0, EMPTY]],
}


def signed(plain):
    signature = KEY.sign(archive.DOMAIN + encode(plain).encode())
    return json.dumps({**plain, "signature": base64.b64encode(signature).decode()}).encode()


def refused(data):
    with pytest.raises(Problem) as caught:
        archive.decode_manifest(data)
    assert caught.value.code == "backup_invalid"
    return caught.value.reason


def test_backup_manifest_survives_encoding():
    found = archive.decode_manifest(signed(SOUND))
    assert [one.name for one in found.entries] == [name for name, _, _ in SOUND["files"]]
    assert archive.decode_manifest(archive.encode_manifest(found, KEY)) == found


@pytest.mark.parametrize(
    "name",
    [
        *("../host.key", "/etc/passwd", "store/../x", f"{PAIR}/../artifact", f"{PAIR}/artifact/x"),
        *(f"{PAIR}/Artifact", "store/AB/artifact", "trust.json", "", ".", "lock", f"{PAIR}/artifact\n"),
    ],
)
def test_backup_with_unexpected_file_name_is_refused(name):
    """The signature does not make names safe: they are checked against those that a backup has."""
    assert "names a file that no backup has" in refused(signed({**SOUND, "files": [*FILES, [name, 0, EMPTY]]}))


def test_backup_with_duplicate_or_missing_file_is_refused():
    assert "twice" in refused(signed({**SOUND, "files": [*FILES, FILES[0]]}))
    for missing in range(3):
        assert "missing" in refused(signed({**SOUND, "files": FILES[:missing] + FILES[missing + 1 :]}))


@pytest.mark.parametrize("field", SOUND)
@pytest.mark.parametrize("value", [None, -1, True, 1.5, "x", [], {}, [[1, 2, 3]], [["host.key", -1, EMPTY]], [[]]])
def test_backup_manifest_field_of_wrong_type_is_refused(field, value):
    """A Problem is raised and no other exception; fields of any text may be `x`."""
    if (field, value) in [(name, "x") for name in ("created_at", "version", "last_hash")]:
        return
    refused(signed({**SOUND, field: value}))


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_as_backup_manifest_raise_problem(data):
    refused(data)


def test_backup_file_over_the_limit_of_settings_is_refused(tmp_path):
    """It is refused before a byte of it is written."""
    plain = {**SOUND, "files": [*FILES, [f"{PAIR}/manifest.json", 0, EMPTY], [f"{PAIR}/artifact", 11, EMPTY]]}
    files = [("manifest.json", signed(plain)), *((name, bytes(size)) for name, size, _ in plain["files"])]
    packed = b"".join(
        tar.header(name, len(data), mode=0o600, mtime_s=1) + data + bytes(tar.padding(len(data)))
        for name, data in files
    )
    with pytest.raises(Problem, match="larger than the settings allow"):
        archive.unpack(io.BytesIO(packed + tar.END), tmp_path, ReadLimits(artifact_bytes=10))
    assert not (tmp_path / PAIR / "artifact").exists()

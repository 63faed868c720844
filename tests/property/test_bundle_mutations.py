"""A bundle signed by other tooling verifies, and no mutation of one byte of it does.

Precisely: a mutated artifact is always refused. A mutated manifest is refused, or says exactly what it said: JSON
leaves white space between tokens, and the case of \\u escapes, to the writer, and a signature over the meaning cannot
cover them. So whatever is accepted has the same decoded object, the same payload and the same 64 bytes of signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.bundle import decode
from latticed.model.verdict import Refused, Verified
from latticed.trust import payload, policy, verify
from tests.house import bundles

AUTHOR = bundles.author(seed=bytes(range(32)))
TRUST = policy.decode(bundles.policy_bytes(AUTHOR))
ARTIFACT = b"#!/usr/bin/env python3\nprint('hello')\n" + bytes(range(256))


def _manifest(make):
    raw = bundles.signed(make(name='Größe "☂" \\ \U0001f600'), ARTIFACT, AUTHOR)
    return json.dumps(raw, indent=2, ensure_ascii=make is bundles.manifest_v1).encode() + b"\n"


MANIFESTS = {"v1": _manifest(bundles.manifest_v1), "v2": _manifest(bundles.manifest_v2)}
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')

versions = pytest.mark.parametrize("version", MANIFESTS)


class _Pair:
    interpreter = ""

    def __init__(self, manifest: bytes, artifact: bytes) -> None:
        self._manifest, self._artifact = manifest, artifact

    def manifest(self) -> bytes:
        return self._manifest

    def hash_artifact(self) -> tuple[str, int]:
        return hashlib.sha256(self._artifact).hexdigest(), len(self._artifact)


def _judge(manifest, artifact=ARTIFACT):
    return verify.verify(_Pair(manifest, artifact), TRUST, host_version="0.1.0")


def _meaning(manifest):
    raw, decoded = decode.decode(manifest)
    return raw, payload.signing_payload(raw, decoded), base64.b64decode(decoded.signature_ed25519 + "==")


def _white_space(manifest):
    """The offsets of white space between tokens."""
    bare = _STRING.sub(lambda found: b"x" * len(found[0]), manifest)
    return {place for place, byte in enumerate(bare) if byte in b" \t\r\n"}


def _check(original, mutant):
    """Refused, or the same in everything but white space."""
    found = _judge(mutant)
    if isinstance(found, Verified):
        assert _meaning(mutant) == _meaning(original), mutant
        assert found.identity == hashlib.sha256(_meaning(original)[1]).hexdigest()
    return found


@versions
def test_bundle_signed_by_independent_signer_verifies(version):
    """tests/house/bundles uses contracts §2 and §3, hashlib and Ed25519, and no code of latticed."""
    found = _judge(MANIFESTS[version])
    assert isinstance(found, Verified)
    assert found.manifest.name == 'Größe "☂" \\ \U0001f600'


@versions
def test_no_flipped_bit_of_the_manifest_is_accepted_outside_white_space(version):
    """A flip between tokens may turn one white space into another, which changes no meaning."""
    original = MANIFESTS[version]
    white = _white_space(original)
    for place in range(len(original)):
        for bit in range(8):
            mutant = bytearray(original)
            mutant[place] ^= 1 << bit
            found = _check(original, bytes(mutant))
            assert isinstance(found, Refused) or place in white or _is_hex_case(original, place, bit), (place, bit)


def _is_hex_case(original, place, bit):
    r"""`\u00f6` and `\u00F6` are two spellings of one character."""
    escape = re.search(rb"\\u[0-9a-fA-F]{4}", original[max(0, place - 5) : place + 4])
    return bit == 5 and escape is not None and chr(original[place]).isalpha()


@versions
def test_no_missing_or_doubled_byte_of_the_manifest_is_accepted_outside_white_space(version):
    """Each byte is removed once and doubled once."""
    original = MANIFESTS[version]
    white = _white_space(original)
    for place in range(len(original)):
        for mutant in (
            original[:place] + original[place + 1 :],
            original[: place + 1] + original[place:],
        ):
            found = _check(original, mutant)
            assert isinstance(found, Refused) or place in white, (place, mutant)


def test_no_flipped_missing_or_added_byte_of_the_artifact_is_accepted():
    """Each byte of it is tried, under the unchanged manifest."""
    for place in range(len(ARTIFACT)):
        flipped = bytearray(ARTIFACT)
        flipped[place] ^= 1 << (place % 8)
        for mutant in (
            bytes(flipped),
            ARTIFACT[:place] + ARTIFACT[place + 1 :],
            ARTIFACT[:place] + b"\0" + ARTIFACT[place:],
        ):
            found = _judge(MANIFESTS["v1"], mutant)
            assert isinstance(found, Refused)
            assert found.code == "digest_mismatch"


@versions
@given(data=st.data())
def test_bundle_with_substituted_or_inserted_byte_is_refused_or_means_the_same(version, data):
    """Bytes and offsets are arbitrary."""
    original = MANIFESTS[version]
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=1))
    keep = data.draw(st.booleans())
    _check(original, original[:place] + byte + original[place + (not keep) :])


@versions
@given(
    fields=st.dictionaries(
        st.sampled_from(["id", "name", "type", "version", "capabilities", "digest_sha256", "publisher", "schema"]),
        st.text(max_size=6) | st.lists(st.sampled_from(["kv:read", "kv:write", "log:write"]), max_size=3) | st.none(),
        min_size=1,
    )
)
def test_manifest_with_replaced_fields_verifies_only_if_its_meaning_is_unchanged(version, fields):
    """Whole fields are replaced under the old signature; the order of v1's capabilities has no meaning."""
    original = json.loads(MANIFESTS[version])
    mutant = {**original, **fields}
    found = _judge(json.dumps(mutant).encode())
    if isinstance(found, Verified):
        assert _meaning(json.dumps(mutant).encode())[1] == _meaning(MANIFESTS[version])[1]

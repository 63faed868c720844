"""Untrusted bytes and values give a code, never a crash."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from latticed.bundle import decode
from latticed.bundle.refusal import BundleRefused
from latticed.kit import text
from latticed.model import semver_range
from latticed.model.errors import Problem
from latticed.model.verdict import Refused, Verified
from latticed.trust import policy, verify
from tests.house import bundles

AUTHOR = bundles.author(seed=bytes(range(32)))
TRUST = policy.decode(bundles.policy_bytes(AUTHOR, require_signature=False, allow_unsigned_host_risk=True))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    *("schema", "id", "name", "type", "capabilities", "version", "entrypoint", "publisher", "digest_sha256"),
    *("signature_ed25519", "description", "critical", "runtime", "egress", "routes", "config", "dependencies"),
    *("requires_host", "unknown"),
)


class _Pair:
    interpreter = ""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def manifest(self) -> bytes:
        return self._data

    def hash_artifact(self) -> tuple[str, int]:
        return "ab" * 32, 0


def _judged(data):
    found = verify.verify(_Pair(data), TRUST, host_version="0.1.0")
    assert isinstance(found, Refused | Verified)
    if isinstance(found, Refused):
        assert found.reason
        assert text.escape(found.reason) == found.reason
    return found


@given(st.binary(max_size=200))
def test_any_bytes_as_a_bundle_get_a_verdict(data):
    """The reason of a refusal is safe to print."""
    assert isinstance(_judged(data), Refused)


@given(fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=4), v2=st.booleans())
def test_any_values_in_manifest_fields_get_a_verdict(fields, v2):
    """The values are of any JSON type."""
    plain = bundles.manifest_v2() if v2 else bundles.manifest_v1()
    signed = bundles.signed(plain, b"", AUTHOR)
    _judged(json.dumps({**signed, **fields}).encode())


def _check(problem):
    assert problem.code == "policy_invalid"
    assert text.escape(problem.reason) == problem.reason


@given(st.binary(max_size=100) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_decode_as_policy_or_raise_problem(data):
    try:
        policy.decode(data)
    except Problem as problem:
        _check(problem)


@given(publishers=st.dictionaries(st.sampled_from(["acme", "other", "A"]), values, max_size=2), revoked=values)
def test_any_values_in_a_policy_decode_or_raise_problem(publishers, revoked):
    """The values are of any JSON type."""
    try:
        policy.decode(json.dumps({"trusted_publishers": publishers, "revoked": revoked}).encode())
    except Problem as problem:
        _check(problem)


@given(st.text(alphabet="0123456789.xX*^~<>=|, -+av\n", max_size=30))
def test_any_text_parses_as_version_range_or_is_refused(written):
    """No range contains text that is not a version."""
    try:
        semver_range.check(written)
    except semver_range.InvalidRange:
        return
    assert not semver_range.contains(written, "1.0")
    assert semver_range.contains(f"{written} || 1.0.0-rc.1", "1.0.0-rc.1")


@given(st.binary(max_size=300))
def test_bytes_that_strict_decoder_accepts_are_valid_json(data):
    """Python's decoder is the judge."""
    try:
        raw, _ = decode.decode(data)
    except BundleRefused:
        return
    assert json.loads(data) == raw

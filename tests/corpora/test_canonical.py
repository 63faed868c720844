"""RFC 8785: the canonical form under v2 signatures equals that of other implementations."""

from __future__ import annotations

import msgspec
import pytest
import rfc8785

from latticed.kit import strict_json
from latticed.model.manifest import Manifest
from latticed.trust import payload
from tests.house import bundles, corpora

ROWS = corpora.rows("canonical_json_rfc8785.json")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_canonical_json_equals_the_suites_bytes(row):
    """It is decoded by our decoder and encoded by the canonicaliser of signing payloads."""
    value = strict_json.loads(bytes.fromhex(row["input_hex"]))
    assert rfc8785.dumps(value) == bytes.fromhex(row["expect_hex"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_signing_payload_contains_the_canonical_form(row):
    """The value of the suite is the `config` of a manifest."""
    plain = bundles.manifest_v2(publisher="acme", digest_sha256="", signature_ed25519="not covered")
    manifest = msgspec.convert(plain, Manifest)
    raw = {**plain, "config": strict_json.loads(bytes.fromhex(row["input_hex"]))}
    signed = payload.signing_payload(raw, manifest)
    assert signed.startswith(b'LATTICED-MANIFEST-V2\n{"capabilities":["kv:read","log:write"],"config":')
    assert b'"config":' + bytes.fromhex(row["expect_hex"]) + b',"digest_sha256"' in signed
    assert b"not covered" not in signed

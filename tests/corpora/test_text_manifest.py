"""Terminal escapes, bidi controls and invisible characters are refused in all texts of a manifest."""

from __future__ import annotations

import json

import pytest

from latticed.bundle import decode
from latticed.bundle.refusal import BundleRefused
from tests.house import bundles, corpora

ROWS = corpora.rows("text_injection.json")
TEXT_FIELDS = ("name", "version", "entrypoint", "id", "publisher", "type")
V2_FIELDS = ("name", "description", "homepage", "license")


def _code(raw):
    with pytest.raises(BundleRefused) as caught:
        decode.decode(json.dumps(raw).encode())
    assert caught.value.reason.isprintable()
    return caught.value.code


@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda place: f"{place}-{ROWS[place]['cls']}")
def test_unsafe_text_is_refused_in_every_manifest_field(row):
    """The refusal repeats no such character."""
    text = ROWS[row]["s"]
    for field in TEXT_FIELDS:
        assert _code(bundles.manifest_v1(**{field: text})) == "manifest_invalid", field
    for field in V2_FIELDS:
        raw = bundles.manifest_v2(publisher="acme", digest_sha256="", signature_ed25519="")
        assert _code({**raw, field: text[:80]}) == "manifest_invalid", field
    assert _code({**bundles.manifest_v1(), text: ""}) == "manifest_invalid"
    assert _code(bundles.manifest_v1(capabilities=[text])) == "unknown_capability"

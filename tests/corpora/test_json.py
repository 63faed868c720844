"""JSONTestSuite: what our strict decoder accepts and refuses."""

from __future__ import annotations

import base64

import pytest

from latticed.bundle import decode
from latticed.bundle.refusal import BundleRefused
from latticed.kit import strict_json
from tests.house import corpora

ROWS = corpora.rows("json_parsing.json")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_strict_json_accepts_and_refuses_as_the_suite_says(row):
    """Numbers that a manifest refuses are refused when only integers are asked for."""
    data = base64.b64decode(row["bytes_b64"])
    if row["expected"] == "accept":
        strict_json.loads(data)
        return
    with pytest.raises(strict_json.InvalidJson):
        strict_json.loads(data, integers_only=row["expected"] == "reject-in-manifest")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_no_text_of_the_suite_is_a_valid_manifest(row):
    """Each gets a verdict code for invalid manifests, never another exception."""
    with pytest.raises(BundleRefused) as caught:
        decode.decode(base64.b64decode(row["bytes_b64"]))
    assert caught.value.code in {"manifest_invalid_json", "manifest_invalid"}

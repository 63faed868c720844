"""Wycheproof and RFC 8032: signatures that verify, and many that must not."""

from __future__ import annotations

import pytest

from latticed.trust import keys
from tests.house import corpora

ROWS = corpora.rows("ed25519.json")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"].replace(" ", "-"))
def test_signature_verifies_only_where_the_suite_says_so(row):
    """Malleable, truncated, non-canonical and forged signatures are False; none raises."""
    key, message, signature = (bytes.fromhex(row[name]) for name in ("key", "msg", "sig"))
    assert keys.verify_signature(key, message, signature) is (row["expected"] == "accept"), row["comment"]

"""Every attack on an index of the outside suite has a test that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house import corpora

ROWS = corpora.rows("index_attacks.json")
TESTS = Path(__file__).resolve().parents[1]
FORMATS = {
    "static": (
        ("unit/trust/test_index.py", "daemon/test_market.py"),
        {
            "T31": "roots of a TUF repository; a static source's keys are the operator's alone",
            "T32": "the same",
            "T41": "",
            "T44": "",
        },
    ),
    "tuf": (
        ("unit/market/test_tuf_metadata.py", "daemon/test_market_tuf.py"),
        {
            "T12": "judged by what this host has of the plugin, whatever the format: test_market.py",
            "T27": "judged by the signed manifest, whatever the format: test_index.py",
            "T28": "judged by the trust policy, whatever the format: test_market.py",
        },
    ),
}
"""By format: its tests, and what none of them names, and why; empty: it is asserted in a test of another attack."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_attack_is_named_by_a_test(name):
    places, others = FORMATS[name]
    said = "".join((TESTS / place).read_text(encoding="utf-8") for place in places)
    named = set(re.findall(r"\bT\d\d\b", said))
    assert {row["id"] for row in ROWS} - named <= others.keys()

"""Every attack on an index of the outside suite has a test that names it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house import corpora

ROWS = corpora.rows("index_attacks.json")
TESTS = Path(__file__).resolve().parents[1]
PLACES = ("unit/trust/test_index.py", "daemon/test_market.py")
OPEN = {
    "T31": "roots of a TUF repository; a static source's keys are the operator's alone",
    "T32": "the same",
    "T19": "the moment is taken once, before anything is fetched (Market._refreshed)",
    "T41": "",
    "T44": "",
}
"""What has no test of that name, and why; empty: it is asserted in a test of another attack."""


def test_every_attack_is_named_by_a_test():
    said = "".join((TESTS / place).read_text(encoding="utf-8") for place in PLACES)
    named = set(re.findall(r"\bT\d\d\b", said))
    assert {row["id"] for row in ROWS} - named <= set(OPEN)

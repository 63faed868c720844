"""What an event says of a decision."""

from __future__ import annotations

import hashlib

from latticed.ledger.audit_text import DETAIL_TEXT
from latticed.lifecycle import recording
from latticed.model import consents


def test_what_was_named_is_told_by_kind_so_that_no_kind_hides_another():
    hosts = [f"host=cdn{number}.example.org:443" for number in range(60)]
    named = consents.parse([*hosts, "limit=memory_mib:512", "level=filtered", "sandbox=open", "cap=kv:read"])
    found = recording.by_kind("added", named)
    assert {**found, "added_host": ""} == {
        "added_host": "",
        "added_limit": "memory_mib:512",
        "added_level": "filtered",
        "added_sandbox": "open",
    }
    whole = "; ".join(one.removeprefix("host=") for one in hosts)
    assert len(found["added_host"]) == DETAIL_TEXT
    assert found["added_host"].startswith("cdn0.example.org:443; cdn1.")
    assert found["added_host"].endswith(f"... 60 in all, sha256 {hashlib.sha256(whole.encode()).hexdigest()}")


def test_nothing_named_says_nothing():
    assert recording.by_kind("accepted", consents.Named()) == {}

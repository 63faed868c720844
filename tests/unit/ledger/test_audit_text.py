from __future__ import annotations

import json

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.kit.clock import SystemClock, rfc3339
from latticed.ledger import audit, audit_text
from latticed.ledger.chain import Chain, Chains
from latticed.model import audit as events
from latticed.model import chain as model_chain


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("plain", 10, "plain"),
        ("tab\tnul\0del\x7f", 99, r"tab\x09nul\x00del\x7f"),
        ("Łódź", 99, r"\u0141\xf3d\u017a"),
        ("😀", 99, r"\U0001f600"),
        ("\udc80", 99, r"\udc80"),
        ("\u202eevil", 99, r"\u202eevil"),
        ("x" * 11, 10, "xxxxxxx..."),
        ("\0" * 11, 10, r"\x00\x0..."),
    ],
)
def test_audit_text_becomes_printable_ascii_of_bounded_length(text: str, limit: int, expected: str) -> None:
    assert audit_text.printable(text, limit) == expected


def test_audit_details_keep_their_types_and_are_capped() -> None:
    """Strings, integers and booleans keep their type; other values become text."""
    big = {"t": True, "n": -(2**53) + 1, "s": "é", "huge": 2**53, "f": 1.5, "none": None, "long": "x" * 600}
    assert audit_text.detail(big) == {  # type: ignore[arg-type]
        "t": True,
        "n": -(2**53) + 1,
        "s": r"\xe9",
        "huge": "0x20000000000000",
        "f": "1.5",
        "none": "None",
        "long": "x" * 497 + "...",
    }


def test_audit_detail_entries_beyond_limit_are_counted() -> None:
    """At most 32 entries; the last one says how many are missing."""
    kept = audit_text.detail({f"k{number:02}": number for number in range(40)})
    assert len(kept) == 32
    assert kept["dropped"] == 9
    assert len(audit_text.detail({f"k{number:02}": number for number in range(32)})) == 32


def test_stored_audit_row_matches_the_hashed_bytes(memory: apsw.Connection) -> None:
    """The JSON that the writer builds by hand equals the canonical form of the stored row."""
    chain = Chain(memory, key=Ed25519PrivateKey.generate())
    chain.begin(rfc3339(SystemClock().wall_us()))
    chain.append(
        events.Event(
            actor='q"\\',
            action="a" * 100,
            target="\n\x1f\x7fé\U0001f600",
            decision="deny",
            code="c",
            reason="r" * 2_000,
            detail={"z": 'q"', "a": True, "é": -1, "b": False, "B": 2**60},
        )
    )
    chain.flush()
    (row,) = audit.query(memory)
    assert row["hash"] == model_chain.link(model_chain.GENESIS, row)
    assert json.loads(model_chain.canonical(row)) == {key: value for key, value in row.items() if key != "hash"}
    assert len(row["action"]) == audit_text.ACTION
    assert len(row["reason"]) == audit_text.REASON


def test_allowed_call_is_recorded_as_the_event_that_it_reads_as(memory: apsw.Connection) -> None:
    """By the short way or as any event: the same row, and the same hash after the same one."""
    call = events.AllowedCall("plugin:acme.demo", "kv.get", 17, "9f" * 32)
    event = events.Event(
        actor=call.actor, action=call.action, target=call.target, decision=call.decision, detail=call.detail
    )
    rows = []
    for one in (call, event):
        chains = Chains(memory, key=Ed25519PrivateKey.generate(), now=SystemClock())
        chains.calls.begin("2026-01-02T03:04:05.000007Z")
        chains.append(one)
        chains.flush()
        rows += audit.query(memory, chain=model_chain.CALLS)
        memory.execute("DELETE FROM calls")
    assert rows[0] == rows[1]
    assert rows[0]["hash"] == model_chain.link(model_chain.GENESIS, rows[0])
    assert rows[0]["detail"] == {"bytes": 17, "sha256": "9f" * 32}


def test_audit_time_is_rfc_3339_with_microseconds(memory: apsw.Connection) -> None:
    """`ts` is UTC and has a fixed width."""

    class At:
        def wall_us(self) -> int:
            return 1_767_323_045_000_007

        def monotonic_s(self) -> float:
            return 0.0

    chains = Chains(memory, key=Ed25519PrivateKey.generate(), now=At())
    chains.begin()
    chains.append(events.Event(actor="a", action="b", target="c"))
    chains.flush()
    assert audit.query(memory)[0]["ts"] == "2026-01-02T03:04:05.000007Z" == rfc3339(1_767_323_045_000_007)

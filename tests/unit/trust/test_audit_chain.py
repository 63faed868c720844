from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.model import chain
from latticed.model.errors import Problem
from latticed.trust import audit_chain

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()

Lines = list[dict[str, Any]]


def event(seq: int, prev: str) -> dict[str, Any]:
    """Made from contracts §11 alone, without the code under test."""
    body = {
        "seq": seq,
        "ts": f"2026-01-02T03:04:05.{seq:06d}Z",
        "actor": "uid:0 user:root pid:1",
        "action": "plugin.status",
        "target": "acme.demo",
        "decision": "allow",
        "code": "",
        "reason": 'said "yes"',
        "detail": {"from": "installed", "to": "active", "n": seq, "dry": False},
        "prev": prev,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return {**body, "hash": hashlib.sha256(bytes.fromhex(prev) + text.encode("ascii")).hexdigest()}


def head(row: dict[str, Any], key: Ed25519PrivateKey = KEY) -> dict[str, Any]:
    ts = "2026-01-02T04:00:00.000000Z"
    text = json.dumps({"hash": row["hash"], "seq": row["seq"], "ts": ts}, sort_keys=True, separators=(",", ":"))
    signature = key.sign(b"LATTICED-AUDIT-HEAD-V1\n" + text.encode("ascii"))
    found = {"seq": row["seq"], "hash": row["hash"], "ts": ts, "signature": base64.b64encode(signature).decode()}
    return {"head": found}


@pytest.fixture
def lines() -> Lines:
    """Ten events, with heads after the fifth and the last."""
    made: Lines = []
    prev = "0" * 64
    for seq in range(1, 11):
        row = event(seq, prev)
        made.append(row)
        if seq in {5, 10}:
            made.append(head(row))
        prev = row["hash"]
    return made


def rechain(lines: Lines) -> Lines:
    """An attacker without the key: all hashes computed again, the old heads kept."""
    prev, made = "0" * 64, []
    for line in lines:
        if "head" in line:
            made.append(line)
            continue
        row = {**line, "prev": prev}
        row["hash"] = prev = chain.link(prev, row)
        made.append(row)
    return made


def test_intact_chain_verifies(lines: Lines) -> None:
    """It is built independently, from the contract alone, and verified with and without the key."""
    report = audit_chain.verify(lines, key=PUBLIC)
    assert report.ok
    assert (report.events, report.heads, report.last_seq, report.signed_seq) == (10, 2, 10, 10)
    assert report.last_hash == lines[-2]["hash"]
    assert audit_chain.verify(lines).ok
    assert audit_chain.verify(lines).signed_seq == 0


def test_empty_chain_verifies() -> None:
    """The export of a new ledger has no lines; its last hash is GENESIS."""
    report = audit_chain.verify([])
    assert report.ok
    assert report.last_hash == audit_chain.GENESIS


def test_events_after_the_last_head_are_reported_as_unsigned(lines: Lines) -> None:
    """`signed_seq` says how far signatures cover the chain."""
    report = audit_chain.verify(lines[:-1], key=PUBLIC)
    assert report.ok
    assert (report.signed_seq, report.last_seq) == (5, 10)


def edit(lines: Lines) -> Lines:
    lines[2]["reason"] = "never happened"
    return lines


def edit_detail(lines: Lines) -> Lines:
    lines[2]["detail"] = {**lines[2]["detail"], "dry": 0}  # equal in Python, not in JSON
    return lines


def edit_and_rehash(lines: Lines) -> Lines:
    lines[2]["reason"] = "never happened"
    lines[2]["hash"] = chain.link(lines[2]["prev"], lines[2])
    return lines


def edit_and_rechain(lines: Lines) -> Lines:
    lines[2]["reason"] = "never happened"
    return rechain(lines)


def delete(lines: Lines) -> Lines:
    return lines[:2] + lines[3:]


def delete_the_first(lines: Lines) -> Lines:
    return lines[1:]


def delete_up_to_a_head(lines: Lines) -> Lines:
    return lines[5:]


def reorder(lines: Lines) -> Lines:
    lines[2], lines[3] = lines[3], lines[2]
    return lines


def repeat(lines: Lines) -> Lines:
    return [*lines[:3], lines[2], *lines[3:]]


def cut_tail(lines: Lines) -> Lines:
    return [*lines[:8], lines[-1]]


def other_beginning(lines: Lines) -> Lines:
    lines[0]["prev"] = "1" * 64
    lines[0]["hash"] = chain.link("1" * 64, lines[0])
    return lines


def forged_head(lines: Lines) -> Lines:
    lines[5] = head(lines[4], Ed25519PrivateKey.generate())
    return lines


def head_of_another_event(lines: Lines) -> Lines:
    lines[5] = head({**lines[4], "hash": "ab" * 32})
    return lines


def moved_head(lines: Lines) -> Lines:
    lines.insert(8, lines.pop(5))
    return lines


def broken_head(lines: Lines) -> Lines:
    lines[5] = {"head": {**lines[5]["head"], "seq": True}}
    return lines


def broken_signature(lines: Lines) -> Lines:
    lines[5]["head"]["signature"] = "é"
    return lines


def unknown_field(lines: Lines) -> Lines:
    lines[2]["note"] = "x"
    return lines


@pytest.mark.parametrize(
    ("tamper", "seq", "says"),
    [
        (edit, 3, "was changed"),
        (edit_detail, 3, "was changed"),
        (edit_and_rehash, 4, "does not follow event 3"),
        (edit_and_rechain, 5, "not the one that was signed"),
        (delete, 3, "expected event 3, found event 4"),
        (delete_the_first, 1, "expected event 1, found event 2"),
        (delete_up_to_a_head, 1, "expected event 1, found event 6"),
        (reorder, 3, "expected event 3, found event 4"),
        (repeat, 4, "expected event 4, found event 3"),
        (cut_tail, 8, "tail was cut: event 10 was signed"),
        (other_beginning, 1, "does not follow the beginning"),
        (forged_head, 5, "not signed by this host's key"),
        (head_of_another_event, 5, "not the one that was signed"),
        (moved_head, 5, "out of order"),
        (broken_head, 5, "malformed"),
        (broken_signature, 5, "not signed by this host's key"),
        (unknown_field, 3, "malformed"),
    ],
)
def test_each_kind_of_tampering_with_a_chain_is_reported(
    lines: Lines, tamper: Callable[[Lines], Lines], seq: int, says: str
) -> None:
    """The report has the first bad seq and what is wrong with it."""
    report = audit_chain.verify(tamper(lines), key=PUBLIC)
    assert not report.ok
    assert report.bad_seq == seq
    assert says in report.problem


def test_journal_head_reveals_tail_cut_together_with_its_heads(lines: Lines) -> None:
    """Cutting the heads too is undone by one that was kept elsewhere."""
    kept = audit_chain.decode_head(lines[-1]["head"])
    assert kept is not None
    assert audit_chain.verify(lines[:6], key=PUBLIC).ok
    report = audit_chain.verify(lines[:6], heads=[kept], key=PUBLIC)
    assert report.bad_seq == 6
    assert audit_chain.verify(lines, heads=[kept], key=PUBLIC).ok


def test_conflicting_heads_are_reported(lines: Lines) -> None:
    """They sign two hashes for one seq."""
    kept = audit_chain.decode_head(head({"seq": 5, "hash": "ab" * 32})["head"])
    assert kept is not None
    assert audit_chain.verify(lines, heads=[kept], key=PUBLIC).bad_seq == 5


@pytest.mark.parametrize("line", [None, 7, "x", [], {}, {"head": None}, {"head": {}}, {"seq": 1}])
def test_malformed_export_lines_are_reported(line: Any) -> None:
    """Any JSON value gives a report."""
    assert "malformed" in audit_chain.verify([line]).problem


@pytest.mark.parametrize("text", ["", "x", "AAAA", "é"])
def test_chain_verification_with_bad_public_key_is_a_problem(text: str) -> None:
    """The error shows what was found."""
    with pytest.raises(Problem) as caught:
        audit_chain.public_key(text)
    assert caught.value.code == "bad_key"


def test_hash_of_known_audit_event_is_pinned() -> None:
    """A test vector for other implementations, computed with sha256sum; it must never change."""
    row = {
        "seq": 1,
        "ts": "2026-01-02T03:04:05.000000Z",
        "actor": "latticed",
        "action": "plugin.status",
        "target": "acme.demo",
        "decision": "deny",
        "code": "not_available",
        "reason": "",
        "detail": {"n": 7, "dry": False},
        "prev": audit_chain.GENESIS,
    }
    expected = "4a173a6451a97127fd312ff19ea883fc6ae618e766beacd212fec826f25d1177"
    assert audit_chain.link(audit_chain.GENESIS, row) == expected
    assert audit_chain.link(audit_chain.GENESIS, {**row, "hash": "ignored"}) == expected

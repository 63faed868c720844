from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.model import chain
from tests.house import api_server

KEY = Ed25519PrivateKey.from_private_bytes(b"\7" * 32)
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


def events(count: int) -> list[dict[str, object]]:
    """A real chain of `count` events."""
    prev, found = chain.GENESIS, []
    for seq in range(1, count + 1):
        event = api_server.event(seq, prev=prev, target=f"acme.demo{seq}")
        event["hash"] = prev = chain.link(prev, event)
        found.append(event)
    return found


def head(event: dict[str, object], key: Ed25519PrivateKey = KEY) -> dict[str, object]:
    """The host's signature over one event."""
    seq, ts, event_hash = int(str(event["seq"])), "2025-01-31T08:00:00.000000Z", str(event["hash"])
    payload = chain.head_payload(seq=seq, ts=ts, event_hash=event_hash)
    return {"seq": seq, "hash": event_hash, "ts": ts, "signature": base64.b64encode(key.sign(payload)).decode()}


def export(path: Path, lines: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_export_of_the_api_verifies_offline(ctl, api, tmp_path):
    """It has events and signed heads; besides the file only the host's public key is needed."""
    rows = events(3)
    first = {"events": rows[:2], "next": 2, "heads": [head(rows[1])]}
    api.override["GET audit"] = (200, first)
    assert json.loads(ctl("audit", "query", "--format", "json").data)["next"] == 2
    del api.override["GET audit"]
    pages = iter([first, {"events": rows[2:], "next": None, "heads": [head(rows[2])]}])
    api._audit = lambda _query: next(pages)
    ran = ctl("audit", "export")
    assert ran.data.isascii()
    lines = ran.out.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["action", "action", "head", "action", "head"]
    assert lines[0] == json.dumps(rows[0], sort_keys=True, separators=(",", ":"))
    path = tmp_path / "audit.ndjson"
    path.write_bytes(ran.data)
    checked = ctl("audit", "verify", str(path), "--public-key", PUBLIC, LATTICED_SOCKET="/nowhere")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out.startswith("the chain holds: 3 events, 2 signed heads, last event 3, ")


@pytest.mark.parametrize(
    ("spoil", "bad"),
    [
        (lambda rows: rows[1].update(target="acme.other"), 2),
        (lambda rows: rows.pop(1), 2),
        (lambda rows: rows.insert(0, rows.pop(1)), 1),
        (lambda rows: rows.pop(), 3),
        (lambda rows: rows[2].update(hash="0" * 64), 3),
        (lambda rows: rows.append({"x": 1}), 4),
    ],
)
def test_edited_deleted_reordered_and_truncated_events_are_found(ctl, tmp_path, spoil, bad):
    rows = events(3)
    signed = head(rows[2])
    spoil(rows)
    path = export(tmp_path / "f", [*rows, {"head": signed}])
    ran = ctl("audit", "verify", path, "--public-key", PUBLIC, "--format", "json")
    assert ran.code == 6
    assert (ran.json["ok"], ran.json["first_bad_seq"]) == (False, bad)


def test_forged_chain_without_signed_head_is_found(ctl, tmp_path):
    """Anybody can compute hashes: at least one head must be signed with the host's key."""
    rows = events(3)
    assert ctl("audit", "verify", export(tmp_path / "f", rows), "--public-key", PUBLIC).code == 6
    forged = export(tmp_path / "g", [*rows, {"head": head(rows[2], Ed25519PrivateKey.generate())}])
    assert ctl("audit", "verify", forged, "--public-key", PUBLIC).code == 6


def test_events_of_export_under_no_signed_head_are_reported(ctl, tmp_path):
    rows = events(3)
    path = export(tmp_path / "f", [rows[0], {"head": head(rows[0])}, *rows[1:]])
    without = ctl("audit", "verify", path)
    assert without.code == 0
    assert "signed heads were not checked" in without.err
    assert "events after 1 are not under a signed head yet" in ctl("audit", "verify", path, "--public-key", PUBLIC).err
    assert ctl("audit", "verify", path, "--public-key", PUBLIC, "--format", "json").json["signed_seq"] == 1


def test_invalid_export_file_or_key_is_an_error(ctl, tmp_path):
    assert ctl("audit", "verify", str(tmp_path / "none")).code == 4
    assert ctl("audit", "verify", str(tmp_path)).code == 1
    assert ctl("audit", "verify", str(tmp_path / "none"), "--public-key", "x").code == 1
    (tmp_path / "garbage").write_bytes(b"\xff\n{}\n")
    assert ctl("audit", "verify", str(tmp_path / "garbage")).code == 6


@pytest.mark.parametrize("form", ["json", "text"])
def test_heads_in_the_log_reveal_a_truncated_export(ctl, tmp_path, form):
    """Truncating events and heads of the file does not change the log; its heads count if their signature is valid."""
    rows = events(3)
    signed = head(rows[2])
    fields = {"seq": 3, "hash": signed["hash"], "signed_at": signed["ts"], "signature": signed["signature"]}
    line = json.dumps({"event": "audit_head_signed", **fields})
    if form == "text":
        line = "audit_head_signed " + " ".join(f'{name}="{value}"' for name, value in fields.items())
    log = tmp_path / "log"
    log.write_text(f"something else\n{line}\n")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("--public-key", PUBLIC, "--heads", str(log))
    assert ctl("audit", "verify", export(whole, [*rows, {"head": signed}]), *options).code == 0
    refused = ctl("audit", "verify", export(cut, [*rows[:1], {"head": head(rows[0])}]), *options)
    assert (refused.code, "tail was cut" in refused.out) == (6, True)
    log.write_text("nothing of the kind\n")
    assert ctl("audit", "verify", str(whole), *options).code == 1


@pytest.mark.parametrize("words", [[], ["export.ndjson"]], ids=["the daemon's", "a file"])
def test_since_goes_with_the_journals_heads_alone(ctl, words):
    ran = ctl("audit", "verify", *words, "--since", "1h", LATTICED_SOCKET="/nowhere")
    assert (ran.code, "--since goes with --journal" in ran.err) == (2, True)

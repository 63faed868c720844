"""What a start merges into its ledger: the floors, and this host's newest heads in the journal."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.ledger import audit as rows
from latticed.ledger import floors, open_ledger, records
from latticed.lifecycle import merge_after_loss, startup_merge
from latticed.model import chain
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.lifecycle import Record, RecordFacts, Status
from tests.house.clocks import ManualClock

ACT = Event(actor="uid:0", action="plugin.status", target="acme.demo", decision="allow")
RECORD = Record(
    id="acme.demo",
    status=Status.ACTIVE,
    facts=RecordFacts(
        name="Demo",
        type="system",
        version="1.2.3",
        publisher="acme",
        signed=True,
        capabilities=("kv:read", "http:egress"),
        identity="ab" * 32,
        artifact_sha256="cd" * 32,
        manifest=b"{}",
    ),
    source="demo",
    masked=frozenset(),
    hosts=(),
    floor="1.2.3",
    verified_at=1,
    created_at=1,
    updated_at=1,
)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path, clock):
    async with open_ledger(tmp_path / "state", clock=clock) as found:
        yield found


def signed(seq, event_hash, ts, *, key, name=chain.DECISIONS):
    payload = chain.head_payload(seq=seq, ts=ts, event_hash=event_hash, chain=name)
    return chain.Head(
        seq=seq, hash=event_hash, ts=ts, signature=base64.b64encode(key.sign(payload)).decode(), chain=name
    )


class Journal(list):
    """The heads that the journal holds, oldest first."""

    async def __call__(self):
        return list(self)


@pytest.fixture
def journal():
    return Journal()


async def test_journal_heads_reveal_rolled_back_ledger(ledger, clock, journal, tmp_path):
    """Only heads of this host count, the newest of each chain: restoring ledger and floors together is detected."""
    key = Ed25519PrivateKey.from_private_bytes((tmp_path / "state" / "host.key").read_bytes())
    await ledger.record(ACT)
    (head,) = await ledger.sign_head()
    journal += [signed(9, "ab" * 32, head.ts, key=Ed25519PrivateKey.generate()), head]
    await startup_merge.merge(ledger, clock, accept=False, journalled=journal)
    assert len(ledger.read(rows.query)) == 1
    journal.append(signed(3, "ab" * 32, head.ts, key=key))
    with pytest.raises(Problem, match="expected event 3") as caught:
        await startup_merge.merge(ledger, clock, accept=False, journalled=journal)
    assert caught.value.code == "ledger_rolled_back"
    journal[-1] = signed(1, "ab" * 32, head.ts, key=key, name=chain.CALLS)
    with pytest.raises(Problem, match="expected event 1 of the calls"):
        await startup_merge.merge(ledger, clock, accept=False, journalled=journal)
    journal[-1] = signed(1, "ab" * 32, head.ts, key=key)
    with pytest.raises(Problem, match="found another"):
        await startup_merge.merge(ledger, clock, accept=False, journalled=journal)
    clock.advance(1)
    await startup_merge.merge(ledger, clock, accept=True, journalled=journal)
    (event,) = ledger.read(lambda db: rows.query(db, action="ledger.rollback_accepted"))
    assert event["decision"] == "allow"
    await startup_merge.merge(
        ledger, clock, accept=False, journalled=journal
    )  # heads from before the acceptance are ignored


async def test_start_with_agreeing_floors_changes_nothing(ledger, clock, journal):
    await ledger.write(lambda tx: records.put(tx, RECORD))
    await ledger.write_floors(floors.Floors(versions={"acme.demo": "1.2.3"}, masked={"acme.demo": frozenset({"x:y"})}))
    await startup_merge.merge(ledger, clock, accept=True, journalled=journal)
    assert ledger.read(rows.query) == []
    assert ledger.read(records.load_all) == (RECORD,)


async def test_floors_name_only_heads_that_are_in_the_ledger(ledger, monkeypatch):
    """Otherwise a crash after writing the floors would look like a rollback."""
    seen = []
    real = floors.replace_file

    def written(directory, content):
        heads = json.loads(content)["heads"]
        seen.append((heads["decisions"], ledger.read(lambda db: rows.newest_head(db, "decisions"))))
        real(directory, content)

    monkeypatch.setattr("latticed.ledger.ledger.floors.replace_file", written)
    for _ in range(3):
        await ledger.record(ACT)
        await ledger.write_floors(floors.Floors())
    assert [(seq, found) for (seq, found), _ in seen] == [(head["seq"], head["hash"]) for _, head in seen]
    assert [seq for (seq, _), _ in seen] == [1, 2, 3]


@pytest.mark.parametrize(
    ("kept", "masked", "floor"),
    [
        (floors.Floors(), set(), "1.2.3"),
        (floors.Floors(masked={"acme.demo": frozenset({"http:egress", "task:run"})}), {"http:egress"}, "1.2.3"),
        (floors.Floors(versions={"acme.demo": "2.0.0"}), set(), "2.0.0"),
        (floors.Floors(versions={"acme.demo": "1.0.0"}), set(), "1.2.3"),
    ],
)
def test_floors_can_only_tighten_records(kept, masked, floor):
    """Masks of what is declared, the higher version; a later pin in the ledger stays."""
    pinned = replace(kept, pins={"acme.demo": floors.Pin(publisher="other", signed=True, identity="")})
    changed = merge_after_loss.held_to({"acme.demo": RECORD}, pinned, now_us=7, replaced=False)
    after = changed[0] if changed else RECORD
    assert (after.masked, after.floor, after.facts) == (frozenset(masked), floor, RECORD.facts)
    assert bool(changed) == merge_after_loss.looser(kept, RECORD) == bool(masked or floor != "1.2.3")

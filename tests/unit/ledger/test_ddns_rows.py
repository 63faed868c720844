"""ledger.ddns: rows of DNS records and their status."""

from __future__ import annotations

import pytest

from latticed.ledger import Ledger
from latticed.ledger import ddns as rows
from latticed.ledger.ddns import DdnsStatus
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem

WIDE = RowQuota(plugin=10, total=100)
A, B = "acme.a", "acme.b"
NEW = DdnsStatus()
FULL = DdnsStatus(
    state="retrying",
    published="192.0.2.1",
    changed_at=1,
    flaps=2,
    succeeded_at=3,
    failures=4,
    code="c",
    reason="r",
    failed_at=5,
    next_at=6,
)


async def put(ledger: Ledger, plugin=A, name="h.example.org", kind="A", *, how=NEW, quota=WIDE, spec="{}", now=5):
    return await ledger.write(lambda tx: rows.put(tx, plugin, name, kind, spec, how, quota, now_us=now))


async def test_ddns_row_round_trips_every_field(ledger):
    """Spec and status as last written; key and creation time do not change."""
    made = await put(ledger, spec='{"ttl":1}')
    assert (made.standing, made.spec, made.created_at) == (DdnsStatus(), '{"ttl":1}', 5)
    assert await ledger.write(lambda tx: rows.keep(tx, made.key, FULL))
    again = await put(ledger, spec='{"ttl":60}', how=FULL, now=9)
    assert (again.key, again.created_at, again.updated_at, again.spec) == (made.key, 5, 9, '{"ttl":60}')
    assert ledger.read(rows.load_all) == [again]
    assert again.standing == FULL
    assert ledger.read(lambda db: rows.get(db, A, "h.example.org", "A")) == again
    assert ledger.read(lambda db: rows.get(db, A, "h.example.org", "AAAA")) is None


async def test_second_plugin_cannot_put_ddns_row_of_same_name_and_type(ledger):
    """It may have the other type; the first plugin's record is unchanged."""
    first = await put(ledger)
    with pytest.raises(Problem, match="no other plugin keeps") as caught:
        await put(ledger, B, spec='{"b":1}')
    assert caught.value.code == "bad_params"
    await put(ledger, B, kind="AAAA")
    assert ledger.read(lambda db: rows.get(db, A, "h.example.org", "A")) == first


async def test_ddns_row_quotas_apply_per_plugin_and_in_total(ledger):
    """Changing an existing record is always allowed."""
    narrow = RowQuota(plugin=2, total=3)
    for plugin, name in ((A, "one.example.org"), (A, "two.example.org"), (B, "three.example.org")):
        await put(ledger, plugin, name, quota=narrow)
    for plugin in (A, B):
        with pytest.raises(Problem) as caught:
            await put(ledger, plugin, "four.example.org", quota=narrow)
        assert caught.value.code == "quota_exceeded"
    await put(ledger, A, "one.example.org", spec='{"a":1}', quota=narrow)
    assert [row.plugin_id for row in ledger.read(rows.load_all)] == [A, A, B]


async def test_status_of_deleted_ddns_row_is_dropped(ledger):
    """Only the owner can delete it; a record made again has a new key."""
    made = await put(ledger)
    assert not await ledger.write(lambda tx: rows.delete(tx, B, "h.example.org", "A"))
    assert await ledger.write(lambda tx: rows.delete(tx, A, "h.example.org", "A"))
    assert not await ledger.write(lambda tx: rows.keep(tx, made.key, FULL))
    again = await put(ledger)
    assert (again.key > made.key, again.standing) == (True, DdnsStatus())
    await put(ledger, B, "other.example.org")
    assert await ledger.write(lambda tx: rows.clear(tx, A)) == 1
    assert [row.plugin_id for row in ledger.read(rows.load_all)] == [B]

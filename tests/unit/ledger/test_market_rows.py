"""ledger.market: what sources take back, and how much of it is kept."""

from __future__ import annotations

import pytest

from latticed.ledger import market as rows
from latticed.ledger import open_ledger


@pytest.fixture
async def ledger(state_dir, clock):
    async with open_ledger(state_dir, clock=clock) as ledger:
        yield ledger


async def noted(ledger, *names, source="s", now, most=5):
    found = [("plugins", f"acme.{name}@1.0.0", "freeze", "") for name in names]
    await ledger.write(lambda tx: rows.note_revocations(tx, source, found, now_us=now, most=most))


def known(ledger, names, source="s"):
    found = rows.revocations_of
    listed = ledger.read(lambda db: found(db, source, {("plugins", f"acme.{name}@1.0.0") for name in names}))
    return "".join(sorted(value[5] for _, value, _, _ in listed))


async def test_what_a_source_names_no_more_stays_until_there_is_too_much(ledger):
    """A source that names other things each time does not fill the disk; another one's are untouched."""
    await noted(ledger, "a", source="other", now=0)
    for now, name in enumerate("abcdefg"):
        await noted(ledger, name, now=now)
    assert known(ledger, "abcdefg") == "cdefg"
    assert known(ledger, "a", source="other") == "a"


async def test_what_a_source_names_now_is_kept_however_old_and_many(ledger):
    for now, name in enumerate("abcdefg"):
        await noted(ledger, "a", name, now=now)
    assert known(ledger, "abcdefg") == "adefg"
    await noted(ledger, *"abcdefg", now=9)
    assert known(ledger, "abcdefg") == "abcdefg"

"""Revocations that are not on record yet: they hold whatever else is recorded, and are recorded once that works."""

from __future__ import annotations

import asyncio

import pytest

from latticed.ledger.revocations import RevocationRows
from latticed.model.audit import Actor
from latticed.model.errors import Problem
from tests.house import bundles, in_process

ID = "acme.demo"
RELEASE = f"{ID}@1.0.0"
STRANGER = bundles.author("stranger")
ROOT = Actor(kind="peer", name="root", uid=0, pid=1)


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        found.drop(version="1.0.0")
        await found.armed(ID)
        yield found


@pytest.fixture
def disk(home, monkeypatch):
    """A switch for the ledger's writes: `full` makes them fail as a full disk does."""

    class Disk:
        full = False

    real = home.app.api.ledger.write

    async def write(change, **how):
        if Disk.full:
            raise Problem("ledger_unavailable", "the ledger cannot be written: disk full")
        return await real(change, **how)

    monkeypatch.setattr(home.app.api.ledger, "write", write)
    return Disk


async def take_back(home):
    """What the marketplace does when a source takes the release back."""
    await home.app.api.market().deps.revoke(RevocationRows(plugins=frozenset({RELEASE})), "elsewhere")


def trust(home, **fields):
    home.trust.write_bytes(bundles.policy_bytes(home.author, STRANGER, **fields))


async def refused(home):
    """Judged anew, the plugin does not run."""
    lifecycle = home.app.api.lifecycle
    await lifecycle.policy_changed()
    await lifecycle.pairs.judged()
    view = await home.plugin(ID)
    return not view["available"] and view["runtime"]["last_error"]["code"] == "plugin_revoked"


def on_record(home):
    return [(e["target"], e["detail"]) for e in home.events(action="trust.revoked")]


async def test_release_that_a_source_takes_back_while_the_policy_is_recorded_is_stopped(home, monkeypatch):
    """Between the moment from which it counts and the moment in which everything is judged."""
    ledger, lifecycle, writing, go_on = home.app.api.ledger, home.app.api.lifecycle, asyncio.Event(), asyncio.Event()
    write, policy_changed = ledger.write, lifecycle.policy_changed

    async def slow(change, **how):
        answer = await write(change, **how)
        if how.get("essential"):
            writing.set()
            await go_on.wait()
        return answer

    monkeypatch.setattr(ledger, "write", slow)
    trust(home)
    looking = asyncio.create_task(home.look())
    await writing.wait()
    monkeypatch.setattr(ledger, "write", write)

    async def after_it_was_recorded():
        go_on.set()
        await looking
        await policy_changed()

    monkeypatch.setattr(lifecycle, "policy_changed", after_it_was_recorded)
    await take_back(home)
    view = await home.plugin(ID)
    assert (view["available"], view["runtime"]["last_error"]["code"]) == (False, "plugin_revoked")
    assert on_record(home) == [(RELEASE, {"kind": "plugins", "market_source": "elsewhere"})]


async def test_release_that_a_source_takes_back_on_a_full_disk_stays_stopped_and_is_recorded_later(home, disk):
    disk.full = True
    with pytest.raises(Problem, match="full"):
        await take_back(home)
    assert await refused(home)
    disk.full = False
    trust(home)
    await home.look()
    assert await refused(home)
    assert on_record(home) == [(RELEASE, {"kind": "plugins", "market_source": "elsewhere"})]
    assert home.app.api.policy.recorded


async def test_revocation_of_the_file_that_could_not_be_recorded_outlives_the_file(home, disk):
    disk.full = True
    trust(home, revoked={"plugins": [RELEASE]})
    await home.look()
    assert await refused(home)
    trust(home)
    await home.look()
    assert await refused(home)
    disk.full = False
    await home.look()
    assert [target for target, _ in on_record(home)] == [RELEASE]
    assert await refused(home)


async def test_revocation_that_is_not_recorded_yet_can_be_lifted_for_good(home, disk):
    disk.full = True
    with pytest.raises(Problem, match="full"):
        await take_back(home)
    revocations = home.app.api.revocations
    with pytest.raises(Problem, match="full"):
        await revocations.lift(ROOT, "plugin", RELEASE)
    assert await refused(home)
    disk.full = False
    await revocations.lift(ROOT, "plugin", RELEASE)
    await home.app.api.lifecycle.policy_changed()
    await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
    assert home.app.api.policy.recorded

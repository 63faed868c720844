"""A ledger is replaced after the clock was set back: the journal has heads of the replaced one that are of later."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from latticed.bundle.read import ReadLimits
from latticed.ledger import floors, migrations, open_ledger, state
from latticed.lifecycle import archive, recovery, restore, startup_merge
from latticed.model.audit import HOST_CALL, Event
from latticed.model.errors import Problem
from tests.house import damage
from tests.house.clocks import ManualClock

DAY_S = 86_400
ACT = Event(actor="uid:0", action="plugin.status", target="acme.demo", decision="allow")
CALL = Event(actor="plugin:acme.demo", action=HOST_CALL, target="kv.get", decision="deny", code="x")


class Host:
    """A state directory, and the journal that the heads of its ledger were logged in."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "state"
        self.clock = ManualClock()
        self.journal = []
        self.place = recovery.RecoveryPlace(
            state_dir=self.state, plugin_dir=home, trust=home / "trust.json", limits=ReadLimits(), version="1.0.0"
        )

    async def journalled(self):
        return list(self.journal)

    async def run(self, *events, accept=False):
        """One run of a daemon, from its start to its end."""
        self.clock.advance(1)
        async with open_ledger(
            self.state, clock=self.clock, on_head=self.journal.append, accept_rollback=accept
        ) as ledger:
            await startup_merge.merge(ledger, self.clock, accept=accept, journalled=self.journalled)
            for event in events:
                await ledger.record(event)
                await ledger.sign_head()
            await ledger.write_floors(ledger.floors)

    def backup(self):
        """A backup of the state as it is."""
        data = {name: (self.state / name).read_bytes() for name in archive.NEEDED}
        key = state.load_key(self.state)
        manifest = archive.ArchiveManifest(
            created_at="2026-01-01T00:00:00.000000Z",
            version="1.0.0",
            ledger_version=len(migrations.MIGRATIONS),
            public_key=state.public_half(key),
            last_seq=0,
            last_hash="",
            entries=tuple(
                archive.ArchiveEntry(name=name, size=len(found), sha256=hashlib.sha256(found).hexdigest())
                for name, found in data.items()
            ),
        )
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, found in {archive.MANIFEST: archive.encode_manifest(manifest, key), **data}.items():
                info = tarfile.TarInfo(name)
                info.size = len(found)
                tar.addfile(info, io.BytesIO(found))
        return out.getvalue()

    def restore(self, backup):
        self.clock.advance(1)  # the name of what is set aside has the time
        restore.restore(self.place, io.BytesIO(backup), self.clock)


@pytest.fixture
async def host(tmp_path):
    """It has recorded much while its clock was a day ahead."""
    found = Host(tmp_path)
    await found.run(ACT, CALL)
    found.old = found.backup()
    shutil.copytree(found.state, tmp_path / "copy")
    found.clock.advance(DAY_S)
    await found.run(*(ACT, CALL) * 5)
    found.clock.advance(-DAY_S + 60)
    return found


async def refused(host):
    with pytest.raises(Problem) as caught:
        await host.run()
    return caught.value.code


async def rolled_back(host, *events):
    """A run with these events, of which the state directory then knows nothing."""
    kept = host.home / "kept"
    shutil.copytree(host.state, kept)
    await host.run(*events)
    shutil.rmtree(host.state)
    kept.rename(host.state)


async def test_restored_ledger_starts_after_the_clock_was_set_back(host):
    host.restore(host.old)
    await host.run()
    await host.run(ACT, CALL)


async def test_second_restore_without_a_start_between_starts_after_the_clock_was_set_back(host):
    host.restore(host.old)
    host.restore(host.old)
    await host.run(ACT, CALL)


async def test_recovered_ledger_starts_after_the_clock_was_set_back(host):
    damage.trigger(host.state)
    recovery.recover(host.place, host.clock)
    await host.run()
    await host.run(ACT, CALL)


async def test_accepted_rollback_is_asked_for_once_after_the_clock_was_set_back(host):
    """Of host calls nothing newer is signed until there is one."""
    shutil.rmtree(host.state)
    (host.home / "copy").rename(host.state)
    assert await refused(host) == "ledger_rolled_back"
    await host.run(accept=True)
    await host.run()


async def test_rollback_of_a_restored_ledger_is_found_while_the_clock_is_behind(host):
    """What the restored ledger has signed since is evidence, whatever time it bears."""
    host.restore(host.old)
    await host.run()
    await rolled_back(host, ACT)
    assert await refused(host) == "ledger_rolled_back"


async def test_replaced_heads_that_are_kept_are_bounded(host):
    """However often a ledger is replaced."""
    key = state.load_key(host.state).public_key()
    for _ in range(6):
        await host.run(*(ACT, CALL) * 40)
        host.restore(host.old)
        assert len(floors.read(host.state, key).replaced) <= floors.MOST_REPLACED
    assert len(floors.read(host.state, key).replaced) > 80
    await host.run()

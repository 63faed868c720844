"""Schedules of plugins that run: at their time, never twice at once, once for all that was missed; on a real ledger."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from msgspec import structs

from latticed.kit.zone import HostZone
from latticed.ledger import open_ledger
from latticed.ledger import schedules as rows
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.supervisor.schedules import LOOK_S, Schedules
from tests.house import supervisors
from tests.house.in_process import until

ID = "acme.demo"
MINUTE = {"name": "disk", "every_s": 60, "action": "check", "payload": {"path": "/"}}
NIGHTLY = {"name": "report", "daily": "03:30", "action": "send"}
HOUR_S = 3_600


@dataclass
class Site:
    """A supervisor with schedules, no jitter, and the invocations that its plugin got."""

    stand: supervisors.Stand
    ledger: Any
    schedules: Schedules
    calls: list[tuple[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    reply: Any = None

    async def armed(self, *schedules: dict[str, Any]) -> Any:
        plugin = await self.stand.armed(id=ID, schedules=list(schedules))
        self.follow()
        return plugin

    def follow(self) -> None:
        """Have the newest instance tell of its invocations."""
        self.stand.driven.instances[-1].invoking = self.invoked

    async def invoked(self, action: str, payload: Any) -> dict[str, Any]:
        self.calls.append((action, payload))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.hold.wait()
        finally:
            self.under_way -= 1
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply or {"ok": True, "message": "", "result": None, "error": None}

    async def pass_time(self, seconds: float, *, step_s: float = LOOK_S) -> None:
        """Let time pass, by default no faster than the daemon looks at its clock."""
        while seconds > 0:
            await self.stand.pass_time(min(seconds, step_s))
            seconds -= step_s
            await self.idle()

    async def idle(self) -> None:
        """Wait until nothing is being done, apart from invocations that are held."""
        held = 0 if self.hold.is_set() else 1
        await until(lambda: len(self.schedules._tasks) <= held, "no task of schedules")
        await self.stand.quiet()

    def view(self, plugin) -> list[dict[str, Any]]:
        return self.schedules.view(ID, plugin.manifest.schedules)


@contextlib.asynccontextmanager
async def sited(root, *, zone=None):
    async with supervisors.standing(root / "stand") as stand:
        (root / "state").mkdir(exist_ok=True, mode=0o700)
        async with open_ledger(root / "state", clock=stand.clock) as ledger:
            handles = stand.supervisor._handles
            schedules = Schedules(
                ledger,
                handles,
                clock=stand.clock,
                wheel=stand.tools.wheel,
                zone=zone or HostZone({"TZ": "UTC"}),
                roll=lambda: 0.0,
            )
            stand.tools.scheduled = schedules.changed
            site = Site(stand=stand, ledger=ledger, schedules=schedules)
            site.hold.set()
            yield site
            site.hold.set()
            await schedules.close()
            # What is still armed is stopped by the supervisor, whose hook must find them closed.
            stand.tools.scheduled = lambda _: None


@pytest.fixture
async def site(tmp_path):
    (tmp_path / "stand").mkdir()
    async with sited(tmp_path) as found:
        yield found


async def test_interval_runs_at_once_and_again_after_each_interval(site):
    plugin = await site.armed(MINUTE)
    await site.pass_time(1)
    assert site.calls == [("check", {"path": "/"})]
    await site.pass_time(58)
    assert len(site.calls) == 1
    await site.pass_time(300)
    assert len(site.calls) == 6
    (shown,) = site.view(plugin)
    assert (shown["when"], shown["state"], shown["outcome"], shown["runs"]) == ("every_s:60", "waiting", "ok", 6)
    assert shown["last_at"] < shown["ended_at"] < shown["next_at"]


async def test_plugin_slower_than_its_schedule_is_never_called_twice_at_once(site):
    """What came meanwhile is left out; the next run is at the next whole interval."""
    plugin = await site.armed(MINUTE)
    site.hold.clear()
    await site.pass_time(200)
    assert (len(site.calls), site.under_way) == (1, 1)
    assert site.view(plugin)[0]["outcome"] == "running"
    site.hold.set()
    await site.pass_time(1)
    assert len(site.calls) == 1
    await site.pass_time(60)
    assert len(site.calls) == 2
    assert site.most == 1


async def test_schedules_of_one_plugin_run_one_after_another(site):
    await site.armed(*({**MINUTE, "name": f"n{number}"} for number in range(4)))
    site.hold.clear()
    await site.stand.pass_time(1)
    await until(lambda: site.calls, "a call")
    await site.stand.quiet()
    assert len(site.calls) == 1
    site.hold.set()
    await site.idle()
    assert (len(site.calls), site.most) == (4, 1)


async def test_stopped_plugin_is_not_called_and_misses_are_one_run(site):
    """It is stopped for three days, over three nights; armed again it runs once, and then at its time."""
    plugin = await site.armed(NIGHTLY)
    await site.pass_time(26 * HOUR_S, step_s=HOUR_S / 2)
    assert len(site.calls) == 2
    site.stand.supervisor.disarm(plugin)
    await site.stand.settled(plugin)
    site.stand.clock.advance(72 * HOUR_S)
    await site.stand.pass_time(60)
    assert len(site.calls) == 2
    assert site.view(plugin)[0]["state"] == "stopped"
    assert site.view(plugin)[0]["outcome"] == "ok"
    site.stand.supervisor.arm(plugin, supervisors.GRANTED)
    await site.stand.settled(plugin)
    site.follow()
    await site.pass_time(HOUR_S)
    assert len(site.calls) == 3
    await site.pass_time(48 * HOUR_S, step_s=HOUR_S / 2)
    assert len(site.calls) == 5


async def test_run_that_a_kill_cut_off_is_not_repeated(site):
    """On record that it began before the plugin heard of it: another daemon on the same ledger waits for the next."""
    plugin = await site.armed(NIGHTLY)
    site.hold.clear()
    await site.stand.pass_time(LOOK_S)
    site.stand.clock.advance(HOUR_S)
    await site.stand.pass_time(LOOK_S)
    await until(lambda: site.calls, "the run")
    after = Schedules(
        site.ledger,
        site.stand.supervisor._handles,
        clock=site.stand.clock,
        wheel=site.stand.tools.wheel,
        zone=HostZone({"TZ": "UTC"}),
        roll=lambda: 0.0,
    )
    assert after.view(ID, plugin.manifest.schedules)[0]["outcome"] == "cut_off"
    after.changed(ID)
    await site.stand.pass_time(2 * LOOK_S)
    assert len(site.calls) == 1
    await after.close()


@pytest.mark.parametrize(
    ("reply", "code", "reason"),
    [
        ({"ok": False, "message": "", "result": None, "error": "disk\x1b[31m gone"}, "plugin_error", "disk"),
        (Problem("deadline_exceeded", "not within 10 s"), "deadline_exceeded", "not within 10 s"),
        (RuntimeError("/secret/path"), "internal", "RuntimeError"),
    ],
)
async def test_failed_run_is_shown_and_the_next_one_comes_all_the_same(site, reply, code, reason):
    plugin = await site.armed(MINUTE)
    site.reply = reply
    await site.pass_time(1)
    (shown,) = site.view(plugin)
    assert (shown["outcome"], shown["failures"]) == (code, 1)
    assert reason in shown["reason"]
    assert shown["reason"].isprintable()
    site.reply = None
    await site.pass_time(60)
    (shown,) = site.view(plugin)
    assert (shown["outcome"], shown["runs"], shown["failures"]) == ("ok", 2, 1)
    (counted,) = site.schedules.counts()
    assert (counted.runs, counted.failures) == (2, 1)


async def test_run_that_cannot_be_recorded_does_not_happen(site, monkeypatch):
    """A full disk: the plugin is not called, its state says why, and it goes on when there is space."""
    plugin = await site.armed(MINUTE)
    full = Problem("ledger_unavailable", "the disk is full")

    def refuse(*_: object) -> None:
        raise full

    with monkeypatch.context() as patches:
        patches.setattr(rows, "put", refuse)
        await site.pass_time(59)
        assert site.calls == []
        assert site.view(plugin)[0]["outcome"] == "ledger_unavailable"
    await site.pass_time(61)
    assert len(site.calls) == 1


async def test_ledger_that_cannot_be_read_does_not_keep_a_plugin_from_starting_and_stopping(site, monkeypatch):
    """It runs without its schedules; they are in force when it is started again."""

    def broken(*_: object) -> None:
        raise Problem("ledger_unavailable", "the disk fails")

    with monkeypatch.context() as patches:
        patches.setattr(rows, "of", broken)
        plugin = await site.armed(MINUTE)
        await site.pass_time(61)
        assert site.calls == []
    site.stand.supervisor.disarm(plugin)
    await site.stand.settled(plugin)
    site.stand.supervisor.arm(plugin, supervisors.GRANTED)
    await site.stand.settled(plugin)
    site.follow()
    await site.pass_time(1)
    assert len(site.calls) == 1


async def test_schedule_is_in_force_as_it_is_accepted_now(site):
    """Armed with another manifest, as after a grant: one more, one at another time, one less."""
    plugin = await site.armed(NIGHTLY)
    await site.pass_time(60)
    hourly = structs.replace(plugin.manifest.schedules[0], daily=None, cron="0 * * * *")
    minute = structs.replace(hourly, name="disk", cron=None, every_s=60)
    more = replace(plugin, manifest=structs.replace(plugin.manifest, schedules=(hourly, minute)))
    site.stand.supervisor.arm(more, supervisors.GRANTED)
    await site.pass_time(HOUR_S)
    assert {shown["name"]: shown["runs"] for shown in site.view(more)} == {"report": 1, "disk": 60}
    less = replace(plugin, manifest=structs.replace(plugin.manifest, schedules=(hourly,)))
    site.stand.supervisor.arm(less, supervisors.GRANTED)
    before = len(site.calls)
    await site.pass_time(HOUR_S - 1)
    assert len(site.calls) == before + 1
    assert list(site.ledger.read(lambda db: rows.of(db, ID))) == ["report"]


async def test_of_two_versions_the_one_in_charge_gets_the_runs(site):
    """While a new version is watched, the old one, which has the same schedule, gets none; put in charge again, all."""
    old, supervisor = await site.armed(MINUTE), site.stand.supervisor
    await site.pass_time(1)
    site.stand.driven.instances[-1].invoking = None
    new = await asyncio.to_thread(lambda: site.stand.stored(id=ID, version="1.1.0", schedules=[MINUTE]))
    supervisor.stand_by(ID, 1)
    supervisor.put_in_charge(new, supervisors.GRANTED)
    await site.stand.settled(new)
    site.follow()
    await site.pass_time(120)
    assert len(site.calls) == 3
    await supervisor.give_up(ID, Fault("unhealthy", "not well"))
    supervisor.fall_back(ID)
    supervisor.arm(old, supervisors.GRANTED)
    assert [one.plugin.identity for one in site.stand.driven.instances if one.alive] == [old.identity]
    site.stand.driven.instances[0].invoking = site.invoked
    await site.pass_time(60)
    assert len(site.calls) == 4


async def test_bundle_that_no_longer_verifies_gets_no_run(site):
    """Also not the one that waits behind another: what began is recorded with the reason why it ended."""
    plugin = await site.armed({**MINUTE, "name": "a"}, {**MINUTE, "name": "b"})
    site.hold.clear()
    await site.stand.pass_time(1)
    await until(lambda: site.calls, "a call")
    site.stand.supervisor.disarm(plugin, Fault("digest_mismatch", "changed"))
    site.hold.set()
    await site.stand.settled(plugin)
    await site.idle()
    await site.pass_time(120)
    assert len(site.calls) == 1
    assert sorted(shown.get("outcome", "-") for shown in site.view(plugin)) == ["-", "not_armed"]


async def test_forgotten_plugin_leaves_no_row_behind_though_a_run_ends_later(site):
    await site.armed(MINUTE)
    site.hold.clear()
    await site.stand.pass_time(1)
    await until(lambda: site.calls, "a call")
    await site.ledger.write(lambda tx: rows.clear(tx, ID))
    site.hold.set()
    await site.idle()
    assert site.ledger.read(lambda db: rows.of(db, ID)) == {}


async def test_schedules_are_those_of_the_version_in_charge(site):
    """From the first second on of the newer one; when that is given up, of the one that stood by, without a start."""
    before = await site.armed(MINUTE)
    await site.pass_time(1)
    other = {"name": "disk", "every_s": 120, "action": "look"}
    after = await asyncio.to_thread(site.stand.stored, id=ID, version="2.0.0", schedules=[other])
    site.stand.supervisor.put_in_charge(after, supervisors.GRANTED)
    await site.stand.settled(after)
    site.follow()
    await site.pass_time(230)
    assert [action for action, _ in site.calls] == ["check", "look"]
    await site.stand.supervisor.give_up(ID, Fault("plugin_error", "it failed"))
    site.stand.supervisor.fall_back(ID)
    await site.pass_time(61)
    assert [action for action, _ in site.calls][:3] == ["check", "look", "check"]
    assert site.view(before)[0]["when"] == "every_s:60"
    assert len(site.stand.driven.instances) == 2


async def test_zone_that_is_changed_meanwhile_counts_from_the_next_look_on(tmp_path):
    """At 03:04 UTC the host moves to where it is 05:04: half past three has passed there, and nothing ran."""
    (tmp_path / "stand").mkdir()
    place = tmp_path / "localtime"
    place.symlink_to("/usr/share/zoneinfo/UTC")
    zone = HostZone({}, path=place)
    zone.refresh()
    async with sited(tmp_path, zone=zone) as site:
        plugin = await site.armed(NIGHTLY)
        first = site.view(plugin)[0]["next_at"]
        assert first == "2026-01-02T03:30:00.000000Z"
        place.unlink()
        place.symlink_to("/usr/share/zoneinfo/Europe/Helsinki")
        await site.pass_time(2 * LOOK_S)
        await site.idle()
        assert site.view(plugin)[0]["next_at"] == "2026-01-03T01:30:00.000000Z"


async def test_clock_that_jumps_ahead_runs_what_it_jumped_over_once(site):
    await site.armed(NIGHTLY)
    await site.pass_time(LOOK_S)
    site.stand.clock.advance(10 * 24 * HOUR_S)
    await site.pass_time(10 * LOOK_S)
    assert len(site.calls) == 1


class WallClock:
    """The wall clock of another one, set back by `back_us`; what has passed is the other's."""

    def __init__(self, other, back_us=0):
        self.other, self.back_us = other, back_us

    def wall_us(self):
        return self.other.wall_us() - self.back_us

    def monotonic_s(self):
        return self.other.monotonic_s()


async def test_clock_that_was_years_ahead_keeps_no_schedule_from_running(site):
    """A machine that boots with a wrong clock, and gets the right time later: what ran before, ran in the future."""
    clock = site.schedules._clock = WallClock(site.stand.clock)
    site.schedules._roll = lambda: 0.5
    plugin = await site.armed(MINUTE, {"name": "report", "cron": "30 * * * *", "action": "send"})
    await site.pass_time(27 * 60)
    assert {action for action, _ in site.calls} == {"check", "send"}
    clock.back_us = 2 * 365 * 86_400 * 1_000_000
    site.calls.clear()
    await site.pass_time(62 * 60)
    actions = [action for action, _ in site.calls]
    # Here time passes in steps of half a minute: with its delay each second one is late.
    assert (actions.count("send"), actions.count("check")) == (1, 41)
    assert all(one["next_at"] < "2024-01-04" for one in site.view(plugin))


async def test_schedule_taken_up_while_the_clock_was_ahead_has_its_first_run(site):
    """With a random delay that is rolled anew at each look it would be put off for as long as the clock was ahead."""
    clock = site.schedules._clock = WallClock(site.stand.clock)
    site.schedules._roll = lambda: 0.5
    await site.armed({**MINUTE, "every_s": 3_600})
    clock.back_us = 86_400 * 1_000_000
    await site.pass_time(10 * LOOK_S)
    assert len(site.calls) == 1


async def test_daemon_that_stops_lets_a_run_end_and_begins_none(site):
    """Neither the one that waits for its turn, nor one that comes due meanwhile."""
    plugin = await site.armed(MINUTE, {**MINUTE, "name": "other"})
    site.hold.clear()
    await site.stand.pass_time(1)
    await until(lambda: site.under_way, "the first run")
    site.schedules.begin_none()
    site.stand.clock.advance(120)
    site.stand.tools.wheel.advance()
    await site.schedules.drain(0.0)
    assert site.under_way == 1, "no longer than it is told"
    asyncio.get_running_loop().call_later(0.01, site.hold.set)
    await site.schedules.drain(60)
    await site.pass_time(120)
    assert len(site.calls) == 1
    assert sorted(one.get("outcome", "none") for one in site.view(plugin)) == ["none", "ok"]

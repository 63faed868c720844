"""monitor.* from the call to the alert: schedule, fairness, transitions, restarts, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, field

import msgspec
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.egress.guard import Guard
from latticed.host.monitor.calls import MonitorCalls
from latticed.host.monitor.keeper import MonitorKeeper
from latticed.host.monitor.probes import Probes
from latticed.host.notify.keeper import NotificationQueue
from latticed.kit.wheel import Wheel
from latticed.ledger import audit, open_ledger
from latticed.ledger import monitors as rows
from latticed.ledger.monitors import Result
from latticed.model.egress import EgressRights
from latticed.settings import shapes
from tests.house import processes, targets
from tests.house.clocks import ManualClock

A, B = Caller(plugin_id="acme.a"), Caller(plugin_id="acme.b")
UP, DOWN = Result(outcome="up"), Result(outcome="down", code="refused")
HANG = Result(outcome="down", code="timeout")
DEADLINE_S = processes.PATIENCE_S


async def until(condition, what=""):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.002)


@dataclass
class Targets:
    """The result of checks by target, or HANG, which blocks until it is released."""

    found: dict[str, Result] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    overlaps: int = 0
    most: int = 0
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def check(self, spec, rights):
        assert isinstance(rights, EgressRights)
        self.overlaps += spec.target in self.running
        self.started.append(spec.target)
        self.running.append(spec.target)
        self.most = max(self.most, len(self.running))
        try:
            found = self.found.get(spec.target, UP)
            if found is HANG:
                await self.let_go.wait()
            return found
        finally:
            self.running.remove(spec.target)


@dataclass
class World:
    """Monitors over a real ledger and queue; `pass_s` lets time pass in ticks, and what is due happen."""

    clock: ManualClock
    wheel: Wheel
    ledger: object
    queue: NotificationQueue
    monitors: MonitorKeeper
    service: dict
    allowed: dict

    async def call(self, method, caller=A, **params):
        served = self.service[method]
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def put(self, name, caller=A, **params):
        wanted = {"kind": "tcp", "target": f"{name}.example:1", "interval_s": 30.0, "failures": 1, **params}
        return await self.call("monitor.put", caller, name=name, **wanted)

    async def pass_s(self, seconds, *, settled=True):
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)
            if self.wheel.advance():
                await self.settle() if settled else await asyncio.sleep(0)

    async def settle(self):
        """Wait until nothing runs or waits."""
        await until(lambda: not any(one.busy for one in self.monitors.every()), "all checks ended")

    async def round_of(self, name, caller=A):
        """Let time pass until this monitor has one more result, and return it."""
        before = self.last(name, caller)
        while (found := self.last(name, caller)) == before:
            await self.pass_s(0.5)
        return found

    def last(self, name, caller=A):
        return self.monitors.get(caller.plugin_id, name).last

    async def alerts(self):
        """Title and severity of every notification, oldest first."""
        return [(item.title, item.severity) for item in reversed(await self.queue.page(limit=1_000))]


@contextlib.asynccontextmanager
async def world(directory, check, *, clock=None, rights=None, notify=None, roll=lambda: 0.5, **settings):
    clock = clock or ManualClock()
    wanted = shapes.MonitorSettings(**{"min_interval_s": 0.5, **settings})
    queued = notify or shapes.NotifySettings()
    allowed = {A.plugin_id: EgressRights(hosts=("*",)), B.plugin_id: EgressRights(hosts=("*",))} | (rights or {})
    wheel = Wheel(clock)
    async with (
        open_ledger(directory / "state", clock=clock) as ledger,
        NotificationQueue(ledger, clock=clock, settings=queued) as queue,
        MonitorKeeper(
            ledger=ledger,
            queue=queue,
            wheel=wheel,
            clock=clock,
            check=check,
            rights=allowed.get,
            settings=wanted,
            roll=roll,
        ) as monitors,
    ):
        service = {call.method: call for call in MonitorCalls(monitors).calls()}
        yield World(clock, wheel, ledger, queue, monitors, service, allowed)


@pytest.fixture
def found():
    return Targets()


@pytest.fixture
async def here(tmp_path, found):
    async with world(tmp_path, found.check) as opened:
        yield opened


# From the call to the result.


async def test_monitor_is_checked_soon_and_then_at_its_interval(here, found):
    """The first check is within two seconds, then every interval, give or take a tenth; results say what was found and
    when.
    """
    assert await here.put("web", kind="http", target="https://Web.example/x?token=1") == {
        "ok": True,
        "target": "https://web.example/x?token=1",
    }
    await here.pass_s(2.1)
    assert len(found.started) == 1
    await here.pass_s(300)
    assert len(found.started) == 11
    answer = await here.call("monitor.results", name="web", limit=3)
    assert answer["state"] == "up"
    assert [one["number"] for one in answer["results"]] == [9, 10, 11]
    assert answer["results"][0] == {
        "number": 9,
        "at": answer["results"][0]["at"],
        "outcome": "up",
        "code": "",
        "reason": "",
        "took_ms": 0,
        "status": None,
        "certificate_expires_at": None,
    }
    later = await here.call("monitor.results", name="web", after=10)
    assert [one["number"] for one in later["results"]] == [11]


async def test_jitter_spreads_monitor_checks(tmp_path, found):
    """Up to a tenth of the interval either way; first checks of monitors put together are spread too."""
    rolls = itertools.cycle([0.0, 0.25, 0.5, 0.75, 0.999])
    async with world(tmp_path, found.check, roll=lambda: next(rolls)) as here:
        for name in "abcde":
            await here.put(name)
        counts = []
        for _ in range(40):
            before = len(found.started)
            await here.pass_s(0.1)
            counts.append(len(found.started) - before)
        assert sum(counts) == 5
        assert max(counts) == 1
        at = []
        for _ in range(20):
            await here.round_of("a")
            at.append(here.clock.monotonic_s())
    gaps = [later - before for before, later in itertools.pairwise(at)]
    assert 26.4 <= min(gaps) < max(gaps) <= 33.6
    assert max(gaps) - min(gaps) > 1


async def test_putting_a_monitor_again_does_not_evade_the_least_interval(tmp_path, found):
    """With another target each time it would be checked, and each result be an alert that is kept for good."""
    found.found = {"web.example:1": DOWN, "web.example:2": DOWN}
    async with world(tmp_path, found.check, min_interval_s=10.0) as here:
        at = []
        for number in range(60):
            await here.put("web", target=f"web.example:{1 + number % 2}", interval_s=60.0)
            before = len(found.started)
            await here.pass_s(1.5)
            at += [here.clock.monotonic_s()] * (len(found.started) - before)
        assert len(at) >= 5
        assert all(later - earlier >= 10.0 - 1.5 for earlier, later in itertools.pairwise(at))
        assert len(here.ledger.read(lambda db: audit.query(db, action="monitor.alert", limit=1_000))) == len(at)


async def test_monitors_put_under_ever_new_names_wait_for_their_interval(tmp_path, found):
    """Deleted in between, or not; those of another plugin do not wait for it."""
    async with world(tmp_path, found.check, min_interval_s=10.0, plugin_monitors=5) as here:
        for number in range(20):
            await here.put(f"web{number}", interval_s=60.0)
            await here.pass_s(2)
            await here.call("monitor.delete", name=f"web{number}")
        # Five at once, and one for each 10 s of the 40.
        assert 8 <= len(found.started) <= 9
        for name in ("next", "late"):
            await here.put(name, interval_s=60.0)
        await here.put("web", B)
        await here.pass_s(3)
        assert found.started.count("late.example:1") == 0
        assert found.started.count("web.example:1") == 1
        await here.pass_s(70)
        assert found.started.count("late.example:1") == 1


async def test_only_newest_results_of_each_monitor_are_kept(tmp_path, found):
    async with world(tmp_path, found.check, results=5) as here:
        await here.put("web", interval_s=0.5, timeout_s=0.5)
        while here.last("web") is None or here.last("web").number < 12:
            await here.pass_s(1)
        results = (await here.call("monitor.results", name="web", limit=500))["results"]
        assert len(results) == 5
        assert results[-1]["number"] == here.last("web").number


# Transitions.


async def test_target_that_goes_down_and_up_gives_two_alerts(here, found):
    """They are in the owner's name, critical and info, each audited; repeated results give none."""
    await here.put("web", failures=2)
    await here.round_of("web")
    found.found["web.example:1"] = DOWN
    await here.round_of("web")
    assert await here.alerts() == []
    await here.round_of("web")
    assert await here.alerts() == [("web is down", "critical")]
    await here.pass_s(600)
    found.found["web.example:1"] = UP
    await here.pass_s(600)
    assert await here.alerts() == [("web is down", "critical"), ("web is up", "info")]
    first = await here.queue.take()
    assert (first.plugin_id, first.event) == ("acme.a", "monitor.down")
    assert first.body.startswith("tcp web.example:1\nrefused\nit was up since 2026-01-02T03:04:0")
    recorded = here.ledger.read(lambda db: audit.query(db, action="monitor.alert"))
    assert [(event["actor"], event["target"], event["detail"]["state"]) for event in recorded] == [
        ("plugin:acme.a", "web", "down"),
        ("plugin:acme.a", "web", "up"),
    ]
    assert recorded[0]["detail"]["notification"] == first.id


async def test_query_of_target_is_not_shown_to_others(here, found):
    """It is neither in the alert nor in the audit event: it may contain a token."""
    found.found["http://web.example/x?token=s3cret"] = DOWN
    await here.put("web", kind="http", target="http://web.example/x?token=s3cret", shared=True)
    await here.round_of("web")
    item = await here.queue.take()
    assert "http://web.example/x" in item.body
    recorded = here.ledger.read(lambda db: audit.query(db, action="monitor.alert"))
    seen_by_b = await here.call("monitor.list", B)
    assert "s3cret" not in f"{item} {recorded} {seen_by_b}"
    assert "s3cret" in str(await here.call("monitor.list"))


@pytest.mark.parametrize("outcome", ["unsupported", "blocked", "error"])
async def test_error_results_of_checks_do_not_alert(here, found, outcome):
    """The result is kept, the state does not change."""
    await here.put("web")
    await here.round_of("web")
    found.found["web.example:1"] = Result(outcome=outcome, code="c")
    for _ in range(5):
        await here.round_of("web")
    (seen,) = (await here.call("monitor.list"))["monitors"]
    assert (seen["state"], seen["last"]["outcome"]) == ("up", outcome)
    assert await here.alerts() == []


async def test_alert_with_full_notification_queue_is_audited(tmp_path, found):
    """The state changes, and the audit event has the code for which there is no notification."""
    async with world(tmp_path, found.check, notify=shapes.NotifySettings(plugin_items=1)) as here:
        await here.put("web")
        for result in (DOWN, UP):
            found.found["web.example:1"] = result
            await here.round_of("web")
        assert await here.alerts() == [("web is down", "critical")]
        assert here.monitors.get("acme.a", "web").status.state == "up"
        recorded = here.ledger.read(lambda db: audit.query(db, action="monitor.alert"))
        assert [event["detail"]["notification"] for event in recorded][1:] == ["quota_exceeded"]


async def test_wall_clock_jump_does_not_change_intervals(tmp_path, found):
    """Intervals are measured on the monotonic clock."""

    class Jumping(ManualClock):
        offset_us = 0

        def wall_us(self):
            return self.now_us + self.offset_us

    clock = Jumping()
    async with world(tmp_path, found.check, clock=clock) as here:
        await here.put("web")
        for years in (30, -20, 0):
            clock.offset_us = years * 365 * 86_400 * 1_000_000
            before = len(found.started)
            await here.pass_s(90)
            assert len(found.started) - before == 3
        assert await here.alerts() == []


# Fairness.


async def test_hanging_check_delays_no_other_and_never_overlaps(tmp_path, found):
    """Its own next check is skipped until it has ended; checks of other monitors are in time."""
    async with world(tmp_path, found.check, total_checks=4, plugin_checks=4) as here:
        names = [f"fine{number}" for number in range(4)]
        for name in names:
            await here.put(name)
        await here.pass_s(3)
        for number in range(3):
            found.found[f"hang{number}.example:1"] = HANG
            await here.put(f"hang{number}")
        for _ in range(10):
            await here.pass_s(30, settled=False)
            await until(lambda: not any(here.monitors.get("acme.a", name).busy for name in names))
        for name in names:
            assert 10 <= here.last(name).number <= 12
            assert here.monitors.get("acme.a", name).skipped == 0
        assert found.overlaps == 0
        assert found.started.count("hang0.example:1") == 1
        assert here.monitors.get("acme.a", "hang0").skipped >= 8
        found.let_go.set()
        await here.settle()
        assert here.last("hang0").code == "timeout"


async def test_hanging_checks_do_not_delay_other_plugin(tmp_path, found):
    """One plugin's fifty checks hang; the single check of another one comes in time."""
    async with world(tmp_path, found.check, total_checks=4, plugin_checks=4) as here:
        for number in range(50):
            found.found[f"hang{number}.example:1"] = HANG
            await here.put(f"hang{number}")
        await here.pass_s(40, settled=False)
        assert found.most <= 4
        await here.put("alone", B)
        for _ in range(5):
            await here.pass_s(30, settled=False)
            await until(lambda: not here.monitors.get("acme.b", "alone").busy)
        assert 4 <= here.last("alone", B).number <= 6
        assert found.most <= 6
        found.let_go.set()
        await here.settle()


# Owners and quotas.


async def test_monitors_belong_to_their_owner(here, found):
    """Names are per plugin; others can read shared monitors, and change none."""
    await here.put("web", A, shared=True)
    await here.put("db", A)
    await here.put("web", B, target="other.example:2")
    mine = (await here.call("monitor.list", A))["monitors"]
    theirs = (await here.call("monitor.list", B))["monitors"]
    assert [(one["owner"], one["name"]) for one in mine] == [("acme.a", "db"), ("acme.a", "web")]
    assert [(one["owner"], one["name"]) for one in theirs] == [("acme.a", "web"), ("acme.b", "web")]
    await here.pass_s(3)
    assert len((await here.call("monitor.results", B, name="web", owner="acme.a"))["results"]) == 1
    for caller, params in ((B, {"name": "db", "owner": "acme.a"}), (A, {"name": "web", "owner": "acme.b"})):
        with pytest.raises(HostError, match="not_found"):
            await here.call("monitor.results", caller, **params)
    assert await here.call("monitor.delete", B, name="web") == {"ok": True}
    assert await here.call("monitor.delete", B, name="web") == {"ok": False}
    assert len((await here.call("monitor.list", A))["monitors"]) == 2


async def test_long_lists_of_monitors_come_in_pages(tmp_path, found):
    """The pages have each monitor once, in order."""
    async with world(tmp_path, found.check, plugin_monitors=300) as here:
        for number in range(250):
            await here.put(f"m{number}")
        first = await here.call("monitor.list")
        rest = await here.call("monitor.list", after=first["next"])
        assert rest["next"] is None
        names = [one["name"] for one in first["monitors"] + rest["monitors"]]
        assert names == sorted(f"m{number}" for number in range(250))


async def test_monitor_over_quota_is_refused(tmp_path, found):
    """There is a quota per plugin and one in total; existing monitors can still be changed."""
    async with world(tmp_path, found.check, plugin_monitors=2, total_monitors=3) as here:
        for name in ("1", "2"):
            await here.put(name)
        with pytest.raises(HostError, match=r"quota_exceeded: expected at most 2 monitors of acme\.a, found 3"):
            await here.put("3")
        await here.put("1", B)
        with pytest.raises(HostError, match="quota_exceeded: expected at most 3 monitors, found 4"):
            await here.put("2", B)
        await here.put("2", target="elsewhere.example:1")
        assert await here.monitors.forget("acme.a") == 2
        await here.put("2", B)
        assert [(one.plugin_id, one.name) for one in here.monitors.every()] == [("acme.b", "1"), ("acme.b", "2")]
        await here.pass_s(60)
        assert set(found.started) == {"1.example:1", "2.example:1"}


async def test_monitors_of_plugin_that_may_not_act_are_not_checked(here, found):
    """It is disabled, or the capability is not granted; they are checked again afterwards."""
    await here.put("web")
    await here.round_of("web")
    rights = here.allowed.pop("acme.a")
    before = len(found.started)
    await here.pass_s(120)
    assert len(found.started) == before
    here.allowed["acme.a"] = rights
    await here.pass_s(60)
    assert len(found.started) == before + 2


# Changes.


async def test_putting_the_same_monitor_again_changes_nothing(here, found):
    """A plugin puts its monitors at every start."""
    await here.put("web")
    await here.pass_s(20)
    made = here.monitors.get("acme.a", "web")
    await here.put("web")
    assert here.monitors.get("acme.a", "web") is made
    await here.pass_s(10)
    assert len(found.started) == 1


async def test_other_interval_keeps_results_and_other_target_does_not(here, found):
    """With another interval the state stays; with another target it is unknown."""
    found.found["web.example:1"] = DOWN
    await here.put("web")
    await here.round_of("web")
    await here.put("web", interval_s=60.0)
    (seen,) = (await here.call("monitor.list"))["monitors"]
    assert (seen["state"], seen["interval_s"], seen["last"]["number"]) == ("down", 60.0, 1)
    await here.round_of("web")
    assert len(await here.alerts()) == 1
    await here.put("web", target="new.example:1")
    (seen,) = (await here.call("monitor.list"))["monitors"]
    assert (seen["state"], seen["last"]) == ("unknown", None)
    assert (await here.call("monitor.results", name="web"))["results"] == []
    await here.pass_s(120)
    assert len(await here.alerts()) == 1


@pytest.mark.parametrize("end", ["delete", "put", "leave"])
async def test_running_check_is_cancelled_with_its_monitor(tmp_path, found, end):
    """Deleted, replaced, or the daemon stops: its slot is freed, and no result is kept."""
    async with world(tmp_path, found.check, total_checks=2, plugin_checks=2) as here:
        for name in ("1", "2", "3"):
            found.found[f"{name}.example:1"] = HANG
            await here.put(name)
        await here.pass_s(3, settled=False)
        assert len(found.running) == 1  # of those that were never checked, half of the places
        running = found.running[0].partition(".")[0]
        if end == "leave":
            pass
        elif end == "delete":
            await here.call("monitor.delete", name=running)
        else:
            await here.put(running, target="fine.example:1")
        if end != "leave":
            await until(lambda: len(found.running) == 1 and found.running != [f"{running}.example:1"])
            assert (await here.call("monitor.list"))["monitors"]
    assert found.running == []


async def test_monitor_change_completes_when_its_caller_is_cancelled(here, found):
    """The row is written and the check scheduled."""
    putting = asyncio.create_task(here.put("web"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    putting.cancel()
    await asyncio.wait([putting])
    await until(lambda: here.monitors.get("acme.a", "web"))
    assert len(here.ledger.read(rows.load_all)) == 1
    await here.pass_s(3)
    assert found.started == ["web.example:1"]


# Restarts and faults.


async def test_monitors_and_results_survive_restart(tmp_path, found):
    """Specs, states, failures counted so far, results; no alert is sent twice and none is lost."""
    async with world(tmp_path, found.check) as here:
        await here.put("web", failures=2)
        await here.put("db", interval_s=60.0)
        found.found["db.example:1"] = DOWN
        await here.pass_s(70)
        found.found["web.example:1"] = DOWN
        await here.round_of("web")
        before = (await here.call("monitor.list"))["monitors"]
        assert [(one["name"], one["state"]) for one in before] == [("db", "down"), ("web", "up")]
        clock = here.clock
    async with world(tmp_path, found.check, clock=clock) as here:
        assert (await here.call("monitor.list"))["monitors"] == before
        await here.pass_s(90)
        assert [title for title, _ in await here.alerts()] == ["db is down", "web is down"]
        assert len((await here.call("monitor.results", name="web"))["results"]) == here.last("web").number


async def test_unreadable_spec_is_logged_and_its_row_kept(tmp_path, found, capsys):
    """Its owner can put it again."""
    async with world(tmp_path, found.check) as here:
        await here.put("web")
        await here.put("db")
        await here.ledger.write(lambda tx: tx.execute("UPDATE monitors SET spec = '{}' WHERE name = 'web'"))
    async with world(tmp_path, found.check) as here:
        assert [one.name for one in here.monitors.every()] == ["db"]
        assert len(here.ledger.read(rows.load_all)) == 2
        await here.put("web")
        assert [one.name for one in here.monitors.every()] == ["db", "web"]
    assert "monitor_unreadable" in capsys.readouterr().out


async def test_failed_write_of_a_result_loses_no_alert(here, found, monkeypatch):
    """A result that cannot be written does not change the state; the alert follows from the next one."""
    await here.put("web")
    await here.round_of("web")
    found.found["web.example:1"] = DOWN
    await here.ledger.write(lambda tx: tx.execute("ALTER TABLE monitor_results RENAME TO aside"))
    before = len(found.started)
    await here.pass_s(60)
    assert len(found.started) > before
    assert (here.monitors.get("acme.a", "web").status.state, await here.alerts()) == ("up", [])
    await here.ledger.write(lambda tx: tx.execute("ALTER TABLE aside RENAME TO monitor_results"))
    await here.round_of("web")
    assert await here.alerts() == [("web is down", "critical")]


@pytest.mark.parametrize(("before", "after"), [(UP, DOWN), (DOWN, UP)], ids=["down", "up"])
async def test_plugin_disabled_while_a_result_is_being_written_gets_each_alert_once(here, found, before, after):
    """The disk is slow: the result and its alert are on disk later, and the next result is judged by them."""
    found.found["web.example:1"] = before
    await here.put("web")
    await here.round_of("web")
    told = await here.alerts()
    disk = threading.Event()
    slow = asyncio.create_task(here.ledger.write(lambda _: disk.wait(DEADLINE_S)))
    await asyncio.sleep(0)  # queued before the result
    found.found["web.example:1"] = after
    checks = len(found.started)
    while len(found.started) == checks or found.running:
        await here.pass_s(0.5, settled=False)
    assert here.monitors.get("acme.a", "web").busy
    rights = here.allowed.pop("acme.a")
    here.monitors.recheck("acme.a")
    drained = asyncio.create_task(here.monitors.drained("acme.a"))
    await asyncio.sleep(0)  # the check has been told to end
    disk.set()
    await asyncio.gather(slow, drained)
    here.allowed["acme.a"] = rights
    assert here.monitors.get("acme.a", "web").status.state == after.outcome
    await here.pass_s(70)
    title = f"web is {after.outcome}"
    assert [one for one, _ in await here.alerts()] == [*(one for one, _ in told), title]


# With real targets.


async def test_flapping_site_gives_one_alert_for_each_change(tmp_path):
    """A real server that answers, fails, hangs, closes and answers again."""
    probes = Probes(Guard())
    async with targets.site() as site:
        rights = {A.plugin_id: targets.bound(f"http://127.0.0.1:{site.port}")}

        async def check(spec, allowed):
            # Only what hangs may run out of time, on a machine as busy as it may be.
            timeout_s = 0.2 if site.answer is None else spec.timeout_s
            return await probes.check(msgspec.structs.replace(spec, timeout_s=timeout_s), allowed)

        async with world(tmp_path, check, rights=rights) as here:
            await here.put("site", kind="http", target=site.url(), timeout_s=29.0, body="hello")
            said = []
            for answer in (targets.OK, b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", None, b"", targets.OK):
                site.answer = answer
                result = await here.round_of("site")
                said.append(result.code or result.outcome)
            assert said == ["up", "status_unexpected", "timeout", "reset", "up"]
            assert await here.alerts() == [("site is down", "critical"), ("site is up", "info")]
            assert site.most_open == 1


async def test_target_that_accepts_and_hangs_delays_no_other(tmp_path):
    """Real sockets: more hanging targets than slots, and a few that answer."""
    async with targets.site() as site:
        with targets.deaf() as port:
            rights = {A.plugin_id: targets.bound(f"http://127.0.0.1:{site.port}", f"http://127.0.0.1:{port}")}
            async with world(tmp_path, Probes(Guard()).check, rights=rights, total_checks=4, plugin_checks=4) as here:
                for number in range(3):
                    await here.put(f"fine{number}", kind="http", target=site.url(path=f"/{number}"))
                await here.pass_s(3)
                for number in range(6):
                    hangs = f"http://127.0.0.1:{port}/{number}"
                    await here.put(f"hang{number}", kind="http", target=hangs, timeout_s=25.0)
                fine = [here.monitors.get("acme.a", f"fine{number}") for number in range(3)]
                for _ in range(4):
                    await here.pass_s(30, settled=False)
                    await until(lambda: not any(one.busy for one in fine))
                assert [(one.last.number >= 4, one.last.outcome, one.skipped) for one in fine] == [(True, "up", 0)] * 3
                assert sum(one.busy for one in here.monitors.every()) == 6

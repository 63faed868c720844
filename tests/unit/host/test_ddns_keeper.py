"""ddns.* from the call to the provider: schedule, rate limits, denials, restarts, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import time
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.ddns.calls import DdnsCalls
from latticed.host.ddns.cloudflare import CloudflareProvider
from latticed.host.ddns.keeper import TRIES, DdnsKeeper
from latticed.host.ddns.outcome import Published, UpdateFailed
from latticed.host.ddns.providers import Providers
from latticed.host.ddns.rfc2136 import Rfc2136Provider
from latticed.host.egress.client import EgressClient
from latticed.host.egress.guard import Guard
from latticed.kit.wheel import Wheel
from latticed.ledger import ddns as rows
from latticed.ledger import open_ledger
from latticed.model import egress
from latticed.model.egress import EgressRights
from latticed.settings import shapes
from tests.house import cloudflares, dns_servers, exports, plugin_secrets, processes
from tests.house.clocks import ManualClock
from tests.house.origins import Authority

ONE, TWO = Caller(plugin_id="acme.one"), Caller(plugin_id="acme.two")
A, B, C = "93.184.216.34", "93.184.216.35", "93.184.216.36"
NAME = "home.example.org"
DENIED = UpdateFailed(code="bad_credentials", reason="no", lasting=True)
LATER = UpdateFailed(code="no_answer", reason="silence")
DEADLINE_S = processes.PATIENCE_S


async def until(condition, what=""):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.002)


@dataclass
class Scripted:
    """A provider that keeps the last address; `next`: outcomes of the next tries; `hold`: an event they wait for."""

    has: dict[str, str] = field(default_factory=dict)
    tries: list[tuple[str, str]] = field(default_factory=list)
    next: list[UpdateFailed] = field(default_factory=list)
    hold: asyncio.Event | None = None
    running: int = 0
    most: int = 0

    async def publish(self, plugin_id, spec, address, rights):
        assert isinstance(rights, EgressRights)
        self.tries.append((spec.name, address))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if self.next:
                return self.next.pop(0)
            changed = self.has.get(spec.name) != address
            self.has[spec.name] = address
            if self.hold is not None:
                await self.hold.wait()
            return Published(address=address, changed=changed)
        finally:
            self.running -= 1


@dataclass
class World:
    """Records over a real ledger; `pass_s` lets time pass in ticks, and what is due happen."""

    clock: ManualClock
    wheel: Wheel
    ledger: object
    records: DdnsKeeper
    service: dict
    rights: dict
    interfaces: dict

    async def call(self, method, caller=ONE, **params):
        served = self.service[method]
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def put(self, address=A, *, name=NAME, caller=ONE, **fields):
        wanted = {"name": name, "type": "A", "provider": "cloudflare", "secret": "${secret:TOKEN}", **fields}
        return await self.call("ddns.put", caller, **wanted, **({"address": address} if address else {}))

    async def status(self, caller=ONE, **params):
        (found,) = (await self.call("ddns.status", caller, **params))["records"]
        return found

    async def pass_s(self, seconds, *, step_s=0.05, settled=True):
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            if self.wheel.advance():
                await self.settle() if settled else await asyncio.sleep(0)

    async def settle(self):
        await until(lambda: not any(one.busy for one in self.records.every()), "all tries ended")

    def events(self):
        """(code, address, before) of every event, oldest first."""
        found = self.ledger.read(lambda db: list(exports.export(db)))
        return [
            (one["code"], one["detail"]["address"], one["detail"]["before"])
            for one in found
            if one.get("action") == "ddns.update"  # not the heads, which are signed in between
        ]


@contextlib.asynccontextmanager
async def world(directory, providers, *, clock=None, roll=lambda: 0.5, secrets_of=None, rights=None, **settings):
    clock = clock or ManualClock()
    wanted = shapes.DdnsSettings(**settings)
    secrets_of = secrets_of or plugin_secrets.secrets_of(
        {one.plugin_id: {"TOKEN": "t0ken-value"} for one in (ONE, TWO)}
    )
    allowed = {ONE.plugin_id: EgressRights(), TWO.plugin_id: EgressRights()} if rights is None else rights
    interfaces: dict[str, list] = {}
    wheel = Wheel(clock)
    async with (
        open_ledger(directory / "state", clock=clock) as ledger,
        DdnsKeeper(
            ledger=ledger,
            wheel=wheel,
            clock=clock,
            providers=providers,
            rights=allowed.get,
            settings=wanted,
            addresses_of=lambda name: [ip_address(one) for one in interfaces.get(name, ())],
            roll=roll,
        ) as records,
    ):
        service = {one.method: one for one in DdnsCalls(records, secrets_of=secrets_of).calls()}
        yield World(clock, wheel, ledger, records, service, allowed, interfaces)


@pytest.fixture
def provider():
    return Scripted()


@pytest.fixture
async def here(tmp_path, provider):
    async with world(tmp_path, provider) as opened:
        yield opened


# From the call to the provider.


async def test_running_ddns_try_is_cancelled_when_plugin_may_not_act(here, provider):
    """Nothing is tried until it may act again; tries of other plugins continue."""
    provider.hold = asyncio.Event()
    await here.put()
    await here.put(B, name="two.example.org", caller=TWO)
    await here.pass_s(1, settled=False)
    await until(lambda: provider.running == 2, "both tries")
    rights = here.rights.pop(ONE.plugin_id)
    here.records.recheck(ONE.plugin_id)
    await here.records.drained(ONE.plugin_id)
    assert provider.running == 1
    provider.hold.set()
    await here.pass_s(120)
    assert [name for name, _ in provider.tries].count(NAME) == 1
    here.rights[ONE.plugin_id] = rights
    await here.pass_s(120)
    assert [name for name, _ in provider.tries].count(NAME) == 2


async def test_put_record_is_published_and_shown_by_status(here, provider):
    """It is published soon after the call; then the provider is not asked again before verification."""
    assert await here.put() == {"ok": True, "name": NAME, "type": "A", "state": "pending"}
    await here.pass_s(1)
    assert provider.tries == [(NAME, A)]
    found = await here.status()
    assert (found["state"], found["address"], found["published"], found["failures"]) == ("published", A, A, 0)
    assert found["last_success"] == found["last_change"] == "2026-01-02T03:04:05.050000Z"
    assert found["last_error"] is None
    assert found["next_try"] == "2026-01-02T08:46:05.050000Z", "verified after 21600 s, a bit earlier by the dice"
    await here.pass_s(20_000, step_s=5)
    assert len(provider.tries) == 1
    await here.pass_s(2_000, step_s=5)
    assert len(provider.tries) == 2
    assert here.events() == [("", A, "")], "that it was equal is no event"


async def test_putting_the_same_record_again_changes_nothing(here, provider):
    """Neither a try nor a write of the row; another TTL causes both."""
    await here.put()
    await here.pass_s(1)
    for _ in range(3):
        assert (await here.put())["state"] == "published"
    await here.pass_s(100)
    assert len(provider.tries) == 1
    await here.put(ttl=600)
    await here.pass_s(1)
    assert len(provider.tries) == 2


async def test_flapping_address_is_written_seldom(here, provider):
    """The last address is published in the end; each change that follows too soon doubles the pause."""
    await here.put(A)
    await here.pass_s(1)
    for _ in range(20):
        for address in (B, C, A, B):
            await here.put(address)
            await here.pass_s(0.5)
    written = [address for _, address in provider.tries]
    assert written == [A]
    assert (await here.status())["next_try"] == "2026-01-02T03:05:05.050000Z", "60 s after the change"
    await here.pass_s(60)
    assert [address for _, address in provider.tries] == [A, B]
    await here.put(C)
    await here.pass_s(75)
    assert len(provider.tries) == 2, "the second hold is 120 s"
    await here.pass_s(10)
    assert [address for _, address in provider.tries] == [A, B, C]


async def test_deleting_and_putting_does_not_evade_the_rate_limit(here, provider):
    """Tries are counted per plugin, not per record."""
    for _ in range(100):
        await here.put()
        await here.pass_s(0.05)
        await here.call("ddns.delete", name=NAME, type="A")
    assert TRIES.burst <= len(provider.tries) <= TRIES.burst + 1
    await here.put(name="two.example.org", caller=TWO)
    await here.pass_s(0.5)
    assert provider.tries[-1] == ("two.example.org", A)


async def test_denied_record_is_not_retried(here, provider):
    """Another address or an equal put does not retry it; `retry` and another secret do."""
    provider.next = [DENIED]
    await here.put()
    await here.pass_s(1)
    await here.pass_s(100_000, step_s=10)
    await here.put(B)
    await here.pass_s(1_000, step_s=1)
    await here.put(B)
    await here.pass_s(100)
    assert len(provider.tries) == 1
    found = await here.status()
    assert (found["state"], found["next_try"], found["failures"]) == ("denied", None, 1)
    assert found["last_error"] == {"code": "bad_credentials", "message": "no", "at": "2026-01-02T03:04:05.050000Z"}
    await here.put(B, retry=True)
    await here.pass_s(1)
    assert provider.tries == [(NAME, A), (NAME, B)]
    assert (await here.status())["state"] == "published"
    assert here.events() == [("bad_credentials", A, ""), ("", B, "")]


async def test_failed_try_is_retried_with_backoff(here, provider):
    """30 s, 60 s, 120 s; one audit event for the first failure, and one for each other code."""
    provider.next = [LATER, LATER, LATER, UpdateFailed(code="server_failed", reason="r")]
    await here.put()
    times = []
    for _ in range(600):
        before = len(provider.tries)
        await here.pass_s(1, step_s=0.5)
        if len(provider.tries) > before:
            times.append(round(here.clock.monotonic_s()) - 1_767_323_045)
    assert times[0] <= 1
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == 5
    assert all(abs(found - wanted) <= 2 for found, wanted in zip(pauses, (30, 60, 120, 240), strict=True))
    assert (await here.status())["last_error"]["code"] == "server_failed"
    assert [code for code, _, _ in here.events()] == ["no_answer", "server_failed", ""]


async def test_retry_after_of_provider_delays_all_records_of_the_plugin(here, provider):
    """Records of other plugins are not delayed."""
    provider.next = [UpdateFailed(code="provider_rate_limited", reason="", retry_after_s=900)]
    await here.put()
    await here.pass_s(1)
    await here.put(name="other.example.org")
    await here.put(name="two.example.org", caller=TWO)
    await here.pass_s(800, step_s=0.5)
    assert provider.tries == [(NAME, A), ("two.example.org", A)]
    await here.pass_s(110, step_s=0.5)
    assert sorted(provider.tries[2:]) == [(NAME, A), ("other.example.org", A)]


async def test_operators_retry_leaves_what_the_plugin_changes_meanwhile(here, provider):
    """A put that is being written stays as it was put, what is being deleted stays deleted."""
    other, gone = "other.example.org", "gone.example.org"
    provider.next = [DENIED, DENIED, DENIED]
    for caller, name in ((ONE, NAME), (ONE, other), (TWO, gone)):
        await here.put(name=name, caller=caller)
    await here.pass_s(2)
    await asyncio.gather(here.put(B, ttl=600), here.records.retry(ONE.plugin_id, NAME))
    found = await here.status(name=NAME)
    assert (found["address"], found["ttl"]) == (B, 600)
    refused = await asyncio.gather(
        here.call("ddns.delete", name=other),
        here.records.retry(ONE.plugin_id, other),
        here.records.forget(TWO.plugin_id),
        here.records.retry(TWO.plugin_id, gone),
        return_exceptions=True,
    )
    assert refused[0] == {"ok": True}
    assert [getattr(one, "code", None) for one in refused] == [None, "not_found", None, "not_found"]
    await here.pass_s(200, step_s=0.5)
    assert [one.name for one in here.ledger.read(rows.load_all)] == [NAME]
    assert provider.has == {NAME: B}


async def test_operators_retry_says_when_each_record_is_tried(here, provider):
    """Within a Retry-After that is its end; what has no address, or is published, is not tried."""
    here.interfaces["wan0"] = [A]
    gone, done = "gone.example.org", "done.example.org"
    await here.put("", name=gone, interface="wan0")
    await here.put(name=done)
    await here.pass_s(1)
    here.interfaces["wan0"] = []
    await here.pass_s(100, step_s=0.5)
    provider.next = [UpdateFailed(code="provider_rate_limited", reason="", retry_after_s=900)]
    await here.put()
    await here.pass_s(1)
    tried = len(provider.tries)
    (paused,) = await here.records.retry(ONE.plugin_id, NAME)
    assert paused.view()["state"] == "pending"
    assert 895 <= (paused.try_at - here.clock.wall_us()) / 1_000_000 <= 900
    states = [(await here.records.retry(ONE.plugin_id, name))[0].view()["state"] for name in (gone, done)]
    assert states == ["no_address", "published"]
    await here.put("", name="new.example.org", interface="wan0")
    (new,) = await here.records.retry(ONE.plugin_id, "new.example.org")
    assert (new.view()["state"], new.try_at) == ("no_address", None)
    await here.pass_s(890, step_s=5)
    assert len(provider.tries) == tried
    await here.pass_s(20)
    assert (await here.status(name=NAME))["state"] == "published"


async def test_unproven_refusal_delays_its_own_record_alone(here, provider):
    """Anyone on the way could send one for a name: the others at that provider go on."""
    provider.next = [UpdateFailed(code="refused", reason="r", again_s=3_600)]
    await here.put()
    await here.pass_s(1)
    await here.put(name="other.example.org")
    await here.pass_s(3_500, step_s=5)
    assert provider.tries == [(NAME, A), ("other.example.org", A)]
    await here.pass_s(200, step_s=5)
    assert (await here.status(name=NAME))["state"] == "published"


@dataclass
class ClockAhead(ManualClock):
    """Its wall clock is `ahead_us` ahead of the time that passes."""

    ahead_us: int = 730 * 86_400 * 1_000_000

    def wall_us(self):
        return self.now_us + self.ahead_us


@pytest.mark.parametrize(
    "first",
    [None, LATER, UpdateFailed(code="provider_rate_limited", reason="", retry_after_s=900)],
    ids=["published", "retrying", "paused"],
)
async def test_record_follows_its_address_after_the_clock_was_set_back(tmp_path, provider, first):
    """What was noted while it was years ahead delays nothing."""
    clock = ClockAhead()
    provider.next = [first] if first else []
    async with world(tmp_path, provider, clock=clock) as here:
        here.interfaces["wan0"] = [A]
        await here.put("", interface="wan0")
        await here.pass_s(2, step_s=0.5)
        assert len(provider.tries) == 1
        clock.ahead_us = 0
        here.interfaces["wan0"] = [B]
        await here.pass_s(200, step_s=0.5)
        assert (await here.status())["published"] == B
        await here.pass_s(22_000, step_s=5)
        assert len(provider.tries) <= 5, "then as usual"


# Interfaces.


async def test_interface_address_is_published_once_settled(here, provider):
    """The first address is published at once, a changed one once it has stayed, a private one never."""
    await here.put("", interface="wan0")
    await here.pass_s(40)
    assert ((await here.status())["state"], provider.tries) == ("no_address", [])
    here.interfaces["wan0"] = ["10.0.0.1"]
    await here.pass_s(40)
    here.interfaces["wan0"] = ["10.0.0.1", A]
    await here.pass_s(31)
    assert provider.tries == [(NAME, A)]
    for _ in range(10):  # it flaps
        here.interfaces["wan0"] = [B]
        await here.pass_s(29, step_s=0.5)
        here.interfaces["wan0"] = [A]
        await here.pass_s(31, step_s=0.5)
    assert len(provider.tries) == 1
    here.interfaces["wan0"] = [B]
    await here.pass_s(95, step_s=0.5)
    assert provider.tries == [(NAME, A), (NAME, B)]
    here.interfaces["wan0"] = []
    await here.pass_s(200, step_s=0.5)
    assert len(provider.tries) == 2, "no address is nothing to publish"


async def test_private_addresses_are_published_only_with_ddns_private(tmp_path, provider):
    """Those of an interface too; publishing ends when the setting is revoked."""
    async with world(tmp_path, provider) as here:
        with pytest.raises(HostError, match=r"ddns\.private"):
            await here.put("10.0.0.1")
    async with world(tmp_path, provider, private=True) as here:
        here.interfaces["lan0"] = ["10.0.0.1"]
        await here.put("10.0.0.2")
        await here.put("", name="lan.example.org", interface="lan0")
        await here.pass_s(1)
        assert sorted(provider.tries) == [(NAME, "10.0.0.2"), ("lan.example.org", "10.0.0.1")]
    async with world(tmp_path, provider) as here:
        here.interfaces["lan0"] = ["10.0.0.1"]
        await here.pass_s(90_000, step_s=10)
        assert len(provider.tries) == 2
        assert {one["state"] for one in (await here.call("ddns.status"))["records"]} == {"no_address"}


# Restarts and interruptions.


async def test_restart_does_not_try_published_records(tmp_path, provider):
    """Waiting ones are not tried early and denied ones not at all; due ones are spread out."""
    clock = ManualClock()
    provider.next = [DENIED, LATER]
    async with world(tmp_path, provider, clock=clock) as here:
        await here.put(name="denied.example.org")
        await here.pass_s(0.1)
        await here.put(name="later.example.org")
        await here.pass_s(0.1)
        for number in range(10):
            await here.put(name=f"h{number}.example.org")
        await here.pass_s(1)
        before = {one["name"]: one for one in (await here.call("ddns.status"))["records"]}
    count = len(provider.tries)
    for _ in range(3):
        async with world(tmp_path, provider, clock=clock, roll=lambda: 0.1) as here:
            await here.pass_s(8)
            assert len(provider.tries) == count
            after = {one["name"]: one for one in (await here.call("ddns.status"))["records"]}
            assert after == before
    async with world(tmp_path, provider, clock=clock) as here:
        await here.pass_s(40)
        assert provider.tries[count:] == [("later.example.org", A)]


async def test_restart_spreads_overdue_tries(tmp_path, provider):
    """All records are due for verification: not all at one time, few concurrently."""
    clock, dice = ManualClock(), iter(range(10**6))
    async with world(tmp_path, provider, clock=clock, plugin_records=64) as here:
        for number in range(40):
            await here.put(name=f"h{number}.example.org")
        await here.pass_s(200, step_s=0.5)
    assert (len(provider.tries), provider.most) == (40, 4)
    provider.tries.clear()
    clock.advance(100_000)
    async with world(tmp_path, provider, clock=clock, plugin_records=64, roll=lambda: (next(dice) * 0.37) % 1) as here:
        seen = []
        for _ in range(400):
            await here.pass_s(1, step_s=0.5)
            seen.append(len(provider.tries))
        assert seen[5] < 15
        assert seen[-1] == 40


async def test_interrupted_try_is_repeated_after_restart(tmp_path, provider):
    """The daemon stopped while address B was sent; A, put again, is written although it was the published one."""
    clock = ManualClock()
    async with world(tmp_path, provider, clock=clock) as here:
        await here.put(A)
        await here.pass_s(61)
        provider.hold = asyncio.Event()
        await here.put(B)
        await here.pass_s(1, settled=False)
        await until(lambda: provider.has[NAME] == B, "B is written")
    provider.hold = None
    assert provider.running == 0
    async with world(tmp_path, provider, clock=clock) as here:
        await here.put(A)
        await here.pass_s(5)
        assert provider.has[NAME] == A


async def test_interrupted_try_is_repeated_though_interface_has_its_old_address_again(tmp_path, provider):
    """The provider is asked although the published address equals that of the interface."""
    clock = ManualClock()
    async with world(tmp_path, provider, clock=clock) as here:
        here.interfaces["wan0"] = [A]
        await here.put("", interface="wan0")
        await here.pass_s(61, step_s=0.5)
        provider.hold = asyncio.Event()
        here.interfaces["wan0"] = [B]
        await here.pass_s(95, step_s=0.5, settled=False)
        await until(lambda: provider.has[NAME] == B, "B is written")
    provider.hold = None
    async with world(tmp_path, provider, clock=clock) as here:
        here.interfaces["wan0"] = [A]
        await here.pass_s(60, step_s=0.5)
        assert provider.has[NAME] == A


async def test_put_cancels_the_running_try_of_its_record(here, provider):
    """The put does not wait for it; what it may have written is checked by the next try."""
    provider.hold = asyncio.Event()
    await here.put(A)
    await here.pass_s(1, settled=False)
    assert provider.running == 1
    await here.put(B)
    assert provider.running == 0
    provider.hold = None
    await here.pass_s(1)
    assert provider.has[NAME] == B
    assert (await here.status())["published"] == B


async def test_hanging_ddns_try_delays_no_other_plugin(here, provider):
    """One plugin has at most four concurrent tries."""
    provider.hold = asyncio.Event()
    for number in range(10):
        await here.put(name=f"h{number}.example.org")
    await here.pass_s(1, settled=False)
    assert provider.running == 4
    await here.put(name="two.example.org", caller=TWO)
    await here.pass_s(1, settled=False)
    assert ("two.example.org", A) in provider.tries
    provider.hold.set()
    await here.settle()
    assert len(provider.tries) == 11


# Permissions, owners and quotas.


async def test_records_of_plugin_that_may_not_act_are_not_tried(here, provider):
    """They are rechecked once it may act again."""
    here.rights[ONE.plugin_id] = None
    await here.put()
    await here.pass_s(300, step_s=0.5)
    assert provider.tries == []
    here.rights[ONE.plugin_id] = EgressRights()
    await here.pass_s(31)
    assert provider.tries == [(NAME, A)]


async def test_plugin_sees_only_its_own_dns_records(here):
    """It can neither list nor delete another's records, nor put a record of the same name."""
    await here.put()
    assert (await here.call("ddns.status", TWO))["records"] == []
    assert await here.call("ddns.delete", TWO, name=NAME, type="A") == {"ok": False}
    with pytest.raises(HostError) as caught:
        await here.put(B, caller=TWO)
    assert caught.value.code == "bad_params"
    assert await here.call("ddns.delete", name=f"{NAME.upper()}.", type="A") == {"ok": True}
    assert await here.call("ddns.delete", name=NAME, type="A") == {"ok": False}
    await here.put(B, caller=TWO)
    assert await here.records.forget(TWO.plugin_id) == 1
    assert here.ledger.read(rows.load_all) == []


async def test_ddns_status_filters_by_name_and_type(here):
    await here.put()
    await here.put("2606:4700::1", type="AAAA")
    await here.put(name="x.example.org")
    assert len((await here.call("ddns.status"))["records"]) == 3
    assert len((await here.call("ddns.status", name="Home.example.org"))["records"]) == 2
    assert (await here.status(name=NAME, type="AAAA"))["type"] == "AAAA"
    assert await here.call("ddns.delete", name=NAME) == {"ok": True}, "both types"
    assert [one["name"] for one in (await here.call("ddns.status"))["records"]] == ["x.example.org"]
    assert await here.call("ddns.delete", name=NAME) == {"ok": False}


async def test_record_over_quota_is_refused(tmp_path, provider):
    """There is a quota per plugin and one in total; existing records stay."""
    async with world(tmp_path, provider, plugin_records=2, total_records=3) as here:
        await here.put()
        await here.put(name="two.example.org")
        with pytest.raises(HostError) as caught:
            await here.put(name="three.example.org")
        assert caught.value.code == "quota_exceeded"
        await here.put(name="three.example.org", caller=TWO)
        with pytest.raises(HostError, match="at most 3 records"):
            await here.put(name="four.example.org", caller=TWO)
        await here.put(B)
        await here.pass_s(1)
        assert sorted(provider.tries) == [(NAME, B), ("three.example.org", A), ("two.example.org", A)]


async def test_put_with_unbound_secret_is_refused(here, provider):
    """No row is written."""
    with pytest.raises(HostError, match="bound no secret 'OTHER'") as caught:
        await here.put(secret="${secret:OTHER}")
    assert caught.value.code == "bad_params"
    assert (await here.call("ddns.status"))["records"] == []


# Real providers.


async def test_records_reach_real_servers_and_secrets_do_not_leak(tmp_path):
    """BIND or Knot, and Cloudflare; a wrong secret is denied once. No file of the state has a secret value."""
    kinds = [kind for kind in ("bind", "knot") if dns_servers.installed(kind)]
    if not kinds:
        pytest.skip("bind is not installed here")
    authority = Authority()
    wrong = "wr0ng-token-value"
    values = {"KEY": dns_servers.VALUES[dns_servers.KEY], "TOKEN": cloudflares.TOKEN, "WRONG": wrong}
    zone, host, secrets_of = dns_servers.ZONE, cloudflares.HOST, plugin_secrets.secrets_of({ONE.plugin_id: values})
    (tmp_path / "server").mkdir()
    with dns_servers.serving(kinds[0], tmp_path / "server") as server:
        async with cloudflares.serving(authority) as fake, EgressClient(Guard(), tls=authority.trust()) as client:
            fake.zone("example.org")
            api = EgressRights(origins=(egress.origin(f"https://{host}:{fake.port}=127.0.0.1"),))
            cloudflare = CloudflareProvider(client, base=f"https://{host}:{fake.port}/client/v4", rights=api)
            providers = Providers(cloudflare=cloudflare, rfc2136=Rfc2136Provider(Guard()), secrets_of=secrets_of)
            rights = {ONE.plugin_id: EgressRights(origins=(egress.origin(f"dns://127.0.0.1:{server.port}"),))}
            async with world(tmp_path, providers, secrets_of=secrets_of, rights=rights) as here:
                dns = {"provider": "rfc2136", "server": f"127.0.0.1:{server.port}", "key": dns_servers.KEY}
                await here.put(name=f"h.{zone}", secret="${secret:KEY}", **dns)
                await here.put()
                await here.put(name="wrong.example.org", secret="${secret:WRONG}")
                await here.put(name=f"unbound.{zone}", secret="${secret:KEY}", **{**dns, "server": "127.0.0.1:1"})
                await here.pass_s(1)
                assert server.addresses(f"h.{zone}") == [(A, 300)]
                assert fake.found(NAME) == [("A", A, 1)]
                asked = len(fake.asked)
                await here.pass_s(1_000, step_s=1)
                assert len(fake.asked) == asked, "a denial is not repeated"
                found = {one["name"]: one for one in (await here.call("ddns.status"))["records"]}
                denied, blocked = found["wrong.example.org"], found[f"unbound.{zone}"]
                assert (denied["state"], denied["last_error"]["code"]) == ("denied", "bad_credentials")
                assert "Invalid access token ${secret:WRONG}" in denied["last_error"]["message"]
                assert (blocked["state"], blocked["last_error"]["code"]) == ("retrying", "egress_blocked")
                assert len(here.events()) == 4
    kept = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert b"wrong.example.org" in kept
    assert not [value for value in values.values() if value.encode() in kept]


@pytest.mark.parametrize("moment", ["due", "ended"])
async def test_record_is_looked_at_again_after_addresses_could_not_be_read(tmp_path, provider, moment):
    """Without a free descriptor (EMFILE) the interfaces cannot be read, neither when due nor after a try."""
    async with world(tmp_path, provider) as here:
        broken = moment == "due"
        read = here.records._addresses_of

        def addresses_of(name):
            if broken:
                raise OSError(errno.EMFILE, "Too many open files")
            return read(name)

        here.records._addresses_of = addresses_of
        here.interfaces["wan0"] = [A]
        await here.put(address=None, interface="wan0")
        await here.pass_s(1)
        broken = moment == "ended"
        if moment == "ended":
            here.interfaces["wan0"] = [B]
            await here.pass_s(400, step_s=0.5)
        broken = False
        await here.pass_s(400, step_s=0.5)
        assert (await here.status())["published"] == here.interfaces["wan0"][0]

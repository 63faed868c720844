"""A plugin's use of its grants, from the audit record of its calls."""

from __future__ import annotations

import pytest

from latticed.ctl import advice_denials, decode
from latticed.host.call import HostError
from latticed.kit.clock import SystemClock
from latticed.ledger import contacts
from latticed.rpc.access import Scope
from tests.house import in_process

ID = "acme.demo"


class ClockAhead(SystemClock):
    """The system's clock, set ahead by a number of days."""

    days = 0

    def wall_us(self):
        return super().wall_us() + self.days * 86_400_000_000


@pytest.fixture
def clock():
    return ClockAhead()


@pytest.fixture
async def home(clock):
    async with in_process.opened(clock=clock) as found:
        found.drop(capabilities=["kv:read", "kv:write", "log:write", "http:egress"])
        await found.seen(ID)
        await found.decide(ID, "installed", accept=["http:egress"], accept_hosts=["api.example.org:443"])
        await found.decide(ID, "active")
        yield found


async def test_usage_lists_used_and_unused_grants(home, clock):
    """Calls made and refused, by name; capabilities and hosts never used."""
    plugin = home.driven.only(ID)
    for _ in range(3):
        await plugin.call("kv.get", key="a")
    with pytest.raises(HostError):
        await plugin.call("node.facts")
    clock.days = 13
    found = await home.ask("GET", f"/api/plugins/by-id/{ID}/usage")
    calls = {row["call"]: (row["allowed"], row["denied"]) for row in found["calls"]}
    assert calls == {"kv.get": (3, 0), "node.facts": (0, 1)}
    assert found["unused"] == []
    clock.days = 14
    await plugin.call("kv.get", key="a")
    found = await home.ask("GET", f"/api/plugins/by-id/{ID}/usage?days=14")
    assert set(found["unused"]) == {"kv:write", "log:write", "http:egress"}
    assert found["unused_hosts"] == ["api.example.org:443"]
    report = await home.ask("GET", f"/api/plugins/by-id/{ID}")
    assert report["calls"] == {"made": 5, "denied": 1}


async def test_no_grant_is_unused_before_the_lookback_has_passed(home, clock):
    """The time is counted from the newest grant; trimming does not restart it."""

    async def usage(days=14):
        return await home.ask("GET", f"/api/plugins/by-id/{ID}/usage?days={days}")

    assert ((await usage())["unused"], (await usage())["unused_hosts"], (await usage())["enough"]) == ([], [], False)
    clock.days = 15
    found = await usage()
    assert (found["enough"], len(found["unused"]), found["unused_hosts"]) == (True, 4, ["api.example.org:443"])
    await home.ask("PUT", f"/api/plugins/by-id/{ID}/grants", {"trim": ["kv:write"]})
    assert set((await usage())["unused"]) == {"kv:read", "log:write", "http:egress"}
    await home.ask("PUT", f"/api/plugins/by-id/{ID}/grants", {"grant": ["kv:write"]})
    found = await usage()
    assert (found["enough"], found["unused"]) == (False, [])
    assert found["watched_since"] > found["since"]
    clock.days = 17
    assert (await usage(days=1))["enough"]


async def test_hosts_that_a_plugin_reached_are_recorded_once_each(home):
    """Each has the last time; they are limited to the lookback, and removed with the plugin's record."""
    ledger, now = home.app.api.ledger, home.app.api.clock.wall_us()
    day_us = 86_400_000_000
    for host, at in (("old.example:443", now - 20 * day_us), ("api.example.org:443", now), ("b.example:80", now - 5)):
        await ledger.write(lambda tx, host=host, at=at: contacts.note(tx, ID, host, now_us=at))
    found = await home.ask("GET", f"/api/plugins/by-id/{ID}/usage?days=14")
    assert [row["host"] for row in found["hosts"]] == ["api.example.org:443", "b.example:80"]
    assert found["unused_hosts"] == []
    assert (await home.ask("GET", f"/api/plugins/by-id/{ID}/usage?days=0")).status == 400
    assert (await home.ask("GET", "/api/plugins/by-id/acme.nobody/usage")).status == 404
    await home.decide(ID, "disabled")
    await home.ask("POST", f"/api/plugins/by-id/{ID}/forget", {})
    assert ledger.read(lambda db: contacts.since(db, ID, 0)) == []


async def test_recorded_hosts_are_bounded_and_the_oldest_is_dropped(home, monkeypatch):
    """That is the host that was not reached for the longest time."""
    monkeypatch.setattr(contacts, "MOST", 3)
    ledger = home.app.api.ledger
    for number in range(5):
        await ledger.write(lambda tx, number=number: contacts.note(tx, ID, f"h{number}.example:443", now_us=number + 1))
    assert [host for host, _ in ledger.read(lambda db: contacts.since(db, ID, 0))] == [
        "h4.example:443",
        "h3.example:443",
        "h2.example:443",
    ]


async def test_what_a_denied_call_asked_for_is_shown_with_scope_operate_only(home, monkeypatch):
    """Sizes and digests of parameters, which streams of events withhold from scope `read` too."""
    with pytest.raises(HostError):
        await home.driven.only(ID).call("node.facts")
    (denied,) = (await home.ask("GET", f"/api/plugins/by-id/{ID}"))["denials"]
    assert denied["detail"]
    monkeypatch.setattr(type(home.app.api.access), "scopes", lambda *_: Scope.READ)
    (shown,) = (await home.ask("GET", f"/api/plugins/by-id/{ID}"))["denials"]
    assert shown == {**denied, "detail": {}}


@pytest.mark.parametrize("scopes", [Scope.READ, Scope.READ | Scope.OPERATE])
async def test_advice_on_a_denied_call_is_right_with_every_scope(home, monkeypatch, scopes):
    """Who may only read is not sent to the plugin's logs for want of a host, nor once the host is granted."""
    with pytest.raises(HostError):
        await home.driven.only(ID).call("http.do", method="GET", url="https://other.example.org/")

    async def advice():
        with monkeypatch.context() as patched:
            patched.setattr(type(home.app.api.access), "scopes", lambda *_: scopes)
            found = await home.ask("GET", f"/api/plugins/by-id/{ID}?explain=1")
        denials = [decode.event(one) for one in found["denials"]]
        return advice_denials.suffered(ID, denials, found["grants"], found["causes"], None)

    assert (await advice()).command == f"latticectl caps grant {ID} host=other.example.org:443"
    hosts = ["api.example.org:443", "other.example.org:443"]
    assert (await home.ask("PUT", f"/api/plugins/by-id/{ID}/grants", {"hosts": hosts})).status == 200
    assert await advice() is None

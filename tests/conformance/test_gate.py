"""The Gate, end to end: a plugin in a whole house calls the host; what it gets, and what is on record of it."""

from __future__ import annotations

import asyncio
import base64
import json
from types import SimpleNamespace

import pytest

from latticed.broker.gate import Broker
from latticed.host.service import HostError, Params, Served
from latticed.ledger import audit as rows
from latticed.model import capability, hostcall
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from tests.house import bundles, houses
from tests.house.clocks import ManualClock

ID = "acme.demo"
EVERYTHING = sorted(capability.RISKS)
SERVED = {
    "kv.get": {"key": "a"},
    "kv.list": {},
    "kv.put": {"key": "a", "value": "1"},
    "kv.delete": {"key": "a"},
    "log.write": {"message": "hello"},
    "audit.query": {},
}
UNSERVED = sorted(set(hostcall.CAPABILITY_OF) - set(SERVED))


class Caller:
    """A plugin that calls, and the record of its calls."""

    def __init__(self, home, life):
        self.home, self.life, self.seen = home, life, home.mark()

    async def call(self, method, /, **params):
        return await self.life.call(method, **params)

    async def denied(self, method, /, **params):
        """The code with which a call is refused."""
        with pytest.raises(HostError) as caught:
            await self.life.call(method, **params)
        return caught.value.code.value

    def recorded(self):
        """(call, decision, code) of each host call committed since the last look."""
        found = self.home.events(after=self.seen, action="host.call")
        self.seen = self.home.mark()
        assert all(event["actor"] == f"plugin:{self.life.plugin.id}" for event in found)
        return [(event["target"], event["decision"], event["code"]) for event in found]


@pytest.fixture
async def home():
    async with houses.opened() as found:
        yield found


async def caller(home, *capabilities, accept=(), plugin_id=ID, name="demo"):
    home.drop(name, id=plugin_id, capabilities=list(capabilities))
    return Caller(home, await home.armed(plugin_id, accept=accept))


@pytest.fixture
async def plugin(home):
    """One that declares everything and was granted everything."""
    return await caller(home, *EVERYTHING, accept=tuple(capability.host_risk(tuple(EVERYTHING))))


def serve(home, **calls):
    """Put services of the test into the broker: name → coroutine of (caller, params)."""
    broker: Broker = home.house._engine._broker
    extra = {
        name.replace("_", "."): Served(method=name.replace("_", "."), params=Anything, serve=work)
        for name, work in calls.items()
    }
    broker.services = {**broker.services, **extra}


class Anything(Params, frozen=True):
    note: str = ""


# Allowed.


async def test_kv_keeps_text_and_bytes(plugin):
    """Text as text and base64; bytes that are no text as base64 only; missing is no error."""
    assert await plugin.call("kv.get", key="a") == {"ok": False}
    assert await plugin.call("kv.put", key="a", value="grüße\n") == {"ok": True}
    raw = b"\xff\x00\n"
    assert await plugin.call("kv.put", key="b", value_base64=base64.b64encode(raw).decode()) == {"ok": True}
    text = "grüße\n".encode()
    assert await plugin.call("kv.get", key="a") == {
        "ok": True,
        "value": "grüße\n",
        "value_base64": base64.b64encode(text).decode(),
    }
    assert await plugin.call("kv.get", key="b") == {
        "ok": True,
        "value": None,
        "value_base64": base64.b64encode(raw).decode(),
    }
    assert plugin.recorded() == [(method, "allow", "") for method in ("kv.get", "kv.put", "kv.put", "kv.get", "kv.get")]


async def test_kv_lists_and_deletes(plugin):
    """By prefix, after a cursor; deleting what is not there says so."""
    for key in ("b2", "a", "b1"):
        await plugin.call("kv.put", key=key, value="")
    assert await plugin.call("kv.list") == {"keys": ["a", "b1", "b2"], "next": None}
    assert await plugin.call("kv.list", prefix="b", after="b1") == {"keys": ["b2"], "next": None}
    assert await plugin.call("kv.delete", key="a") == {"ok": True}
    assert await plugin.call("kv.delete", key="a") == {"ok": False}


async def test_kv_list_goes_by_pages(home, plugin, monkeypatch):
    """`next` is where to go on."""
    monkeypatch.setattr("latticed.host.kv.PAGE", 2)
    for key in "abc":
        await plugin.call("kv.put", key=key, value="")
    assert await plugin.call("kv.list") == {"keys": ["a", "b"], "next": "b"}
    assert await plugin.call("kv.list", after="b") == {"keys": ["c"], "next": None}


async def test_audit_query_shows_a_plugin_its_own_events_only(home, plugin):
    """Never another's, whatever it asks for; the call itself is already on record."""
    other = await caller(home, "kv:read", plugin_id="acme.other", name="other")
    await other.call("kv.get", key="secret")
    await plugin.call("kv.get", key="a")
    answer = await plugin.call("audit.query")
    assert {event["actor"] for event in answer["events"]} == {f"plugin:{ID}"}
    assert [event["target"] for event in answer["events"]] == ["kv.get", "audit.query"]
    assert answer["next"] is None
    one = await plugin.call("audit.query", limit=1, after=answer["events"][0]["seq"])
    assert [event["target"] for event in one["events"]] == ["audit.query"]
    assert one["next"] == one["events"][0]["seq"]
    assert await plugin.denied("audit.query", actor="plugin:acme.other") == "bad_params"


async def test_what_is_recorded_of_a_call_is_its_size_and_hash(home, plugin):
    """Never the values themselves."""
    await plugin.call("kv.put", key="a", value="hunter2")
    (event,) = [e for e in home.events(action="host.call") if e["target"] == "kv.put"]
    assert set(event["detail"]) == {"bytes", "sha256"}
    assert "hunter2" not in json.dumps(event)


# Denied by right.


@pytest.mark.parametrize("method", sorted(SERVED))
async def test_what_is_not_declared_is_denied(home, method):
    """And on record before the answer."""
    needed = hostcall.CAPABILITY_OF[method]
    other = "kv:read" if needed != "kv:read" else "log:write"
    plugin = await caller(home, other)
    assert await plugin.denied(method, **SERVED[method]) == "capability_denied"
    assert plugin.recorded() == [(method, "deny", "capability_denied")]


@pytest.mark.parametrize("method", sorted(SERVED))
async def test_grants_and_trims_count_at_once(home, method):
    """Trimmed: denied in the very next call. Granted: allowed in the next. Through the API, under a running plugin."""
    needed = hostcall.CAPABILITY_OF[method]
    plugin = await caller(home, needed)
    await plugin.call(method, **SERVED[method])
    url = f"/api/plugins/by-id/{ID}/grants"
    assert (await home.ask("PUT", url, {"trim": [needed]})).status == 200
    assert await plugin.denied(method, **SERVED[method]) == "capability_not_granted"
    assert (await home.ask("PUT", url, {"grant": [needed]})).status == 200
    await plugin.call(method, **SERVED[method])
    assert plugin.recorded() == [
        (method, "allow", ""),
        (method, "deny", "capability_not_granted"),
        (method, "allow", ""),
    ]
    assert home.driven.attempts[ID] == 1, "no restart for that"


async def test_host_risk_waits_for_its_name(home):
    """Declared but masked at install; granted by name it passes the gate."""
    plugin = await caller(home, "kv:read", "task:run")
    assert await plugin.denied("task.submit") == "capability_not_granted"
    await home.ask("PUT", f"/api/plugins/by-id/{ID}/grants", {"grant": ["task:run"]})
    assert await plugin.denied("task.submit") == "service_unavailable"
    assert [code for _, _, code in plugin.recorded()] == ["capability_not_granted", "service_unavailable"]


async def test_calls_without_a_service_say_so(plugin):
    """Every call of the table that this version does not serve: service_unavailable, once declared and granted."""
    for method in UNSERVED:
        assert await plugin.denied(method) == "service_unavailable", method
    assert {(decision, code) for _, decision, code in plugin.recorded()} == {("deny", "service_unavailable")}
    assert len(UNSERVED) + len(SERVED) == len(hostcall.CAPABILITY_OF)


@pytest.mark.parametrize("method", ["kv.steal", "", "kv", "KV.GET", "kv.get ", "__class__", "\x1b[2J\n", "x" * 5000])
async def test_unknown_calls_are_not_found(plugin, method):
    """Whatever the name; on record in printable form."""
    assert await plugin.denied(method) == "not_found"
    ((target, decision, code),) = plugin.recorded()
    assert (decision, code) == ("deny", "not_found")
    assert target.isprintable()
    assert len(target) <= 200


# Denied by limit.


async def test_too_much_is_too_large(plugin):
    """Judged before anybody looks at the parameters."""
    assert await plugin.denied("kv.put", key="a", value="x" * (256 << 10)) == "too_large"
    assert plugin.recorded() == [("kv.put", "deny", "too_large")]


async def test_too_many_are_rate_limited_until_time_passes():
    """Burst at once, then as fast as the bucket fills; each plugin has its own."""
    async with houses.opened(toml="[host_calls]\nper_second = 2\nburst = 3\n") as home:
        clock = home.house._engine._broker.clock = ManualClock()
        one = await caller(home, "kv:read")
        two = await caller(home, "kv:read", plugin_id="acme.other", name="other")
        for _ in range(3):
            await one.call("kv.get", key="a")
        assert await one.denied("kv.get", key="a") == "rate_limited"
        await two.call("kv.get", key="a")
        clock.advance(0.5)
        await one.call("kv.get", key="a")
        assert await one.denied("kv.get", key="a") == "rate_limited"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("kv.get", {}),
        ("kv.get", {"key": 1}),
        ("kv.get", {"key": None}),
        ("kv.get", {"key": "a", "bucket": "plugin:acme.other"}),
        ("kv.put", {"key": "a"}),
        ("kv.put", {"key": "a", "value": "1", "value_base64": "MQ=="}),
        ("kv.put", {"key": "a", "value_base64": "not base64!"}),
        ("kv.list", {"prefix": ["a"]}),
        ("log.write", {}),
        ("log.write", {"message": "a", "fields": []}),
        ("audit.query", {"limit": 0}),
        ("audit.query", {"limit": 501}),
        ("audit.query", {"after": -1}),
        ("audit.query", {"after": "1"}),
    ],
)
async def test_wrong_parameters_are_bad_params(plugin, method, params):
    """Missing, of another type, out of range, unknown."""
    assert await plugin.denied(method, **params) == "bad_params"
    assert plugin.recorded()[-1] == (method, "deny", "bad_params")


@pytest.mark.parametrize(
    "key", ["", ".", "..", "a/b", "a\\b", "a\nb", "a\x00b", "\x1b[0m", "a\u202eb", "a\u2028b", "k" * 257]
)
async def test_keys_that_could_mislead_are_bad_params(plugin, key):
    """No path, no control characters, at most 256 characters."""
    for method, more in (("kv.get", {}), ("kv.put", {"value": ""}), ("kv.delete", {})):
        assert await plugin.denied(method, key=key, **more) == "bad_params"
    await plugin.call("kv.put", key="k" * 256, value="fits")


@pytest.mark.parametrize(
    "params", [{"key": "\ud800"}, {"key": object()}, {"key": {1, 2}, "x": b"\xff"}, {1: {2: 3 + 1j}}]
)
async def test_parameters_that_are_no_json_are_denied_on_record(plugin, params):
    """A lone surrogate gets through most JSON decoders: it must not get past the audit."""
    with pytest.raises(HostError) as caught:
        await plugin.life.gate.call("kv.get", params)
    assert caught.value.code is Denial.BAD_PARAMS
    assert plugin.recorded()[-1][1:] == ("deny", "bad_params")


async def test_parameters_of_endless_depth_are_denied(plugin):
    """No recursion error reaches the runner."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert await plugin.denied("kv.get", key=deep) == "bad_params"
    while deep:  # freed one by one: the interpreter's own recursion has a limit too
        deep = deep.pop()  # type: ignore[assignment]


async def test_quotas_hold(home):
    """On a value, on keys, on all of it; replacing with less always fits. The call was allowed, then failed."""
    toml = "[host_calls]\nkv_value_bytes = 8\nkv_keys = 2\nkv_total_bytes = 20\n"
    async with houses.opened(toml=toml) as small:
        plugin = await caller(small, "kv:read", "kv:write")
        assert await plugin.denied("kv.put", key="a", value="123456789") == "quota_exceeded"
        assert plugin.recorded() == [("kv.put", "allow", ""), ("kv.put", "deny", "quota_exceeded")]
        await plugin.call("kv.put", key="a", value="12345678")
        await plugin.call("kv.put", key="b", value="12345678")
        assert await plugin.denied("kv.put", key="c", value="") == "quota_exceeded"
        assert await plugin.call("kv.delete", key="b") == {"ok": True}
        assert await plugin.denied("kv.put", key="b" * 12, value="") == "quota_exceeded"
        await plugin.call("kv.put", key="a", value="1")


# Denied because the house cannot.


async def test_a_service_that_takes_too_long_is_cut():
    """deadline_exceeded: allowed, then failed, both on record; the service is cancelled."""
    async with houses.opened(toml="[host_calls]\ndeadline_s = 0.1\n") as home:
        plugin = await caller(home, "node:read")
        ended = asyncio.Event()

        async def slow(_caller, _params):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        serve(home, node_facts=slow)
        assert await plugin.denied("node.facts") == "deadline_exceeded"
        assert ended.is_set()
        assert plugin.recorded() == [("node.facts", "allow", ""), ("node.facts", "deny", "deadline_exceeded")]


async def test_a_service_that_breaks_tells_the_plugin_nothing(plugin):
    """internal: the words go to the log."""

    async def broken(_caller, _params):
        raise KeyError("/var/lib/latticed/secret")

    serve(plugin.home, node_facts=broken)
    with pytest.raises(HostError) as caught:
        await plugin.call("node.facts")
    assert caught.value.code is Denial.INTERNAL
    assert "secret" not in str(caught.value)
    assert plugin.recorded() == [("node.facts", "allow", ""), ("node.facts", "deny", "internal")]


async def test_a_service_s_own_refusal_keeps_its_code(plugin):
    """not_found, egress_blocked and the like come from services."""

    async def nothing(_caller, _params):
        raise HostError(Denial.EGRESS_BLOCKED, "expected a host that was accepted")

    serve(plugin.home, http_do=nothing)
    assert await plugin.denied("http.do") == "egress_blocked"
    assert plugin.recorded() == [("http.do", "allow", ""), ("http.do", "deny", "egress_blocked")]


async def test_what_cannot_be_recorded_does_not_happen(home, monkeypatch):
    """audit_unavailable: the service is never asked, nothing changed, nothing is on record; then all is well again."""
    plugin = await caller(home, "kv:read", "kv:write")
    asked = []

    async def note(_caller, params):
        asked.append(params)

    async def record(_event):
        raise Problem("audit_unavailable", "the event cannot be recorded: disk full")

    serve(home, kv_put=note)
    with monkeypatch.context() as patch:
        patch.setattr(home.house._engine._broker, "record", record)
        assert await plugin.denied("kv.put", note="a") == "audit_unavailable"
        assert await plugin.denied("kv.steal") == "audit_unavailable", "a denial that is not on record is no answer"
    assert asked == []
    assert plugin.recorded() == []
    await plugin.call("kv.put", note="b")
    assert len(asked) == 1
    assert plugin.recorded() == [("kv.put", "allow", "")]


async def test_a_call_is_committed_before_it_is_carried_out(home):
    """When the service runs, the allow can already be read from the ledger; a denial before it is answered."""
    plugin = await caller(home, "node:read")
    found = []

    async def look(_caller, _params):
        found.extend(plugin.recorded())

    serve(home, node_facts=look)
    await plugin.call("node.facts")
    assert found == [("node.facts", "allow", "")]


async def test_a_flood_of_denials_is_counted_not_lost(home):
    """All are answered alike; beyond a quota they share events that say how many."""
    plugin = await caller(home, "kv:read")
    for _ in range(60):
        assert await plugin.denied("kv.put", key="a", value="1") == "capability_denied"
    alone = [e for e in home.events(after=plugin.seen, action="host.call") if "count" not in e["detail"]]
    assert 0 < len(alone) < 60

    def told():
        found = home.events(after=plugin.seen, action="host.call")
        return sum(event["detail"].get("count", 1) for event in found)

    await houses.until(lambda: told() == 60, "all 60 accounted for")


# The end of a plugin.


async def test_a_stopped_plugin_s_gate_answers_nothing(home):
    """Disabled: what it still tries is refused."""
    plugin = await caller(home, "kv:read")
    assert (await home.decide(ID, "disabled")).status == 200
    assert await plugin.denied("kv.get", key="a") == "service_unavailable"


async def test_a_tampered_plugin_loses_its_gate(home):
    """A byte changed on disk: stopped, its Gate closed; put back, it is armed with a new Gate."""
    plugin = await caller(home, "kv:read", "kv:write")
    await plugin.call("kv.put", key="a", value="kept")
    before = bundles.tamper(home.dropped["demo"].artifact_path)
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert view["runtime"]["last_error"]["code"] == "digest_mismatch"
    assert (view["status"], view["available"]) == ("active", False)
    assert await plugin.denied("kv.get", key="a") == "service_unavailable"
    home.dropped["demo"].artifact_path.write_bytes(before)
    await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
    assert (await home.driven.only(ID).call("kv.get", key="a"))["value"] == "kept"


# One plugin and another.


async def test_plugins_do_not_share_a_bucket(home):
    """The same key, two values; neither sees the other's."""
    one = await caller(home, "kv:read", "kv:write")
    two = await caller(home, "kv:read", "kv:write", plugin_id="acme.other", name="other")
    await one.call("kv.put", key="k", value="one")
    assert await two.call("kv.get", key="k") == {"ok": False}
    await two.call("kv.put", key="k", value="two")
    assert (await one.call("kv.get", key="k"))["value"] == "one"
    assert (await two.call("kv.list"))["keys"] == ["k"]
    assert (await home.ask("GET", f"/api/kv/plugin:{ID}/k"))["raw"] == b"one"


async def test_another_publisher_never_reads_what_the_old_one_wrote():
    """Accepted by name, the id changes hands with an empty bucket; handed back, the old one is there again."""
    acme, rival = bundles.author("acme"), bundles.author("rival")
    async with houses.opened(author=acme, policy=bundles.policy_bytes(acme, rival)) as home:
        plugin = await caller(home, "kv:read", "kv:write")
        await plugin.call("kv.put", key="k", value="acme's")
        home.drop("theirs", author=rival, id=ID, version="1.1.0", capabilities=["kv:read", "kv:write"])
        await houses.until(lambda: "plugins/theirs" in home.house.api.lifecycle.rejected())
        taken = await home.ask(
            "POST",
            f"/api/plugins/by-id/{ID}/upgrade",
            {"accept_publisher": "rival", "accept": ["kv:read", "kv:write"]},
        )
        assert (taken.status, taken["publisher"], taken["runtime"]["state"]) == (200, "rival", "armed")
        theirs = home.driven.only(ID)
        assert await theirs.call("kv.list") == {"keys": [], "next": None}
        await theirs.call("kv.put", key="k", value="rival's")
        assert "plugins/demo" in home.house.api.lifecycle.rejected()
        back = await home.ask(
            "POST",
            f"/api/plugins/by-id/{ID}/upgrade",
            {"accept_publisher": "acme", "accept": ["kv:read"], "allow_downgrade": True},
        )
        assert (back.status, back["publisher"], back["granted"]) == (200, "acme", ["kv:read"])
        assert (await home.driven.only(ID).call("kv.get", key="k"))["value"] == "acme's"


# The log.


async def test_a_plugin_cannot_forge_log_lines(home, monkeypatch):
    """Newlines, ANSI and bidi arrive escaped, under the plugin's own id; long ones are cut."""
    lines = []
    levels = {level: _taker(lines, level) for level in ("debug", "info", "warning", "error")}
    monkeypatch.setattr("latticed.engine.log", SimpleNamespace(**levels))
    plugin = await caller(home, "log:write")
    forged = "ok\nplugin_armed plugin_id=acme.evil\r\x1b[31m\u202e\u2028end"
    await plugin.call("log.write", level="warning", message=forged, fields={"a\nb": "c\x1b[0m", "n": 1})
    await plugin.call("log.write", level="emerg", message="x" * 100_000, fields={str(n): n for n in range(100)})
    (first, second) = [line for line in lines if line[1] == "plugin_said"]
    level, _, fields = first
    assert (level, fields["plugin_id"]) == ("warning", ID)
    for text in (fields["message"], *fields["fields"], *fields["fields"].values()):
        assert text.isprintable(), text
    assert fields["message"].startswith("ok\\x0aplugin_armed")
    level, _, fields = second
    assert level == "info"
    assert len(fields["message"]) <= 8_192
    assert len(fields["fields"]) <= 32


def _taker(lines, level):
    def take(event, **fields):
        lines.append((level, event, fields))

    return take


async def test_the_chain_of_all_this_verifies(home):
    """After allows, denials and failures of every kind."""
    plugin = await caller(home, "kv:read", "log:write")
    await plugin.call("kv.get", key="a")
    await plugin.denied("kv.put", key="a", value="1")
    await plugin.denied("\ud800")
    await plugin.denied("kv.get", key="\x00")
    await plugin.call("log.write", message="ünïcödé \U0001f600")
    report = await home.ask("GET", "/api/audit/verify")
    assert report["ok"], report
    assert report["events"] == home.house.api.ledger.read(rows.last_seq)

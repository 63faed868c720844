"""network.*: plans are stored and listed; none is approved or applied by a plugin, no secret value is stored."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import Caller, HostError
from latticed.host.network import intents
from latticed.host.network import listeners as network_reading
from latticed.host.network.apply_client import ApplyHelper
from latticed.host.network.calls import NetworkCalls
from latticed.host.network.events import EVENTS
from latticed.host.network.keeper import PlanKeeper
from latticed.host.secret.keeper import SecretKeeper
from latticed.host.secret.key import KeyLocation
from latticed.ledger import audit, open_ledger
from latticed.ledger import plans as rows
from latticed.ledger.quota import RowQuota
from latticed.model import plan
from latticed.model.hostcall import Denial
from tests.house.clocks import ManualClock

A, B = Caller(plugin_id="acme.guard"), Caller(plugin_id="acme.other")
INTENT = {"zones": [{"name": "lan", "interfaces": ["eth0"]}], "drop": True, "ports": [22, 80]}


class Desk:
    """The service over a real ledger and secret store; no helper runs."""

    def __init__(self, ledger, clock, home, *, root=Path("/"), **options):
        self.ledger, self.clock = ledger, clock
        self.secrets = SecretKeeper(ledger, KeyLocation(path=home / "secrets.key", ours=True), clock=clock)
        asked = ApplyHelper(home / "no.sock")
        rights = dict.fromkeys(("may_plan", "may_apply"), lambda _: True)
        options = {"kinds": {}, **rights, **options}
        self.plans = PlanKeeper(ledger, asked, clock=clock, secrets_of=self.secrets.for_plugin, **options)
        self.service = NetworkCalls(self.plans, clock=clock, root=root)

    async def call(self, method, caller=A, **params):
        served = next(one for one in self.service.calls() if one.method == f"network.{method}")
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def refused(self, method, caller=A, **params):
        with pytest.raises(HostError) as caught:
            await self.call(method, caller, **params)
        return caught.value

    async def move(self, sha256, state):
        """As if the helper had reported it."""
        reported = rows.Reported(state)
        return await self.ledger.write(lambda tx: rows.mirror(tx, sha256, reported, now_us=self.clock.wall_us()))

    def states(self, caller=A):
        return [row.state.value for row in self.ledger.read(lambda db: rows.page(db, plugin_id=caller.plugin_id))]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path, clock):
    async with open_ledger(tmp_path / "state", clock=clock) as found:
        yield found


@pytest.fixture
def desk(ledger, clock, tmp_path):
    return Desk(ledger, clock, tmp_path)


# Planning.


async def test_plan_has_digest_of_its_canonical_form(desk):
    """JSON with sorted keys and no white space; the audit event names the plugin."""
    answer = await desk.call("plan", kind="nft", intent=INTENT)
    form = json.dumps({"kind": "nft", "intent": INTENT}, sort_keys=True, separators=(",", ":"))
    assert answer == {
        "ok": True,
        "number": 1,
        "sha256": hashlib.sha256(form.encode()).hexdigest(),
        "kind": "nft",
        "state": "planned",
        "code": "helper_unavailable",
        "reason": "the root helper is not running",
        "created_at": "2026-01-02T03:04:05.000000Z",
        "updated_at": "2026-01-02T03:04:05.000000Z",
    }
    (event,) = desk.ledger.read(lambda db: audit.query(db, action="network.plan"))
    assert (event["actor"], event["target"], event["decision"]) == (f"plugin:{A.plugin_id}", answer["sha256"], "allow")
    assert event["detail"] == {"kind": "nft", "bytes": len(form)}


async def test_same_plan_is_stored_once(desk):
    """The order of its keys does not matter; other kinds and other plugins have rows of their own."""
    first = await desk.call("plan", kind="nft", intent=INTENT)
    desk.clock.advance(5)
    assert await desk.call("plan", kind="nft", intent=dict(reversed(INTENT.items()))) == first
    other_kind = await desk.call("plan", kind="proxy", intent=INTENT)
    other_owner = await desk.call("plan", B, kind="nft", intent=INTENT)
    assert other_kind["sha256"] != first["sha256"] == other_owner["sha256"]
    assert len({one["number"] for one in (first, other_kind, other_owner)}) == 3
    assert len(desk.ledger.read(lambda db: audit.query(db, action="network.plan"))) == 3


async def test_newer_plan_makes_planned_one_stale(desk):
    """It is of the same plugin and kind; approved plans stay. A stale plan that is put again is planned again."""
    one = await desk.call("plan", kind="nft", intent={"n": 1})
    await desk.call("plan", kind="proxy", intent={"n": 1})
    await desk.call("plan", B, kind="nft", intent={"n": 1})
    two = await desk.call("plan", kind="nft", intent={"n": 2})
    assert (desk.states(), desk.states(B)) == (["stale", "planned", "planned"], ["planned"])
    await desk.move(two["sha256"], plan.PlanState.APPROVED)
    again = await desk.call("plan", kind="nft", intent={"n": 1})
    assert (again["number"], again["state"]) == (one["number"], "planned")
    assert desk.states() == ["planned", "planned", "approved"]
    assert (await desk.call("plan", kind="nft", intent={"n": 2}))["state"] == "approved"


async def test_plans_without_end_are_counted_and_not_each_an_event(desk):
    """Decisions are kept for good. Two intents in turn make each other stale, and others are new; all are planned."""
    burst = int(EVENTS.burst)

    def counts():
        events = desk.ledger.read(lambda db: audit.query(db, action="network.plan", limit=1_000))
        return [event["detail"].get("count", 1) for event in events]

    for number in range(burst + 30):
        intent = {"n": number % 2 if number < burst else number}
        assert (await desk.call("plan", kind="nft", intent=intent))["state"] == "planned"
    assert counts() == [1] * burst
    for _ in range(3):
        await desk.call("plan", kind="nft", intent=intent)  # nothing changes: it is no plan more
    await desk.call("plan", B, kind="nft", intent={"n": 1})
    assert counts() == [1] * (burst + 1)
    desk.clock.advance(1 / EVENTS.per_second)
    for number in range(2):
        await desk.call("plan", kind="nft", intent={"more": number})
    assert counts() == [*[1] * (burst + 1), 31]
    desk.clock.advance(1 / EVENTS.per_second)
    await desk.call("plan", kind="nft", intent={"more": 2})
    assert counts() == [*[1] * (burst + 1), 31, 2]


async def test_plan_that_is_not_made_takes_no_count_with_it(desk, monkeypatch):
    """Nor does one whose caller gives up while the disk takes it, which is made all the same."""
    burst = int(EVENTS.burst)

    def counts():
        events = desk.ledger.read(lambda db: audit.query(db, action="network.plan", limit=1_000))
        return [event["detail"].get("count", 1) for event in events]

    for number in range(burst + 5):
        await desk.call("plan", kind="nft", intent={"n": number % 2})
    with monkeypatch.context() as watched:
        writing = asyncio.Event()

        async def write(*what, original=desk.ledger.write, **how):
            writing.set()
            return await original(*what, **how)

        watched.setattr(desk.ledger, "write", write)
        giving_up = asyncio.create_task(desk.call("plan", kind="nft", intent={"n": 2}))
        await writing.wait()
        giving_up.cancel()
        await asyncio.wait({giving_up})
    await desk.ledger.write(lambda tx: None)  # after that of what was given up
    desk.clock.advance(1 / EVENTS.per_second)
    with monkeypatch.context() as full:
        full.setattr(desk.plans, "_quota", RowQuota(plugin=1, total=1))
        assert (await desk.refused("plan", kind="nft", intent={"n": 3})).reason.startswith("expected at most 1 plans")
    desk.clock.advance(1 / EVENTS.per_second)
    await desk.call("plan", kind="nft", intent={"n": 3})
    assert counts() == [*[1] * burst, 7]


async def test_plans_made_at_the_same_time_are_counted_too(desk):
    """What one sees before it is written another has changed since."""
    burst = int(EVENTS.burst)
    calls = [desk.call("plan", kind="nft", intent={"n": number % 2}) for number in range(burst + 40)]
    await asyncio.gather(*calls)
    assert len(desk.ledger.read(lambda db: audit.query(db, action="network.plan", limit=1_000))) <= burst


async def test_refused_plan_put_again_stays_refused(desk):
    """Putting it again does not reopen it; a plan that was applied can be planned again."""
    one = await desk.call("plan", kind="nft", intent={"n": 1})
    await desk.move(one["sha256"], plan.PlanState.REFUSED)
    assert (await desk.call("plan", kind="nft", intent={"n": 1}))["state"] == "refused"
    two = await desk.call("plan", kind="nft", intent={"n": 2})
    for state in (plan.PlanState.APPROVED, plan.PlanState.APPLYING, plan.PlanState.APPLIED):
        await desk.move(two["sha256"], state)
    assert (await desk.call("plan", kind="nft", intent={"n": 2}))["state"] == "planned"


@pytest.mark.parametrize(
    ("kind", "intent", "word"),
    [
        ("iptables", {}, "kind: expected one of nft, wireguard, nginx, proxy, found 'iptables'"),
        ("", {}, "kind: expected one of"),
        ("NFT", {}, "kind: expected one of"),
        ("listeners", {}, "kind: expected one of"),
        ("nft", {"a": 1.5}, "intent.a: expected no fractions"),
        ("nft", {"a": [{"b": 2**53}]}, r"intent.a\[0\].b: expected an integer"),
        ("nft", {"a": -(2**53)}, "expected an integer"),
        ("nft", {"a": "\ud800"}, "expected text without lone surrogates"),
        ("nft", {"\ud800": 1}, "expected text without lone surrogates"),
        ("nft", {"a": "x" * (256 << 10)}, "at most 262144 bytes"),
        ("nft", {"a": "\u00fc" * (128 << 10)}, "at most 262144 bytes"),
    ],
)
async def test_bad_network_plans_are_refused(desk, kind, intent, word):
    """Unknown kinds, fractions, integers from 2**53 on, lone surrogates, more than 64 KiB; nothing is stored."""
    error = await desk.refused("plan", kind=kind, intent=intent)
    assert error.code is Denial.BAD_PARAMS
    assert re.search(word, error.reason), error.reason
    assert desk.states() == []


async def test_intent_nested_too_deep_is_refused(desk):
    """At most 32 levels of objects and lists are accepted."""
    deep: object = 1
    for level in range(32):
        deep = {"a": deep} if level % 2 else [deep]
    assert (await desk.call("plan", kind="nft", intent={"a": deep["a"]}))["ok"]
    error = await desk.refused("plan", kind="nft", intent={"a": {"a": deep}})
    assert "levels of nesting" in error.reason


async def test_plan_over_quota_of_open_plans_is_refused(desk, ledger, clock, tmp_path):
    """The oldest closed plan is removed to make room; open ones are not."""
    desk = Desk(ledger, clock, tmp_path, quota=RowQuota(plugin=2, total=3))
    made = {n: await desk.call("plan", kind="nft", intent={"n": n}) for n in range(4)}
    assert desk.states() == ["stale", "planned"]
    await desk.move(made[3]["sha256"], plan.PlanState.APPROVED)
    four = await desk.call("plan", kind="nft", intent={"n": 4})
    assert desk.states() == ["approved", "planned"]
    await desk.move(four["sha256"], plan.PlanState.APPROVED)
    error = await desk.refused("plan", kind="nft", intent={"n": 5})
    assert (error.code, "at most 2 plans of acme.guard" in error.reason) == (Denial.QUOTA_EXCEEDED, True)
    await desk.call("plan", B, kind="nft", intent={})
    error = await desk.refused("plan", Caller(plugin_id="acme.third"), kind="nft", intent={})
    assert (error.code, "at most 3 plans that" in error.reason) == (Denial.QUOTA_EXCEEDED, True)
    assert desk.states() == ["approved", "approved"]


async def test_plan_that_is_applied_makes_no_room(desk, ledger, clock, tmp_path):
    """Its plugin asks for the intent that its target holds, however many it has planned since."""
    desk = Desk(ledger, clock, tmp_path, quota=RowQuota(plugin=3, total=3))
    held = await desk.call("plan", kind="nft", intent={"n": 0})
    await desk.move(held["sha256"], plan.PlanState.APPLIED)
    for n in range(1, 6):
        await desk.call("plan", kind="nft", intent={"n": n})
    assert desk.states() == ["applied", "stale", "planned"]
    found = await desk.call("plans", sha256=held["sha256"])
    assert found["plans"][0]["intent"] == {"n": 0}


# Secrets.


@pytest.mark.parametrize(
    ("intent", "where"),
    [
        ({"private_key": "x"}, "intent.private_key"),
        ({"PrivateKey": "x"}, "intent.PrivateKey"),
        ({"wg": {"private-key": "x"}}, "intent.wg.private-key"),
        ({"peers": [{"preshared_key": "x"}]}, "intent.peers[0].preshared_key"),
        ({"users": [{"name": "u"}, {"password": "x"}]}, "intent.users[1].password"),
        ({"db_password": "x"}, "intent.db_password"),
        ({"password": 12345678}, "intent.password"),
        ({"passwords": ["${secret:A}", "x"]}, "intent.passwords[1]"),
        ({"token": {"value": "x"}}, "intent.token.value"),
        ({"apiKey": "x"}, "intent.apiKey"),
        ({"API_TOKEN": "x"}, "intent.API_TOKEN"),
        ({"password": "pre${secret:A}"}, "intent.password"),
        ({"note": "-----BEGIN OPENSSH PRIVATE KEY-----\nx"}, "intent.note"),
    ],
)
async def test_plain_secret_in_intent_is_refused(desk, intent, where):
    """The error has its path in the intent, not its value."""
    await desk.secrets.set("A", "value of it")
    await desk.secrets.bind("A", A.plugin_id)
    error = await desk.refused("plan", kind="proxy", intent=intent)
    assert error.code is Denial.BAD_PARAMS
    assert error.reason.startswith(f"{where}: expected a secret as a reference such as ${{secret:NAME}}")
    assert "12345678" not in error.reason
    assert desk.states() == []


@pytest.mark.parametrize(
    "name", ["public_key", "token_file", "password_path", "keys", "key", "secretary", "tokens_per_s", "max_tokens_x"]
)
def test_fields_with_names_similar_to_secrets_are_accepted(name):
    assert not intents.is_secret(name)


async def test_secret_references_are_stored_unexpanded(desk, tmp_path):
    """Only those bound to the plugin; the value is in no row and no answer."""
    await desk.secrets.set("WG_KEY", "the-value-itself")
    intent = {"private_key": "${secret:WG_KEY}", "note": "see ${secret:WG_KEY}", "password": ""}
    error = await desk.refused("plan", kind="proxy", intent=intent)
    assert (error.code, "no secret 'WG_KEY'" in error.reason) == (Denial.BAD_PARAMS, True)
    await desk.secrets.bind("WG_KEY", A.plugin_id)
    made = await desk.call("plan", kind="proxy", intent=intent)
    shown = await desk.call("plans", sha256=made["sha256"])
    assert shown["plans"][0]["intent"] == intent
    kept = desk.ledger.read(lambda db: rows.get(db, A.plugin_id, made["sha256"]))
    assert "the-value-itself" not in str((made, shown, kept))


# Lists, and calls that change nothing.


async def test_plans_are_listed_in_pages(desk):
    """Oldest first, the caller's own only, without intents."""
    for n in range(5):
        await desk.call("plan", kind=plan.KINDS[n % 4], intent={"n": n})
        await desk.call("plan", B, kind="nft", intent={"n": n})
    first = await desk.call("plans", limit=3)
    rest = await desk.call("plans", after=first["next"], limit=3)
    assert [len(first["plans"]), len(rest["plans"]), rest["next"]] == [3, 2, None]
    assert [one["state"] for one in first["plans"] + rest["plans"]] == ["stale", *["planned"] * 4]
    assert "intent" not in first["plans"][0]
    theirs = (await desk.call("plans", B))["plans"][0]["sha256"]
    mine = {one["sha256"] for one in first["plans"] + rest["plans"]}
    other = await desk.call("plan", B, kind="nginx", intent={"only": "theirs"})
    assert theirs in mine  # the digest is that of the content, not of the owner
    assert (await desk.refused("plans", sha256=other["sha256"])).code is Denial.NOT_FOUND
    for odd in ("", "x", other["sha256"].upper(), "../" + other["sha256"][3:]):
        if odd:
            assert (await desk.refused("plans", sha256=odd)).code is Denial.BAD_PARAMS


async def test_apply_without_helper_is_service_unavailable(desk):
    """Whatever the row says: a state in the ledger applies nothing."""
    made = await desk.call("plan", kind="nft", intent=INTENT)
    for state in (None, plan.PlanState.APPROVED, plan.PlanState.UNCONFIRMED):
        if state:
            await desk.move(made["sha256"], state)
        error = await desk.refused("apply", sha256=made["sha256"])
        assert error.code is Denial.SERVICE_UNAVAILABLE
        assert error.reason == "nothing was applied: helper_unavailable: the root helper is not running"
    assert desk.states() == ["unconfirmed"]
    assert (await desk.refused("apply", B, sha256=made["sha256"])).code is Denial.NOT_FOUND
    assert (await desk.refused("apply", sha256="0" * 64)).code is Denial.NOT_FOUND


def test_no_host_call_approves_a_plan():
    """The calls are exactly these four; none moves a plan to `approved`."""
    names = {one.method for one in NetworkCalls(None, clock=ManualClock()).calls()}
    assert names == {"network.state", "network.plan", "network.plans", "network.apply"}


# The live state.


async def test_network_state_lists_listening_sockets(desk):
    """TCP and UDP; connected sockets are not listed."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_connection(tcp.getsockname()) as talks,
    ):
        udp.bind(("127.0.0.1", 0))
        found = await desk.call("state", kind="listeners")
        seen = {(one["protocol"], one["address"], one["port"]) for one in found["listeners"]}
        assert {("tcp", *tcp.getsockname()), ("udp", *udp.getsockname())} <= seen
        assert ("tcp", *talks.getsockname()) not in seen
    assert found["kind"] == "listeners"
    assert found["complete"]
    names = {one["name"] for one in (await desk.call("state", kind="interfaces"))["interfaces"]}
    assert names == {name for _, name in socket.if_nameindex()}
    found = await desk.call("state", kind="nginx")
    assert found.keys() == {"kind", "listeners", "complete", "interfaces", "target"}
    assert found["target"] is None


@pytest.mark.parametrize(("kind", "word"), [("nft", "the ruleset"), ("wireguard", "wg show"), ("proxy", "connected")])
async def test_network_state_that_needs_root_is_service_unavailable(desk, kind, word):
    """The error says what is missing, and which kinds can be read."""
    error = await desk.refused("state", kind=kind)
    assert error.code is Denial.SERVICE_UNAVAILABLE
    assert word in error.reason
    assert "listeners and interfaces can be asked for" in error.reason


@pytest.mark.parametrize("kind", ["", "tcp", "../etc", "x" * 500])
async def test_unknown_kind_of_network_state_is_refused(desk, kind):
    error = await desk.refused("state", kind=kind)
    assert error.code is Denial.BAD_PARAMS
    assert len(error.reason) < 200


async def test_network_state_without_proc_is_service_unavailable(ledger, clock, tmp_path):
    desk = Desk(ledger, clock, tmp_path, root=tmp_path / "nowhere")
    error = await desk.refused("state", kind="listeners")
    assert (error.code, "the listeners cannot be read" in error.reason) == (Denial.SERVICE_UNAVAILABLE, True)


def test_listeners_are_parsed_from_proc_net_tables(tmp_path):
    """Native byte order, mapped addresses as IPv4; malformed lines and missing tables are skipped."""
    tables = tmp_path / "proc/net"
    tables.mkdir(parents=True)
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rest = "00000000:00000000 00:00000000 00000000"
    (tables / "tcp").write_text(
        f"{head}   0: 0100007F:1F90 00000000:0000 0A {rest}   997        0 1 1 0\n"
        f"   1: 0100007F:1F91 0100007F:0001 01 {rest}     0        0 1 1 0\n"
        "   2: nonsense\n   3: ZZ:1 x 0A a b c d\n"
    )
    (tables / "tcp6").write_text(
        f"{head}   0: 00000000000000000000000001000000:0016 0:0 0A {rest}     0        0 1\n"
        f"   1: 0000000000000000FFFF00000100000A:0050 0:0 0A {rest}     0        0 1\n"
    )
    found = network_reading.listeners(tmp_path)
    assert [tuple(one.values()) for one in found["listeners"]] == [
        ("tcp", "10.0.0.1", 80, 0),
        ("tcp", "127.0.0.1", 8080, 997),
        ("tcp", "::1", 22, 0),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_canonical_form_of_intent_round_trips(intent):
    """Any intent is refused, or its form decodes to it and encodes to the same form."""
    try:
        form = plan.canonical("nft", intent)
    except plan.BadIntent:
        return
    read = json.loads(form)
    assert read == {"kind": "nft", "intent": intent}
    assert plan.canonical("nft", read["intent"]) == form
    intents.references(intent)


async def test_row_takes_any_state_that_the_helper_reports(desk):
    """Every pair of states; one that a newer plan made stale stays so while it is only planned at the helper."""
    made = await desk.call("plan", kind="nft", intent={})
    for before in plan.PlanState:
        for after in plan.PlanState:
            await desk.ledger.write(lambda tx, state=before: tx.execute("UPDATE plans SET state = ?", (state.value,)))
            await desk.move(made["sha256"], after)
            kept = (before, after) == (plan.PlanState.STALE, plan.PlanState.PLANNED)
            assert desk.states() == [(before if kept else after).value]
    assert await desk.move("0" * 64, plan.PlanState.APPROVED) == 0
    assert await desk.ledger.write(lambda tx: rows.clear(tx, A.plugin_id)) == 1

"""The node of a fleet beside a real daemon: what operators signed happens, and nothing else does."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from latticed.fleet import documents, messages
from latticed.fleet.engine import DESIRED_BYTES
from tests.house import apply_helpers, bundles, fleet_attacks, fleet_hosts, fleets, killing_relays, long, programs

pytestmark = pytest.mark.daemon

SPEAKING = {"protocol": "latticed-stdio-1"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["city"],
    "properties": {"city": {"type": "string", "minLength": 2}},
}


PROGRAM = (
    programs.SDK
    + b"""
    def do_config(self, payload):
        return self.config

Test().run()
"""
)


PLANNING = b"""#!/usr/bin/env python3
from latticed.sdk import Plugin

class Guard(Plugin):
    def do_plan(self, payload):
        return self.network.plan("file", {"allow": ["admin", "ada"]})

Guard().run()
"""


@pytest.fixture(scope="module")
def shared():
    with fleet_hosts.hosted() as found:
        yield found


@pytest.fixture
def host(shared):
    with shared.node():
        yield shared


def code_of(status, plugin_id):
    return next((one.code for one in status.plugins if one.id == plugin_id), None)


def test_intent_installs_upgrades_goes_back_and_stops(host):
    old, new = (host.bundle("acme.waves", version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n) for n in range(2))
    first = host.intent(host.wanted(old))
    host.desire(first, old)
    status = host.settled(first)
    (row,) = status.plugins
    assert (row.version, row.status, row.state, row.code) == ("1.0.0", "active", "armed", "")
    second = host.intent(host.wanted(new), back_to=(documents.name_of(first),))
    host.desire(second, new)
    assert host.settled(second).plugins[0].version == "1.1.0"
    assert host.daemon.plugin("acme.waves")["version"] == "1.1.0"
    # Back, by the controller alone: the first intent is signed by the operator, and named by the second.
    host.desire(first, old)
    assert host.settled(first).plugins[0].version == "1.0.0"
    last = host.intent(host.wanted(old, status="disabled"))
    host.desire(last)
    assert host.settled(last).plugins[0].status == "disabled"
    assert host.daemon.plugin("acme.waves")["status"] == "disabled"
    # All of it is on the daemon's record, under the node's own uid.
    if host.user is not None:
        actors = {one["actor"].split()[0] for one in host.daemon.events(action="plugin.status", target="acme.waves")}
        assert actors == {f"uid:{host.user.uid}"}


@pytest.mark.parametrize("before", [">=1.0, <2", ">=1.0, <1.1"])
def test_back_is_to_the_release_that_was_there_whatever_ranges_have(host, before):
    """Also where the range of before has the newer one as well; a range alone never goes down."""
    name = f"acme.ranged{len(before)}"
    old, new = (host.bundle(name, version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n) for n in range(2))
    ranged = {"identity": None, "publisher": "acme"}
    first = host.intent(host.wanted(old, versions=before, **ranged))
    host.desire(first, old)
    assert host.settled(first).plugins[0].version == "1.0.0"
    second = host.intent(host.wanted(new, versions=">=1.1, <2", **ranged), back_to=(documents.name_of(first),))
    host.desire(second, new)
    assert host.settled(second).plugins[0].version == "1.1.0"
    # A controller names the newest bundle of the range.
    host.desire(first, new)
    assert host.settled(first).plugins[0].version == "1.0.0"
    assert host.daemon.plugin(name)["version"] == "1.0.0"
    # What comes afterwards counts as it was signed.
    last = host.intent(host.wanted(old, versions=">=1.0, <2", **ranged))
    host.desire(last)
    assert host.settled(last).plugins[0].version == "1.0.0"


@pytest.mark.parametrize("named", ["identity", "range"])
def test_release_that_a_fleet_went_back_from_is_taken_again_by_a_later_intent(host, named):
    name = f"acme.again{len(named)}"
    old, new = (host.bundle(name, version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n) for n in range(2))
    how = {"versions": ">=1.1, <2", "identity": None, "publisher": "acme"} if named == "range" else {}
    first = host.intent(host.wanted(old))
    host.desire(first, old)
    host.settled(first)
    for _ in range(2):
        later = host.intent(host.wanted(new, **how), back_to=(documents.name_of(first),))
        host.desire(later, new)
        assert host.settled(later).plugins[0].version == "1.1.0"
        host.desire(first, old)
        assert host.settled(first).plugins[0].version == "1.0.0"


def test_release_to_go_back_to_that_is_nowhere_any_more_is_told(host):
    """The daemon keeps three beside the present one. A controller names the newest bundle of the range."""
    name, intents = "acme.gone", []
    made = [host.bundle(name, version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n) for n in range(5)]
    for number, bundle in enumerate(made):
        wanted = host.wanted(bundle, versions=f">=1.{number}", identity=None, publisher="acme")
        intents.append(host.intent(wanted, back_to=tuple(documents.name_of(one) for one in intents[:1])))
        host.desire(intents[-1], bundle)
        assert host.settled(intents[-1]).plugins[0].version == f"1.{number}.0"
    asked = len(host.asked)
    host.desire(intents[0], made[-1])
    for _ in range(3):
        status = host.until(lambda found: code_of(found, name) == "bundle_unknown", "that it is nowhere")
    assert (status.plugins[0].version, len(host.asked)) == ("1.4.0", asked)


def test_host_risk_takes_the_operators_word_in_the_intent(host):
    bundle = host.bundle("acme.reach", capabilities=["http:egress"], egress={"hosts": ["api.example.org:443"]})
    bare = host.intent(host.wanted(bundle))
    host.desire(bare, bundle)
    status = host.until(lambda found: code_of(found, "acme.reach") == "needs_consent", "a refusal")
    assert (status.settled, host.daemon.plugin("acme.reach")) == (False, None)
    accepted = host.intent(host.wanted(bundle, accept=("http:egress", "host=api.example.org:443")))
    host.desire(accepted, bundle)
    host.settled(accepted)
    assert host.daemon.plugin("acme.reach")["granted"] == ["http:egress"]


def test_what_a_later_intent_consents_to_is_granted_to_the_version_that_is_there(host):
    """What an upgrade would have widened was withheld, and hosts were taken back; the operator signs for it later."""
    hosts = ["api.example.org:443", "api.example.org:8443"]
    named = ("http:egress", *(f"host={one}" for one in hosts))
    asking = {"capabilities": ["http:egress"], "egress": {"hosts": hosts}}
    old = host.bundle("acme.wider", runtime={"limits": {"memory_mib": 64}}, **asking)
    wider = {"limits": {"memory_mib": 96}, "sandbox": {"features": ["threads"]}}
    every = {"name": "look", "every_s": 3_600, "action": "describe"}
    new = host.bundle("acme.wider", version="1.1.0", runtime=wider, schedules=[every], **asking)
    for bundle in (old, new):
        intent = host.intent(host.wanted(bundle, accept=named))
        host.desire(intent, bundle)
        host.settled(intent)
    place = "/api/plugins/by-id/acme.wider/grants"
    assert host.daemon.ask("PUT", place, {"hosts": []}).status == 200
    grants = host.daemon.get(place).json()
    assert [one.partition("=")[0] for one in grants["withheld"]] == ["feature", "limit", "schedule"]
    assert grants["withheld_hosts"] == hosts
    consented = host.intent(host.wanted(new, accept=(*grants["withheld"], "http:egress", "host=*", named[-1])))
    host.desire(consented)
    host.settled(consented)
    grants = host.daemon.get(place).json()
    assert (grants["withheld"], grants["withheld_hosts"], sorted(grants["hosts"])) == ([], [], hosts)


def test_limit_that_was_left_to_the_settings_is_raised_by_the_intent_that_names_it(host):
    """To more than the settings have (256), and less than the version asks for, which is withheld."""
    old = host.bundle("acme.larger")
    new = host.bundle("acme.larger", version="1.1.0", runtime={"limits": {"memory_mib": 512}})
    place = "/api/plugins/by-id/acme.larger/grants"
    for bundle, accept, limits in ((old, (), {}), (new, (), {}), (new, ("limit=memory_mib:300",), {"memory_mib": 300})):
        intent = host.intent(host.wanted(bundle, accept=accept))
        host.desire(intent, bundle)
        host.settled(intent)
        assert host.daemon.get(place).json()["accepted"]["limits"] == limits


def test_configuration_and_secrets_come_first(host):
    bundle = host.bundle("acme.set", artifact=PROGRAM, runtime=SPEAKING, config=SCHEMA)
    wanted = host.wanted(bundle, config={"city": "Oslo"}, secrets=("TOKEN",))
    intent = host.intent(wanted)
    host.desire(intent, bundle)
    host.until(lambda found: code_of(found, "acme.set") == "secret_missing", "what is missing")
    assert host.daemon.plugin("acme.set")["status"] == "installed"
    # Its value is set by hand: no document has one, and the node may not read or write it.
    assert host.daemon.ask_raw("PUT", "/api/secrets/TOKEN", b"a value of some length").status == 200
    assert host.settled(intent).plugins[0].state == "armed"
    config = host.daemon.get("/api/plugins/by-id/acme.set/config").json()["config"]
    assert config == {"city": "Oslo"}
    listed = host.daemon.get("/api/secrets").json()["secrets"]
    assert next(one["plugins"] for one in listed if one["name"] == "TOKEN") == ["acme.set"]
    moved = host.intent(host.wanted(bundle, config={"city": "Bergen"}, secrets=("TOKEN",)))
    host.desire(moved, bundle)
    host.settled(moved)
    assert host.daemon.get("/api/plugins/by-id/acme.set/config").json()["config"] == {"city": "Bergen"}
    unfit = host.intent(host.wanted(bundle, config={"city": "X"}, secrets=("TOKEN",)))
    host.desire(unfit, bundle)
    host.until(lambda found: code_of(found, "acme.set") == "config_invalid", "a refusal")
    assert host.daemon.get("/api/plugins/by-id/acme.set/config").json()["config"] == {"city": "Bergen"}


def test_what_an_operator_alters_by_hand_stays_and_is_told(host):
    bundle = host.bundle("acme.byhand")
    intent = host.intent(host.wanted(bundle))
    host.desire(intent, bundle)
    host.settled(intent)
    assert host.daemon.ctl("disable", "acme.byhand").returncode == 0
    status = host.until(lambda found: code_of(found, "acme.byhand") == "changed_here", "word of it")
    assert not status.settled
    for _ in range(2):  # looks later it is as the operator left it
        host.until(lambda _: True)
    assert host.daemon.plugin("acme.byhand")["status"] == "disabled"
    # The next word of the fleet counts again.
    again = host.intent(host.wanted(bundle))
    host.desire(again)
    host.settled(again)
    assert host.daemon.plugin("acme.byhand")["status"] == "active"


def test_plugin_that_no_intent_names_is_left_alone(host):
    mine = host.daemon.place.drop("mine", author=fleet_hosts.ACME, id="acme.mine", v2=True)
    host.daemon.activate(mine.id)
    bundle = host.bundle("acme.theirs")
    intent = host.intent(host.wanted(bundle))
    host.desire(intent, bundle)
    host.settled(intent)
    assert host.daemon.plugin("acme.mine")["status"] == "active"


def test_bundle_that_is_not_what_the_intent_says_is_never_taken(host):
    """The controller says where a bundle is, never what it is."""
    right, wrong = (
        host.bundle("acme.swapped", version="1.0.0", artifact=bundles.ARTIFACT + end)
        for end in (b"# right\n", b"# wrong\n")
    )
    intent = host.intent(host.wanted(right))
    host.desire(intent, bundles=(host.source(wrong),))
    host.until(lambda found: code_of(found, "acme.swapped") == "bundle_unknown", "a refusal")
    assert host.daemon.plugin("acme.swapped") is None
    # A link that puts other bytes there than it says.
    sources = [host.source(one) for one in (right, wrong)]
    host.tars[sources[0].sha256], kept = host.tars[sources[1].sha256], host.tars[sources[0].sha256]
    host.desire(intent, bundles=(sources[0],))
    host.until(lambda found: code_of(found, "acme.swapped") == "bundle_unknown", "a refusal")
    assert host.daemon.plugin("acme.swapped") is None
    host.tars[sources[0].sha256] = kept
    host.desire(intent, bundles=(sources[0],))
    host.settled(intent)


def test_no_attack_moves_a_real_daemon(host):
    """All of a hostile engine, controller, node and stranger: nothing is decided, the floor stays where it is."""
    fleet = fleets.Fleet(now=int(time.time()))
    fleet.node_key = host.fleet.node_key
    # Generations that are not above those of other tests would be refused for that alone.
    history = fleet_attacks.History(fleet, start=host.state()["generation"] + 1_000)
    for desired in history.desired:
        host.send(messages.NewDesired(document=desired))
    last = documents.name_of(history.intents[-1])
    host.until(lambda found: found.intent == last, "the fifth")
    before = host.daemon.events(action="plugin.status")
    hostile = [data for _, data in fleet_attacks.attacks(history) if len(data) <= DESIRED_BYTES]
    invoked = [data for _, data in fleet_attacks.invocations(history)]
    assert len(hostile) + len(invoked) > 240
    for data in hostile:
        host.send(messages.NewDesired(document=data))
    for number, data in enumerate(invoked):
        host.send(messages.InvocationAsked(number=number, document=data))
    # Judged in their order: once this one is known, all have been.
    intent = fleet.intent(history.start + 5, plugins=())
    host.send(messages.NewDesired(document=fleet.desired(history.start + 5, intent=intent)))
    name = documents.name_of(intent)
    host.until(lambda found: found.intent == name, "the sixth")
    assert host.daemon.events(action="plugin.status") == before
    assert host.answers == {}
    assert host.state()["highest"] == history.start + 5
    while next(fleet_hosts.GENERATIONS) <= history.start + 10:
        pass


def test_invocation_is_answered_once_and_signed(host):
    bundle = host.bundle("acme.asked")
    intent = host.intent(host.wanted(bundle))
    host.desire(intent, bundle)
    host.settled(intent)
    now = int(time.time())
    wanted = documents.sign(
        host.fleet.invocation(plugin="acme.asked", nonce=os.urandom(16).hex(), expires=now + 600), fleets.OPERATOR
    )
    for number in (1, 2):
        host.send(messages.InvocationAsked(number=number, document=wanted))
    while 1 not in host.answers:
        assert host.pump()
    answer = host.answers[1]
    assert (answer.code, answer.answer["ok"]) == ("", True)
    host.until(lambda _: True)
    assert 2 not in host.answers
    missing = host.fleet.invocation(plugin="acme.none", nonce=os.urandom(16).hex(), expires=now + 600)
    host.send(messages.InvocationAsked(number=3, document=documents.sign(missing, fleets.OPERATOR)))
    while 3 not in host.answers:
        assert host.pump()
    assert host.answers[3].code == "not_found"
    host.answers.clear()


def test_events_are_one_chain_and_come_again_until_they_are_taken(shared):
    shared.acknowledging = False
    shared.events = []
    with shared.node():
        bundle = shared.bundle("acme.told")
        intent = shared.intent(shared.wanted(bundle))
        shared.desire(intent, bundle)
        shared.settled(intent)
    untaken, shared.events = shared.events, []
    assert len(untaken) > 2
    shared.acknowledging = True

    def all_came(status: documents.NodeStatus) -> bool:
        # New ones may come before those that come again.
        numbers = {one.number for one in shared.events}
        return numbers >= set(range(untaken[0].number, max(status.events, *numbers, 1) + 1))

    with shared.node():
        shared.send(messages.LinkState(up=True))
        shared.until(all_came, "all events")
    by_number = {one.number: one for one in shared.events}
    assert all(by_number[one.number].document == one.document for one in untaken)
    assert all(by_number[one.number].message_id == one.message_id for one in untaken)
    chain = [by_number[number] for number in sorted(by_number)]
    for one, two in itertools.pairwise(chain):
        signed = documents.read(one.document, documents.NodeEvent)
        assert fleet_hosts.payload_of(two)["prev"] == signed.sha256
        assert signed.key == shared.fleet.node_key


def test_node_says_so_while_the_daemon_is_away(shared):
    with fleet_hosts.hosted() as host, host.node():
        bundle = host.bundle("acme.away")
        intent = host.intent(host.wanted(bundle))
        host.daemon.stop()
        host.desire(intent, bundle)
        status = host.until(lambda found: found.refused == "unreachable", "word of it")
        assert (status.intent, status.settled) == (documents.name_of(intent), False)
        with host.daemon.place.running() as again:
            host.daemon = again
            host.settled(intent)
            assert again.plugin("acme.away")["status"] == "active"


def test_kill_at_each_request_loses_nothing_and_repeats_no_older_word():
    """SIGKILL before each request, and before each answer: what is asked for is on disk, and all comes out right."""
    with fleet_hosts.hosted() as host, killing_relays.relayed(host.daemon.place) as relay:
        host.socket_path = str(relay.path)
        old, new = (
            host.bundle("acme.killed", version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n) for n in range(2)
        )
        first = host.intent(host.wanted(old))
        second = host.intent(host.wanted(new))
        kills = 0
        for intent, bundle in ((first, old), (second, new)):
            generation = next(fleet_hosts.GENERATIONS)
            desired = host.fleet.desired(generation, intent=intent, bundles=(host.source(bundle),))
            for moment in range(1, 60, long.times(5, 1)):
                with host.node():
                    relay.at(moment, host)
                    host.send(messages.NewDesired(document=desired))
                    name = documents.name_of(intent)
                    while host.pump():
                        if any(one.intent == name and one.settled for one in host.statuses):
                            break
                    ended = relay.killed
                    relay.at(0, host)
                # Nothing was asked of the daemon for what was not kept.
                assert all(seen >= generation for seen in relay.generations), relay.generations
                relay.generations.clear()
                if not ended:
                    break
                kills += 1
            assert host.daemon.plugin("acme.killed")["version"] == bundle.raw["version"]
            assert host.daemon.plugin("acme.killed")["status"] == "active"
        assert kills >= 4
        with host.node():
            # The first again, as a controller would have it that was not told.
            host.send(messages.NewDesired(document=host.fleet.desired(1, intent=first)))
            host.until(lambda found: found.refused == "generation_old", "a refusal")
        assert host.daemon.plugin("acme.killed")["version"] == "1.1.0"


@pytest.mark.root
def test_plan_waits_for_the_host_s_own_operator():
    """A plugin of the fleet plans a change of the host: the status names the plan, and nobody approves it from here."""
    with (
        apply_helpers.place() as helper,
        fleet_hosts.hosted(settings=f'[apply]\nsocket = "{helper.settings["socket"]}"\n') as host,
    ):
        helper.settings |= {"daemon_user": str(host.daemon.place.uid), "kinds": ["file", "other"]}
        with helper.running(), host.node():
            bundle = host.bundle("acme.guard", artifact=PLANNING, runtime=SPEAKING, capabilities=["network:plan"])
            intent = host.intent(host.wanted(bundle, accept=("network:plan",)))
            host.desire(intent, bundle)
            host.settled(intent)
            invoked = host.fleet.invocation(
                plugin="acme.guard", action="plan", nonce=os.urandom(16).hex(), expires=int(time.time()) + 600
            )
            host.send(messages.InvocationAsked(number=1, document=documents.sign(invoked, fleets.OPERATOR)))
            while 1 not in host.answers:
                assert host.pump()
            assert host.answers[1].answer["ok"], host.answers[1]
            status = host.until(lambda found: found.plans, "the plan")
            host.until(lambda _: True)
            assert host.daemon.get(f"/api/plans/{status.plans[0]}").json()["state"] == "planned"


def test_node_asks_for_nothing_outside_its_table():
    from latticed.fleet import node_daemon

    for method, path in (
        ("POST", "tasks/x/approve"),
        ("PUT", "secrets/TOKEN"),
        ("DELETE", "secrets/TOKEN"),
        ("POST", "trust/lift"),
        ("POST", "plugins/by-id/acme.demo/forget"),
        ("GET", "backup"),
        ("POST", "plugins/by-id/acme.demo/upgrade/x"),
        ("POST", "plugins/by-id//upgrade"),
    ):
        assert not node_daemon.allowed(method, tuple(path.split("/")))

"""Real hosts of a fleet on a real nats-server: daemons, both processes of each agent, and an engine that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import pytest

from latticed.fleet import chunks, documents
from latticed.fleet import engine as engine_limits
from latticed.fleet.engine import EngineUnavailable
from tests.house import bundles, fleet_attacks, fleet_hosts, fleet_reports, fleets, long, nats_servers

pytestmark = pytest.mark.daemon

WAIT_S = 150
HOSTS = long.times(2, 20)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with nats_servers.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture(scope="module")
def host():
    with fleet_hosts.hosted(name="alone") as found:
        yield found


@contextlib.asynccontextmanager
async def controlled(servers):
    """A controller's engine, and what nodes report to it."""
    async with asyncio.timeout(WAIT_S), servers.connected("controller") as connection:
        engine = await servers.provide(connection)
        async with fleet_reports.followed(engine) as reports:
            yield engine, reports


async def assigned(engine, host, intent, *used, **fields):
    """Put the bundles and the document of a host into the engine."""
    for one in used:
        await put_bundle(engine, host, one)
    sources = tuple(host.source(one) for one in used)
    desired = host.fleet.desired(next(fleet_hosts.GENERATIONS), intent=intent, **{"bundles": sources, **fields})
    await put(engine, host.name, desired)


async def put(engine, name, data):
    found = await engine.desired(name)
    await engine.put_desired(name, data, 0 if found is None else found.revision)


async def put_bundle(engine, host, bundle):
    sha256 = host.source(bundle).sha256
    path = host.directory.parent / "bundle.tar"
    path.write_bytes(host.tars[sha256])
    assert await chunks.put(engine, path) == sha256


async def test_one_change_is_acted_on_by_every_host(servers):
    """As many daemons as there are, each with its agent; the bundle is in the engine once."""
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(fleet_hosts.hosted(name=f"web-{number}")) for number in range(HOSTS)]
        for one in hosts:
            stack.enter_context(one.joined(servers))
        async with controlled(servers) as (engine, reports):
            old, new = (
                hosts[0].bundle("acme.waves", version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n)
                for n in range(2)
            )
            for bundle in (old, new):
                intent = hosts[0].intent(hosts[0].wanted(bundle))
                await put_bundle(engine, hosts[0], bundle)
                source = hosts[0].source(bundle)
                for one in hosts:
                    await assigned(engine, one, intent, bundles=(source,))
                await reports.until(lambda intent=intent: all(reports.settled(one.name, intent) for one in hosts))
                for one in hosts:
                    found = one.daemon.plugin("acme.waves")
                    assert (found["version"], found["status"]) == (bundle.raw["version"], "active")


async def test_engine_that_goes_away_leaves_hosts_operable_and_says_so(tmp_path, host):
    """What is done by hand meanwhile stays; what was wanted meanwhile comes when the engine is back."""
    bundle, later = host.bundle("acme.stays"), host.bundle("acme.later")
    first = host.intent(host.wanted(bundle))
    second = host.intent(host.wanted(bundle), host.wanted(later))
    with nats_servers.running(tmp_path / "nats") as servers, host.joined(servers):
        async with controlled(servers) as (engine, reports):
            await assigned(engine, host, first, bundle)
            await reports.until(lambda: reports.settled(host.name, first))
            servers.servers[0].kill()
            try:
                await asyncio.to_thread(host.daemon.until, lambda: told_down(host), "the node to say so")
                assert host.daemon.plugin("acme.stays")["status"] == "active"
                assert host.daemon.ctl("disable", "acme.stays").returncode == 0
                assert host.daemon.plugin("acme.stays")["status"] == "disabled"
            finally:
                servers.servers[0].start()
            await reports.until(lambda: code_of(reports, host, "acme.stays") == "changed_here")
            await assigned(engine, host, second, bundle, later)
            await reports.until(lambda: reports.settled(host.name, second))
    assert host.daemon.plugin("acme.stays")["status"] == "active"
    assert host.daemon.plugin("acme.later")["status"] == "active"


def told_down(host):
    return [one for one in host.logged("fleet_link") if not one["up"] and one["reason"]]


def code_of(reports, host, plugin_id):
    status = reports.statuses.get(host.name)
    return next((one.code for one in status.plugins if one.id == plugin_id), None) if status else None


async def invoked(engine, host, **fields):
    """The node's answer to an invocation of a plugin that it has not."""
    now_s = int(time.time())
    wanted = host.fleet.invocation(
        **{"plugin": "acme.none", "nonce": os.urandom(16).hex(), "expires": now_s + 600, **fields}
    )
    answer = await engine.invoke(host.name, documents.sign(wanted, fleets.OPERATOR), 30)
    return documents.read(answer, documents.InvocationResult).document


async def listens(engine, host):
    with contextlib.suppress(EngineUnavailable):
        return await invoked(engine, host)
    return None


async def judged(engine, host):
    """Until the node has judged what was put before: it judges in order, and the link sends an invocation first."""
    for _ in range(2):
        assert (await invoked(engine, host)).code == "not_found"


async def test_no_attack_by_whoever_holds_the_engine_moves_a_real_daemon(servers, host):
    """Each document of the attacks in the engine itself, from where the link hands it over, and invocations."""
    fleet = fleets.Fleet(now=int(time.time()), node=host.name)
    fleet.node_key = host.fleet.node_key
    history = fleet_attacks.History(fleet, start=host.state()["generation"] + 1_000)
    hostile = [data for _, data in fleet_attacks.attacks(history) if len(data) <= engine_limits.DESIRED_BYTES]
    assert len(hostile) > 200
    with host.joined(servers):
        async with controlled(servers) as (engine, reports):
            await nats_servers.until(lambda: listens(engine, host))
            for desired in history.desired:
                await put(engine, host.name, desired)
                await judged(engine, host)
            name = documents.name_of(history.intents[-1])
            await reports.until(lambda: (found := reports.statuses.get(host.name)) and found.intent == name)
            before, state = host.daemon.events(action="plugin.status"), host.state()
            for data in hostile[:: long.times(4, 1)]:
                await put(engine, host.name, data)
                await judged(engine, host)
            for data in invocations(history):  # nobody answers: the link hears no more than four in half a minute
                with pytest.raises(EngineUnavailable):
                    await engine.invoke(host.name, data, 1)
            intent = fleet.intent(history.start + 5, plugins=())
            await put(engine, host.name, fleet.desired(history.start + 5, intent=intent))
            last = documents.name_of(intent)
            await reports.until(lambda: reports.statuses[host.name].intent == last)
            assert host.daemon.events(action="plugin.status") == before
            after = host.state()
            assert (after["generation"], after["highest"]) == (history.start + 5, history.start + 5)
            assert (after["revoked"], after["labels"]) == (state["revoked"], state["labels"])
    while next(fleet_hosts.GENERATIONS) <= history.start + 10:
        pass


def invocations(history):
    """Four of those that nobody may ask."""
    found = list(fleet_attacks.invocations(history))
    return [data for _, data in found[:: len(found) // 4][:4]]


@pytest.mark.parametrize("ahead_s", [3_600, -3_600])
async def test_clock_that_is_an_hour_off_moves_expiry_and_nothing_else(servers, ahead_s):
    """A host that is ahead takes no document of the last hour before it expires; one that is behind takes it longer."""
    name = f"clock-{'ahead' if ahead_s > 0 else 'behind'}"
    with fleet_hosts.hosted(name=name) as host, host.joined(servers, ahead_s=ahead_s):
        async with controlled(servers) as (engine, reports):
            now_s = int(time.time())
            bundle = host.bundle("acme.clock")
            intent = host.intent(host.wanted(bundle))
            await assigned(engine, host, intent, bundle, expires=now_s + 7_200)
            await reports.until(lambda: reports.settled(name, intent))
            assert abs(reports.statuses[name].at - (time.time() + ahead_s)) < WAIT_S
            later = host.intent(host.wanted(bundle, status="disabled"))
            await assigned(engine, host, later, expires=now_s + (1_800 if ahead_s > 0 else -1_800))
            if ahead_s > 0:
                await reports.until(lambda: reports.statuses[name].refused == "assignment_expired")
                assert reports.statuses[name].intent == documents.name_of(intent)
                assert host.daemon.plugin("acme.clock")["status"] == "active"
            else:
                await reports.until(lambda: reports.settled(name, later))
            # What an operator's clock says is valid for a minute is not, by this one: nothing is done.
            wanted = host.fleet.invocation(plugin="acme.clock", nonce=os.urandom(16).hex(), expires=now_s + 60)
            with pytest.raises(EngineUnavailable):
                await engine.invoke(name, documents.sign(wanted, fleets.OPERATOR), 2)
            # The next document counts: order is by generation, whatever clocks say.
            last = host.intent(host.wanted(bundle))
            await assigned(engine, host, last, expires=now_s + 86_400)
            await reports.until(lambda: reports.settled(name, last))
            assert host.daemon.plugin("acme.clock")["status"] == "active"

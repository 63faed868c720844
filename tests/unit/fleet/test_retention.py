"""What a controller drops once it is over: from its database, its directory and a real message system."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from latticed.fleet.controller import retention
from latticed.fleet.controller.settings import EnrolmentSettings
from tests.house import fleet_controllers as house
from tests.house import fleets
from tests.house.fleet_joining import Host
from tests.unit.fleet.test_controller_process import tarred

WAIT_S = 90
KEEP_S = 86_400
_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"kept-{next(_numbers)}")


def started(fleet, place, operator, name="c1"):
    signer = place / "node-signer"
    signer.write_text(fleet.identities.node_signer.seed + "\n")
    enrolment = EnrolmentSettings(node_signer=str(signer), account=fleet.identities.nodes.public)
    return house.running(fleet, place, operator=operator, enrolment=enrolment, keep_s=KEEP_S, name=name)


async def given(controlled, place, plugin_id):
    """A bundle's file that the controller has."""
    sha256, data = tarred(place / plugin_id, id=plugin_id)

    async def body():
        yield data

    await controlled.operations.take_bundle(sha256, body())
    return sha256


async def test_what_is_over_goes_everywhere_and_what_is_needed_stays(fleet, operator, tmp_path):
    first, second = (Host(fleet, operator, f"kept-{next(_numbers)}", tmp_path) for _ in range(2))
    again = Host(fleet, operator, first.name, tmp_path)
    async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator) as controlled:
        await controlled.leads()
        core, engine = controlled.core, controlled.running.engine
        gone = first.invited()
        await first.ask(gone)
        await controlled.give(operator.revocations(first.public))
        stays = [again.invited(), second.invited()]
        await again.ask(stays[0])
        await second.ask(stays[1])
        used, unused = await given(controlled, tmp_path, "acme.demo"), await given(controlled, tmp_path, "acme.old")
        (bundle,) = (one for one in core.bundles.values() if one.plugin == "acme.demo")
        wanted = fleets.plugin(identity=bundle.identity)
        await controlled.roll(await controlled.give(operator.intent(plugins=(wanted,))), name="running")
        assert retention.outdated(core, now_s=core.now_s(), keep_s=KEEP_S) == retention.Outdated(
            rollouts=(), tokens=(), bundles=()
        )
        # Two days later; the rollout goes on still.
        core.clock = lambda: time.time() + 2 * KEEP_S
        await controlled.leads()
        await controlled.running.forget()
        assert set(core.tokens) == {one.document.token for one in stays}
        assert set(core.bundles) == {used}
        assert not (controlled.running.settings.bundles / f"{unused}.tar").exists()
        assert (await engine.chunks_kept(unused), await engine.chunks_kept(used)) == (0, 1)
        kept = await engine.get(f"joined-{gone.document.token}")
        assert kept is None or not kept.data
        assert "running" in core.rollouts
        # Once it is over, and two days more have gone by.
        async with core.changing:
            record = core.rollouts["running"]
            await core.keep(rollouts=[record.changing(core.now_s(), closed=True)])
        core.clock = lambda: time.time() + 4 * KEEP_S
        await controlled.leads()
        # As a round of the leader's does that is under way: what it had shared before is another by now.
        shared = await engine.get("rollout-running")
        await engine.put("rollout-running", shared.data, shared.revision)
        await controlled.running.forget()
        assert core.rollouts == {}
    async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator) as controlled:
        await controlled.leads()
        assert controlled.core.rollouts == {}
        assert set(controlled.core.tokens) == {one.document.token for one in stays}
        assert set(controlled.core.bundles) == {used}
        # Nor does the message system have it: another controller learns nothing of it.
    async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator, "c2") as other:
        await other.leads()
        assert other.core.rollouts == {}
        assert set(other.core.tokens) == {one.document.token for one in stays}


async def test_documents_that_need_not_be_kept_go_from_the_message_system_too(fleet, operator, tmp_path):
    keys = [fleets.public(fleets.key(number)) for number in (901, 902)]
    async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator) as controlled:
        await controlled.leads()

        async def shared(*names):
            found = [await controlled.running.engine.get(f"doc-{one[:40]}") for one in names]
            return [one is not None and bool(one.data) for one in found]

        older = await controlled.give(operator.revocations(keys[0]))
        expiring = await controlled.give(operator.intent(expires=int(time.time()) + 3_600))
        while await shared(older, expiring) != [True, True]:
            pass
        newer = await controlled.give(operator.revocations(*keys))
        newest = await controlled.give(operator.intent())
        while await shared(newer, newest) != [True, True]:
            pass
        core = controlled.core
        core.clock = lambda: time.time() + 2 * KEEP_S
        await controlled.leads()
        await controlled.running.forget()
        assert await shared(older, newer, expiring, newest) == [False, True, False, True]
    async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator, "c2") as other:
        await other.leads()
        assert set(other.core.shelf.intents) == {newest}
        assert (set(other.core.shelf.lists), other.core.shelf.revoked) == ({newer}, set(keys))

"""Decisions that hold already, and decisions about one version alone: the answer and the record say the same."""

from __future__ import annotations

import asyncio

import pytest

from latticed.lifecycle.decisions import Decisions
from tests.house import bundles, in_process

ID = "acme.demo"
ACME = bundles.author("acme")
URL = f"/api/plugins/by-id/{ID}"


@pytest.fixture
async def home():
    async with in_process.opened(author=ACME, policy=bundles.policy_bytes(ACME)) as found:
        yield found


def decided(home):
    """What is on record of decisions: (decision, code)."""
    events = [*home.events(action="plugin.status"), *home.events(action="plugin.grants")]
    return [(event["decision"], event["code"]) for event in events]


async def shown(home, **body):
    """The identity that a dry run of an installation or, without a status, of an upgrade shows."""
    path = "/api/plugins/lifecycle" if body else f"{URL}/upgrade"
    answer = await home.ask("POST", path, {**({"id": ID} if body else {}), **body, "dry_run": True})
    assert answer.status == 200, answer
    return answer["identity"]


async def other(home, version):
    """Another bundle of the same publisher takes the place of the one that lies there."""
    home.drop(id=ID, version=version)
    await home.until_plugin(ID, lambda view: version in {view["version"], view.get("candidate", {}).get("version")})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["installed"], "installed"),
        (["installed", "active"], "installed"),
        (["installed", "active"], "active"),
        (["installed", "active", "disabled"], "installed"),
        (["installed", "active", "disabled"], "disabled"),
    ],
)
async def test_status_that_holds_already_is_success_of_which_nothing_is_recorded(home, given, wanted):
    home.drop()
    await home.seen(ID)
    for status in given:
        assert (await home.decide(ID, status, already_so=True)).status == 200
    before, on_record = await home.plugin(ID), decided(home)
    for dry_run in (True, False):
        # What is named besides is not granted by it.
        answer = await home.decide(ID, wanted, already_so=True, accept=["limit=memory_mib:512"], dry_run=dry_run)
        assert (answer.status, answer["changed"]) == (200, False)
        assert answer["status"] == given[-1]
    assert await home.plugin(ID) == before
    assert decided(home) == on_record


@pytest.mark.parametrize(("given", "wanted"), [([], "active"), ([], "disabled")])
async def test_status_that_does_not_hold_is_refused_as_before(home, given, wanted):
    home.drop()
    await home.seen(ID)
    for status in given:
        await home.decide(ID, status)
    answer = await home.decide(ID, wanted, already_so=True)
    assert (answer.status, answer.code) == (409, "invalid_transition")
    assert decided(home)[-1] == ("deny", "invalid_transition")


async def test_upgrade_without_a_candidate_is_success_where_the_accepted_version_is_there(home):
    home.drop()
    await home.seen(ID)
    refused = await home.ask("POST", f"{URL}/upgrade", {"already_so": True})
    assert (refused.status, refused.code) == (409, "no_candidate"), "nothing was accepted yet"
    await home.armed(ID)
    on_record = decided(home)
    for dry_run in (True, False):
        answer = await home.ask("POST", f"{URL}/upgrade", {"already_so": True, "dry_run": dry_run})
        assert (answer.status, answer["changed"]) == (200, False)
    assert decided(home) == on_record
    answer = await home.ask("POST", f"{URL}/upgrade", {"already_so": True, "identity": "0" * 64})
    assert (answer.status, answer.code) == (409, "no_candidate"), "it is not at that version"


async def test_disabling_what_is_disabled_still_ends_its_activation_under_way(home, monkeypatch):
    """It is success, and the plugin is not started afterwards."""
    home.drop()
    await home.seen(ID)
    await home.decide(ID, "installed")
    await home.decide(ID, "disabled")
    entered, admit = asyncio.Event(), Decisions._admit

    async def hangs(*arguments, **more):
        entered.set()
        await asyncio.Event().wait()
        await admit(*arguments, **more)

    monkeypatch.setattr(Decisions, "_admit", hangs)
    activating = asyncio.create_task(home.decide(ID, "active", already_so=True))
    await entered.wait()
    answer = await home.decide(ID, "disabled", already_so=True)
    assert (answer.status, answer["changed"], answer["status"]) == (200, False, "disabled")
    refused = await activating
    assert (refused.status, refused.code) == (409, "invalid_transition")
    assert (await home.plugin(ID))["status"] == "disabled"


async def test_installation_takes_the_version_that_was_shown_and_no_other_one(home):
    home.drop(version="1.0.0")
    await home.seen(ID)
    first = await shown(home, status="installed")
    await other(home, "1.1.0")
    refused = await home.decide(ID, "installed", identity=first)
    assert (refused.status, refused.code) == (409, "identity_mismatch")
    assert decided(home) == [("deny", "identity_mismatch")]
    assert (await home.plugin(ID))["status"] == "verified"
    second = await shown(home, status="installed")
    assert second != first
    answer = await home.decide(ID, "installed", identity=second)
    assert (answer.status, answer["version"]) == (200, "1.1.0")


async def test_activation_starts_the_version_that_was_shown_and_no_other_one(home):
    home.drop(version="1.0.0")
    await home.seen(ID)
    await home.decide(ID, "installed")
    first = await shown(home, status="active")
    await other(home, "1.1.0")
    assert (await home.ask("POST", f"{URL}/upgrade", {})).status == 200
    refused = await home.decide(ID, "active", identity=first, already_so=True)
    assert (refused.status, refused.code) == (409, "identity_mismatch")
    assert (await home.plugin(ID))["runtime"]["state"] == "stopped"
    assert (await home.decide(ID, "active", identity=await shown(home, status="active"))).status == 200
    # It runs, and is not what was looked at.
    refused = await home.decide(ID, "active", identity=first, already_so=True)
    assert (refused.status, refused.code) == (409, "identity_mismatch")
    # To stop it takes no condition.
    assert (await home.decide(ID, "disabled", identity=first)).status == 200


async def test_upgrade_takes_the_candidate_that_was_shown_and_no_other_one(home):
    home.drop(version="1.0.0")
    await home.seen(ID)
    await home.armed(ID)
    await other(home, "1.1.0")
    first = await shown(home)
    assert first == (await home.plugin(ID))["candidate"]["identity"]
    await other(home, "1.2.0")
    for dry_run in (True, False):
        refused = await home.ask("POST", f"{URL}/upgrade", {"identity": first, "dry_run": dry_run})
        assert (refused.status, refused.code) == (409, "identity_mismatch")
    assert decided(home)[-1] == ("deny", "identity_mismatch")
    assert (await home.plugin(ID))["version"] == "1.0.0"
    answer = await home.ask("POST", f"{URL}/upgrade", {"identity": await shown(home)})
    assert (answer.status, answer["version"]) == (200, "1.2.0")

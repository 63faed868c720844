"""Every host call in each of its outcomes: what the plugin gets, and what is audited."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from latticed.catalog.scan_schedule import ScanSchedule
from latticed.kit.token_bucket import Rate
from latticed.ledger.coalesce import Denials
from latticed.model import hostcall
from latticed.model.errors import Problem
from latticed.sdk import answers
from tests.house import answered, hostcalls
from tests.house.clocks import ManualClock
from tests.house.hostcalls import ROWS


@pytest.fixture
async def stage():
    async with hostcalls.standing() as found:
        yield found


def every(stage, code):
    """The outcomes of all calls that are served."""
    return dict.fromkeys(sorted(stage.broker.services), code)


async def test_every_served_host_call_has_a_row(stage):
    """A row that cannot exceed a quota or make its service fail says why."""
    assert set(stage.broker.services) <= set(ROWS)
    assert set(ROWS) == set(hostcall.CAPABILITY_OF)
    assert [method for method, row in ROWS.items() if not row.bad or not (row.why or (row.full and row.down))] == []


async def test_allowed_host_call_returns_its_members_and_is_audited(stage):
    """Of the form that the SDK says. One event with the decision allow; after it a deny for a call that fails on every
    host, see `refused` in ROWS.
    """
    found, recorded = {}, {}
    for method, row, caller in stage.each():
        await stage.prepare(row, caller)
        if row.refused:
            assert await caller.denied(method, **stage.fill(row.good)) == row.refused
            assert caller.recorded() == [(method, "allow", ""), (method, "deny", row.refused)]
            continue
        answer = await caller.call(method, **stage.fill(row.good))
        found[method], recorded[method] = set(answer), caller.recorded()
        assert answered.faults(answer, answers.ANSWERS[method], method) == []
    assert found == {method: set(ROWS[method].answers.split()) for method in found}
    assert recorded == {method: [(method, "allow", "")] for method in found}


async def test_undeclared_host_call_is_denied_and_audited():
    """A grant does not change that."""
    others = {hostcalls.service_of(method): ["kv:read"] for method in ROWS} | {"kv": ["log:write"]}
    async with hostcalls.standing(declares=others) as stage:
        found, recorded = {}, {}
        for method, row, caller in stage.each():
            found[method] = await caller.outcome(method, **stage.fill(row.good))
            recorded[method] = caller.recorded()
        assert found == every(stage, "capability_denied")
        assert recorded == {method: [(method, "deny", "capability_denied")] for method in found}


async def test_trim_and_grant_apply_to_the_next_host_call(stage):
    """Both are made through the API, while the plugin runs."""
    seen, recorded = {}, {}
    for method, row, caller in stage.each():
        await stage.prepare(row, caller)
        url, needed = f"/api/plugins/by-id/{caller.id}/grants", hostcall.CAPABILITY_OF[method]
        outcomes = []
        for change in ("trim", "grant"):
            assert (await stage.home.ask("PUT", url, {change: [needed]})).status == 200
            outcomes.append(await caller.outcome(method, **stage.fill(row.good)))
        seen[method], recorded[method] = outcomes, caller.recorded()[:2]
        assert stage.home.driven.attempts[caller.id] == 1, "no restart for that"
    assert seen == {method: ["capability_not_granted", ROWS[method].comes_to] for method in seen}
    assert recorded == {
        method: [(method, "deny", "capability_not_granted"), (method, "allow", "")] for method in recorded
    }


async def test_host_risk_is_masked_until_granted_by_name(stage):
    """It is masked from the install on, until an operator names the capability."""
    caller = await hostcalls.caller(stage.home, *hostcalls.EVERYTHING, plugin_id="acme.fresh", name="fresh")
    masked = {m for m in stage.broker.services if hostcall.CAPABILITY_OF[m] in hostcalls.HOST_RISK}
    found = {m: await caller.outcome(m, **stage.fill(ROWS[m].good)) for m in sorted(masked)}
    assert found == dict.fromkeys(masked, "capability_not_granted")
    assert {record[1:] for record in caller.recorded()} == {("deny", "capability_not_granted")}


async def test_host_call_over_its_rate_is_rate_limited(stage):
    """The burst is one call here: the second is refused, and accepted after a pause."""
    clock = stage.broker.clock = ManualClock()
    stage.broker.limits = replace(stage.broker.limits, of_call={})
    seen, recorded = {}, {}
    for method, row, caller in stage.each():
        stage.broker.limits = replace(stage.broker.limits, rate=Rate(per_second=100, burst=100))
        await stage.prepare(row, caller)
        stage.broker.limits = replace(stage.broker.limits, rate=Rate(per_second=1, burst=1))
        asked = stage.fill(row.good)
        outcomes = [await caller.outcome(method, **asked), await caller.outcome(method, **asked)]
        clock.advance(1)
        seen[method], recorded[method] = [*outcomes, await caller.outcome(method, **asked)], caller.recorded()
        clock.advance(1)
    assert seen == {m: [ROWS[m].comes_to, "rate_limited", ROWS[m].comes_to] for m in seen}
    assert [m for m, found in recorded.items() if found.count((m, "deny", "rate_limited")) != 1] == []


async def test_host_call_with_bad_parameters_is_denied_and_audited(stage):
    """One is missing, of another type, out of range, unknown or ambiguous."""
    # Each is to be found on record: one plugin has more wrong parameters here than are written within a window.
    stage.home.app.api.ledger._denials = Denials(quota=1_000)
    wrong = []
    for method, row, caller in stage.each():
        for params in ({**row.good, "nobody_knows": 1}, *row.bad):
            found = await caller.outcome(method, **stage.fill(params))
            last = caller.recorded()[-1]
            if (found, last) != ("bad_params", (method, "deny", "bad_params")):
                wrong.append((method, params, found, last))
    assert wrong == []


async def test_too_large_parameters_are_denied_undecoded(stage):
    """Their size alone is judged; the service is not called."""
    found, recorded = {}, {}
    for method, row, caller in stage.each():
        params = {**stage.fill(row.good), "nobody_knows": "x" * stage.broker.limits.request_bytes}
        found[method] = await caller.outcome(method, **params)
        recorded[method] = caller.recorded()
    assert found == every(stage, "too_large")
    assert recorded == {method: [(method, "deny", "too_large")] for method in found}


async def test_host_call_of_a_failing_service_is_service_unavailable(stage, monkeypatch):
    """It is recorded as allowed, then as failed, and works again once its dependency does."""
    # A look of the catalog while no descriptor can be opened would find no directory, and stop all plugins.
    for name in ("tick_due_s", "scan_due_s"):
        monkeypatch.setattr(ScanSchedule, name, lambda *_, **__: math.inf)
    found, recorded, after = {}, {}, {}
    for method, row, caller in stage.each():
        if not row.down:
            continue
        await stage.prepare(row, caller)
        with stage.down(row.down):
            found[method] = await caller.outcome(method, **stage.fill(row.good))
        recorded[method] = caller.recorded()
        after[method] = await caller.outcome(method, **stage.fill(row.good))
    assert found == dict.fromkeys(found, "service_unavailable")
    assert recorded == {method: [(method, "allow", ""), (method, "deny", "service_unavailable")] for method in recorded}
    assert after == {method: ROWS[method].comes_to for method in found}


async def test_host_call_of_a_slow_service_is_deadline_exceeded(stage):
    """The call is audited as allowed, then as failed."""
    stage.broker.limits = replace(stage.broker.limits, deadline_s=0.02)
    found, recorded = {}, {}
    with stage.held():
        for method, row, caller in stage.each():
            found[method] = await caller.outcome(method, **stage.fill(row.good))
            recorded[method] = caller.recorded()
    assert found == every(stage, "deadline_exceeded")
    assert recorded == {method: [(method, "allow", ""), (method, "deny", "deadline_exceeded")] for method in found}


async def test_host_call_over_a_quota_is_quota_exceeded(stage):
    """The call is audited as allowed, then as failed."""
    found, recorded = {}, {}
    for method, row, caller in stage.each():
        if not row.full:
            continue
        *fill, (last, params) = row.full
        for name, more in fill:
            await caller.call(name, **stage.fill(more))
        caller.recorded()
        found[method] = await caller.outcome(last, **stage.fill(params))
        recorded[method] = caller.recorded()
    assert found == dict.fromkeys(found, "quota_exceeded")
    assert recorded == {method: [(method, "allow", ""), (method, "deny", "quota_exceeded")] for method in recorded}


async def test_host_call_that_cannot_be_audited_is_not_carried_out(stage, monkeypatch):
    """audit_unavailable: the service is not called; once events can be recorded, calls work again."""
    found, after = {}, {}

    def record(_event, done):
        done(None, Problem("audit_unavailable", "the event cannot be recorded: disk full"))

    for method, row, caller in stage.each():
        await stage.prepare(row, caller)
        with monkeypatch.context() as patch, stage.held():  # a service that were asked would never answer
            patch.setattr(stage.broker, "record", record)
            found[method] = await caller.outcome(method, **stage.fill(row.good))
        assert caller.recorded() == []
        after[method] = await caller.outcome(method, **stage.fill(row.good))
    assert found == every(stage, "audit_unavailable")
    assert after == {method: ROWS[method].comes_to for method in found}


async def test_host_call_without_a_service_is_service_unavailable(stage):
    """A grant does not change that; the call is audited."""
    served = [(method, row, caller) for method, row, caller in stage.each()]
    stage.broker.services = {}
    found, recorded = {}, {}
    for method, row, caller in served:
        found[method] = await caller.outcome(method, **stage.fill(row.good))
        recorded[method] = caller.recorded()
    assert found == {method: "service_unavailable" for method, *_ in served}
    assert recorded == {method: [(method, "deny", "service_unavailable")] for method in found}


async def test_audit_chain_with_all_outcomes_of_host_calls_verifies(stage):
    """Allows, denials and failures of every kind."""
    for method, row, caller in stage.each():
        for params in (row.good, *row.bad):
            await caller.outcome(method, **stage.fill(params))
        await caller.outcome(f"{method}\ud800\x00")
    before = stage.home.mark()
    report = await stage.home.ask("GET", "/api/audit/verify")
    assert report["ok"], report
    assert report["events"] >= before.decisions

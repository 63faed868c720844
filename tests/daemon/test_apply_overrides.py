"""Findings that an operator overrides: at the helper, by an approver, and on record."""

from __future__ import annotations

import pytest

from latticed.plans import protocol
from tests.house import apply_helpers
from tests.house.apply_helpers import APPROVER, BASE, DAEMON, WIDE

pytestmark = [pytest.mark.daemon, pytest.mark.root]
OVERRIDE = ("lockout_source",)


@pytest.fixture
def place():
    with apply_helpers.place() as place, place.running():
        place.order(connected=["eve"])
        yield place


def approve(place, plan, overrides=(), user=None):
    review = place.review(plan).review
    return place.ask(protocol.Approve(plan=plan, review=review, overrides=overrides), user=user)


def codes(answer):
    return (answer.code, [one.code for one in answer.findings])


def test_plan_with_an_overridable_finding_is_shown_and_approved_only_in_spite_of_it(place):
    plan = place.offer(WIDE)
    (shown,) = place.review(plan).findings
    assert (shown.code, shown.expected, shown.overridable) == ("lockout_source", "eve in it", True)
    assert "eve in it" in place.observed().plans[0].message
    for overrides in ((), ("lockout",)):
        answer = approve(place, plan, overrides)
        assert codes(answer) == ("intent_refused", ["lockout_source"])
        assert "--override lockout_source" in answer.hint
    assert approve(place, plan, OVERRIDE, user=APPROVER).state == "approved"
    reviewed = place.review(plan)
    assert (reviewed.findings, [one.code for one in reviewed.overridden]) == ((), ["lockout_source"])
    # The daemon applies what is approved, as always.
    assert place.ask(protocol.Apply(plan=plan), user=DAEMON).state == "unconfirmed"
    assert place.ask(protocol.Confirm(plan=plan)).state == "applied"


def test_overriding_is_in_the_chain_with_who_did_it_and_what_was_overridden(place):
    approve(place, place.offer(WIDE), OVERRIDE, user=APPROVER)
    (step,) = [one for one in place.steps() if one.action == "plan.approve"]
    assert step.detail["overrides"] == "lockout_source"
    assert "eve in it" in step.reason
    assert f"uid:{APPROVER.uid} " in step.actor


def test_what_comes_after_the_approval_is_not_overridden(place):
    """Neither of the same code: the approver has not seen it."""
    plan = place.offer(WIDE)
    approve(place, plan, OVERRIDE)
    place.order(connected=["eve", "mallory"])
    answer = place.ask(protocol.Apply(plan=plan))
    assert (codes(answer), place.content()) == (("intent_refused", ["lockout_source"]), None)
    assert "mallory" in answer.message
    assert [one.expected for one in place.review(plan).findings] == ["mallory in it"]


def test_approving_again_without_overriding_takes_it_back(place):
    plan = place.offer(WIDE)
    approve(place, plan, OVERRIDE)
    place.order(connected=[])
    assert approve(place, plan).state == "approved"
    place.order(connected=["eve"])
    assert place.ask(protocol.Apply(plan=plan)).code == "intent_refused"


def test_what_narrows_may_lock_out_whom_the_approved_plan_locks_out_and_nobody_else(place):
    plan = place.offer(WIDE)
    approve(place, plan, OVERRIDE)
    for request in (protocol.Apply(plan=plan), protocol.Confirm(plan=plan)):
        assert isinstance(place.ask(request), protocol.Moved)
    place.order(connected=["eve", "ada"])
    narrower = place.offer({"allow": ["ada", "admin"]})
    assert place.ask(protocol.Apply(plan=narrower), user=DAEMON).state == "applied"
    answer = place.ask(protocol.Apply(plan=place.offer(BASE)), user=DAEMON)
    assert codes(answer) == ("intent_refused", ["lockout_source"])
    assert "ada in it" in answer.message
    assert place.content() == "allow ada\nallow admin\n"


def test_neither_the_daemon_nor_an_intent_overrides(place):
    plan = place.offer(WIDE)
    assert approve(place, plan, OVERRIDE, user=DAEMON).code == "denied"
    answer = place.ask(protocol.Offer(kind="file", intent={**WIDE, "overrides": ["lockout_source"]}), user=DAEMON)
    assert codes(answer) == ("intent_refused", ["shape"])
    assert place.ask(protocol.Apply(plan=plan), user=DAEMON).code == "not_approved"


def test_what_nobody_may_override_is_refused_whatever_is_overridden(place):
    for overrides in (OVERRIDE, ("lockout",)):
        answer = place.ask(protocol.Offer(kind="file", intent={"allow": ["ada"]}), user=DAEMON)
        assert codes(answer) == ("intent_refused", ["lockout"]), overrides


@pytest.mark.parametrize("word", ["", "A", "lockout source", "_x", "x" * 33, "lockout\n"])
def test_no_code_is_bad_request(place, word):
    plan = place.offer(WIDE)
    assert approve(place, plan, (word,)).code == "bad_request"
    assert place.state_of(plan) == "planned"

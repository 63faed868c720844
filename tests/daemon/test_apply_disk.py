"""The root helper's disk is full at each step: nothing is half done, and what has to be undone is."""

from __future__ import annotations

import contextlib

import pytest

from latticed.plans import protocol
from tests.house import apply_helpers, faults, processes
from tests.house.apply_helpers import BASE, WIDE

pytestmark = [pytest.mark.daemon, pytest.mark.root]


@pytest.fixture
def place():
    """Its state on a disk of 3 MiB."""
    with apply_helpers.place(confirm_within_s=5) as place:
        place.state.mkdir()
        with faults.small_disk(place.state, kib=3_072, uid=0):
            yield place


def code(answer):
    return answer.code if isinstance(answer, protocol.ErrorAnswer) else str(answer.state)


def fill(place):
    faults.fill(place.state / "filler")


def free(place):
    (place.state / "filler").unlink()


def test_full_disk_before_each_request(place):
    """Each request says so, and works once there is room."""
    with place.running():
        fill(place)
        offer = protocol.Offer(kind="file", intent=WIDE)
        assert code(place.ask(offer)) == "state_unusable"
        assert place.observed().plans == ()
        free(place)
        plan = place.ask(offer).plan
        fill(place)
        approve = protocol.Approve(plan=plan, review=place.review(plan).review)
        assert code(place.ask(approve)) == "state_unusable"
        assert place.state_of(plan) == "planned"
        free(place)
        assert code(place.ask(approve)) == "approved"
        fill(place)
        assert code(place.ask(protocol.Apply(plan=plan))) == "state_unusable"
        assert (place.content(), place.state_of(plan)) == (None, "approved")
        processes.until(lambda: not place.dead_men(), what="no dead-man")
        assert code(place.ask(protocol.Refuse(plan=plan))) == "state_unusable"
        free(place)
        assert code(place.ask(protocol.Apply(plan=plan))) == "unconfirmed"


def test_change_that_cannot_be_confirmed_is_undone(place):
    """The dead-man undoes it with the reserve; the next change works again."""
    with place.running():
        plan = place.approved(WIDE)
        place.ask(protocol.Apply(plan=plan))
        fill(place)
        assert code(place.ask(protocol.Confirm(plan=plan))) == "state_unusable"
        processes.until(lambda: place.content() is None, what="the undoing")
        processes.until(lambda: place.state_of(plan) == "rolled_back", what="the state")
        free(place)
        place.applied(BASE)
        assert (place.state / "reserve").stat().st_size > 200_000, "made again once there was room"


def test_operator_can_undo_on_a_full_disk(place):
    with place.running():
        plan = place.approved(WIDE)
        place.ask(protocol.Apply(plan=plan))
        fill(place)
        assert code(place.ask(protocol.Rollback(plan=plan))) == "rolled_back"
        assert place.content() is None


def test_without_reserve_the_host_is_put_back_and_recorded_when_there_is_room(place):
    with place.running():
        place.applied(BASE)
        plan = place.approved(WIDE)
        place.ask(protocol.Apply(plan=plan))
        fill(place)
        (place.state / "reserve").unlink()
        fill_more = place.state / "more"
        faults.fill(fill_more)
        processes.until(lambda: place.content() == "allow admin\n", what="the undoing")
        assert code(place.ask(protocol.Apply(plan=plan))) in {"target_busy", "state_unusable", "not_approved"}
        free(place)
        fill_more.unlink()
        processes.until(lambda: place.state_of(plan) == "rolled_back", what="the record")
        processes.until(lambda: not place.dead_men(), what="the dead-man to end")
        assert place.content() == "allow admin\n"


@pytest.mark.parametrize("error", faults.DISK_ERRORS)
@pytest.mark.parametrize("where", ["held", "targets", "steps"])
def test_write_that_fails_within_an_apply(shim, where, error):
    """The write of snapshot, record or step fails: the change is refused and nothing touched, or undone; never half
    done.
    """
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(apply_helpers.place(confirm_within_s=5))
        sick = stack.enter_context(faults.attached(place, shim))
        with place.running():
            place.applied(BASE)
            plan = place.approved(WIDE)
            with sick.failing(error, faults.WRITES, below=place.state / where):
                answer = place.ask(protocol.Apply(plan=plan))
            assert code(answer) in {"state_unusable", "apply_failed"}
            assert place.content() == "allow admin\n"
            processes.until(lambda: place.content() == "allow admin\n", what="the undoing")
            processes.until(lambda: not place.dead_men(), what="the dead-man to end")
            plan = place.approved(WIDE)
            assert code(place.ask(protocol.Apply(plan=plan))) == "unconfirmed"
            assert code(place.ask(protocol.Confirm(plan=plan))) == "applied"

"""kill -9 of whoever takes part in an apply, at many points between its request and the confirmation."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time

import pytest

from latticed.plans import protocol
from tests.house import apply_helpers, long, processes
from tests.house.apply_helpers import BASE, WIDE

pytestmark = [pytest.mark.daemon, pytest.mark.root]
POINTS = long.times(4, 50)
CONFIRM_S = 2
BEFORE, AFTER = "allow admin\n", "allow ada\nallow admin\nallow bob\n"


@pytest.fixture
def place():
    with apply_helpers.place(confirm_within_s=CONFIRM_S) as place:
        yield place


def asked(place, request):
    """A connection that has sent a request and waits."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(place.settings["socket"])
    sock.sendall(protocol.encode(request))
    return sock


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def apply_takes(place):
    """Seconds that an apply takes here, until it is unconfirmed."""
    with place.running():
        place.applied(BASE)
        plan = place.approved(WIDE)
        began = time.monotonic()
        answer = place.ask(protocol.Apply(plan=plan))
        assert answer.state == "unconfirmed"
        took_s = time.monotonic() - began
        place.ask(protocol.Rollback(plan=plan))
    return took_s


def until_back(place, before=BEFORE):
    """Wait until nothing is armed any more: the file is as it was, at no moment later than promised."""
    place.until_back(lambda: place.content() == before)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("victim", ["helper", "caller", "both", "dead-man"])
def test_change_that_is_killed_anywhere_is_back_two_seconds_after_its_deadline(place, victim):
    """Byte for byte, and another helper knows it. A dead-man's death leaves the undoing to the helper.

    Half of the points lie within the apply, half in the second behind it.
    """
    takes_s = apply_takes(place)
    for point in range(POINTS):
        at_s = takes_s * (point + 0.5) * 2 / POINTS if point < POINTS // 2 else takes_s + (point + 0.5) / POINTS
        with place.running() as helper, contextlib.ExitStack() as stack:
            plan = place.approved(WIDE)
            latest = time.monotonic() + at_s
            caller = stack.enter_context(asked(place, protocol.Apply(plan=plan)))
            while time.monotonic() < latest:
                time.sleep(0.002)
            if point == POINTS - 1:
                processes.until(lambda: place.content() == AFTER, what="the commit")
            if victim in {"caller", "both"}:
                caller.close()
            if victim in {"helper", "both"}:
                kill(helper.pid)
                helper.wait()
            if victim == "dead-man":
                for pid in place.dead_men():
                    kill(pid)
            if helper.poll() is None:
                assert place.observed().kinds, "asked after the apply, so answered after it"
            until_back(place)
        with place.running():
            assert place.content() == BEFORE
            assert place.state_of(plan) in {"approved", "rolled_back", "failed"}
            assert place.observed().targets[0].unconfirmed == ""


def test_when_all_are_killed_the_next_start_undoes(place):
    """It waits for the deadline; after the deadline it undoes before it answers."""
    for pause_s in (0.0, CONFIRM_S + 0.5):
        with place.running() as helper:
            plan = place.approved(WIDE)
            answer = place.ask(protocol.Apply(plan=plan))
            assert answer.state == "unconfirmed"
            for pid in (helper.pid, *place.dead_men()):
                kill(pid)
            helper.wait()
        apply_helpers.pause(pause_s)
        assert place.content() == AFTER
        with place.running():
            if pause_s:
                assert place.content() is None
            until_back(place, before=None)
            assert place.state_of(plan) == "rolled_back"


def test_confirmed_change_outlives_kills_of_all(place):
    with place.running() as helper:
        plan = place.applied(WIDE)
        for pid in (helper.pid, *place.dead_men()):
            kill(pid)
        helper.wait()
    apply_helpers.pause(CONFIRM_S + 0.5)
    with place.running():
        assert (place.content(), place.state_of(plan)) == (AFTER, "applied")


@pytest.mark.parametrize("how", ["stopped", "stuck"])
def test_helper_that_holds_the_lock_beyond_the_deadline_is_killed(place, how):
    """It is stopped by a signal, or waits for a program that does not end: the change is undone in time."""
    with place.running() as helper, contextlib.ExitStack() as stack:
        place.applied(BASE)
        plan = place.approved(WIDE)
        place.order(commit="late", commit_s=8)
        stack.enter_context(asked(place, protocol.Apply(plan=plan)))
        processes.until(lambda: place.content() == AFTER, what="the commit")
        place.order()
        if how == "stopped":
            os.kill(helper.pid, signal.SIGSTOP)
        until_back(place)
        assert helper.wait(processes.PATIENCE_S) == -signal.SIGKILL
    with place.running():
        assert (place.content(), place.state_of(plan)) == (BEFORE, "rolled_back")


def test_long_change_of_one_kind_does_not_delay_the_undoing_of_another(place):
    with place.running() as helper, contextlib.ExitStack() as stack:
        first, second = place.approved(WIDE), place.approved(WIDE, kind="other")
        place.ask(protocol.Apply(plan=first))
        place.order(commit_s=8)
        caller = stack.enter_context(asked(place, protocol.Apply(plan=second, confirm_within_s=30)))
        processes.until(lambda: place.content() is None, what="the undoing")
        assert select.select([caller], [], [], 0)[0] == [], "the other change is still being made"
        assert place.ask(protocol.Observe(), user=None).targets[1].unconfirmed == second
        assert b"unconfirmed" in caller.recv(4096)
        assert helper.poll() is None

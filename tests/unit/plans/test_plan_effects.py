"""What the helper does to processes: a signal for one that is still meant, time before others for a dead-man."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from latticed.plans import dead_man, nginx, protocol, proxy, proxy_api, proxy_runs, upkeep
from latticed.plans.effects import signalled


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child
        child.kill()


def test_a_signal_reaches_the_process_that_is_still_meant_and_no_other(sleeper):
    signalled(sleeper.pid, signal.SIGKILL, lambda: False)
    assert sleeper.poll() is None
    signalled(sleeper.pid, signal.SIGTERM, lambda: True)
    assert sleeper.wait(60) == -signal.SIGTERM
    # Its number is free now, and may be another's.
    signalled(sleeper.pid, signal.SIGKILL, lambda: True)


def test_a_process_that_ends_while_it_is_asked_takes_its_signal_with_it(sleeper):
    def ends() -> bool:
        sleeper.kill()
        sleeper.wait(60)
        return True

    signalled(sleeper.pid, signal.SIGTERM, ends)
    assert sleeper.returncode == -signal.SIGKILL


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to be served before others")
def test_a_dead_man_is_served_before_others_and_never_after_what_it_was(sleeper):
    began = os.getpriority(os.PRIO_PROCESS, sleeper.pid)
    try:
        os.setpriority(os.PRIO_PROCESS, sleeper.pid, -15)
    except PermissionError:
        pytest.skip("no priority below 0 is granted here")
    os.setpriority(os.PRIO_PROCESS, sleeper.pid, began)
    dead_man._hurry(sleeper.pid)
    assert os.getpriority(os.PRIO_PROCESS, sleeper.pid) == -10
    os.setpriority(os.PRIO_PROCESS, sleeper.pid, -15)
    dead_man._hurry(sleeper.pid)
    assert os.getpriority(os.PRIO_PROCESS, sleeper.pid) == -15
    sleeper.kill()
    sleeper.wait(60)
    dead_man._hurry(sleeper.pid)


def test_callers_wait_for_an_operation_that_waits_as_long_as_it_can_and_is_undone():
    """For the lock, a dead-man, and programs that keep running; the rest is for those that print something and end."""
    begun = upkeep.LOCK_S + dead_man.START_S
    # start-stop-daemon waits 3 s after each of its two signals.
    started = proxy_api.CLOSE_S + (6 + proxy_runs.END_S) + (proxy_runs.END_S + proxy_runs.START_S)
    assert begun + started + proxy.LISTEN_S + started + 20 <= protocol.OPERATION_S
    served = nginx.SETTLE_S + nginx.RELOAD_S + nginx.STOP_S
    assert begun + 2 * served + 20 <= protocol.OPERATION_S

"""Leases of children's uids: each to one child at a time of all daemons, the whole range, from a random start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from latticed.model.errors import Problem
from latticed.runners.uids import UidLeases, Uids

HOLDER = """
import sys, time
from pathlib import Path
from latticed.runners.uids import UidLeases, Uids
found = UidLeases(Path(sys.argv[1]))
uids = Uids(1_000, 16, lambda: found)
print(*[uids.take() for _ in range(8)], flush=True)
time.sleep(600)
"""


@pytest.fixture
def daemon(tmp_path):
    """Makes the pool of another daemon: its own leases in the same directory."""
    made = []

    def pool(first, count):
        found = UidLeases(tmp_path)
        made.append(found)
        return Uids(first, count, lambda: found)

    yield pool
    for leases in made:
        leases.close()


def test_each_uid_is_leased_once_until_returned(daemon):
    """All are leased, none twice; then none, until one is given back."""
    uids = daemon(1_000, 16)
    taken = [uids.take() for _ in range(16)]
    assert sorted(taken) == list(range(1_000, 1_016))
    with pytest.raises(Problem) as none_left:
        uids.take()
    assert none_left.value.code == "too_many_children"
    uids.give_back(taken[3])
    uids.give_back(taken[1])
    assert [uids.take(), uids.take()] == [taken[3], taken[1]]


def test_first_leased_uid_is_random(daemon):
    """Eight daemons whose uids follow on each other from the first of 65,536 would be no coincidence."""
    first = 1_900_000_000
    assert {daemon(first, 65_536).take() for _ in range(8)} != set(range(first, first + 8))


def test_two_daemons_share_no_uid_of_ranges_that_overlap(daemon):
    """What one gives back the other may have."""
    one, other = daemon(1_000, 16), daemon(1_008, 16)
    mine = [one.take() for _ in range(16)]
    theirs = [other.take() for _ in range(8)]
    assert sorted(theirs) == list(range(1_016, 1_024))
    with pytest.raises(Problem, match="all in use"):
        other.take()
    one.give_back(next(uid for uid in mine if uid >= 1_008))
    assert 1_008 <= other.take() < 1_016


def test_pool_of_a_reload_gives_no_uid_that_a_child_of_the_pool_before_has(tmp_path):
    """The kernel would: to it both are the same holder."""
    leases = UidLeases(tmp_path)
    before, after = Uids(1_000, 8, lambda: leases), Uids(1_000, 16, lambda: leases)
    kept = [before.take() for _ in range(8)]
    assert sorted(after.take() for _ in range(8)) == list(range(1_008, 1_016))
    with pytest.raises(Problem, match="all in use"):
        after.take()
    before.give_back(kept[3])
    assert after.take() == kept[3]
    leases.close()


def test_leases_end_with_a_killed_daemon(daemon, tmp_path):
    """A lock of the kernel's: no file to clean up."""
    with subprocess.Popen([sys.executable, "-P", "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        held = set(map(int, holder.stdout.readline().split()))
        uids = daemon(1_000, 16)
        free = {uids.take() for _ in range(8)}
        assert (len(held), len(free), held & free) == (8, 8, set())
        with pytest.raises(Problem, match="all in use"):
            uids.take()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert {uids.take() for _ in range(8)} == held


def test_leases_that_others_could_hold_are_refused(tmp_path):
    """Whoever may open the file could keep all uids from a daemon, or have two share one."""
    tmp_path.chmod(0o777)
    with pytest.raises(Problem, match="uids of children are leased") as caught:
        UidLeases(tmp_path)
    assert caught.value.code == "uids_unusable"
    tmp_path.chmod(0o755)
    os.symlink("/dev/null", tmp_path / "leases")
    with pytest.raises(Problem, match="uids of children are leased"):
        UidLeases(tmp_path)


def test_lock_that_the_kernel_refuses_leases_nothing(tmp_path):
    """Such as when it has no memory for more of them."""
    leases = UidLeases(tmp_path)
    leases.close()
    with pytest.raises(Problem, match="cannot be leased") as caught:
        Uids(1_000, 16, lambda: leases).take()
    assert caught.value.code == "uids_unusable"

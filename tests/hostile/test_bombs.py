"""Exhausting a resource ends in a named error for the child alone; the parent stays responsive."""

from __future__ import annotations

import os

import pytest

from tests.house import confined, processes

LIMITS = {
    "memory_bytes": 64 << 20,
    "tasks": 20,
    "open_files": 32,
    "scratch_bytes": 8 << 20,
    "scratch_inodes": 100,
}
FEATURES = ["threads", "processes", "workdir"]
USERS = {"root": None, "ordinary": processes.STRANGER}
EXPECTED = {
    # kind: (most that it may get, what it is told)
    # Of 20. One more may pass while process 1 of its namespace, which counts too, has not taken the uid yet.
    "fork": (20, "EAGAIN"),
    "threads": (20, "EAGAIN"),
    "memory": (64, "ENOMEM"),
    "shared": (0, "EPERM"),
    "tables": (128, "ENOMEM"),  # GiB, at 4 KiB for each 2 MiB: tables of 256 MiB
    "descriptors": (32, "EMFILE"),
    "disk": (8, "ENOSPC"),
    "inodes": (100, "ENOSPC"),
}


@pytest.mark.root
@pytest.mark.parametrize("who", USERS)
def test_each_resource_bomb_gets_the_errno_of_its_limit(who):
    """It gets it at `isolated`, after a bounded count; the next child is not affected."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    orders = [{"level": "isolated", "features": FEATURES, "limits": LIMITS, "args": [kind]} for kind in EXPECTED]
    found = confined.run(confined.compiled("bombs"), orders, user=USERS[who])
    for (kind, (most, error)), result in zip(EXPECTED.items(), found["results"], strict=True):
        assert result["message"] == "exited 0", (kind, result)
        named, count, why = result["stdout"].split()
        assert (named, why) == (kind, error)
        assert int(count) <= most


@pytest.mark.root
def test_memory_and_threads_are_limited_at_level_filtered():
    """The limits are per process, as there are no namespaces."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    kinds = {"memory": "ENOMEM", "shared": "EPERM", "threads": "EPERM", "fork": "EPERM", "descriptors": "EMFILE"}
    kinds["tables"] = "ENOMEM"
    orders = [{"level": "filtered", "limits": LIMITS, "args": [kind]} for kind in kinds]
    found = confined.run(confined.compiled("bombs"), orders, user=processes.STRANGER)
    told = [result["stdout"].split() for result in found["results"]]
    assert [(kind, why) for kind, _, why in told] == list(kinds.items())
    assert all(int(count) <= (128 if kind == "tables" else 64) for kind, count, _ in told)


@pytest.mark.root
def test_flood_of_output_waits_for_its_reader():
    """It stops when the pipe is full; the child can then be stopped."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    order = {"level": "isolated", "args": ["output"]}
    found = confined.run(confined.compiled("bombs"), [order, order], user=processes.STRANGER)
    for result in found["results"]:
        assert (result["code"], result["message"]) == ("killed", "killed by SIGKILL")
        assert 1 << 20 < result["bytes"] < 2 << 20


@pytest.mark.root
def test_concurrent_resource_bombs_get_the_same_errno_as_alone():
    """Other children flood their output meanwhile; the parent stays responsive."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    kinds = ["output", "fork", "threads", "memory", "output", "disk", "inodes", "descriptors"]
    orders = [{"level": "isolated", "features": FEATURES, "limits": LIMITS, "args": [kind]} for kind in kinds]
    found = confined.run(confined.compiled("bombs"), orders, user=processes.STRANGER, together=True)
    for kind, result in zip(kinds, found["results"], strict=True):
        if kind == "output":
            assert result["message"] == "killed by SIGKILL"
        else:
            assert result["stdout"].split()[::2] == [kind, EXPECTED[kind][1]]

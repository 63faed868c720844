"""Who enforces a limit of CPU time: the kernel by a cgroup, or the daemon's own watch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latticed.runners.child_spawner import ChildSpawner
from latticed.sandbox.cgroup import Delegation
from latticed.sandbox.rlimits import ResourceLimits
from latticed.settings import PluginLimitSettings, SandboxSettings
from tests.house import children


@pytest.mark.parametrize(
    ("controllers", "watched"),
    [(None, 50), ((), 50), (("memory", "pids"), 50), (("cpu", "memory", "pids"), None)],
    ids=["no cgroup", "none", "without cpu", "with cpu"],
)
def test_daemon_watches_cpu_time_where_no_cgroup_limits_it(controllers, watched):
    """A group may be delegated without the cpu controller: it ends trees, but limits nothing."""
    found = (
        None if controllers is None else Delegation(base=Path("/sys/fs/cgroup/x"), controllers=frozenset(controllers))
    )
    spawner = ChildSpawner(replace(children.probed(), delegation=found), SandboxSettings(), PluginLimitSettings())
    assert spawner.cpu_to_watch(ResourceLimits(cpu_percent=50)) == watched
    assert spawner.cpu_to_watch(ResourceLimits()) is None

"""Control groups: which are delegated, which are left alone, and killing a whole tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from latticed.sandbox import cgroup, levels, rlimits
from tests.house import cgroups, confined, processes


@pytest.fixture
def delegated() -> Iterator[Path]:
    with cgroups.delegated() as group:
        yield group


def proc_of(tmp_path: Path, *, mount: str, own: str) -> Path:
    (tmp_path / "mountinfo").write_text(
        f"31 25 0:27 {mount} - cgroup2 cgroup2 rw\n30 25 0:26 / / rw - ext4 /dev/x rw\n"
    )
    (tmp_path / "cgroup").write_text(f"12:cpu:/x\n0::{own}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("mount", "own", "expected"),
    [
        (
            "/ /sys/fs/cgroup rw,nosuid",
            "/system.slice/latticed.service",
            "/sys/fs/cgroup/system.slice/latticed.service",
        ),
        ("/ /sys/fs/cgroup rw shared:4", "/", "/sys/fs/cgroup"),
        ("/docker/abc /sys/fs/cgroup rw", "/docker/abc/x", "/sys/fs/cgroup/x"),
        ("/docker/abc /sys/fs/cgroup rw", "/elsewhere", None),
    ],
)
def test_own_cgroup_is_found_from_proc(tmp_path, mount, own, expected):
    """It is found in mountinfo and cgroup; a group outside of what is mounted cannot be reached."""
    found = cgroup.own_group(proc_of(tmp_path, mount=mount, own=own))
    assert found == (Path(expected) if expected else None)


def test_own_cgroup_is_found_despite_names_that_are_not_utf8(tmp_path):
    """Names of mounts and of groups; one has a line separator in it, one a space."""
    (tmp_path / "mountinfo").write_bytes(
        b"29 25 0:25 / /mnt/\xff\xfe rw - tmpfs x rw\n28 25 0:24 / /mnt/a\xe2\x80\xa8b\x0bc\x85 rw - tmpfs x rw\n"
        b"31 25 0:27 / /sys/my\\040fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "cgroup").write_bytes(b"12:cpu:/\xff\n0::/a.slice/\xfe\xe2\x80\xa8b\n")
    assert cgroup.own_group(tmp_path) == Path(os.fsdecode(b"/sys/my fs/cgroup/a.slice/\xfe\xe2\x80\xa8b"))


def test_limit_files_are_made_for_enabled_controllers_only():
    """Memory without swap, tasks, cpu as quota per period."""
    limits = rlimits.ResourceLimits(memory_bytes=1 << 20, tasks=7, cpu_percent=150)
    assert cgroup.limit_files(limits, frozenset()) == {}
    assert cgroup.limit_files(limits, frozenset({"memory", "pids", "cpu"})) == {
        "memory.max": "1048576",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "7",
        "cpu.max": "150000 100000",
    }


@pytest.mark.root
def test_cgroup_that_is_not_delegated_is_not_used(delegated, monkeypatch):
    """Root could write into it all the same. The root group is never used."""
    monkeypatch.setattr(cgroup, "own_group", lambda: delegated)
    assert isinstance(cgroup.find(), cgroup.Delegation)
    os.removexattr(delegated, "user.delegate")
    found = cgroup.find()
    assert isinstance(found, levels.Failure)
    assert "not delegated" in found.step
    monkeypatch.setattr(cgroup, "own_group", lambda: delegated.parent)
    found = cgroup.find()
    assert isinstance(found, levels.Failure)
    assert "root group" in found.step


@pytest.mark.root
def test_claiming_cgroup_with_other_processes_moves_none(delegated, monkeypatch):
    """The daemon itself stays where it is as well."""
    monkeypatch.setattr(cgroup, "own_group", lambda: delegated)
    with processes.spawned(["sleep", "100"]) as stranger:
        (delegated / "cgroup.procs").write_text(str(stranger.pid))
        found = cgroup.claim(cgroup.Delegation(base=delegated))
        assert found.base == delegated
        assert (delegated / "cgroup.procs").read_text().split() == [str(stranger.pid)]
        assert not (delegated / cgroup.SUPERVISOR).exists()


@pytest.mark.root
def test_group_named_supervisor_makes_its_parent_the_delegation(delegated, monkeypatch):
    """systemd's DelegateSubgroup=supervisor arranges it so."""
    (delegated / cgroup.SUPERVISOR).mkdir()
    monkeypatch.setattr(cgroup, "own_group", lambda: delegated / cgroup.SUPERVISOR)
    assert cgroup.find() == cgroup.Delegation(base=delegated)


@pytest.mark.root
def test_killing_a_group_ends_all_its_processes(delegated):
    """Some have left their session; afterwards the group can be removed."""
    group = cgroup.make(cgroup.Delegation(base=delegated), rlimits.ResourceLimits())
    script = f"echo 0 > {group.path}/cgroup.procs; setsid sleep 100 & setsid sleep 100 & wait"
    with processes.spawned(["sh", "-c", script]) as shell:
        processes.until(lambda: len((group.path / "cgroup.procs").read_text().split()) == 3, what="the tree")
        assert _populated(group)
        assert not group.remove()
        group.kill()
        processes.until(group.remove, what="the group to be gone")
        shell.wait()
    group.close()
    assert not group.out_of_memory()


@pytest.mark.root
def test_children_of_a_plugin_are_in_a_group_named_by_it(delegated):
    """It is there as long as one of them. A plugin may be called like a file that the kernel has in each group."""
    delegation = cgroup.Delegation(base=delegated)
    groups = [cgroup.make(delegation, rlimits.ResourceLimits(), owner="acme.demo") for _ in range(2)]
    assert {one.path.parent for one in groups} == {delegated / "plugins" / "acme.demo"}
    odd = cgroup.make(delegation, rlimits.ResourceLimits(), owner="cpu.stat")
    assert odd.path.parent == cgroup.of_plugin(delegation, "cpu.stat") == delegated / "plugins" / "_cpu.stat"
    for one in (*groups, odd):
        one.close()
    assert groups[0].remove()
    assert groups[1].path.exists()
    assert groups[1].remove()
    assert odd.remove()
    assert [one for one in (delegated / "plugins").iterdir() if one.is_dir()] == []


@pytest.mark.root
@pytest.mark.parametrize("owner", ["", "acme.demo"])
def test_groups_left_by_an_earlier_daemon_are_killed_and_removed(delegated, owner):
    """Groups that are not ours are untouched."""
    delegation = cgroup.Delegation(base=delegated)
    group = cgroup.make(delegation, rlimits.ResourceLimits(), owner=owner)
    group.close()
    (delegated / "other").mkdir()
    with processes.spawned(["sh", "-c", f"echo 0 > {group.path}/cgroup.procs; exec sleep 100"]) as left:
        processes.until(lambda: _populated(group), what="the process to be in the group")
        assert cgroup.sweep(delegation) == 1
        assert left.wait() != 0
        processes.until(lambda: cgroup.sweep(delegation) == 0, what="the group to be gone")
    assert (delegated / "other").exists()


@pytest.mark.root
def test_delegated_group_provides_feature_processes(delegated):
    """It does so without controllers, and where namespaces are refused: all processes in it can be killed."""
    script = b"#!/bin/sh\n(setsid sleep 100 &) ; (sleep 100 &) ; echo started\n"
    orders = [{"level": "filtered", "features": ["processes"]}, {"level": "isolated", "features": ["processes"]}]
    found = confined.run(script, orders, cgroup=delegated)
    assert found["delegated"]
    assert {"cgroup", "processes"} <= set(found["features"])
    assert [result["stdout"] for result in found["results"]] == ["started\n", "started\n"]
    assert found["groups"] == []  # each removed with its child, and so are the sleepers:
    alive = subprocess.run(["cat", *delegated.rglob("cgroup.procs")], capture_output=True, text=True, check=True)
    assert alive.stdout == ""


def _populated(group):
    """Whether any process in it is alive."""
    return "populated 1" in (group.path / "cgroup.events").read_text()

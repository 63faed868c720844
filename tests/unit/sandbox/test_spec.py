"""Plans say what the levels promise, and callers' mistakes are refused before anything is started."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.model.errors import Problem
from latticed.sandbox import (
    artifact,
    cgroup,
    elf_programs,
    host_facts,
    landlock,
    levels,
    rlimits,
    spec,
    stub,
    stub_calls,
    stub_root,
    syscalls,
)
from latticed.sandbox import visible_paths as view
from tests.house import children

HOST = host_facts.Probed(
    machine=syscalls.X86_64,
    standing=host_facts.HostFacts(uid=1000, gid=1000, admin=False, other_ids=False),
    landlock=7,
    delegation=None,
    provided=levels.Provided(level=levels.Level.ISOLATED),
)
ROOT = dataclasses.replace(HOST, standing=host_facts.HostFacts(uid=0, gid=0, admin=True, other_ids=True))
CONTAINER_ROOT = dataclasses.replace(HOST, standing=host_facts.HostFacts(uid=0, gid=0, admin=False, other_ids=True))


def request(program=None, **more) -> spec.ChildRequest:
    return spec.ChildRequest(program=program or spec.Program(path="/usr/bin/python3"), **more)


def chosen(level: str, *features: str) -> levels.Chosen:
    return levels.Chosen(level=levels.Level.of(level), features=frozenset(features))


def test_higher_levels_add_restrictions():
    """There are none at open, system calls and paths at filtered, namespaces and a root of its own at isolated."""
    plans = {level: spec.build(request(), chosen(level), HOST).plan for level in ("open", "filtered", "isolated")}
    assert (plans["open"]["seccomp"], plans["open"]["landlock"], plans["open"]["unshare"]) == (None, None, [])
    assert all(plans["filtered"][wall] for wall in ("seccomp", "landlock"))
    assert plans["filtered"]["tree"] is None
    assert [name for name, _ in plans["isolated"]["unshare"]] == ["user", "mnt", "pid", "net", "ipc"]
    assert all(plans["isolated"][wall] for wall in ("seccomp", "landlock", "tree", "own_pids"))


def test_root_runs_child_under_other_ids_never_uid_0():
    """With its capabilities it makes no user namespace; without them the child changes ids before it makes one."""
    somebody = spec.Ids(uid=70000, gid=70000)
    plan = spec.build(request(ids=somebody), chosen("dedicated"), ROOT).plan
    assert [name for name, _ in plan["unshare"]] == ["mnt", "pid", "net", "ipc"]
    assert (plan["ids"], plan["ids_first"]) == ((70000, 70000), False)
    plan = spec.build(request(ids=somebody), chosen("isolated"), CONTAINER_ROOT).plan
    assert (plan["unshare"][0][0], plan["ids_first"]) == ("user", True)
    with pytest.raises(ValueError, match="never uid 0"):
        spec.build(request(), chosen("isolated"), ROOT)
    with pytest.raises(ValueError, match="anyone but root"):
        spec.Ids(uid=0, gid=70000)


def test_child_request_that_cannot_be_confined_is_refused():
    """Processes that nobody could end, a network without namespaces, descriptors that are taken."""
    with pytest.raises(ValueError, match="whole tree"):
        spec.build(request(), chosen("filtered", "processes"), HOST)
    with pytest.raises(ValueError, match="network"):
        spec.build(request(network="host"), chosen("filtered"), HOST)
    with pytest.raises(ValueError, match="descriptors"):
        spec.build(request(descriptors=(2,)), chosen("isolated"), HOST)
    with pytest.raises(ValueError, match="open_files"):
        rlimits.ResourceLimits(open_files=5000)
    with pytest.raises(ValueError, match="tasks"):
        rlimits.ResourceLimits(tasks=0)


def test_program_is_copied_into_the_root_or_refused_under_memfd_noexec():
    """It is copied at isolated, and refused at filtered, which has no root of its own."""
    with artifact.of_bytes(elf_programs.exits_42(syscalls.X86_64)) as sealed:
        forbidden = dataclasses.replace(sealed, executable=False)
        plan = spec.build(request(forbidden), chosen("isolated"), HOST).plan
        assert (plan["program"], plan["tree"]["artifact"], plan["tree"]["artifact_mode"]) == (
            "/artifact",
            "/artifact",
            0o555,
        )
        with pytest.raises(Problem) as refused:
            spec.build(request(forbidden), chosen("filtered"), HOST)
        assert refused.value.code == "sandbox_unavailable"
        assert "vm.memfd_noexec" in refused.value.reason


def test_interpreter_that_is_no_program_is_refused(tmp_path):
    """Its path is missing, relative, or that of a wrapper script."""
    wrapper = tmp_path / "python3"
    wrapper.write_text("#!/bin/sh\n")
    with artifact.of_bytes(b"#!/usr/bin/env python3\n", interpreters={"python3": ""}) as sealed:
        for path in ("", "relative/python3", str(wrapper), str(tmp_path / "nothing")):
            with pytest.raises(Problem) as refused:
                spec.build(request(sealed, interpreters={"python3": path}), chosen("isolated"), HOST)
            assert refused.value.code == "interpreter_not_allowed"


def test_task_limit_is_exact_unless_the_uid_is_shared():
    """RLIMIT_NPROC counts all processes of a uid."""
    limits = rlimits.ResourceLimits(tasks=5)
    alone = dict(spec.build(request(limits=limits), chosen("isolated"), HOST).plan["rlimits"])
    shared = dict(spec.build(request(limits=limits), chosen("filtered"), HOST).plan["rlimits"])
    assert (alone[resource.RLIMIT_NPROC], shared[resource.RLIMIT_NPROC]) == (5, least(rlimits.SHARED_TASKS))


def test_address_space_is_limited_where_no_group_counts_memory():
    """Page tables for it take a 512th of it at most: as much as the memory, or 256 MiB."""
    groups = {
        None: None,
        "kills": cgroup.Delegation(base=Path("/")),
        "counts": cgroup.Delegation(base=Path("/"), controllers=frozenset({"memory"})),
    }
    found = {}
    for name, delegation in groups.items():
        for memory_bytes in (64 << 20, 1 << 30):
            limits = rlimits.ResourceLimits(memory_bytes=memory_bytes)
            on = dataclasses.replace(HOST, delegation=delegation)
            plan = spec.build(request(limits=limits), chosen("filtered"), on).plan
            found[name, memory_bytes >> 20] = dict(plan["rlimits"]).get(resource.RLIMIT_AS)
    assert {found[name, 64] for name in (None, "kills")} == {least(128 << 30, resource.RLIMIT_AS)}
    assert {found[name, 1024] for name in (None, "kills")} == {least(512 << 30, resource.RLIMIT_AS)}
    assert found["counts", 64] is found["counts", 1024] is None


def test_limits_are_capped_by_the_daemons_hard_limits():
    """Some hosts allow 3,900 processes: asking for more would leave no child running."""
    program = """
import json, resource
from latticed.sandbox import rlimits
resource.setrlimit(resource.RLIMIT_NPROC, (100, 3_900))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 2 << 20))
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
found = dict(rlimits.table(rlimits.ResourceLimits(), counted_alone=False, memory_group=False, file_bytes=None))
print(json.dumps([found[one] for one in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)]))
"""
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [3_900, 2 << 20, 50]


def least(wanted, which=resource.RLIMIT_NPROC):
    """What a limit becomes on the machine that runs the tests."""
    hard = resource.getrlimit(which)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def test_exec_descriptor_is_above_any_that_the_child_can_open():
    for files in (16, 100, 128, 4096):
        plan = spec.build(request(limits=rlimits.ResourceLimits(open_files=files)), chosen("isolated"), HOST).plan
        assert plan["exec_fd"] >= dict(plan["rlimits"])[resource.RLIMIT_NOFILE]
        in_use = stub_calls.PLAN, stub_calls.STATUS, stub_calls.DAEMON, stub_calls.ARTIFACT, stub_calls.CGROUP
        assert plan["exec_fd"] > max(*in_use, stub_calls.INIT)


def test_visible_paths_exclude_home_and_proc(tmp_path):
    """They are only what programs need, each once, and extra directories as asked."""
    seen = view.view("/usr/bin/python3", binds=(str(tmp_path), "/usr/lib"), processes=False, network=False, names=False)
    assert str(tmp_path) in seen.needed
    assert len(set(seen.read)) == len(seen.read)
    tops = {"/" + path.split("/")[1] for path in seen.read if not path.startswith(str(tmp_path))}
    assert tops <= {"/usr", "/etc", "/bin", "/lib", "/lib64", "/lib32"}
    assert not any(path.startswith("/usr/bin/") for path in seen.read)  # within /usr/bin already


def test_only_the_interpreters_own_files_are_visible(tmp_path):
    """They are itself, shared objects and directories named after it; nothing else of its prefix, which may be a home
    directory.
    """
    inside = [
        "bin/python3", "bin/libpypy3.10-c.so", "lib/libpython3.so", "lib/libssl.so.3", "lib/python3.13/os.py",
        "lib64/python3.13/x.so", "share/python3/x", "pyvenv.cfg",
    ]  # fmt: skip
    outside = [
        ".ssh/id_ed25519", ".bashrc", "secret", "bin/other", "lib/pythonic", "lib/other/x", "lib/notes.so.txt",
        "share/keyrings/x", "share/xpython", "etc/python3/x", "python3/x",
    ]  # fmt: skip
    for name in (*inside, *outside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lib/python4").symlink_to("/etc")
    (tmp_path / "lib/libleads-out.so").symlink_to("/root/x")
    seen = view.view(str(tmp_path / "bin/python3"), processes=False, network=False, names=False)
    assert seen.needed == (str(tmp_path / "bin/python3"),)
    found = [path for path in seen.read if path.startswith(str(tmp_path))]

    def is_seen(name):
        return any(f"{tmp_path / name}/".startswith(f"{path}/") for path in found)

    assert [name for name in inside if not is_seen(name)] == []
    assert [name for name in (*outside, "lib/python4", "lib/libleads-out.so") if is_seen(name)] == []


@pytest.mark.parametrize("settled_ns", [-(1 << 62), 1 << 62], ids=["remembered", "too young to remember"])
def test_remembered_view_follows_changes_of_the_host(tmp_path, monkeypatch, settled_ns):
    """Libraries that come and go, links that lead elsewhere: as if it were looked up at each start."""
    monkeypatch.setattr(view, "_SETTLED_NS", settled_ns)
    view._REMEMBERED.clear()
    for name in ("one/bin/python3", "two/bin/python3", "one/lib/libpython3.so", "two/lib/libpython3.so", "data/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "current").symlink_to("one")
    (tmp_path / "python3").symlink_to("current/bin/python3")
    clock = itertools.count(1)

    def seen():
        asked = {"binds": (str(tmp_path / "data/x"),), "processes": True, "network": True, "names": True}
        found = view.view(str(tmp_path / "python3"), **asked)
        assert found == view._looked_up(str(tmp_path / "python3"), lists=(), **asked)
        # Another process may change a directory above (/tmp) between two of them.
        again = (view.view(str(tmp_path / "python3"), **asked) for _ in range(50))
        same = [one is other for one, other in itertools.pairwise(again)]
        assert any(same) == (settled_ns < 0)
        return [path for path in found.read if path.startswith(str(tmp_path))]

    def later(directory):
        """As if the last change of this directory had been made at another time than the one before."""
        os.utime(directory, ns=(0, next(clock)))

    before = seen()
    assert str(tmp_path / "one/lib/libpython3.so") in before
    (tmp_path / "one/lib/libssl.so.3").touch()
    later(tmp_path / "one/lib")
    assert sorted(seen()) == sorted([*before, str(tmp_path / "one/lib/libssl.so.3")])
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("two")
    later(tmp_path)
    assert str(tmp_path / "two/lib/libpython3.so") in (after := seen())
    assert not [path for path in after if "/one/" in path]
    (tmp_path / "data/x").rename(tmp_path / "data/y")
    (tmp_path / "data/x").symlink_to("y")
    later(tmp_path / "data")
    assert str(tmp_path / "data/x") in seen()


@pytest.mark.parametrize(("abi", "rights"), [(1, 13), (2, 14), (3, 15), (4, 15), (5, 16), (6, 16), (7, 16)])
def test_landlock_handles_all_rights_of_each_version(abi, rights):
    """No rule asks for a right that the kernel's version does not have."""
    assert landlock.handled(abi) == (1 << rights) - 1
    seen = view.view(None, processes=True, network=False, names=False)
    plan = landlock.plan(seen, abi=abi, own_root=True, workdir=True, data=False, network=False)
    assert len(plan["attributes"]) // 2 == 8 * (1 + (abi >= 4) + (abi >= 6))
    assert all(access & ~landlock.handled(abi) == 0 for _, access, _ in plan["rules"])
    assert all(access & landlock.EXECUTE == 0 for path, access, _ in plan["rules"] if path == "/scratch")


def test_stub_imports_only_a_few_standard_modules():
    """Every import is time that each spawn takes."""
    sources = [Path(module.__file__).read_text() for module in (stub_calls, stub_root, stub)]
    imported = set()
    for node in [node for source in sources for node in ast.parse(source).body]:
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported == {"__future__", "ctypes", "errno", "itertools", "os", "stat", "struct"}


def test_host_facts_match_the_kernel():
    """uid, gid and capabilities, for any user that runs the tests."""
    found = host_facts.look()
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert children.probed().standing.uid == found.uid

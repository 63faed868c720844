"""What the children of a plugin use, counted by its control group or summed up from /proc."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from latticed.processes import child, tree
from latticed.processes.child import Child
from latticed.runners.usage import ChildUsage
from latticed.sandbox.cgroup import Delegation
from latticed.sandbox.host_facts import Probed
from tests.house import cgroups, children, in_process

OWNER = "acme.demo"
BUSY = "(while :; do :; done) & echo ready; read x"
"""A script, and a process that it starts and never waits for."""


@pytest.fixture(params=["proc", pytest.param("group", marks=pytest.mark.root)])
def host(request) -> Iterator[Probed]:
    """This machine, without a control group and with one that has no controllers."""
    if request.param == "proc":
        yield replace(children.probed(), delegation=None)
        return
    with cgroups.delegated() as group:
        yield replace(children.probed(), delegation=Delegation(base=group))


@contextlib.asynccontextmanager
async def started(host: Probed) -> AsyncIterator[Child]:
    out = children.Heard()
    with children.spec_of(BUSY, on=host, owner=OWNER) as spec:
        found = await child.spawn(spec, on_exit=lambda _: None, stdout=out, stderr=children.Heard())
    try:
        await out.any.wait()
        yield found
    finally:
        await found.stop(0)


async def test_plugin_uses_what_its_children_use(host):
    """All of them, and what they started; and the time of those that have ended."""
    usage = ChildUsage(host.delegation)
    assert not usage.known(OWNER)
    async with started(host) as one, started(host) as other:
        for each in (one, other):
            usage.begin(OWNER, each)
        await in_process.until(lambda: usage.of(OWNER).cpu_s > 0.2, "processor time to be counted")
        both = usage.of(OWNER)
        assert both.memory_bytes > 100_000
        cpu_ms, memory_kib = usage.sample(OWNER)
        assert cpu_ms >= both.cpu_s * 1_000 - 1
        assert memory_kib << 10 == pytest.approx(both.memory_bytes, rel=0.5)
        assert both.tasks >= 4, "two shells, and a process of each"
        await one.stop(0)
        left = usage.of(OWNER)
        assert 2 <= left.tasks < both.tasks
        assert left.cpu_s > one.cpu_s > 0
        if host.delegation is not None:
            assert left.cpu_s >= both.cpu_s, "the kernel forgets nothing that was used"
            assert set(left.pressure) <= {"cpu", "memory", "io"}
            assert (host.delegation.base / "plugins" / OWNER).is_dir()
    ended = usage.of(OWNER)
    assert (ended.memory_bytes, ended.tasks, dict(ended.pressure)) == (0, 0, {})
    assert ended.cpu_s > 0
    assert (usage.plugins(), usage.known(OWNER)) == ([OWNER], True)
    assert usage.sample(OWNER) == (int(ended.cpu_s * 1_000), 0)
    usage.forget(OWNER)
    assert (usage.plugins(), usage.known(OWNER)) == ([], False)


async def test_child_of_a_forgotten_plugin_counts_no_more_when_it_ends(host):
    usage = ChildUsage(host.delegation)
    async with started(host) as one:
        usage.begin(OWNER, one)
        usage.forget(OWNER)
        usage.forget(OWNER)
    assert usage.plugins() == []


async def test_children_of_the_daemon_itself_are_nobodys(host):
    usage = ChildUsage(host.delegation)
    async with started(host) as one:
        usage.begin("", one)
        assert usage.plugins() == []


def test_processor_time_is_read_whatever_the_process_name():
    """Names that are not UTF-8, or look like the fields after the name in /proc/PID/stat."""
    program = "import ctypes, sys; ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0);"
    program += " print(flush=True); sys.stdin.read()"
    for name in (b"\xff\xfe", b"a) R 1 (\n"):
        command = [sys.executable, "-c", program, name.hex()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert tree.used([process.pid]).tasks == 1
            process.communicate()

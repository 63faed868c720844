"""A child is started, written to and read from, and ended; nothing may be left of it (checked by the fixtures)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from latticed.model.errors import Problem
from latticed.processes import child
from latticed.processes.exits import Exit
from latticed.sandbox import launch, levels, rlimits
from tests.house import children, processes

LEVELS = pytest.mark.parametrize("level", ["open", "filtered", "isolated"])
pytestmark = pytest.mark.usefixtures("launcher")
DEADLINE_S = processes.PATIENCE_S


class Started:
    """A child, and its output and exits so far."""

    def __init__(self) -> None:
        self.out, self.err = children.Heard(), children.Heard()
        self.ends: list[Exit] = []
        self.over = asyncio.Event()
        self.child: child.Child | None = None

    def on_exit(self, exit_: Exit) -> None:
        self.ends.append(exit_)
        self.over.set()

    async def end(self) -> Exit:
        async with asyncio.timeout(DEADLINE_S):
            await self.over.wait()
        assert len(self.ends) == 1
        return self.ends[0]

    async def hears(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while data not in self.out.data:
                self.out.any.clear()
                await self.out.any.wait()


async def start(program: str, *, level: str = "isolated", **more) -> Started:
    features = ("threads", "processes", "workdir") if level != "filtered" else ("threads",)
    started = Started()
    with children.spec_of(program, level=level, features=more.pop("features", features), **more) as spec:
        started.child = await child.spawn(spec, on_exit=started.on_exit, stdout=started.out, stderr=started.err)
    return started


@LEVELS
async def test_stdin_reaches_child_and_its_output_and_exit_come_back(level):
    """`on_exit` is called once, after all output was delivered."""
    started = await start('read x; echo "got $x"; echo oops >&2; exit 3', level=level)
    started.child.stdin.write(b"hello\n")
    await started.child.stdin.drain()
    assert (await started.end()).message == "exited 3"
    assert (started.out.data, started.err.data) == (b"got hello\n", b"oops\n")
    assert started.out.over.is_set()
    assert await started.child.exited() == await started.child.gone() == started.child.exit == started.ends[0]
    assert started.child.stdin.closed


async def test_requested_further_pipe_is_open_in_the_child():
    """A descriptor beyond the standard three, as the plugin protocol needs."""
    started = await start("read x <&3; read y; echo $x $y", descriptors=(3,))
    started.child.inputs[3].write(b"three\n")
    started.child.stdin.write(b"zero\n")
    await started.end()
    assert started.out.data == b"three zero\n"


@LEVELS
async def test_child_that_catches_sigterm_exits_with_its_own_status(level):
    """`on_exit` is not called after `stop`."""
    started = await start("trap 'echo bye; exit 7' TERM; echo ready; while :; do read x || :; done", level=level)
    await started.hears(b"ready")
    ended = await started.child.stop(DEADLINE_S)
    assert (ended.status, ended.asked) == (7, True)
    assert started.out.data == b"ready\nbye\n"
    assert started.ends == []


@LEVELS
async def test_child_that_ignores_sigterm_is_killed_after_its_grace(level):
    started = await start("trap '' TERM; echo ready; while :; do :; done", level=level)
    await started.hears(b"ready")
    ended = await started.child.stop(0.05)
    assert ended.killed_by == signal.SIGKILL


async def test_child_that_is_process_1_without_a_handler_is_killed_at_once():
    """SIGTERM has no effect on process 1 of a namespace, so the grace is skipped."""
    started = await start("echo ready; while :; do :; done", features=("threads",))
    await started.hears(b"ready")
    async with asyncio.timeout(DEADLINE_S):
        assert (await started.child.stop(1000)).killed_by == signal.SIGKILL


@pytest.mark.parametrize("level", ["open", "isolated"])
async def test_descendants_end_with_the_child(level):
    """They end when it exits or is stopped; at isolated also those in a session of their own."""
    away = "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' &" if level == "isolated" else "sleep 1000 &"
    for stop in (False, True):
        started = await start(f"{away} echo ready; read x; exit 0", level=level)
        await started.hears(b"ready")
        tree = children.descendants(os.getpid())
        assert len(tree) > 1
        if stop:
            await started.child.stop(0)
        else:
            started.child.stdin.write(b"\n")
            await started.end()
        processes.until(lambda tree=tree: not any(map(children.alive, tree)), what="the tree to be gone")


async def test_failed_start_names_stage_and_errno():
    """No child is left."""
    with pytest.raises(launch.StageFailed) as failed:
        await start("echo never", binds=("/nowhere/at/all",))
    assert (failed.value.code, failed.value.stage, failed.value.errno) == ("sandbox_failed", "bind(/nowhere/at/all)", 2)
    assert "No such file" in failed.value.reason


async def test_start_beyond_its_deadline_fails_and_leaves_no_child(stuck):
    started = Started()
    with children.spec_of("echo never") as spec:
        spec.plan.update(stuck)
        with pytest.raises(Problem, match="within 0 s"):
            await child.spawn(spec, on_exit=started.on_exit, stdout=started.out, stderr=started.err, deadline_s=0)
    assert not children.descendants(os.getpid())


@pytest.mark.parametrize("level", ["filtered", "isolated"])
async def test_cancelled_start_leaves_no_child(level):
    """It is cancelled at every moment of the start."""
    turns, finished = 0, False
    while not finished:
        turns += 1 + turns // 10  # on a slow day, not every moment
        task = asyncio.create_task(start("echo ready; read x", level=level))
        for _ in range(turns):
            await asyncio.wait({task}, timeout=0.001 * turns)
            if task.done():
                break
        task.cancel()
        try:
            started = await task
        except asyncio.CancelledError:
            pass
        else:
            finished = True
            await started.child.stop(0)
        assert not children.descendants(os.getpid())


async def test_cancelling_stop_kills_the_child():
    """It is killed at once, without waiting for the grace."""
    started = await start("trap '' TERM; echo ready; while :; do :; done")
    await started.hears(b"ready")
    stopping = asyncio.create_task(started.child.stop(1000))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert started.child.exit is not None
    assert not children.descendants(os.getpid())


async def test_second_stop_returns_the_same_exit():
    """It is concurrent with the first, or long after it."""
    started = await start("echo ready; read x")
    first, second = await asyncio.gather(started.child.stop(0), started.child.stop(0))
    assert first == second == await started.child.stop(5)


async def test_drain_of_stdin_waits_while_the_child_does_not_read():
    """It raises BrokenPipeError once the child has ended."""
    started = await start("echo ready; sleep 1000")
    started.child.stdin.write(b"x" * (1 << 20))
    draining = asyncio.create_task(started.child.stdin.drain())
    await started.hears(b"ready")
    assert not draining.done()
    assert started.child.stdin._transport.get_write_buffer_size() > 1 << 19
    await started.child.stop(0)
    with pytest.raises(BrokenPipeError):
        await draining
    with pytest.raises(BrokenPipeError):
        started.child.stdin.write(b"more")


async def test_write_to_stdin_that_the_child_closed_raises():
    """No data is lost silently."""
    started = await start("exec <&-; echo closed; sleep 1000")
    await started.hears(b"closed")
    async with asyncio.timeout(DEADLINE_S):
        while not started.child.stdin.closed:  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)
    with pytest.raises(BrokenPipeError):
        started.child.stdin.write(b"x")
    await started.child.stop(0)


async def test_twelve_concurrent_children_keep_their_streams_apart():
    """No thread is started for them."""
    threads = threading.active_count()
    all_of_them = await asyncio.gather(*(start(f"read x; echo {number} $x") for number in range(12)))
    assert threading.active_count() == threads
    for number, started in enumerate(all_of_them):
        started.child.stdin.write(b"%d\n" % (number * 7))
    for number, started in enumerate(all_of_them):
        await started.end()
        assert started.out.data == b"%d %d\n" % (number, number * 7)


async def test_paused_stdout_delivers_nothing_until_resumed():
    started = await start("while :; do echo xxxxxxxxxxxxxxxx; done")
    await started.hears(b"x")
    started.child.stdout.pause_reading()
    before = len(started.out.data)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(started.out.data) == before
    started.child.stdout.resume_reading()
    await started.hears(b"x" * 16 + b"\n")
    await started.child.stop(0)


async def test_resource_limits_apply_in_the_child():
    """Open files, memory, core size and umask, as ulimit shows them."""
    limits = rlimits.ResourceLimits(memory_bytes=100 << 20, open_files=40)
    started = await start("ulimit -n; ulimit -d; ulimit -c; umask", limits=limits)
    await started.end()
    assert started.out.data.split() == [b"40", b"%d" % (100 << 10), b"0", b"0077"]


async def test_child_runs_unprivileged_in_its_own_namespaces():
    """It is never uid 0 and in no group of the daemon's; it is process 2 of its namespace, and starts in /scratch."""
    started = await start("id -u; id -G; echo $$; pwd")
    await started.end()
    uid, groups, pid, where = started.out.data.split(b"\n")[:4]
    expected = children.CHILD_UID if os.getuid() == 0 else os.getuid()
    assert int(uid) == expected
    assert (pid, where) == (b"2", b"/scratch")
    if os.getuid() == 0:
        assert groups == b"%d" % children.CHILD_UID


async def test_start_from_another_thread_is_refused():
    """PDEATHSIG kills a child when the thread that started it ends."""
    with children.spec_of("echo never") as spec, pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(launch.launch, spec, {})


async def test_started_child_reports_its_sandbox_level():
    started = await start("read x", level="filtered")
    assert started.child.level is levels.Level.FILTERED
    assert started.child.pid in children.descendants(os.getpid())
    await started.child.stop(0)


@pytest.mark.parametrize("level", ["filtered", "isolated"])
async def test_only_bound_paths_can_be_read(level):
    """A bound path can be read and not written; another one can be neither read nor written."""
    script = "for f in /etc/passwd /etc/group; do read x < $f && echo read; (: >> $f) && echo written; done; exit 0"
    script = script.replace("(: >> $f)", "command eval ': >> $f'")
    started = await start(script, level=level, binds=("/etc/passwd",))
    await started.end()
    assert started.out.data == b"read\n"

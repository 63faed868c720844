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
DEADLINE_S = 20


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
async def test_standard_streams_reach_the_child_and_back(level):
    """stdin, stdout, stderr; `on_exit` is called once, after all output was delivered."""
    started = await start('read x; echo "got $x"; echo oops >&2; exit 3', level=level)
    started.child.stdin.write(b"hello\n")
    await started.child.stdin.drain()
    assert (await started.end()).message == "exited 3"
    assert (started.out.data, started.err.data) == (b"got hello\n", b"oops\n")
    assert started.out.over.is_set()
    assert await started.child.exited() == await started.child.gone() == started.child.exit == started.ends[0]
    assert started.child.stdin.closed


async def test_a_further_pipe_is_open_in_the_child():
    """A descriptor beyond the standard three, as the plugin protocol asks for."""
    started = await start("read x <&3; read y; echo $x $y", descriptors=(3,))
    started.child.inputs[3].write(b"three\n")
    started.child.stdin.write(b"zero\n")
    await started.end()
    assert started.out.data == b"three zero\n"


@LEVELS
async def test_a_child_that_catches_sigterm_ends_itself(level):
    """It chooses its exit status, and `on_exit` is not called after `stop`."""
    started = await start("trap 'echo bye; exit 7' TERM; echo ready; while :; do read x || :; done", level=level)
    await started.hears(b"ready")
    ended = await started.child.stop(DEADLINE_S)
    assert (ended.status, ended.asked) == (7, True)
    assert started.out.data == b"ready\nbye\n"
    assert started.ends == []


@LEVELS
async def test_a_child_that_ignores_sigterm_is_killed(level):
    """It is killed after its grace."""
    started = await start("trap '' TERM; echo ready; while :; do :; done", level=level)
    await started.hears(b"ready")
    ended = await started.child.stop(0.05)
    assert ended.killed_by == signal.SIGKILL


async def test_process_one_without_a_handler_is_killed_at_once():
    """SIGTERM has no effect on process 1 of a namespace: the grace is skipped."""
    started = await start("echo ready; while :; do :; done", features=("threads",))
    await started.hears(b"ready")
    async with asyncio.timeout(DEADLINE_S):
        assert (await started.child.stop(1000)).killed_by == signal.SIGKILL


@pytest.mark.parametrize("level", ["open", "isolated"])
async def test_the_whole_tree_ends_with_its_leader(level):
    """With its leader, by itself or stopped; at isolated also what left for a session of its own."""
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


async def test_a_step_that_fails_is_named():
    """Stage and errno, and no child."""
    with pytest.raises(launch.StageFailed) as failed:
        await start("echo never", binds=("/nowhere/at/all",))
    assert (failed.value.code, failed.value.stage, failed.value.errno) == ("sandbox_failed", "bind(/nowhere/at/all)", 2)
    assert "No such file" in failed.value.reason


async def test_too_slow_a_start_is_abandoned():
    """The deadline ends the attempt, with all that it had made."""
    started = Started()
    with children.spec_of("echo never") as spec, pytest.raises(Problem, match="within 0 s"):
        await child.spawn(spec, on_exit=started.on_exit, stdout=started.out, stderr=started.err, deadline_s=0)
    assert not children.descendants(os.getpid())


@pytest.mark.parametrize("level", ["filtered", "isolated"])
async def test_cancelling_a_start_leaves_nothing(level):
    """However far it got, nothing is left."""
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
    """At once, without waiting for the grace."""
    started = await start("trap '' TERM; echo ready; while :; do :; done")
    await started.hears(b"ready")
    stopping = asyncio.create_task(started.child.stop(1000))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert started.child.exit is not None
    assert not children.descendants(os.getpid())


async def test_stopping_twice_is_harmless():
    """Both hear the same; and again when it is long gone."""
    started = await start("echo ready; read x")
    first, second = await asyncio.gather(started.child.stop(0), started.child.stop(0))
    assert first == second == await started.child.stop(5)


async def test_writing_to_a_child_that_does_not_read_waits():
    """Writing waits instead of taking memory, and ends with the child."""
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


async def test_a_closed_stdin_is_noticed():
    """Is noticed before anything is lost in silence."""
    started = await start("exec <&-; echo closed; sleep 1000")
    await started.hears(b"closed")
    async with asyncio.timeout(DEADLINE_S):
        while not started.child.stdin.closed:  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)
    with pytest.raises(BrokenPipeError):
        started.child.stdin.write(b"x")
    await started.child.stop(0)


async def test_many_children_run_at_once():
    """Each with its own pipes, no thread, no mixing up."""
    threads = threading.active_count()
    all_of_them = await asyncio.gather(*(start(f"read x; echo {number} $x") for number in range(12)))
    assert threading.active_count() == threads
    for number, started in enumerate(all_of_them):
        started.child.stdin.write(b"%d\n" % (number * 7))
    for number, started in enumerate(all_of_them):
        await started.end()
        assert started.out.data == b"%d %d\n" % (number, number * 7)


async def test_paused_reading_delivers_nothing():
    """Nothing more is delivered until it is resumed."""
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


async def test_limits_apply_in_the_child():
    """As the shell sees them."""
    limits = rlimits.ResourceLimits(memory_bytes=100 << 20, open_files=40)
    started = await start("ulimit -n; ulimit -d; ulimit -c; umask", limits=limits)
    await started.end()
    assert started.out.data.split() == [b"40", b"%d" % (100 << 10), b"0", b"0077"]


async def test_the_child_is_never_root():
    """Never root; no groups; process 2 in a world of its own at isolated, where it may make more."""
    started = await start("id -u; id -G; echo $$; pwd")
    await started.end()
    uid, groups, pid, where = started.out.data.split(b"\n")[:4]
    expected = children.CHILD_UID if os.getuid() == 0 else os.getuid()
    assert int(uid) == expected
    assert (pid, where) == (b"2", b"/scratch")
    if os.getuid() == 0:
        assert groups == b"%d" % children.CHILD_UID


async def test_only_the_main_thread_starts_children():
    """A child is told to die with the thread that started it."""
    with children.spec_of("echo never") as spec, pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(launch.launch, spec, {})


async def test_the_childs_level_is_reported():
    """What the child runs with, for whoever shows it."""
    started = await start("read x", level="filtered")
    assert started.child.level is levels.Level.FILTERED
    assert started.child.pid in children.descendants(os.getpid())
    await started.child.stop(0)


@pytest.mark.parametrize("level", ["filtered", "isolated"])
async def test_only_bound_paths_can_be_read(level):
    """A further file at its own place, read-only."""
    script = "for f in /etc/passwd /etc/group; do read x < $f && echo read; (: >> $f) && echo written; done; exit 0"
    script = script.replace("(: >> $f)", "command eval ': >> $f'")
    started = await start(script, level=level, binds=("/etc/passwd",))
    await started.end()
    assert started.out.data == b"read\n"

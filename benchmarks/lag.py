"""The event loop's lag: how late a timer is that is due every few milliseconds, while the daemon is at work.

Beside it, in a process of its own, a loop that does nothing else: what the machine itself makes it late. What one
callback takes of the processor does not depend on other work at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Final

from benchmarks import rows, stream_readers
from benchmarks.bench import REPOSITORY, say
from benchmarks.host_calls import SETTINGS, call
from latticed import daemon
from tests.house import bundles, in_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from pathlib import Path

    from benchmarks.bench import Bench
    from tests.house.in_process import Home

EVERY_S: Final = 0.005
WORST_S: Final = 0.050
P99_S: Final = 0.005
STREAMS: Final = 32
CONCURRENT: Final = 8
LARGE_BYTES: Final = 64 << 20
AUTHOR: Final = bundles.author("acme", seed=b"lag".ljust(32, b"-"))
"""The same in each process of this bench."""


class Lag:
    """Lags since the last `take`, and the most CPU that one callback has taken since (`busiest_s`), in seconds."""

    def __init__(self) -> None:
        self._found: list[float] = []
        self.busiest_s = 0.0

    @contextlib.contextmanager
    def callbacks(self) -> Iterator[None]:
        """Measure each callback of the loop meanwhile."""
        real = asyncio.Handle._run

        def run(handle: asyncio.Handle) -> None:
            began_s = time.thread_time()
            real(handle)
            self.busiest_s = max(self.busiest_s, time.thread_time() - began_s)

        asyncio.Handle._run = run  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            asyncio.Handle._run = real  # type: ignore[method-assign]

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + EVERY_S
        while True:
            await asyncio.sleep(due_s - loop.time())
            now_s = loop.time()
            # Each of those that were due meanwhile was late, not the first alone.
            while due_s <= now_s:
                self._found.append(now_s - due_s)
                due_s += EVERY_S

    def take(self) -> list[float]:
        found, self._found, self.busiest_s = self._found, [], 0.0
        return found


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        return asyncio.run(_measure(place, bench))


async def _measure(place: Path, bench: Bench) -> list[rows.Row]:
    many, calls = bench.some(400, 60), bench.some(1_000_000, 20_000)
    found: list[rows.Row] = []
    async with in_process.opened(place, author=AUTHOR, toml=SETTINGS) as home, _beside() as beside:
        for number in range(many):
            home.drop(f"b{number:04}", id=f"acme.b{number:04}", capabilities=["kv:read", "kv:write"])
        for number in range(many):
            await home.seen(f"acme.b{number:04}")
        daemon._freeze_collector()
        lag = Lag()
        watch = asyncio.create_task(lag.watch())

        async def during(what: str, work: Awaitable[object]) -> None:
            say(f"LAG: {what}")
            await asyncio.sleep(0.2)  # what the work before has left to do
            await _told(beside)
            lag.take()
            with lag.callbacks():
                await work
            busiest_s = lag.busiest_s
            found.append(_row(what, lag.take(), await _told(beside), busiest_s))

        ids = [f"acme.b{number:04}" for number in range(many)]
        await during("nothing, 3 s", asyncio.sleep(3))
        await during(f"{many} installations", _decide(home, ids, "installed"))
        await during(f"{many} activations", _decide(home, ids, "active"))
        await during(f"a changed trust policy, {many} active plugins", _policy(home))
        instance = home.driven.only(ids[0])
        await instance.call("kv.put", key="a", value="1")
        await during(f"{calls:,} host calls", call(instance, calls))
        path = home.app.api.settings.control_socket
        for shown in (False, True):
            readers = stream_readers.reading(path, STREAMS, host_calls=shown)
            await asyncio.to_thread(readers.__enter__)
            try:
                what = "show host calls" if shown else "are idle"
                await during(f"{calls // 10:,} host calls, {STREAMS} streams that {what}", call(instance, calls // 10))
            finally:
                await asyncio.to_thread(readers.__exit__, None, None, None)
        await during("a 64 MiB artifact: dropped, installed, activated", _large(home))
        await during("a backup", _backup(home))
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    return found


async def _decide(home: Home, ids: list[str], status: str) -> None:
    waiting = iter(ids)

    async def one() -> None:
        for plugin_id in waiting:
            answer = await home.decide(plugin_id, status)
            assert answer.status == 200, answer

    await asyncio.gather(*(one() for _ in range(CONCURRENT)))


async def _policy(home: Home) -> None:
    api = home.app.api
    home.trust.write_bytes(bundles.policy_bytes(home.author, bundles.author("other")))
    before = api.catalog.counters["judged"]
    await asyncio.to_thread(api.policy.look, always=True)
    await api.lifecycle.policy_changed()
    await api.lifecycle.pairs.judged()
    await in_process.until(lambda: api.catalog.counters["judged"] > before, "judged again")


async def _large(home: Home) -> None:
    """The bundle is written by another process, as an author's is: to sign it takes its own interpreter's time."""
    script = (
        "import sys, pathlib; from tests.house import bundles; from benchmarks.lag import AUTHOR; "
        "bundles.drop(pathlib.Path(sys.argv[1]), 'large', author=AUTHOR, id='acme.large', "
        "artifact=b'#!/bin/sh\\n' + b'x' * int(sys.argv[2]))"
    )
    command = (sys.executable, "-c", script, str(home.plugin_dir), str(LARGE_BYTES - 100))
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY)
    assert await process.wait() == 0
    await home.armed("acme.large")


async def _backup(home: Home) -> None:
    async with home.session.get("http://latticed/api/backup") as answer:
        assert answer.status == 200
        async for _ in answer.content.iter_chunked(1 << 18):
            pass


@contextlib.asynccontextmanager
async def _beside() -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "benchmarks.lag")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, limit=1 << 26)
    try:
        await _told(process)
        yield process
    finally:
        process.kill()
        await process.wait()


async def _told(process: asyncio.subprocess.Process) -> list[float]:
    """The lags of the loop beside, since the last call."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    return list(json.loads(await process.stdout.readline()))


def _row(what: str, ours: list[float], bare: list[float], busiest_s: float) -> rows.Row:
    worst_s, p99_s = max(ours), rows.percentile(ours, 0.99)
    alone = f"worst {rows.seconds(max(bare))}, p99 {rows.seconds(rows.percentile(bare, 0.99))}"
    return rows.Row(
        target="LAG",
        what=what,
        ours=f"worst {rows.seconds(worst_s)}, p99 {rows.seconds(p99_s)}; a callback ≤ {rows.seconds(busiest_s)} of CPU",
        reference=f"{alone} of a bare loop beside",
        wanted=f"≤ {WORST_S * 1e3:.0f} ms, ≤ {P99_S * 1e3:.0f} ms",
        met=worst_s <= WORST_S and p99_s <= P99_S,
        samples={"ours": ours[:20_000], "reference": bare[:20_000]},
    )


async def _bare() -> None:
    """The loop beside: a line of lags for each line that it gets."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    lag = Lag()
    watch = asyncio.create_task(lag.watch())
    while await reader.readline():
        sys.stdout.write(json.dumps(lag.take()) + "\n")
        sys.stdout.flush()
    watch.cancel()


if __name__ == "__main__":
    asyncio.run(_bare())

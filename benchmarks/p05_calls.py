"""P5: a host call of a confined child in Python, recorded before it is answered, beside a bare echo and go-plugin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import living, processes, rows
from benchmarks.bench import Unavailable, say, system_python

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from benchmarks.bench import Bench

MAX_S: Final = 60e-6
PER_S: Final = 50_000
DEPTH: Final = 128
SETTINGS: Final = "[host_calls]\nper_second = 1000000\nburst = 1000000\nlog_per_second = 100000\n"
_CALLER: Final = Path(__file__).parent / "references" / "caller.py"
_GET: Final = {"method": "kv.get", "params": {"key": "a"}}
_WITH_SDK: Final = b"""#!/usr/bin/env python3
import time
from latticed.sdk import Plugin

class Calls(Plugin):
    def timed(self, call, count):
        began_s = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - began_s

    def do_get(self, count):
        self.kv.put("a", "1")
        kv = self.kv
        return self.timed(lambda: kv.get("a"), count)

    def do_log(self, count):
        log = self.log
        return self.timed(lambda: log.debug("a line"), count)

Calls().run()
"""


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(4_000, 500)
    with bench.scratch() as place, asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        opened = living.opened(place / "h", SETTINGS)
        home = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
        rights = {"capabilities": ["kv:read", "kv:write", "log:write"]}
        runner.run(home.activate("acme.sdk", _WITH_SDK, **rights))
        runner.run(home.activate("acme.raw", _CALLER.read_bytes(), **rights))
        bare = _echoing()
        echo = runner.run(bare.__aenter__())
        stack.callback(lambda: runner.run(bare.__aexit__(None, None, None)))

        def sdk(action: str) -> float:
            return float(runner.run(home.invoke("acme.sdk", action, count))) / count

        def raw(call: dict[str, Any], depth: int) -> float:
            many = count if depth == 1 else 5 * count
            asked = {**call, "count": many, "depth": depth}
            return float(runner.run(home.invoke("acme.raw", "calls", asked))) / many

        def echoed(depth: int) -> float:
            many = count if depth == 1 else 20 * count
            return runner.run(echo({**_GET, "count": many, "depth": depth})) / many

        for warm in ("get", "log"):  # the first calls load modules
            sdk(warm)
        raw(_GET, DEPTH), echoed(1)
        gets = rows.interleave(lambda: sdk("get"), lambda: echoed(1), count=bench.pairs)
        logs = rows.interleave(lambda: sdk("log"), lambda: echoed(1), count=bench.pairs)
        raws = rows.interleave(lambda: raw(_GET, 1), lambda: echoed(1), count=bench.pairs)
        deep = rows.interleave(lambda: raw(_GET, DEPTH), lambda: echoed(DEPTH), count=bench.pairs)
        where = home.sandbox
        go_rows = _beside_go(bench, lambda depth: raw(_GET, depth), (os.getpid(), home.runtime("acme.raw").pid), count)
    return [
        _alone(f"kv.get by the SDK in a child ({where}), recorded before it is answered", gets),
        _alone("log.write, the same", logs),
        _alone("kv.get by JSON-RPC itself, the same", raws, wanted_s=MAX_S),
        _pipelined(deep),
        *go_rows,
    ]


def _beside_go(bench: Bench, ours: Callable[[int], float], pids: tuple[int, ...], count: int) -> list[rows.Row]:
    """The same calls beside go-plugin's over gRPC. `ours` gives the seconds of one call; `pids` are both its ends."""
    try:
        program = bench.go_plugin()
    except Unavailable as missing:
        say(f"P5 beside go-plugin's published figures: {missing}")
        return [
            rows.Row(
                target="P5",
                what="a call of go-plugin over gRPC, not recorded; one alone, and many under way",
                ours="-",
                reference="82–112 µs, 40,000–77,000/s, as published",
            )
        ]
    found = []
    with _go_plugin(program) as (go, go_pids):
        for depth, each, what in ((1, count, "one alone"), (DEPTH, 20 * count, f"{DEPTH} under way")):
            mine, theirs = partial(ours, depth), partial(go, each, depth)
            theirs()  # the first calls open the connection
            took = rows.interleave(mine, theirs, count=bench.pairs)
            cpu = rows.interleave(partial(_cpu_s, pids, mine), partial(_cpu_s, go_pids, theirs), count=bench.pairs)
            found += [
                _beside_one(f"kv.get by JSON-RPC itself, {what}: time of each", took),
                _beside_one(f"kv.get by JSON-RPC itself, {what}: CPU of both ends for each", cpu),
            ]
    return found


def _cpu_s(pids: tuple[int, ...], run: Callable[[], float]) -> float:
    """Seconds of CPU that these processes took for each call, where `run` makes many and gives the seconds of each."""
    before_s, began_s = sum(map(processes.cpu_s, pids)), time.perf_counter()
    each_s = run()
    took_s = time.perf_counter() - began_s
    return (sum(map(processes.cpu_s, pids)) - before_s) / took_s * each_s


def _beside_one(what: str, pairs: rows.Pairs) -> rows.Row:
    ratio, met = rows.at_most(pairs, 1.0)
    return rows.Row(
        target="P5",
        what=what,
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} go-plugin over gRPC, not recorded",
        ratio=ratio,
        wanted="≤ 1×",
        met=met,
        samples=rows.samples(pairs),
    )


@contextlib.contextmanager
def _go_plugin(program: Path) -> Iterator[tuple[Callable[[int, int], float], tuple[int, int]]]:
    """A host of go-plugin's with its plugin; asked for so many calls at such a depth, it gives the seconds of one."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        writing, reading = process.stdin, process.stdout
        assert writing is not None
        assert reading is not None
        pid = int(reading.readline())

        def ask(count: int, depth: int) -> float:
            writing.write(f"{count} {depth}\n")
            return float(reading.readline()) / count

        try:
            yield ask, (process.pid, pid)
        finally:
            writing.close()


def _alone(what: str, pairs: rows.Pairs, *, wanted_s: float | None = None) -> rows.Row:
    return rows.Row(
        target="P5",
        what=what,
        ours=f"{rows.seconds(pairs.our_median)} ({rows.seconds(min(pairs.ours))}–{rows.seconds(max(pairs.ours))})",
        reference=f"{rows.seconds(pairs.their_median)} bare echo, not recorded",
        ratio=rows.spread(pairs.ratios),
        wanted=f"≤ {rows.seconds(wanted_s)}" if wanted_s is not None else "-",
        met=pairs.our_median <= wanted_s if wanted_s is not None else None,
        samples=rows.samples(pairs),
    )


def _pipelined(pairs: rows.Pairs) -> rows.Row:
    rate = 1 / pairs.our_median
    return rows.Row(
        target="P5",
        what=f"kv.get by JSON-RPC itself, {DEPTH} under way",
        ours=f"{rate:,.0f}/s",
        reference=f"{1 / pairs.their_median:,.0f}/s bare echo, not recorded",
        ratio=rows.spread(pairs.ratios),
        wanted=f"≥ {PER_S:,}/s",
        met=rate >= PER_S,
        samples=rows.samples(pairs),
    )


class _Echo(asyncio.Protocol):
    """Sends back whatever comes, until the answer to `invoke` comes."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.out: asyncio.WriteTransport | None = None

    def data_received(self, data: bytes) -> None:
        if b'"result"' in data:
            self.answers.put_nowait(data)
        elif self.out is not None:
            self.out.write(data)


@contextlib.asynccontextmanager
async def _echoing() -> AsyncIterator[Callable[[dict[str, Any]], Coroutine[Any, Any, float]]]:
    """The same caller, unconfined, on two pipes, before an asyncio.Protocol that echoes; asked, it gives seconds."""
    loop = asyncio.get_running_loop()
    with subprocess.Popen(
        [system_python(), "-ISEB", str(_CALLER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        reading, echo = await loop.connect_read_pipe(_Echo, process.stdout)
        echo.out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)

        async def ask(payload: dict[str, Any]) -> float:
            asked = {"jsonrpc": "2.0", "id": 1, "method": "invoke", "params": {"action": "", "payload": payload}}
            assert echo.out is not None
            echo.out.write(json.dumps(asked).encode() + b"\n")
            return float(json.loads(await echo.answers.get())["result"]["result"])

        try:
            yield ask
        finally:
            echo.out.close()
            reading.close()
            await asyncio.sleep(0)
            process.wait()

"""P7: the control socket, beside an aiohttp server that does nothing and beside supervisord's XML-RPC.

Health is also asked all the time while plugins are activated and while a changed trust policy has all judged again.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import daemon, many, processes, rows
from benchmarks.bench import REPOSITORY, say
from benchmarks.references import supervisord
from tests.house import bundles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.bench import Bench

BARE = Path(__file__).parent / "references" / "bare_aiohttp.py"
LISTED = 500
HEALTH = "/api/health"
CPU, FASTER = 1.45, 5.0
WORST_S = 0.050


def measure(bench: Bench) -> list[rows.Row]:
    requests = bench.some(2_000, 300)
    with bench.scratch() as place, contextlib.ExitStack() as stack:
        ours = stack.enter_context(daemon.running(_filled(bench, place)))
        bare = stack.enter_context(_bare(bench, place))
        theirs = stack.enter_context(_supervisord(bench, place))
        body = xmlrpc.client.dumps((), "supervisor.getState").encode()
        everything = xmlrpc.client.dumps((), "supervisor.getAllProcessInfo").encode()
        bare_pid, bare_client = bare

        def ask() -> bytes:
            return ours.client.ask("GET", HEALTH)

        cpu = rows.interleave(
            lambda: _cpu_each(ours.process.pid, ask, requests),
            lambda: _cpu_each(bare_pid, lambda: bare_client.ask("GET", "/"), requests),
            count=bench.pairs,
        )
        latency = rows.interleave(
            lambda: _each(ask, requests),
            lambda: _each(lambda: theirs.call_raw(body), requests // 4),
            count=bench.pairs,
        )
        listing = rows.interleave(
            lambda: _each(lambda: ours.client.ask("GET", "/api/plugins/lifecycle"), 10),
            lambda: _each(lambda: theirs.call_raw(everything), 2),
            count=bench.pairs,
        )
        many_active = bench.some(400, 60)
        activation = _while_activating(ours, bare_client, many_active)
        reload = _while_policy_changes(ours, place / "d" / "trust.json", bare_client)
    return [
        _cpu_row(cpu),
        _faster_row("GET /api/health, one client", latency, "getState", FASTER),
        _listing_row(listing),
        _worst_row(f"GET /api/health beside {many_active} activations", activation),
        _worst_row(f"GET /api/health beside a changed trust policy, {many_active} active plugins", reload),
    ]


def _while_activating(ours: daemon.Daemon, bare: processes.UnixHttp, count: int) -> list[tuple[float, float]]:
    """Install `count` plugins, then ask as `_asked` does while they are activated."""
    command = [sys.executable, "-m", "benchmarks.deciding", str(ours.client.path), str(count)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as clients:
        assert clients.stdout is not None
        for _ in ("installed", "active"):
            clients.stdout.readline()
        found = _asked(ours, bare, lambda: clients.poll() is not None)
    if clients.returncode:
        raise RuntimeError("the plugins could not be activated")
    return found


def _while_policy_changes(ours: daemon.Daemon, policy: Path, bare: processes.UnixHttp) -> list[tuple[float, float]]:
    """Have one more author trusted, and ask as `_asked` does until that is in effect."""
    policy.write_bytes(bundles.policy_bytes(many.AUTHOR, bundles.author("other")))
    command = [sys.executable, "-c", _UNTIL_IN_EFFECT, str(ours.client.path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as waiting:
        return _asked(ours, bare, lambda: waiting.poll() is not None)


_UNTIL_IN_EFFECT = """
import json, pathlib, sys, time
from benchmarks import processes
client = processes.UnixHttp(pathlib.Path(sys.argv[1]))
while len(json.loads(client.ask("GET", "/api/trust"))["publishers"]) < 2:
    time.sleep(0.05)
"""


def _asked(ours: daemon.Daemon, bare: processes.UnixHttp, over: Callable[[], bool]) -> list[tuple[float, float]]:
    """What one question for health took, and one to the bare server right after it, until it is over."""
    found: list[tuple[float, float]] = []
    while not over() or not found:
        found.append((_each(lambda: ours.client.ask("GET", HEALTH), 1), _each(lambda: bare.ask("GET", "/"), 1)))
    return found


def _worst_row(what: str, found: list[tuple[float, float]]) -> rows.Row:
    ours, bare = zip(*found, strict=True)
    p99_s = rows.percentile(list(ours), 0.99)
    return rows.Row(
        target="P7",
        what=what,
        ours=f"worst {rows.seconds(max(ours))}, p99 {rows.seconds(p99_s)} of {len(ours):,}",
        reference=f"worst {rows.seconds(max(bare))} bare aiohttp, in turn with it",
        wanted=f"≤ {WORST_S * 1e3:.0f} ms",
        met=max(ours) <= WORST_S,
    )


def _filled(bench: Bench, place: Path) -> daemon.Place:
    home = place / "d"
    home.mkdir()
    found = daemon.Place(home=home, programs=bench.ours())
    found.prepare()
    many.write(found.plugins, LISTED)
    return found


@contextlib.contextmanager
def _bare(bench: Bench, place: Path) -> Iterator[tuple[int, processes.UnixHttp]]:
    socket = place / "bare.sock"
    command = [str(bench.ours() / "python"), str(BARE), str(socket)]
    with processes.running(command, place / "bare.log") as process:
        processes.until(lambda: processes.accepts(socket) or process.poll() is not None, "the bare aiohttp server")
        with contextlib.closing(processes.UnixHttp(socket)) as client:
            yield process.pid, client


@contextlib.contextmanager
def _supervisord(bench: Bench, place: Path) -> Iterator[supervisord.Supervisord]:
    home = place / "s"
    supervisord.prepare(home)
    for number in range(LISTED):
        supervisord.program(home, f"p{number:05d}", autostart=False)
    say(f"P7: supervisord with {LISTED} programs")
    with supervisord.running(bench.supervisor(), home) as theirs:
        yield theirs


def _cpu_each(pid: int, ask: Callable[[], object], count: int) -> float:
    before_s = processes.cpu_s(pid)
    for _ in range(count):
        ask()
    return (processes.cpu_s(pid) - before_s) / count


def _each(ask: Callable[[], object], count: int) -> float:
    began_s = time.perf_counter()
    for _ in range(count):
        ask()
    return (time.perf_counter() - began_s) / count


def _cpu_row(pairs: rows.Pairs) -> rows.Row:
    ratio, met = rows.at_most(pairs, CPU)
    return rows.Row(
        target="P7",
        what="GET /api/health, the server's CPU for one",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} bare aiohttp",
        ratio=ratio,
        wanted=f"≤ {CPU:g}×",
        met=met,
        samples=rows.samples(pairs),
    )


def _faster_row(what: str, pairs: rows.Pairs, call: str, factor: float) -> rows.Row:
    ratio, met = rows.times_faster(pairs, factor)
    return rows.Row(
        target="P7",
        what=what,
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} supervisord {call}",
        ratio=ratio,
        wanted=f"≥ {factor:.0f}× faster",
        met=met,
        samples=rows.samples(pairs),
    )


def _listing_row(pairs: rows.Pairs) -> rows.Row:
    return _faster_row(f"listing {LISTED} plugins", pairs, "getAllProcessInfo", 20.0)

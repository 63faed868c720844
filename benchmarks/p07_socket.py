"""P7: the control socket, beside an aiohttp server that does nothing and beside supervisord's XML-RPC."""

from __future__ import annotations

import contextlib
import time
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import daemon, many, processes, rows
from benchmarks.bench import say
from benchmarks.references import supervisord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.bench import Bench

BARE = Path(__file__).parent / "references" / "bare_aiohttp.py"
LISTED = 500
HEALTH = "/api/health"
CPU, FASTER = 1.45, 5.0


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
    return [
        _cpu_row(cpu),
        _faster_row("GET /api/health, one client", latency, "getState", FASTER),
        _listing_row(listing),
    ]


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

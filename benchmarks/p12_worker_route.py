"""P12: a worker's route in the whole daemon, beside a bare aiohttp handler that answers the same."""

from __future__ import annotations

import contextlib
import socket
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import daemon, many, processes, rows
from benchmarks.bench import say
from tests.house import bundles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench

BARE: Final = Path(__file__).parent / "references" / "bare_route.py"
ROUTE, READER = "acme.route", "acme.reader"
TEMPLATES: Final = {ROUTE: b"hello {{path}}\n", READER: b"hello {{path}} {{kv:default/message}}\n"}
AT_ONCE: Final = 32
"""Requests that one connection sends before it reads their answers: the servers work, not the client."""
SETTINGS: Final = '[http]\nlisten = "127.0.0.1:0"\n[host_calls]\nper_second = 1000000\nburst = 1000000\n'


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(6_400, 640)
    with bench.scratch() as place, contextlib.ExitStack() as stack:
        home = daemon.Place(home=place, programs=bench.ours())
        home.prepare(SETTINGS)
        for plugin_id, template in TEMPLATES.items():
            _write(home.plugins / plugin_id, plugin_id, template)
        ours = stack.enter_context(daemon.running(home))
        port = _armed(ours)
        pid, bare_port = stack.enter_context(_bare(bench, place))
        mine, theirs = (stack.enter_context(_Pipe.to(each)) for each in (port, bare_port))
        one, other = (stack.enter_context(_client(each)) for each in (port, bare_port))
        rate = rows.interleave(
            lambda: mine.each_s(ROUTE, count), lambda: theirs.each_s(ROUTE, count), count=bench.pairs
        )
        cpu = rows.interleave(
            lambda: _cpu_each(ours.process.pid, mine, count),
            lambda: _cpu_each(pid, theirs, count),
            count=bench.pairs,
        )
        single = rows.interleave(
            lambda: _one_by_one(one, count // 4), lambda: _one_by_one(other, count // 4), count=bench.pairs
        )
        reading = [mine.each_s(READER, count // 10) for _ in range(bench.pairs)]
    return [
        _row(f"a worker's route, {AT_ONCE} requests at a time: requests/s", rate, promised=True),
        _row("... the server's CPU for one", cpu, promised=False),
        _row("... one request after the other", single, promised=False),
        rows.Row(
            target="P12",
            what="... with one value read through the Gate, on record before it is answered",
            ours=f"{1 / rows.percentile(reading, 0.5):,.0f}/s",
        ),
    ]


def _write(path: Path, plugin_id: str, template: bytes) -> None:
    raw = bundles.manifest_v1(
        id=plugin_id, name=plugin_id, type="worker", capabilities=["worker:route", "kv:read"], entrypoint=None
    )
    bundles.write(path, bundles.signed(raw, template, many.AUTHOR), template)


def _armed(ours: daemon.Daemon) -> int:
    """Activate both; the port at which their routes are served."""
    ours.client.ask("PUT", "/api/kv/default/message", b"world")
    messages = [_activated(ours, plugin_id) for plugin_id in TEMPLATES]
    say(f"P12: {', '.join(messages)}")
    return int(messages[0].rpartition(":")[2])


def _activated(ours: daemon.Daemon, plugin_id: str) -> str:
    processes.until(lambda: _knows(ours, plugin_id), f"{plugin_id} to be known", pause_s=0.02)
    ours.decide(plugin_id, "installed")
    return str(ours.decide(plugin_id, "active")["runtime"]["message"])


def _knows(ours: daemon.Daemon, plugin_id: str) -> bool:
    try:
        return bool(ours.get(f"/api/plugins/by-id/{plugin_id}")["plugin"]["available"])
    except RuntimeError:
        return False


@contextlib.contextmanager
def _bare(bench: Bench, place: Path) -> Iterator[tuple[int, int]]:
    log = place / "bare.log"
    with processes.running([str(bench.ours() / "python"), str(BARE)], log) as process:
        processes.until(lambda: log.read_bytes().endswith(b"\n") or process.poll() is not None, "the bare handler")
        yield process.pid, int(log.read_text())


class _Pipe:
    """One kept-alive connection that sends requests by the batch; an answer is known by the last line of its body."""

    def __init__(self, sock: socket.socket, port: int) -> None:
        self._sock = sock
        self._port = port

    @classmethod
    @contextlib.contextmanager
    def to(cls, port: int) -> Iterator[_Pipe]:
        with socket.create_connection(("127.0.0.1", port), timeout=30.0) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield cls(sock, port)

    def each_s(self, plugin_id: str, count: int) -> float:
        """Seconds for one request; RuntimeError when an answer is not 200."""
        path = f"/{plugin_id}/some/path"
        batch = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode() * AT_ONCE
        began_s = time.perf_counter()
        for _ in range(count // AT_ONCE):
            self._sock.sendall(batch)
            received = b""
            while received.count(f"\r\n\r\nhello {path}".encode()) < AT_ONCE or not received.endswith(b"\n"):
                part = self._sock.recv(1 << 18)
                if not part or b"HTTP/1.1 4" in part or b"HTTP/1.1 5" in part:
                    raise RuntimeError(f"expected 200, found {part[:300]!r}")
                received += part
        return (time.perf_counter() - began_s) / (count // AT_ONCE * AT_ONCE)


@contextlib.contextmanager
def _client(port: int) -> Iterator[HTTPConnection]:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30.0)) as client:
        yield client


def _one_by_one(client: HTTPConnection, count: int) -> float:
    began_s = time.perf_counter()
    for _ in range(count):
        client.request("GET", f"/{ROUTE}/some/path")
        client.getresponse().read()
    return (time.perf_counter() - began_s) / count


def _cpu_each(pid: int, pipe: _Pipe, count: int) -> float:
    before_s = processes.cpu_s(pid)
    pipe.each_s(ROUTE, count)
    return (processes.cpu_s(pid) - before_s) / count


def _row(what: str, pairs: rows.Pairs, *, promised: bool) -> rows.Row:
    """Both as rates, so that the ratio is ours by theirs."""
    ratio, met = rows.times_faster(pairs, 0.95)
    return rows.Row(
        target="P12",
        what=what,
        ours=f"{1 / pairs.our_median:,.0f}/s" if "CPU" not in what else rows.seconds(pairs.our_median),
        reference=(f"{1 / pairs.their_median:,.0f}/s" if "CPU" not in what else rows.seconds(pairs.their_median))
        + " bare aiohttp",
        ratio=ratio,
        wanted="≥ 0.95×" if promised else "-",
        met=met if promised else None,
        samples=rows.samples(pairs),
    )

"""NGINX: a site of nginx changed until it is served and that is proved, beside a bare `nginx -t` and reload.

Ours checks, renders, validates, writes and syncs a generation, has nginx read it, and proves by an answer of the new
workers and by its listeners that it did. The bare one edits a file, and waits for the first new answer, as it must.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final

from benchmarks import rows
from benchmarks.bench import Unavailable
from latticed.plans.nginx import NginxKind, place
from latticed.plans.programs import ProgramTools
from latticed.settings.programs import NginxSettings
from latticed.settings.shapes import HttpSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from benchmarks.bench import Bench

NGINX: Final = "/usr/sbin/nginx"
SITES: Final = 20
MANY: Final = 1_000
STATUSES: Final = (403, 404, 410)


def measure(bench: Bench) -> list[rows.Row]:
    if shutil.which(NGINX) is None:
        raise Unavailable("there is no nginx (package nginx-light)")
    with bench.scratch() as scratch, contextlib.ExitStack() as stack:
        # Workers of both run as nobody else: the directory is ours alone.
        settings = NginxSettings(directory=str(scratch / "ours"), user="root")
        kind = NginxKind(place(settings, HttpSettings()))
        tools = ProgramTools(kind.programs)
        ours, theirs = _ports()
        stack.callback(kind.restore, b"", tools)
        bare = stack.enter_context(_bare(scratch / "bare", theirs))
        turn = 0

        def changed() -> float:
            nonlocal turn
            turn += 1
            intent = _intent(SITES, ours, STATUSES[turn % 3])
            began = time.perf_counter()
            live = kind.observe(tools)
            assert kind.check(intent, live, "") == ()
            rendering = kind.render(intent, live, {})
            kind.validate(rendering, tools)
            kind.commit(rendering, tools)
            kind.self_check(rendering, tools)
            return time.perf_counter() - began

        def reloaded() -> float:
            nonlocal turn
            turn += 1
            began = time.perf_counter()
            bare.change(STATUSES[turn % 3])
            return time.perf_counter() - began

        changed(), reloaded()
        pairs = rows.interleave(changed, reloaded, count=bench.pairs)
        many = _intent(MANY, ours, 410)
        large = []
        for _ in range(bench.pairs):
            began = time.perf_counter()
            assert kind.check(many, None, "") == ()
            kind.render(many, None, {})
            large.append(time.perf_counter() - began)
    ratio = rows.spread(pairs.ratios)
    median = sorted(large)[len(large) // 2]
    return [
        rows.Row(
            target="NGINX",
            what=f"one of {SITES} sites of nginx changed, until it is served and that is proved",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} nginx -t, SIGHUP",
            ratio=ratio,
            samples=rows.samples(pairs),
        ),
        rows.Row(
            target="NGINX",
            what=f"an intent of {MANY} sites checked and rendered",
            ours=rows.seconds(median),
            wanted="≤ 1 s",
            met=median <= 1,
        ),
    ]


def _intent(sites: int, ports: tuple[int, int], status: int) -> dict[str, Any]:
    """Sites, of which the first one answers with `status`."""
    made = [{"name": f"s{index}", "domains": [f"s{index}.example.org"], "answer": 403} for index in range(sites)]
    made[0]["answer"] = status
    return {"listen": {"addresses": ["127.0.0.1"], "http": ports[0], "https": ports[1]}, "sites": made}


class _Bare:
    """An nginx that somebody wrote the same sites for."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self._port = port

    def write(self, status: int) -> None:
        for index in range(SITES):
            text = f"server {{ listen 127.0.0.1:{self._port}; server_name s{index}.example.org; return "
            (self.directory / f"s{index}.conf").write_text(f"{text}{403 if index else status}; }}\n", encoding="ascii")

    def change(self, status: int) -> None:
        """Write, check, reload, and wait until it is served."""
        self.write(status)
        subprocess.run([*self.command(), "-t", "-q"], check=True)
        pid = int((self.directory / "nginx.pid").read_text(encoding="ascii"))
        subprocess.run(["/usr/bin/kill", f"-{signal.SIGHUP}", str(pid)], check=True)
        while _status(self._port) != status:
            time.sleep(0.002)

    def command(self) -> list[str]:
        return [NGINX, "-e", "/dev/null", "-c", str(self.directory / "nginx.conf")]


@contextlib.contextmanager
def _bare(directory: Path, ports: tuple[int, int]) -> Iterator[_Bare]:
    directory.mkdir()
    made = _Bare(directory, ports[0])
    temporary = "".join(
        f"{one}_temp_path {directory}/{one};" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"user root; worker_processes auto; pid {directory}/nginx.pid; error_log /dev/null; events {{}}\n"
        f"http {{ access_log off; {temporary} include {directory}/s*.conf; }}\n",
        encoding="ascii",
    )
    made.write(403)
    with subprocess.Popen([*made.command(), "-g", "daemon off;"]) as child:
        try:
            while not (directory / "nginx.pid").exists() or _status(ports[0]) != 403:
                time.sleep(0.01)
            yield made
        finally:
            child.terminate()


def _status(port: int) -> int:
    """What the first site answers with, 0 for nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/", headers={"Host": "s0.example.org"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _ports() -> tuple[tuple[int, int], tuple[int, int]]:
    """Two pairs of ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(4)]
        return (found[0], found[1]), (found[2], found[3])

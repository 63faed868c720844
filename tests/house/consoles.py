"""`latticectl ui` as a process of the daemon's user on a terminal of its own, and a client that is no browser.

with consoles.running(daemon, "--act") as console:
    console.enter()
    assert "acme.demo" in console.get("/").text
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.house import api_server, daemons, processes
from tests.house.daemons import Daemon

_LINK = re.compile(rb"(http://127\.0\.0\.1:\d+/[\w-]+/open/[\w-]+)\r?\n")


@dataclass(frozen=True)
class Seen:
    """An answer."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass
class RunningConsole:
    """One process. `cookie`: what a browser would send; `link` was not opened yet."""

    process: subprocess.Popen[bytes]
    link: str
    cookie: str = ""
    refused: list[Seen] = field(default_factory=list)

    @property
    def origin(self) -> str:
        split = urlsplit(self.link)
        return f"{split.scheme}://{split.netloc}"

    @property
    def base(self) -> str:
        return "/" + urlsplit(self.link).path.split("/")[1]

    def enter(self) -> Seen:
        """Open the link, and keep the cookie."""
        seen = self.ask("GET", urlsplit(self.link).path)
        self.cookie = seen.headers.get("set-cookie", "").split(";")[0]
        return seen

    def get(self, path: str, **headers: str) -> Seen:
        """A page, `path` below the random one."""
        return self.ask("GET", self.base + path, headers={"Cookie": self.cookie, **headers})

    def post(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> Seen:
        """A form, as the console's own page sends it."""
        usual = {"Cookie": self.cookie, "Origin": self.origin, "Content-Type": "application/x-www-form-urlencoded"}
        return self.ask("POST", self.base + path, urlencode(fields or {}), {**usual, **headers})

    def ask(self, method: str, target: str, body: str | None = None, headers: dict[str, str] | None = None) -> Seen:
        """Any request, with `Host` as a browser has it unless `headers` say otherwise; an empty one is left out."""
        wanted = {"Host": urlsplit(self.link).netloc, **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(self.link).port, timeout=processes.PATIENCE_S)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in wanted.items():
                if value:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body.encode() if body else None)
            answer = connection.getresponse()
            text = answer.read().decode()
        return Seen(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)


@contextlib.contextmanager
def running(daemon: Daemon, *options: str, operator: Path | None = None) -> Iterator[RunningConsole]:
    """A console of the daemon, ended by Ctrl-C on its terminal; of the daemon's user, or of root with the settings
    `operator`.
    """
    place = daemon.place
    ours, theirs = pty.openpty()
    errors = place.home.parent / f"console-{theirs}.err"
    errors.touch()
    try:
        rest = ("--config", str(operator)) if operator else ()
        command = daemon.ctl_command("ui", *options, *rest)
        user = None if operator else place.user
        with processes.spawned(command, user=user, env=place.environment(), stdout=theirs, stderr=errors) as process:
            yield RunningConsole(process, _link(ours, process, errors.read_text))
            process.send_signal(2)
            assert process.wait(processes.PATIENCE_S) == 0, errors.read_text()
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def simulated(*options: str) -> Iterator[tuple[api_server.Api, RunningConsole]]:
    """A console of a daemon of ours that can answer as no real one does."""
    with daemons.placed() as place, api_server.serving(place.socket) as api:
        place.own(place.socket)
        command = [*place.python(), "-m", "latticed.ctl.main", "--socket", str(place.socket)]
        asking: Any = SimpleNamespace(place=place, ctl_command=lambda *words: [*command, *words])
        with running(asking, *options) as console:
            yield api, console


@contextlib.contextmanager
def listening(console: RunningConsole) -> Iterator[http.client.HTTPResponse]:
    """The event stream of an open tab, after its first line."""
    port = urlsplit(console.link).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=processes.PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", f"{console.base}/live", headers={"Cookie": console.cookie})
        stream = connection.getresponse()
        assert stream.readline().startswith(b"retry:")
        yield stream


def _link(terminal: int, process: subprocess.Popen[bytes], errors) -> str:
    """The link, once it is on the terminal."""
    os.set_blocking(terminal, False)
    said = b""

    def printed() -> bytes | None:
        nonlocal said
        assert process.poll() is None, errors()
        with contextlib.suppress(BlockingIOError, OSError):
            said += os.read(terminal, 4096)
        found = _LINK.search(said)
        return found[1] if found else None

    return processes.until(printed, what="a link on the terminal").decode()

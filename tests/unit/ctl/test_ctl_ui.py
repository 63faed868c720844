"""latticectl ui: that it starts, on each Python, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from latticed.client import control
from latticed.client.control import ControlClient
from latticed.ctl import ui
from latticed.ctl.session import CtlSession
from latticed.model.errors import Problem
from tests.house import api_server, processes

SCRIPT = "import sys; sys.modules[sys.argv.pop(1)] = None; from latticed.ctl.main import main; sys.exit(main())"


@pytest.mark.parametrize("package", ["jinja2", "markupsafe"])
def test_without_its_extra_it_names_the_package(package: str):
    command = [sys.executable, "-P", "-c", SCRIPT, package, "ui"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "pip install 'latticed[ui]'" in ran.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "/run/console/http.sock"], "--origin"),
        (["--origin", "http://plugins.example.org"], "https"),
        (["--listen", "127.0.0.1"], "127.0.0.1:PORT"),
    ],
)
def test_what_it_cannot_serve_is_a_usage_error(options: list[str], said: str):
    command = [sys.executable, "-P", "-m", "latticed.ctl.main", "ui", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, said in ran.stderr) == (2, True), ran


@pytest.mark.parametrize("at", ["127.0.0.1:0", "http.sock"])
def test_it_opens_its_link_and_ends_without_a_trace(tmp_path: Path, at: str):
    """No daemon is asked before a page is."""
    links, listen = tmp_path / "link.sock", at if ":" in at else str(tmp_path / at)
    asking = [sys.executable, "-P", "-m", "latticed.ctl.main", "ui"]
    options = ["--listen", listen, "--link-socket", str(links), "--origin", "https://plugins.example.org"]
    with (tmp_path / "said").open("wb") as said, processes.spawned([*asking, *options], stderr=said) as console:
        processes.until(lambda: links.exists() or console.poll() is not None, what="the socket of links")
        told = subprocess.run(
            [*asking, "link", "--link-socket", str(links)], capture_output=True, text=True, check=False
        )
        assert told.stdout.startswith("https://plugins.example.org/"), (told, (tmp_path / "said").read_text())
        if ":" not in at:
            with socket.socket(socket.AF_UNIX) as wire:
                wire.settimeout(processes.PATIENCE_S)
                wire.connect(listen)
                path = urlsplit(told.stdout.strip()).path
                wire.sendall(f"GET {path} HTTP/1.1\r\nHost: plugins.example.org\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: wire.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 303 ")
            assert b"; HttpOnly; SameSite=Strict; Secure\r\n" in answer
        console.terminate()
        assert console.wait(processes.PATIENCE_S) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["said"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to give directories to others")
def test_its_socket_has_the_group_that_the_directory_gives_it(tmp_path: Path):
    """By `chmod g+s`: a proxy of that group may connect, and nobody else."""
    place = tmp_path / "console"
    place.mkdir()
    os.chown(place, 0, processes.STRANGER.gid)
    place.chmod(0o2750)
    links, listen = tmp_path / "link.sock", place / "http.sock"
    options = ["--listen", str(listen), "--link-socket", str(links), "--origin", "https://plugins.example.org"]
    with processes.spawned([sys.executable, "-P", "-m", "latticed.ctl.main", "ui", *options]) as console:
        processes.until(lambda: links.exists() or console.poll() is not None, what="the socket of links")
        found = listen.stat()
        assert (found.st_gid, found.st_mode & 0o777) == (processes.STRANGER.gid, 0o660)
        console.terminate()
        assert console.wait(processes.PATIENCE_S) == 0


@pytest.mark.parametrize("name", ["gone", "back", "denied"])
def test_a_name_of_a_plugin_is_not_taken_for_the_daemon_s_own_state(name: str):
    """A plugin names its monitors, which are what their events are about."""
    assert ui._target(json.dumps({"target": name})) == ""
    assert ui._target(json.dumps({"target": "acme.demo"})) == "acme.demo"


@pytest.mark.parametrize(("action", "target"), [("monitor.alert", "front door"), ("ddns.update", "home.example.org")])
def test_what_a_plugin_keeps_going_is_told_to_the_page_of_the_plugin(action: str, target: str):
    """Its events have the name of the monitor or record as their target."""
    event = {"actor": "plugin:acme.demo", "action": action, "target": target}
    assert ui._target(json.dumps(event)) == "acme.demo"
    assert ui._target(json.dumps({**event, "actor": "latticed", "target": "acme.other"})) == "acme.other"


@dataclass
class _Held(api_server.Api):
    """A daemon that answers a POST when it is told to."""

    go: threading.Event = field(default_factory=threading.Event)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> api_server.Answer:
        if method == "POST":
            self.go.wait(processes.PATIENCE_S)
            return 200, {"ok": True}
        return super().answer(method, path, query, body)


@pytest.mark.parametrize(
    "parts", [("market", "install"), ("market", "refresh"), ("plugins", "by-id", "acme.demo", "invoke")]
)
def test_what_takes_minutes_is_waited_for_as_latticectl_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...]
):
    """Longer than for a page, here until one has been given up that was asked for afterwards."""
    monkeypatch.setattr(control, "READ_S", 0.2)
    with api_server.serving(tmp_path / "api.sock", _Held) as api, ThreadPoolExecutor(1) as threads:
        session = CtlSession(args=Namespace(socket=str(api.socket)), screen=None, environ={})  # type: ignore[arg-type]
        caller = ui._Caller(session)
        act = threads.submit(caller.ask, "POST", parts, {}, {})
        api.until_asked(1)
        try:
            with pytest.raises(Problem, match="unreachable"):
                caller.ask("GET", ("status",), {}, {})
        finally:
            api.go.set()
        assert act.result() == {"ok": True}


def _changes(api: api_server.Api, *wanted: bool) -> list[str]:
    """What the console hears when it is wanted before so many attempts."""
    session: Any = SimpleNamespace(client=lambda: ControlClient(str(api.socket)))
    return list(ui._Caller(session).changes(iter(wanted).__next__))


def test_events_that_are_refused_are_asked_for_once(tmp_path: Path):
    """Each attempt is a refusal on record."""
    with api_server.serving(tmp_path / "api.sock") as api:
        api.streams = [api_server.problem(403, "access_denied")] * 9
        assert _changes(api, *[True] * 9) == ["denied"]
        assert api.asked == ["GET /api/events"]


def test_events_are_not_asked_for_again_while_no_page_wants_them(tmp_path: Path):
    """A stream that ends is followed by the next one only where somebody listens."""
    with api_server.serving(tmp_path / "api.sock") as api:
        assert _changes(api, True, True, False) == ["back", "back"]
        assert api.asked == ["GET /api/events"] * 2


def test_a_daemon_that_is_not_there_is_told_of_once(tmp_path: Path):
    nobody: Any = SimpleNamespace(socket=tmp_path / "api.sock")
    assert _changes(nobody, True, True, False) == ["gone"]

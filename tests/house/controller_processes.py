"""The program latticed-controller as a process, asked over its socket.

with controller_processes.placed(servers, place, operator=operator) as made:
    made.start()
    made.post("fleet", "rollouts", {"intent": intent})
    made.kill()
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.house import nats_servers, processes
from tests.house.fleet_controllers import Operator

_PROGRAM = """
import sys
from latticed.fleet.controller import leader, lease, process, running
made = running.RunningController
periods = leader.ControllerPeriods(
    tick_s=0.1, renew_s=1.0, assert_s=1.0, turn_s=1.0, thin_s=0.5, shared_s=0.3, present_s=0.3
)
words = lease.LeasePeriods(ttl_s=2, renew_s=0.4, margin_s=0.5, look_s=0.2)
from latticed.model.restart import Backoff
quick = Backoff(base_s=0.05, ceiling_s=0.2, jitter=1.0)
process.RunningController = lambda found: made(found, periods=periods, lease=words, pauses=quick)
sys.exit(process.main(sys.argv[1:]))
"""
"""The program with shorter periods."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ControllerProcess:
    """One controller with its settings file; `start` after `kill` or `stop` goes on with its state."""

    def __init__(
        self, servers: nats_servers.Fleet, place: Path, *, operator: Operator, name: str = "c1", more: str = ""
    ) -> None:
        self.name, self.place, self.operator = name, place, operator
        self.state = place / f"state-{name}"
        self.socket = place / f"run-{name}/control.sock"
        self.config: Path | None = place / f"{name}.toml"
        self.environment = {"PYTHONDONTWRITEBYTECODE": "1"}
        self.log = place / f"{name}.log"
        urls = json.dumps(list(servers.urls))
        self.config.write_text(
            f"""
fleet = "{operator.fleet}"
controller = "{name}"
operators = ["{operator.public}"]
state_dir = "{self.state}"
runtime_dir = "{self.socket.parent}"
key = "{place}/no-key"
[engine]
servers = {urls}
ca = "{servers.ca}"
credentials = "{servers.controller}"
nodes = {servers.sizes.nodes}
bundles_bytes = {servers.sizes.bundles_bytes}
[rollout]
sizes = [2, 3, 10]
settle_s = 0
patience_s = 60
{more}
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Returns once it listens."""
        self.launch(*options)
        processes_deadline = time.monotonic() + processes.PATIENCE_S
        while not self._answers():
            assert self.process is not None
            assert self.process.poll() is None, self.said
            assert time.monotonic() < processes_deadline, self.said
            time.sleep(0.02)

    def launch(self, *options: str) -> None:
        named = ("--config", self.config) if self.config is not None else ()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *named, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/api/health")[0] == 200
        except OSError:
            return False

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Status and answer, JSON decoded where it is."""
        connection = _UnixConnection(str(self.socket), 60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        kind = answer.headers.get_content_type()
        return answer.status, json.loads(data) if kind in {"application/json", "application/problem+json"} else data

    def get(self, *parts: str) -> Any:
        status, answer = self.ask("GET", "/api/" + "/".join(parts))
        assert status == 200, answer
        return answer

    def post(self, path: str, body: dict[str, Any] | bytes) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = self.ask("POST", f"/api/fleet/{path}", data)
        assert status == 200, answer
        return answer

    def certified(self) -> None:
        """Have an operator certify its key."""
        key = self.get("fleet")["certificate"]["key"]
        self.post("documents", self.operator.controller(key, self.name))

    def until(self, wanted: Callable[[], object], what: str = "") -> None:
        deadline = time.monotonic() + processes.PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, f"{what}\n{self.said}"
            time.sleep(0.02)

    def leads(self) -> None:
        self.until(lambda: self.get("fleet")["leader"], "to lead")

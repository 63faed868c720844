"""latticed as a process, installed from a wheel, in directories of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import many, processes
from benchmarks.bench import REPOSITORY

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

QUIET_S = 0.02
_WITH_BUILTINS = REPOSITORY / "tests" / "house" / "builtin_daemon.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The directories of one daemon; `programs` is where latticed and latticectl are installed.

    `builtins`: which built-in plugins of the tests it brings (tests/house/system/registry.py); none, its own.
    """

    home: Path
    programs: Path
    builtins: str = ""

    @property
    def plugins(self) -> Path:
        return self.home / "plugins"

    @property
    def socket(self) -> Path:
        return self.home / "run" / "control.sock"

    def prepare(self, settings: str = "") -> None:
        """Settings, an empty plugin directory and a policy that trusts the author of `many`."""
        self.plugins.mkdir(exist_ok=True)
        (self.home / "trust.json").write_bytes(many.policy())
        paths = {"plugin_dir": "plugins", "state_dir": "state", "runtime_dir": "run", "trust": "trust.json"}
        lines = [f'{key} = "{self.home / name}"' for key, name in paths.items()]
        (self.home / "latticed.toml").write_text("\n".join([*lines, settings, ""]))

    def command(self) -> list[str]:
        options = ["--config", str(self.home / "latticed.toml")]
        if self.builtins:
            return [str(self.programs / "python"), str(_WITH_BUILTINS), self.builtins, "", *options]
        return [str(self.programs / "latticed"), *options]


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One that has said READY=1, `start_s` seconds after it was started."""

    process: subprocess.Popen[bytes]
    client: processes.UnixHttp
    start_s: float

    def get(self, path: str) -> Any:
        return json.loads(self.client.ask("GET", path))

    def decide(self, plugin_id: str, status: str) -> Any:
        body = json.dumps({"id": plugin_id, "status": status}).encode()
        return json.loads(self.client.ask("POST", "/api/plugins/lifecycle", body))


@contextlib.contextmanager
def running(place: Place) -> Iterator[Daemon]:
    """The daemon from its start to its end, heard through NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(f"\0latticed-bench-{time.monotonic_ns()}")
        notices.settimeout(processes.START_S)
        env = {"NOTIFY_SOCKET": "@" + notices.getsockname()[1:].decode()}
        log = place.home / "log.json"
        began_s = time.perf_counter()
        with processes.running(place.command(), log, env=env) as process:
            try:
                while "READY=1" not in notices.recv(4096).decode().splitlines():
                    pass
            except TimeoutError as error:
                raise RuntimeError(f"latticed never became ready:\n{log.read_text()[-4000:]}") from error
            start_s = time.perf_counter() - began_s
            client = processes.UnixHttp(place.socket)
            with contextlib.closing(client):
                yield Daemon(process=process, client=client, start_s=start_s)

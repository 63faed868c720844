"""The real daemon as a process with its own directories and uid: waits for READY=1, ends it by pid.

with daemons.placed() as place:
    place.trust_us(acme)
    with place.running() as daemon:
        assert daemon.get("/api/health").status == 200
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.house import builtin_daemon, bundles, processes, raw_http, turns

START_S = processes.PATIENCE_S
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_numbers = itertools.count()
_ACTIVATED = (
    "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3);"
    " os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass
class Place:
    """The directories and settings of one daemon; they belong to `user` (None: whoever runs the tests).

    `env` adds to its environment, `descriptors` is the most it may have open, `before` comes before its command;
    `probed` measures the turns of its loop. `builtins` are (a name of `system.registry.SETS`, its version; empty: its
    own): a test's daemon brings none unless it says so, and counts its own plugins. `()`: as latticed is started.
    """

    home: Path
    user: processes.User | None
    env: dict[str, str] = field(default_factory=dict)
    descriptors: int | None = None
    before: tuple[str, ...] = ()
    probed: bool = False
    builtins: tuple[str, str] | tuple[()] = ("none", "")

    @property
    def plugins(self) -> Path:
        return self.home / "plugins"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def trust(self) -> Path:
        return self.home / "trust.json"

    @property
    def config(self) -> Path:
        return self.home / "latticed.toml"

    @property
    def uid(self) -> int:
        return self.user.uid if self.user else os.getuid()

    def own(self, path: Path) -> Path:
        """Give `path` to the daemon's user."""
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)
        return path

    def trust_us(self, *authors: bundles.Author, **fields: Any) -> None:
        """Write a policy that trusts `authors`, in one rename."""
        self.write(self.trust, bundles.policy_bytes(*authors, **fields))

    def write(self, path: Path, data: bytes) -> None:
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_bytes(data)
        self.own(fresh).rename(path)

    def set(self, text: str = "") -> None:
        """Write the settings: the directories, fast settling, and `text`."""
        lines = [f'plugin_dir = "{self.plugins}"', f'state_dir = "{self.state}"', f'runtime_dir = "{self.run}"']
        self.write(self.config, "\n".join([*lines, text, ""]).encode())

    def drop(self, name: str = "demo", **fields: Any) -> bundles.Bundle:
        return bundles.drop(self.plugins, name, **fields)

    def python(self) -> list[str]:
        return [processes.reachable_python() if self.user else sys.executable, "-P"]

    def command(self, *arguments: str) -> list[str]:
        program = [builtin_daemon.__file__, *self.builtins] if self.builtins else ["-m", "latticed.daemon"]
        return [*self.python(), *program, *self.arguments(*arguments)]

    def arguments(self, *more: str) -> list[str]:
        return ["--config", str(self.config), *more]

    def environment(self) -> dict[str, str]:
        plain = {"PATH": _PATH, "HOME": str(self.home), "LANG": "C.UTF-8"}
        return {**plain, "LATTICED_SOCKET": str(self.socket), **self.env}

    def once(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run latticed to its end."""
        return self.ran(self.command(*arguments))

    def ran(self, command: list[str], *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A program run to its end as the daemon's user."""
        ids = {"user": self.user.uid, "group": self.user.gid, "extra_groups": []} if self.user else {}
        return subprocess.run(
            command,
            input=stdin,
            env=self.environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
            **ids,
        )

    @contextlib.contextmanager
    def running(
        self,
        *,
        listener: socket.socket | None = None,
        ready: bool = True,
        output: int | None = None,
        options: tuple[str, ...] = (),
    ) -> Iterator[Daemon]:
        """A daemon that has said READY=1; with `listener`, socket-activated. Ended when the block is.

        It writes into a log file, or on the descriptor `output`, which nobody reads unless the test does.
        """
        number = next(_numbers)
        name = f"@latticed-test-{os.getpid()}-{number}"
        log = self.home.parent / f"log-{number}.json"
        command, passed = [*self.before, *self.command(*options)], ()
        report = turns.Turns(self.home.parent / f"turns-{number}") if self.probed else None
        if report is not None:
            for path in turns.prepare(report.path):
                self.own(path)
            program = [*self.python(), turns.__file__, str(report.path)]
            command = [*self.before, *program, *self.arguments(*options)]
        if self.descriptors is not None:
            command = ["/bin/sh", "-c", f'ulimit -n {self.descriptors}; exec "$@"', "sh", *command]
        if listener is not None:
            command = [self.python()[0], "-c", _ACTIVATED, str(listener.fileno()), *command]
            passed = (listener.fileno(),)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind("\0" + name[1:])
            env = {**self.environment(), "NOTIFY_SOCKET": name}
            out, err = (log, log.with_suffix(".err")) if output is None else (output, output)
            for path in (log, log.with_suffix(".err")):
                path.touch()
            with processes.spawned(
                command, user=self.user, env=env, pass_fds=passed, stdout=out, stderr=err
            ) as process:
                daemon = Daemon(place=self, process=process, notices=notices, log_file=log, report=report)
                if ready:
                    daemon.expect_notice("READY=1")
                    if report is not None:
                        daemon.get("/api/health")  # the long turn that said so is over
                yield daemon


@dataclass
class Daemon:
    """One running process, and ways to talk to it."""

    place: Place
    process: subprocess.Popen[bytes]
    notices: socket.socket
    log_file: Path
    heard: list[str] = field(default_factory=list)
    report: turns.Turns | None = None

    # What it says.

    def expect_notice(self, wanted: str, *, deadline_s: float = START_S) -> str:
        """Wait for an sd_notify datagram that has the line `wanted`."""
        deadline = time.monotonic() + deadline_s
        self.notices.settimeout(0.2)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                self.heard.append(self.notices.recv(4096).decode())
                if wanted in self.heard[-1].splitlines():
                    return self.heard[-1]
                continue
            if self.process.poll() is not None:
                pytest.fail(f"latticed ended with {self.process.returncode} before {wanted}:\n{self.complaints()}")
        pytest.fail(f"no {wanted} within {deadline_s:g} s, heard {self.heard}\n{self.complaints()}")

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Log entries so far; every line must be JSON. One that is being written is left out."""
        lines = self.log_file.read_text().split("\n")[:-1]
        whole = [json.loads(line) for line in lines if line]
        return [entry for entry in whole if event is None or entry["event"] == event]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Entries of `event`, once there are any: a log line may come a little after what it tells of."""
        return processes.until(lambda: self.log(event), what=f"{event} in the log")

    def complaints(self) -> str:
        return self.log_file.read_text()[-4000:] + self.log_file.with_suffix(".err").read_text()[-4000:]

    def memory_kib(self, *, peak: bool = False) -> int:
        """The daemon's resident memory, now or at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0])

    @property
    def turns(self) -> turns.Turns:
        """The cost of the turns of its event loop; its place must be `probed`."""
        assert self.report is not None, "expected a place with probed=True"
        return self.report

    # What is asked of it.

    def ask(self, method: str, path: str, body: Any = None, *, user: processes.User | None = None) -> raw_http.Answer:
        """One request; `body` as JSON unless it is bytes. `user` asks under other ids than this process's."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if user is None:
            return raw_http.ask(self.place.socket, method, path, data)
        command = [processes.reachable_python(), "-I", "-", str(self.place.socket), method, path, data.decode()]
        ran = subprocess.run(
            command,
            input=Path(raw_http.__file__).read_bytes(),
            capture_output=True,
            check=True,
            timeout=START_S,
            user=user.uid,
            group=user.gid,
            extra_groups=list(user.groups),
            cwd="/",
        )
        status, headers, text = json.loads(ran.stdout)
        return raw_http.Answer(status, headers, text.encode("latin-1"))

    def ask_raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> raw_http.Answer:
        """One request with `headers` besides the usual ones."""
        return raw_http.ask(self.place.socket, method, path, body, **headers)

    def get(self, path: str, **options: Any) -> raw_http.Answer:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> raw_http.Answer:
        return self.ask("POST", path, {} if body is None else body, **options)

    def ctl(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """latticectl as the daemon's own user."""
        return self.place.ran(self.ctl_command(*words), stdin=stdin)

    def ctl_command(self, *words: str) -> list[str]:
        return [*self.place.python(), "-m", "latticed.ctl.main", "--socket", str(self.place.socket), *words]

    # Plugins.

    def plugin(self, plugin_id: str = "acme.demo") -> dict[str, Any] | None:
        """The record of one plugin as the API shows it, None when there is none."""
        answer = self.get("/api/plugins/lifecycle")
        assert answer.status == 200, answer
        return next((one for one in answer.json() if one["id"] == plugin_id), None)

    def set_status(self, status: str, plugin_id: str = "acme.demo", **more: Any) -> raw_http.Answer:
        return self.post("/api/plugins/lifecycle", {"id": plugin_id, "status": status, **more})

    def activate(self, plugin_id: str = "acme.demo", **more: Any) -> dict[str, Any]:
        """Wait for its bundle to be seen, install, activate; the record."""
        self.until(lambda: self.plugin(plugin_id), f"{plugin_id} to be seen")
        for status, extra in (("installed", more), ("active", {})):
            answer = self.set_status(status, plugin_id, **extra)
            assert answer.status == 200, answer
        record: dict[str, Any] = answer.json()
        assert record["runtime"]["state"] == "armed", record
        return record

    def rejected(self) -> dict[str, str]:
        """Codes of refused bundles by name."""
        return {one["name"]: one["code"] for one in self.get("/api/plugins/rejected").json()}

    def events(self, **filters: str) -> list[dict[str, Any]]:
        query = urlencode({"limit": "1000", **filters})
        found: list[dict[str, Any]] = self.get(f"/api/audit?{query}").json()["events"]
        return found

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll until `condition` is true; the daemon must stay alive meanwhile."""

        def alive() -> Any:
            assert self.process.poll() is None, self.complaints()
            return condition()

        return processes.until(alive, what=what)

    def until_state(self, state: str, plugin_id: str = "acme.demo", *, code: str | None = None) -> dict[str, Any]:
        """The record once its runtime is `state` (and its last error has `code`)."""

        def there() -> dict[str, Any] | None:
            found = self.plugin(plugin_id)
            runtime = found["runtime"] if found else {}
            error = runtime.get("last_error", {}).get("code")
            return found if runtime.get("state") == state and (code is None or error == code) else None

        try:
            found: dict[str, Any] = self.until(there, f"{plugin_id} to be {state} ({code})")
        except pytest.fail.Exception as missed:
            pytest.fail(f"{missed.msg}\nnow: {self.plugin(plugin_id)}\n{self.complaints()}")
        return found

    def until_rejected(self, name: str, code: str) -> None:
        self.until(lambda: self.rejected().get(name) == code, f"{name} to be {code}, now {self.rejected()}")

    # Its end.

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, *, deadline_s: float = START_S) -> int:
        """The exit status once it has ended."""
        return self.process.wait(timeout=deadline_s)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.ended()


@contextlib.contextmanager
def placed(
    user: processes.User | str | None = "stranger", *, settings: str = "", probed: bool = False
) -> Iterator[Place]:
    """Fresh directories under a short path; of an unprivileged user if this is root, else of the tests' own user."""
    who = (processes.STRANGER if os.getuid() == 0 else None) if isinstance(user, str) else user
    parent = Path(tempfile.mkdtemp(prefix="latticed-", dir="/tmp"))  # socket paths are short
    try:
        with processes.home_of(who, parent) as home:
            place = Place(home=home, user=who, probed=probed)
            for path in (place.plugins, place.state, place.run):
                path.mkdir()
                place.own(path)
            place.state.chmod(0o700)
            place.set(settings)
            yield place
    finally:
        shutil.rmtree(parent, ignore_errors=True)

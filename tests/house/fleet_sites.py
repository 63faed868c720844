"""A whole fleet of real parts on this machine: nats-server, controller, three daemons with agents; an operator types.

Hosts are directories (`fleet_shims`); what a page starts on one of them is started here, as a process of its own, and
ended with the site.

    with fleet_sites.site() as site:
        site.type("latticectl fleet key operator.key")
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.house import bundles, daemons, fleet_shims, nats_servers, pages, ports, processes

SERVER = "fleet.example.org"
NODES = ("web-1", "web-2", "web-3")
COMPOSE = pages.CHECKOUT / "packaging/container/fleet.yaml"
CONTROLLER = processes.User(uid=64750, gid=64750)
"""The image's user."""
AGENT_NAME = "daemon"
"""A user of every Debian, in place of latticed-fleet."""
AGENT = processes.User(uid=1, gid=1, groups=(processes.STRANGER.gid,))
"""That user, in the group that may connect to the daemon's socket, and named in its settings."""
TYPE_S = 600.0
"""A safety net: some of what is typed waits for gates."""
WAIT_S = 240.0
"""For a controller that acts: it takes the lease first."""
SETTLE_S = 1.0
"""Of a gate of the controller's settings."""


@dataclass
class Site:
    """`root/operator` is where the operator types, `root/hosts/NAME` a host; `port` is the message system's."""

    root: Path
    port: int
    daemons: dict[str, daemons.Daemon] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ends: dict[str, contextlib.ExitStack] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    """What the page has started, once each."""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def operator(self) -> Path:
        return self.root / "operator"

    def host(self, name: str) -> Path:
        return self.root / "hosts" / name

    def type(self, text: str, *, exits: int = 0) -> str:
        """What an operator types, in the terminal of before; what was to be started runs afterwards. stdout."""
        here = self.host(SERVER)
        # The message system is on a port of its own, and its files lie below the host's directory.
        paths = f"--server-files {here}/etc/latticed-nats --server-data {here}/var/lib/latticed-nats"
        sizes = "--nodes 20 --bundles-gib 1"
        text = text.replace(f"--server {SERVER}", f"--server 127.0.0.1:{self.port} {paths} {sizes}")
        env = {"PATH": f"{self.operator}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.operator)}
        env |= {"LANG": "C.UTF-8", "FLEET_SITE": str(self.root), "LATTICED_CONTROLLER": "controller.sock"}
        done = subprocess.run(
            ["/bin/sh", "-ec", text],
            cwd=self.operator,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TYPE_S,
        )
        assert done.returncode == exits, f"{text}\n{done.stdout}\n{done.stderr}\n{self.complaints()}"
        self._start()
        return done.stdout

    def fleet(self, *words: str) -> Any:
        """The answer of `latticectl fleet …`, as JSON."""
        return json.loads(self.type(f"latticectl fleet {' '.join(words)} --format json"))

    def complaints(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.root.glob("log-*"))
        return "\n".join(f"== {one.name}\n{one.read_text(errors='replace')[-3000:]}" for one in logs)

    def end(self, name: str, number: int = 15) -> None:
        """End a process of the site by a signal."""
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait(processes.PATIENCE_S)
        self.ends.pop(name).close()

    def start_services(self) -> None:
        """The services of the compose file, with its volumes as links: those that do not run."""
        here = self.host(SERVER)
        place = here / "srv/fleet"
        described = yaml.safe_load((place / "compose.yaml").read_text())["services"]
        for service in described.values():
            for volume in service["volumes"]:
                source, target = volume.split(":")[:2]
                below = here / target.lstrip("/")
                kept = place / source if source.startswith(".") else here / "volumes" / source
                if not below.is_symlink():
                    below.parent.mkdir(parents=True, exist_ok=True)
                    below.symlink_to(kept)
                if not kept.exists():
                    kept.mkdir(parents=True)
                    if not source.startswith(".") and service["image"] == "latticed":
                        # As the image has the directory.
                        kept.chmod(0o700)
                        os.chown(kept, CONTROLLER.uid, CONTROLLER.gid)
        for name, service in described.items():
            command = [fleet_shims.led(one, here) for one in service["command"]]
            if name not in self.running:
                environment = (place / service["env_file"]).read_text() if "env_file" in service else ""
                user = CONTROLLER if service["image"] == "latticed" else None
                self._spawn(name, command, user=user, environment=environment)

    @contextlib.contextmanager
    def services(self) -> Iterator[None]:
        """Start those that do not run, and end these at the end."""
        before = dict(self.running)
        self.start_services()
        try:
            yield
        finally:
            for name, process in list(self.running.items()):
                if before.get(name) is not process:
                    self.end(name)

    def _start(self) -> None:
        """What the page started, or ended and started anew."""
        if _taken(self.host(SERVER) / "srv/fleet/removed"):
            self.begun.discard(SERVER)
            for name in [name for name in self.running if name not in NODES]:
                self.end(name)
            shutil.rmtree(self.host(SERVER) / "volumes")
        if (self.host(SERVER) / "srv/fleet/started").exists() and SERVER not in self.begun:
            self.begun.add(SERVER)
            self.start_services()
        for node in NODES:
            if _taken(self.host(node) / "restarted-latticed-fleet"):
                self.begun.discard(node)
                self.end(node)
            if (self.host(node) / "started-latticed-fleet").exists() and node not in self.begun:
                self.begun.add(node)
                self._spawn(node, [str(self.host(node) / "bin/latticed-fleet")], user=AGENT)

    def _spawn(self, name: str, command: list[str], *, user: processes.User | None, environment: str = "") -> None:
        program = {"nats-server": [str(nats_servers.PROGRAM)], "latticed-controller": _controller()}
        command = [*program.get(command[0], [command[0]]), *command[1:]]
        log = self.root / f"log-{name}"
        if name == "controller":
            self._settle(self.host(SERVER))
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        env |= dict(one.split("=", 1) for one in environment.splitlines())
        spawned = processes.spawned(command, user=user, env=env, stdout=log, stderr=log.with_suffix(".err"))
        self.ends[name] = contextlib.ExitStack()
        self.running[name] = self.ends[name].enter_context(spawned)

    def _settle(self, here: Path) -> None:
        """The controller's directories below its host's, and gates that open after a second."""
        settings = here / "etc/latticed-controller/controller.toml"
        text = settings.read_text()
        if "state_dir" in text:
            return
        at, of_host = f"{here}/etc/latticed-controller", "/etc/latticed-controller"
        places = {
            "state_dir": f"{here}/var/lib/latticed-controller",
            "runtime_dir": f"{here}/run/latticed-controller",
            "key": f"{at}/key",
            "certificate": f"{at}/certificate.json",
        }
        below = "".join(f'{name} = "{path}"\n' for name, path in places.items())
        settings.write_text(f"{below}{text.replace(of_host, at)}\n[rollout]\nsettle_s = {SETTLE_S}\n")


def _taken(mark: Path) -> bool:
    """Whether the mark is there; removes it."""
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


def _controller() -> list[str]:
    return [processes.reachable_python(), "-P", "-m", "latticed.fleet.controller.process"]


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@contextlib.contextmanager
def site(author: bundles.Author) -> Iterator[Site]:
    """The operator's machine and the hosts, with a daemon on each node that trusts `author`; no fleet yet."""
    root = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))  # socket paths are short
    root.chmod(0o755)
    python = [processes.reachable_python(), "-P"]
    shim = f"exec {' '.join(python)} {fleet_shims.__file__}"
    try:
        made = Site(root=root, port=ports.free())
        _script(made.operator / "bin/latticectl", f'exec {" ".join(python)} -m latticed.ctl.main "$@"')
        for name in ("ssh", "scp"):
            _script(made.operator / f"bin/{name}", f'{shim} {name} "$@"')
        for name in (SERVER, *NODES):
            for below in ("root", "etc/latticed", "run", "var/lib"):
                (made.host(name) / below).mkdir(parents=True)
        (made.host(SERVER) / "srv/fleet").mkdir(parents=True)
        _script(made.host(SERVER) / "bin/docker", f'{shim} docker "$@"')
        shutil.copy(COMPOSE, made.operator / "compose.yaml")
        with made.stack:
            for node in NODES:
                _prepare(made, node, author, python, shim)
            try:
                yield made
            finally:
                for one in made.ends.values():
                    one.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _prepare(made: Site, node: str, author: bundles.Author, python: list[str], shim: str) -> None:
    """A host of its own: a daemon whose settings name the agent, and the agent's program with its paths."""
    here = made.host(node)
    state = here / "var/lib/latticed-fleet"
    spool = state / "spool"
    place = made.stack.enter_context(daemons.placed())
    place.trust_us(author)
    rights = f'[access.users]\n{AGENT.uid} = ["operate", "host"]'
    place.set(f'[upgrade]\ngate_s = 1\n[market]\nimport_dir = "{spool}"\n{rights}')
    state.mkdir(parents=True)
    spool.mkdir()
    for path in (place.home, place.run, place.home.parent):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o711)
    made.daemons[node] = made.stack.enter_context(place.running())
    settings = here / "etc/latticed/fleet.toml"
    settings.write_text(f'socket = "{place.socket}"\nreconcile_s = 1\n')
    paths = f"--settings {settings} --pinned {here}/etc/latticed/fleet/token --state {state}"
    program = f"exec {' '.join(python)} -m latticed.fleet.agent {paths}"
    _script(
        here / "bin/latticed-fleet",
        f'[ "$1" != join ] || set -- "$@" --user {AGENT_NAME} --wait {WAIT_S:g}\n{program} "$@"',
    )
    _script(here / "bin/systemctl", f'{shim} systemctl "$@"')

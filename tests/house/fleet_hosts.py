"""A host of a fleet: the real daemon, the real node process under a user of its own, and the link's end of its socket.

with fleet_hosts.hosted() as host, host.node():
    host.desire(1, plugins=(host.wanted(bundle),))
    host.until(lambda status: status.settled)

Or with the link's process too, on real servers (`nats_servers`): `with host.joined(servers)`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from latticed.fleet import documents, kept_state, messages
from tests.house import bundles, daemons, fleets, nats_servers, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ACME = bundles.author("acme")
NODE = processes.User(uid=65540, gid=processes.STRANGER.gid)
"""In the group that may connect to the daemon's socket, and named in its settings."""
LINK = processes.User(uid=65541, gid=65541)
"""Without any access to the daemon's socket."""
GENERATIONS = itertools.count(1)
_NODE = """
import socket, sys, time
from pathlib import Path
real, ahead_s = time.time, float(sys.argv[6])
time.time = lambda: real() + ahead_s
from latticed.fleet import node
from latticed.kit import logs
logs.configure("info", form="json")
link = socket.socket(fileno=int(sys.argv[1]))
sys.exit(node.run(link, Path(sys.argv[2]), sys.argv[3], reconcile_s=float(sys.argv[4]), owner=lambda: sys.argv[5]))
"""


class FleetHost:
    """One host. Intents and assignments of all tests that share it have growing generations."""

    def __init__(
        self, daemon: daemons.Daemon, directory: Path, spool: Path, *, user: processes.User | None, name: str = "n1"
    ) -> None:
        self.daemon, self.directory, self.spool, self.user = daemon, directory, spool, user
        self.name = name
        self.fleet = fleets.Fleet(now=int(time.time()), node=name)
        self.token = documents.sign(self.fleet.token(operators=(fleets.public(fleets.OPERATOR),)), fleets.OPERATOR)
        public = kept_state.enrol(directory, self.token, now_s=int(time.time()))
        self.fleet.node_key = public
        for one in (directory, *directory.iterdir()):
            if user is not None:
                os.chown(one, user.uid, user.gid)
        self.statuses: list[documents.NodeStatus] = []
        self.events: list[messages.NewEvent] = []
        self.answers: dict[int, documents.InvocationResult] = {}
        self.asked: list[str] = []
        self.acknowledging = True
        self.serving = True
        self.withheld: set[str] = set()
        self.tars: dict[str, bytes] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.link_process: subprocess.Popen[bytes] | None = None
        self.socket_path = str(daemon.place.socket)

    @contextlib.contextmanager
    def node(self, *, reconcile_s: float = 1.0) -> Iterator[None]:
        """The process, until the end of the block."""
        ours, theirs = socket.socketpair()
        with ours, self._spawned(theirs, reconcile_s=reconcile_s) as process:
            self.process, self.link, self._decoder = process, ours, messages.Decoder(messages.ToLink)
            # What was said before may be out of date.
            self.statuses.clear()
            yield
            ours.shutdown(socket.SHUT_RDWR)
            assert process.wait(processes.PATIENCE_S) == 0 or process.returncode == -9, self.complaints()

    @contextlib.contextmanager
    def joined(
        self,
        servers: nats_servers.Fleet,
        *,
        reconcile_s: float = 1.0,
        ahead_s: float = 0.0,
        urls: tuple[str, ...] | None = None,
    ) -> Iterator[None]:
        """The whole agent, both of its processes, until the end of the block; `ahead_s`: by how much its clock is."""
        ours, theirs = socket.socketpair()
        with (
            self._linked(ours, self._link_settings(servers, urls or servers.urls)) as link,
            self._spawned(theirs, reconcile_s=reconcile_s, ahead_s=ahead_s) as process,
        ):
            self.process, self.link_process = process, link
            yield
            assert process.poll() is None, self.complaints()
            assert link.poll() is None, self.complaints()

    @contextlib.contextmanager
    def _spawned(
        self, end: socket.socket, *, reconcile_s: float, ahead_s: float = 0.0
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The node's process with its end of the socketpair, which is closed here."""
        place = self.daemon.place
        end.set_inheritable(True)
        command = [*place.python(), "-c", _NODE, str(end.fileno()), str(self.directory), self.socket_path]
        with processes.spawned(
            [*command, str(reconcile_s), str(place.uid), str(ahead_s)],
            user=self.user,
            env=place.environment(),
            pass_fds=(end.fileno(),),
            stdout=place.home / "node.log",
            stderr=place.home / "node.err",
        ) as process:
            end.close()
            yield process

    @contextlib.contextmanager
    def _linked(self, end: socket.socket, settings: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The link's process with its end, which is closed here."""
        place = self.daemon.place
        end.set_inheritable(True)
        command = [*place.python(), "-m", "latticed.fleet.link_process", "--settings", str(settings)]
        with processes.spawned(
            [*command, "--socket", str(end.fileno())],
            user=LINK if self.user is not None else None,
            env=place.environment(),
            pass_fds=(end.fileno(),),
            stdout=place.home / "link.log",
            stderr=place.home / "link.err",
        ) as process:
            end.close()
            yield process

    def _link_settings(self, servers: nats_servers.Fleet, urls: tuple[str, ...]) -> Path:
        """What the link is told, in a directory that its user can read."""
        place = self.directory.parent / "link"
        place.mkdir(exist_ok=True)
        wanted = {"ca.pem": servers.ca.read_bytes(), "nats.creds": servers.node(self.name).read_bytes()}
        wanted["link.toml"] = (
            f'node = "{self.name}"\nservers = {json.dumps(urls)}\nca = "{place}/ca.pem"\n'
            f'credentials = "{place}/nats.creds"\nspool = "{self.spool}"\n'
        ).encode()
        for name, data in wanted.items():
            (place / name).write_bytes(data)
            (place / name).chmod(0o600)
        if self.user is not None:
            for path in (self.spool, *(place / name for name in wanted)):
                os.chown(path, LINK.uid, LINK.gid)
        return place / "link.toml"

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Entries of the node's log."""
        lines = (self.daemon.place.home / "node.log").read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["event"] == event]

    def complaints(self) -> str:
        found = (self.daemon.place.home / f"{who}.{end}" for who in ("node", "link") for end in ("log", "err"))
        return "\n".join(path.read_text()[-4000:] for path in found if path.exists())

    def send(self, message: messages.ToNode) -> None:
        self.link.sendall(messages.encode(message))

    def pump(self, within_s: float = 0.2) -> bool:
        """Take what the node says, and serve the bundles that it asks for; False at its end."""
        if not select.select([self.link], [], [], within_s)[0]:
            return True
        try:
            return self._take(self.link.recv(1 << 20))
        except ConnectionError:  # it was killed, perhaps before it heard what is said to it here
            return False

    def _take(self, data: bytes) -> bool:
        for message in self._decoder.feed(data):
            match message:
                case messages.NewStatus():
                    signed = documents.read(message.document, documents.NodeStatus)
                    assert signed.key == self.fleet.node_key
                    self.statuses.append(signed.document)
                case messages.NewEvent():
                    self.events.append(message)
                    if self.acknowledging:
                        self.send(messages.EventTaken(number=message.number))
                case messages.BundleNeeded():
                    self.asked.append(message.sha256)
                    if message.sha256 not in self.withheld:
                        self.serve(message.sha256)
                case messages.InvocationDone():
                    signed = documents.read(message.document, documents.InvocationResult)
                    assert signed.key == self.fleet.node_key
                    self.answers[message.number] = signed.document
        return bool(data)

    def serve(self, sha256: str) -> None:
        """Put a bundle's file into the spool, as the link does, and say so."""
        target = self.spool / messages.spool_name(sha256)
        fresh = self.spool / f".{sha256}"
        fresh.write_bytes(self.tars[sha256])
        self.daemon.place.own(fresh).rename(target)
        self.send(messages.BundleHere(sha256=sha256))

    def until(self, condition: Callable[[documents.NodeStatus], Any], what: str = "a status") -> documents.NodeStatus:
        """The first status that comes from now on and fulfils the condition."""
        began, seen = time.monotonic(), len(self.statuses)
        while time.monotonic() - began < processes.PATIENCE_S:
            alive = self.pump()
            for status in self.statuses[seen:]:
                if condition(status):
                    return status
            seen = len(self.statuses)
            if not alive:
                break
        pytest.fail(f"waited for {what}; last: {self.statuses[-1:]}\n{self.complaints()}")

    def bundle(self, plugin_id: str, **fields: Any) -> bundles.Bundle:
        """A bundle that is nowhere yet but with the link."""
        with tempfile.TemporaryDirectory() as place:
            made = bundles.drop(Path(place), "x", author=ACME, id=plugin_id, v2=True, **fields)
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
                for name in ("manifest.json", "artifact"):
                    archive.add(made.path / name, name)
        self.tars[hashlib.sha256(data.getvalue()).hexdigest()] = data.getvalue()
        return made

    def source(self, bundle: bundles.Bundle) -> documents.BundleSource:
        sha256 = next(one for one, data in self.tars.items() if bundle.raw["signature_ed25519"].encode() in data)
        return documents.BundleSource(id=bundle.id, sha256=sha256, urls=())

    def wanted(self, bundle: bundles.Bundle, **fields: Any) -> documents.WantedPlugin:
        identity = hashlib.sha256(bundles.payload(bundle.raw)).hexdigest()
        return fleets.plugin(bundle.id, **{"identity": identity, **fields})

    def intent(self, *plugins: documents.WantedPlugin, **fields: Any) -> documents.Intent:
        return self.fleet.intent(next(GENERATIONS), plugins=plugins, **fields)

    def desire(self, intent: documents.Intent, *used: bundles.Bundle, **fields: Any) -> bytes:
        """Assign an intent to the node, with the bundles that it is to find."""
        sources = tuple(self.source(one) for one in used)
        desired = self.fleet.desired(next(GENERATIONS), intent=intent, **{"bundles": sources, **fields})
        self.send(messages.NewDesired(document=desired))
        return desired

    def settled(self, intent: documents.Intent) -> documents.NodeStatus:
        """The status in which all of an intent is as it was wanted."""
        name = documents.name_of(intent)
        return self.until(lambda status: status.intent == name and status.settled, "it to be settled")

    def state(self) -> dict[str, Any]:
        """What the node has on disk."""
        return dict(json.loads((self.directory / "state").read_bytes()))

    def key(self) -> Ed25519PrivateKey:
        from latticed.trust import key_files

        return key_files.read(self.directory / "key")


@contextlib.contextmanager
def hosted(*, settings: str = "", name: str = "n1") -> Iterator[FleetHost]:
    """A daemon with a directory for imports, and a node that is enrolled."""
    user = NODE if os.getuid() == 0 else None
    parent = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))
    try:
        with daemons.placed() as place:
            place.trust_us(ACME)
            spool = place.home / "spool"
            spool.mkdir()
            place.own(spool)
            rights = f'[access.users]\n{NODE.uid} = ["operate", "host"]\n' if user is not None else ""
            place.set(f'{settings}\n[upgrade]\ngate_s = 0\n[market]\nimport_dir = "{spool}"\n{rights}')
            parent.chmod(0o755)
            for path in (place.home, place.run, place.home.parent):
                path.chmod(0o711)
            with place.running() as daemon:
                yield FleetHost(daemon, parent / "node", spool, user=user, name=name)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def payload_of(message: messages.NewEvent) -> dict[str, Any]:
    """What an event says."""
    text = json.loads(message.document)["payload"]
    plain: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return plain

"""A whole daemon in this process: the real App over directories of its own, real bundles, and its control socket.

async with in_process.opened() as home:
    home.drop("demo", id="acme.demo", capabilities=["kv:read"])
    await home.decide("acme.demo", "installed")
    await home.decide("acme.demo", "active")
    await home.driven.only("acme.demo").call("kv.get", key="a")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from latticed import settings as settings_module
from latticed.app import App
from latticed.kit.clock import Clock
from latticed.kit.peers import Peer
from latticed.ledger import audit as rows
from latticed.model.chain import BEGINNING, NAMES, Position
from latticed.runners.contract import Runner
from latticed.settings import Settings
from latticed.system.builtin import Builtin
from tests.house import bundles, processes
from tests.house.runners import Driven, DrivenInstance

DEADLINE_S = processes.PATIENCE_S

SWIFT = """
[watch]
quiet_s = 0.02
max_wait_s = 0.5
"""


class Answer(dict[str, Any]):
    """A JSON answer; `status` is its HTTP status. Lists are under the key `rows`."""

    status: int

    @property
    def code(self) -> str:
        return str(self.get("code", ""))


@dataclass(slots=True, kw_only=True)
class Home:
    """One running daemon and what belongs to it."""

    root: Path
    author: bundles.Author
    app: App
    driven: Driven
    session: aiohttp.ClientSession
    dropped: dict[str, bundles.Bundle] = field(default_factory=dict)

    @property
    def plugin_dir(self) -> Path:
        return self.root / "plugins"

    @property
    def trust(self) -> Path:
        return self.root / "trust.json"

    async def look(self) -> None:
        """What the daemon does every second, twice: a changed settings file counts once it is the same two times."""
        for _ in range(2):
            await asyncio.gather(*(look.start() for look in self.app.reloader.looks))

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """One request over the control socket; `body` is sent as JSON, bytes as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.session.request(method, f"http://latticed{path}", data=data, **options) as found:
            raw = await found.read()
            plain = json.loads(raw) if "json" in found.content_type else {"raw": raw}
            answer = Answer(plain if isinstance(plain, dict) else {"rows": plain})
            answer.status = found.status
            return answer

    def drop(self, name: str = "demo", *, author: bundles.Author | None = None, **fields: Any) -> bundles.Bundle:
        """Write a signed bundle into the plugin directory."""
        self.dropped[name] = bundles.drop(self.plugin_dir, name, author=author or self.author, **fields)
        return self.dropped[name]

    async def seen(self, plugin_id: str) -> None:
        """Wait until the lifecycle knows `plugin_id` as available."""
        await until(lambda: self.app.api.lifecycle.presence(plugin_id).available, f"{plugin_id} available")

    async def decide(self, plugin_id: str, status: str, **consent: Any) -> Answer:
        return await self.ask("POST", "/api/plugins/lifecycle", {"id": plugin_id, "status": status, **consent})

    async def armed(self, plugin_id: str, *, accept: tuple[str, ...] = ()) -> DrivenInstance:
        """Wait for the bundle, install it, activate it, and return its instance."""
        await self.seen(plugin_id)
        for status, consent in (("installed", {"accept": list(accept)}), ("active", {})):
            answer = await self.decide(plugin_id, status, **consent)
            assert answer.status == 200, answer
        return self.driven.only(plugin_id)

    async def plugin(self, plugin_id: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/api/plugins/by-id/{plugin_id}")
        assert answer.status == 200, answer
        return dict(answer["plugin"])

    async def until_plugin(self, plugin_id: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until `holds` is true of the plugin's view."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(view := await self.plugin(plugin_id)):
            assert time.monotonic() < deadline, view
            await asyncio.sleep(0.01)
        return view

    async def healthy(self) -> None:
        """Wait until health is 200."""
        deadline = time.monotonic() + DEADLINE_S
        while (answer := await self.ask("GET", "/api/health")).status != 200:
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.01)

    def events(self, *, after: Position | int = BEGINNING, **filters: str) -> list[dict[str, Any]]:
        """Committed events of both audit chains, oldest first; `after` a number: a seq of the decisions."""
        start = Position(after) if isinstance(after, int) else after
        return self.app.api.ledger.read(
            lambda db: rows.merged(
                [rows.query(db, chain=name, after=start.of(name), limit=1000, **filters) for name in NAMES]
            )
        )

    def mark(self) -> Position:
        """The newest seqs: `events(after=mark)` is what happened since."""
        return self.app.api.ledger.read(rows.position)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for `condition` to hold; fail when it does not within DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what or condition}"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def without_descriptors() -> Iterator[None]:
    """This process can open no descriptor within the block; open ones stay open (EMFILE, open(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(free)  # the lowest there is
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settings_in(root: Path, toml: str = "") -> tuple[Path, Settings]:
    """A settings file below `root`, and the settings loaded from it."""
    (root / "plugins").mkdir(exist_ok=True)
    paths = {"plugin_dir": "plugins", "state_dir": "state", "runtime_dir": "run", "trust": "trust.json"}
    head = "".join(f'{key} = "{root / name}"\n' for key, name in paths.items())
    config = root / "latticed.toml"
    config.write_text(head + SWIFT + toml)
    return config, settings_module.load(config, {}, os.geteuid())


@contextlib.asynccontextmanager
async def opened(
    root: Path | None = None,
    *,
    author: bundles.Author | None = None,
    policy: bytes | None = None,
    toml: str = "",
    driven: Driven | None = None,
    runners: Mapping[str, Runner] | None = None,
    real: bool = False,
    clock: Clock | None = None,
    builtins: tuple[Builtin, ...] = (),
    version: str = "",
    accept_rollback: bool = False,
) -> AsyncIterator[Home]:
    """A daemon below `root` (default: a temporary directory) that trusts `author` and runs Driven plugins.

    `real`: plugins run as the settings say. `builtins` are what the latticed of `version` brings. `accept_rollback`: as
    the option of the daemon. The directory's name is short: the path of a unix socket holds 107 bytes.
    """
    with contextlib.ExitStack() as stack:
        place = root or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latticed-")))
        author, driven = author or bundles.author(), driven or Driven()
        (place / "trust.json").write_bytes(bundles.policy_bytes(author) if policy is None else policy)
        config, settings = settings_in(place, toml)
        given = runners or dict.fromkeys(("system", "wasm", "worker"), driven)
        made = App(
            config,
            settings,
            runners=None if real else given,
            builtins=builtins,
            version=version,
            clock=clock,
            accept_rollback=accept_rollback,
        )
        async with made as app:
            connector = aiohttp.UnixConnector(str(settings.control_socket), force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                yield Home(root=place, author=author, app=app, driven=driven, session=session)


def be(monkeypatch: Any, uid: int, *groups: int, gid: int = 60_000) -> None:
    """Make every new connection of this process look like it came from `uid`."""
    found = Peer(pid=1, uid=uid, gid=gid, groups=frozenset(groups))
    monkeypatch.setattr("latticed.kit.peer_connection.peers.of", lambda _: found)

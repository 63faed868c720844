"""Clients that keep a real daemon busy until it is killed, and record what it acknowledged.

Only one client changes each thing, so the state after a crash is known: what was acknowledged last, or what was asked
for and not yet answered.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.house import bundles, daemons, raw_http

CAPABILITIES = ("kv:read", "kv:write", "log:write")
NEXT = {
    "verified": ("installed",),
    "installed": ("active", "disabled"),
    "active": ("disabled",),
    "disabled": ("active",),
}
GONE = (OSError, ConnectionError, EOFError, ValueError)
"""What a client sees of a daemon that is killed: no connection, or an answer that is not whole."""


@dataclass
class Known:
    """What one client knows of one thing: its value `now`, and the value it asked for without an answer yet."""

    now: Any
    asked: Any = None
    pending: bool = False
    acknowledged: int = 0

    def possible(self) -> list[Any]:
        return [self.now, self.asked] if self.pending else [self.now]

    def settle(self, found: Any) -> None:
        """The next run of the daemon begins with what was found."""
        self.now, self.asked, self.pending = found, None, False


@dataclass
class Load:
    """Everything that is changed, and the clients that change it."""

    place: daemons.Place
    author: bundles.Author
    plugins: dict[str, Known] = field(default_factory=dict)
    values: dict[str, Known] = field(default_factory=dict)
    answers: int = 0

    @contextlib.contextmanager
    def running(self, seed: str) -> Iterator[None]:
        """Clients at work within the block; they stop when the daemon is killed, or when the block ends."""
        stop = threading.Event()
        ids, keys = sorted(self.plugins), sorted(self.values)
        work: list[Callable[[random.Random], None]] = [
            lambda chance: self.decide(chance, ids[0::2]),
            lambda chance: self.decide(chance, ids[1::2]),
            lambda chance: self.store(chance, keys[0::2]),
            lambda chance: self.store(chance, keys[1::2]),
            lambda chance: self.disturb(chance, ids),
        ]
        failures: list[BaseException] = []

        def client(number: int) -> None:
            chance = random.Random(f"{seed}/{number}")
            try:
                while not stop.is_set():
                    work[number](chance)
            except GONE:
                return
            except BaseException as error:  # noqa: BLE001 - told to the test, whose thread this is not
                failures.append(error)

        threads = [threading.Thread(target=client, args=(number,), name=f"client {number}") for number in range(5)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures, failures

    # What clients do.

    def decide(self, chance: random.Random, ids: list[str]) -> None:
        """One change of a status or of grants."""
        plugin_id = chance.choice(ids)
        known = self.plugins[plugin_id]
        status, granted = known.now
        if chance.random() < 0.3:
            capability = chance.choice(CAPABILITIES)
            verb = "trim" if capability in granted else "grant"
            asked = (status, tuple(sorted(set(granted) ^ {capability})))
            self._ask(known, asked, "PUT", f"/api/plugins/by-id/{plugin_id}/grants", {verb: [capability]})
        else:
            wanted = chance.choice(NEXT[status])
            body = {"id": plugin_id, "status": wanted}
            self._ask(known, (wanted, granted), "POST", "/api/plugins/lifecycle", body)

    def store(self, chance: random.Random, keys: list[str]) -> None:
        """One value, set or deleted."""
        key = chance.choice(keys)
        known = self.values[key]
        if known.now is not None and chance.random() < 0.2:
            self._ask(known, None, "DELETE", f"/api/kv/default/{key}")
        else:
            value = chance.randbytes(chance.choice([1, 100, 20_000]))
            self._ask(known, value, "PUT", f"/api/kv/default/{key}", value)

    def disturb(self, chance: random.Random, ids: list[str]) -> None:
        """One change of a bundle on disk: tampered with, removed, restored."""
        plugin_id = chance.choice(ids)
        path, aside = self.bundle(plugin_id), self.place.home / f"{plugin_id}.aside"
        if aside.exists():
            aside.rename(path)
        elif chance.random() < 0.5:
            path.rename(aside)
        else:
            bundles.tamper(path / "artifact")
        self.answers += 1
        threading.Event().wait(chance.uniform(0, 0.02))

    def _ask(self, known: Known, asked: Any, method: str, path: str, body: Any = None) -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        known.asked, known.pending = asked, True
        answer = raw_http.ask(self.place.socket, method, path, data)
        if answer.status == 200:
            known.acknowledged += 1
        else:  # its bundle does not verify right now, or changed while it was copied
            assert answer.status == 409, (method, path, answer)
        known.settle(asked if answer.status == 200 else known.now)
        self.answers += 1

    # What is there.

    def bundle(self, plugin_id: str) -> Path:
        return self.place.plugins / plugin_id.removeprefix("acme.")

    def mend(self) -> None:
        """Every bundle restored."""
        for plugin_id in self.plugins:
            aside = self.place.home / f"{plugin_id}.aside"
            if aside.exists():
                aside.rename(self.bundle(plugin_id))
            (self.bundle(plugin_id) / "artifact").write_bytes(artifact(plugin_id))


def artifact(plugin_id: str) -> bytes:
    return bundles.ARTIFACT + b"# " + plugin_id.encode() + b"\n" + b"#" * 50_000


def load(place: daemons.Place, author: bundles.Author, *, plugins: int = 6, keys: int = 8) -> Load:
    """Bundles on disk, without any decision or stored value."""
    made = Load(place=place, author=author)
    for number in range(plugins):
        plugin_id = f"acme.p{number}"
        place.drop(
            f"p{number}", author=author, id=plugin_id, artifact=artifact(plugin_id), capabilities=list(CAPABILITIES)
        )
        made.plugins[plugin_id] = Known(("verified", CAPABILITIES))
    made.values = {f"key{number}": Known(None) for number in range(keys)}
    return made

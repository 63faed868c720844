"""A real daemon whose notification fan-out is active, with the services of `push_services` bound to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.house import bundles, hosting, push_services
from tests.house.daemons import Daemon, Place
from tests.house.push_services import PushServices

ID = "latticed.notify"
SENDER = "acme.sender"
PLUGIN = b"""#!/usr/bin/env python3
from latticed.sdk import Plugin

class Sender(Plugin):
    def do_send(self, payload):
        return [self._ask("notify.send", one)["id"] for one in payload]

Sender().run()
"""


@dataclass
class Fanout:
    """`daemon` is the one that runs now."""

    place: Place
    daemon: Daemon
    services: PushServices
    author: bundles.Author
    relay: Any = None

    def configure(self, **intent: Any) -> Any:
        """Set the configuration; the answer of latticectl."""
        file = self.place.home / "notify.json"
        self.place.write(file, json.dumps(intent).encode())
        return self.daemon.ctl("config", "set", ID, "-f", str(file))

    def send(self, *items: dict[str, Any]) -> list[str]:
        """Have the plugin send these; their ids."""
        body = {"action": "send", "payload": list(items)}
        answer = self.daemon.post(f"/api/plugins/by-id/{SENDER}/invoke", body)
        assert answer.status == 200, answer
        assert answer.json()["ok"], answer.json()
        return list(answer.json()["result"])

    def rows(self, **filters: str) -> list[dict[str, Any]]:
        query = "&".join(f"{name}={value}" for name, value in {"limit": "500", **filters}.items())
        return list(self.daemon.get(f"/api/notifications?{query}").json()["notifications"])

    def row(self, item: str) -> dict[str, Any]:
        return next(one for one in self.rows() if one["id"] == item)

    def ended(self, *items: str) -> list[dict[str, Any]]:
        """The rows of these items, once none of them waits."""
        self.daemon.until(
            lambda: all(self.row(one)["status"] in {"done", "failed"} for one in items), "the notifications to end"
        )
        return [self.row(one) for one in items]

    def channel(self, name: str) -> dict[str, Any]:
        found = self.daemon.get("/api/notifications?limit=1").json()["channels"]
        return next((one for one in found if one["name"] == name), {})

    def test(self, channel: str) -> dict[str, Any]:
        return dict(self.daemon.post("/api/notifications/test", {"channel": channel}).json())


def prepare(place: Place, daemon: Daemon, services: PushServices, author: bundles.Author, **intent: Any) -> Fanout:
    """As `activate`, and a plugin that sends."""
    found = Fanout(place=place, daemon=daemon, services=services, author=author)
    activate(found, **intent)
    place.drop(SENDER, author=author, id=SENDER, artifact=PLUGIN, v2=True, capabilities=["notify:send"])
    daemon.activate(SENDER)
    return found


def activate(found: Fanout, **intent: Any) -> None:
    """Set secrets, configuration and grants, and activate the fan-out."""
    daemon, services = found.daemon, found.services
    for name, value in push_services.SECRETS.items():
        assert daemon.ctl("secret", "set", name, stdin=value).returncode == 0
        assert daemon.ctl("secret", "bind", name, ID).returncode == 0
    installed = daemon.ctl("install", ID, "--accept", "http:egress")
    assert installed.returncode == 0, installed
    granted = daemon.ctl("caps", "grant", ID, f"origin={services.origin}")
    assert granted.returncode == 0, granted
    configured = found.configure(
        **(intent or {"channels": services.channels(), "default": sorted(services.channels())})
    )
    assert configured.returncode == 0, configured
    activated = daemon.ctl("activate", ID)
    assert activated.returncode == 0, activated


@contextlib.contextmanager
def running(settings: str = "", **intent: Any) -> Iterator[Fanout]:
    """A fresh one, with a channel of each kind unless `intent` says otherwise."""
    with push_services.serving() as services, hosting.hosting(settings, builtins="latticed") as host:
        yield prepare(host.daemon.place, host.daemon, services, host.author, **intent)

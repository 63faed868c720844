"""The plugin against a host that refuses what is not the tunnels: they are shown all the same, and told of once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from latticed.sdk.calls import HostError
from latticed.system.cloudflared.plugin import Cloudflared
from latticed.system.host import Host
from tests.house import edges

REST = {"service": "http_status:404"}
CONFIG = {"tunnels": [{"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json", "ingress": [REST]}]}
ANSWERING = [{"hostname": "", "path": "", **REST}]
OTHER = "7ff42ae2-765d-4adf-8112-31c55c1551ef"
REFUSED_BY_EDGE = {"code": "credentials_refused", "message": "it ended with 255", "at": "2026-01-01T00:00:00Z"}
FULL = HostError("quota_exceeded", "the queue is full")
NOT_GRANTED = HostError("capability_not_granted", "not granted")


@dataclass
class World:
    """A host with one tunnel, and `old`, which is not configured, if it `has_old`; refuses what is in `refused`.

    `told`: the titles that were sent.
    """

    state: str = "failed"
    refused: dict[str, HostError] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    has_old: bool = False

    async def __call__(self, method: str, params: dict[str, Any]) -> Any:
        if method in self.refused:
            raise self.refused[method]
        match method:
            case "tunnel.status":
                names = [params["name"]] if "name" in params else ["main", *(["old"] if self.has_old else [])]
                return {"tunnels": [self._view(name) for name in names]}
            case "monitor.list":
                return {"monitors": [], "next": None}
            case "node.facts":
                return {"hostname": "node1"}
            case "notify.send":
                self.told.append(params["title"])
        return {"ok": True}

    def _view(self, name: str) -> dict[str, Any]:
        error = REFUSED_BY_EDGE if self.state == "failed" else None
        tunnel = edges.TUNNEL if name == "main" else OTHER
        plain = {"name": name, "tunnel": tunnel, "state": self.state, "trying": False, "last_error": error}
        return {**plain, "version": None, "restarts": 1, "started_at": None, "ingress": ANSWERING}


async def started(world: World) -> Cloudflared:
    made = Cloudflared(Host(world), id="latticed.cloudflared", capabilities=(), config=CONFIG)
    await made.started()
    return made


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("notify.send", "the operator cannot be told: quota_exceeded"),
        ("monitor.list", "origins are not watched: quota_exceeded"),
        ("tunnel.delete", "what is not configured goes on: quota_exceeded"),
    ],
)
async def test_refusal_of_something_else_hides_no_tunnel_that_is_down(call, said):
    world = World(refused={call: FULL}, has_old=True)
    made = await started(world)
    (shown,) = (await made.do_status(None))["tunnels"]
    assert shown["code"] == "credentials_refused"
    health = await made.check()
    assert health.status == "degraded"
    assert "main: credentials_refused: it ended with 255" in health.message
    assert said in health.message
    assert (world.told == []) is (call == "notify.send")
    world.refused.clear()
    await made._look()
    assert said not in (await made.check()).message
    assert world.told == ["Tunnel main on node1 does not answer: credentials_refused"]


async def test_notification_that_is_not_granted_is_no_trouble():
    """No other look would find it granted sooner."""
    world = World(refused={"notify.send": NOT_GRANTED})
    made = await started(world)
    await made._look()
    assert (await made.check()).message == "main: credentials_refused: it ended with 255"
    world.state = "connected"
    await made._look()
    assert (await made.check()).status == "healthy"


async def test_operator_is_told_once_though_the_log_takes_nothing():
    world = World(refused={"log.write": NOT_GRANTED})
    made = await started(world)
    for _ in range(3):
        await made._look()
    world.state = "connected"
    for _ in range(3):
        await made._look()
    assert world.told == [
        "Tunnel main on node1 does not answer: credentials_refused",
        "Tunnel main on node1 is in order again",
    ]
    assert (await made.check()).status == "healthy"

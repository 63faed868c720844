"""The host calls that a configuration is carried out with. Pure; the same configuration gives the same calls."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from latticed.model import tunnel as rules

if TYPE_CHECKING:
    from latticed.system.cloudflared.intent import TunnelIntent, WantedTunnel

STATUSES: Final = (200, 201, 202, 204, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 426)
"""What an origin that works may answer to a GET of /; with anything else, above all 5xx, it counts as down."""
_NAME_CHARACTERS: Final = 64
"""Of a monitor's name (`host/monitor/spec.py`)."""


def tunnel(one: WantedTunnel) -> dict[str, Any]:
    """The parameters of tunnel.put."""
    secret = {"credentials": one.credentials} if one.credentials else {"token": one.token}
    return {"name": one.name, "tunnel": one.tunnel, **secret, "ingress": ingress(one)}


def ingress(one: WantedTunnel) -> list[dict[str, str]]:
    """The rules as tunnel.put takes them and tunnel.status shows them."""
    return [{"hostname": rule.hostname, "path": rule.path, "service": rule.service} for rule in one.ingress]


def monitors(intent: TunnelIntent) -> dict[str, dict[str, Any]]:
    """The parameters of monitor.put for each origin, by the monitor's name."""
    if not intent.monitor_s:
        return {}
    made = {}
    for service in intent.origins:
        name = monitor_name(service)
        made[name] = {
            "name": name,
            "kind": "http",
            "target": f"{service}/",
            "interval_s": intent.monitor_s,
            "statuses": list(STATUSES),
        }
    return made


def monitor_name(service: str) -> str:
    """The name of the monitor of an origin: `http://backend.lan:8080` gives `http-backend.lan-8080`."""
    origin = rules.origin_of(service)
    assert origin is not None  # noqa: S101 - of an TunnelIntent, whose rules are in normal form
    scheme, host, port = origin
    name = f"{scheme}-{host.replace(':', '.')}-{port}"
    if len(name) <= _NAME_CHARACTERS:
        return name
    return f"{name[: _NAME_CHARACTERS - 17]}-{hashlib.sha256(service.encode()).hexdigest()[:16]}"

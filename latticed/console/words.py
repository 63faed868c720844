"""What each capability lets a plugin do, in words for somebody who never read the manual."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

CAPABILITIES: Final = MappingProxyType(
    {
        "audit:read": "read the record of what was decided and denied",
        "kv:read": "read values that it stored",
        "monitor:read": "read the state of monitors",
        "node:read": "read facts about this host",
        "static:read": "read files that plugins publish",
        "task:read": "read which scripts were submitted and how they ended",
        "kv:write": "store values",
        "log:write": "write lines into its log",
        "notify:send": "send notifications to the channels of the settings",
        "worker:route": "answer HTTP requests at its own path",
        "http:egress": "reach hosts of the network that were granted",
        "network:plan": "propose changes of this host's network",
        "network:apply": "have approved changes of the network applied",
        "monitor:admin": "have hosts and ports watched, from this host",
        "node:admin": "change settings of this host",
        "static:write": "publish files under the daemon's address",
        "task:run": "submit scripts that run on this host once they are approved",
        "tunnel:admin": "run tunnels that lead to this host from outside",
        "ddns:admin": "change DNS records",
    }
)
"""By name; each capability there is (a test compares)."""

TAKING: Final = MappingProxyType(
    {
        "index": "its index is signed and fresh",
        "publisher": "its publisher is trusted",
        "manifest": "its manifest is signed and fits",
        "consent": "what it asks for was consented to",
        "artifact": "its artifact is the one that was signed",
        "sandbox": "this host can confine it",
        "placed": "it is here, and verified",
    }
)
"""What a plugin of the market passes before it is here, in this order (a test compares)."""

RISKS: Final = MappingProxyType(
    {
        "host": "reaches beyond latticed: the network, files, programs or records of others",
        "write": "changes what is latticed's own",
        "read": "reads, and changes nothing",
    }
)
"""The highest first."""

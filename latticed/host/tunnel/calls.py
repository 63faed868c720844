"""tunnel.*: a plugin has cloudflared make origins that the operator bound to it reachable under public names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.host.call import Caller, HostError, Params, Served
from latticed.host.tunnel import spec as specs
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.tunnel.keeper import TunnelKeeper
    from latticed.host.tunnel.tunnel import KeptTunnel
    from latticed.model.egress import Origin


class TunnelName(Params, frozen=True):
    """Parameters of tunnel.delete."""

    name: str
    """Name of one of the caller's tunnels."""


class TunnelStatus(Params, frozen=True):
    """Parameters of tunnel.status."""

    name: str = ""
    """That one, with its rules and output; empty: all."""


class TunnelCalls:
    """The host calls `tunnel.put`, `tunnel.delete` and `tunnel.status`.

    `origins(plugin_id)`: the origins that the operator has bound to it at that moment.
    """

    def __init__(self, tunnels: TunnelKeeper, *, origins: Callable[[str], tuple[Origin, ...]]) -> None:
        self._tunnels = tunnels
        self._origins = origins

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="tunnel.put", params=specs.TunnelPut, serve=self._put),
            Served(method="tunnel.delete", params=TunnelName, serve=self._delete),
            Served(method="tunnel.status", params=TunnelStatus, serve=self._status),
        )

    async def _put(self, caller: Caller, asked: specs.TunnelPut) -> dict[str, Any]:
        """Run the tunnel from now on. `trying`: the rules are a change, which may still be undone."""
        spec = specs.checked(asked, self._origins(caller.plugin_id))
        made = await self._tunnels.put(caller.plugin_id, asked.name, spec)
        return {"ok": True, "name": made.name, "state": made.view()["state"], "trying": made.trial is not None}

    async def _delete(self, caller: Caller, asked: TunnelName) -> dict[str, Any]:
        """Stop and delete a tunnel of the caller, with its files; `ok` is whether there was one."""
        return {"ok": await self._tunnels.delete(caller.plugin_id, asked.name)}

    def _status(self, caller: Caller, asked: TunnelStatus) -> dict[str, Any]:
        """The caller's tunnels, by name; a named one with its rules and output. HostError not_found."""
        mine = self._tunnels.of(caller.plugin_id)
        if not asked.name:
            return {"tunnels": [one.view() for one in mine]}
        found = [_full(one) for one in mine if one.name == asked.name]
        if not found:
            raise HostError(Denial.NOT_FOUND, "there is no such tunnel")
        return {"tunnels": found}


def _full(one: KeptTunnel) -> dict[str, Any]:
    """One tunnel as `tunnel.status` shows it when it is named: also its rules, and the end of its output."""
    rules = one.serving.spec.ingress
    ingress = [{"hostname": rule.hostname, "path": rule.path, "service": rule.service} for rule in rules]
    return {**one.view(), "ingress": ingress, "output": one.program.output()}

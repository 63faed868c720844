"""Host calls about how the host is reached: route, network, ddns."""

from __future__ import annotations

from latticed.sdk.calls import Calls, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Route(Calls):
    """HTTP paths of this plugin, below /<plugin id>/ unless the operator granted another prefix."""

    def put(self, path: str, target: str, **more: Any) -> Any:
        """Answer `path` and what is below it by `target`: template, invoke, static or service (worker:route).

        `{ok, path, url, message}`; `url` is None while nothing listens, and `message` says why. `more`: the target's
        parameters, as in docs/write/services.md. Replaces the plugin's route at this path.
        """
        return self._ask("route.put", {"path": path, "target": target, **more})

    def delete(self, path: str) -> Any:
        """Remove the route at `path`; `{ok}`: whether there was one (worker:route)."""
        return self._ask("route.delete", {"path": path})


class Network(Calls):
    """Changes to the host's network as plans: proposed here, approved by an operator, then applied by the root helper.

    What is not confirmed in time is undone.
    """

    def state(self, kind: str) -> Any:
        """What is live now of `kind`: nft, wireguard, nginx, proxy, listeners or interfaces (network:plan).

        Of nft, wireguard and proxy what the root helper sees: `{kind, live, target}`; while it does not run
        HostError("service_unavailable").
        """
        return self._ask("network.state", {"kind": kind})

    def plan(self, kind: str, intent: dict[str, Any]) -> Any:
        """Propose a change; `{ok, number, sha256, kind, state, code, reason, created_at, updated_at}`. `intent` is JSON
        of at most 256 KiB; `code` and `reason` say why the root helper did not take it yet (network:plan).
        """
        return self._ask("network.plan", {"kind": kind, "intent": intent})

    def plans(self) -> Any:
        """The first page of this plugin's plans: `{plans, next}`, oldest first, without intents (network:plan)."""
        return self._ask("network.plans", {})

    def apply(self, sha256: str) -> Any:
        """Begin to apply what an operator approved, or what only takes away from it; `plans` says what became of it.

        `{ok, sha256, state}`, where `state` is "applying". HostError("service_unavailable") when it was not begun
        (network:apply).
        """
        return self._ask("network.apply", {"sha256": sha256})


class Ddns(Calls):
    """DNS records that follow this machine's addresses."""

    def put(self, name: str, **record: Any) -> Any:
        """Keep a DNS record up to date from now on; returns once that is stored, before the provider is asked.

        `record`: type, provider, secret, address or interface, and the others of docs/write/services.md (ddns:admin).
        """
        return self._ask("ddns.put", {"name": name, **record})

    def delete(self, name: str) -> Any:
        """Stop updating the records of `name`; they stay at the provider as they are (ddns:admin)."""
        return self._ask("ddns.delete", {"name": name})

    def status(self, name: str | None = None) -> Any:
        """`{records}`: state and last error of the records of `name`, or of all (ddns:admin)."""
        return self._ask("ddns.status", given(name=name))

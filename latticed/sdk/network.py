"""Host calls about how the host is reached: route, network, ddns."""

from __future__ import annotations

from latticed.sdk.calls import Calls, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Route(Calls):
    """HTTP paths of this plugin, below /<plugin id>/ unless the operator granted another prefix."""

    def put(self, path: str, target: str, **more: Any) -> Any:
        """Answer `path` by `target` (template, invoke or service); `more` as docs/services.md has it (worker:route)."""
        return self._ask("route.put", {"path": path, "target": target, **more})

    def delete(self, path: str) -> Any:
        """Remove a route (worker:route)."""
        return self._ask("route.delete", {"path": path})


class Network(Calls):
    """Changes to the host's network as plans: proposed here, approved by an operator, applied with a rollback."""

    def state(self, kind: str) -> Any:
        """The live facts that a plan of `kind` would change (network:plan)."""
        return self._ask("network.state", {"kind": kind})

    def plan(self, kind: str, intent: dict[str, Any]) -> Any:
        """Propose a change; the answer names the sha256 that an operator approves (network:plan)."""
        return self._ask("network.plan", {"kind": kind, "intent": intent})

    def plans(self) -> Any:
        """This plugin's plans with their states (network:plan)."""
        return self._ask("network.plans", {})

    def apply(self, sha256: str) -> Any:
        """Apply what an operator approved, once (network:apply)."""
        return self._ask("network.apply", {"sha256": sha256})


class Ddns(Calls):
    """DNS records that follow this machine's addresses."""

    def put(self, name: str, **record: Any) -> Any:
        """Keep a record up to date (ddns:admin)."""
        return self._ask("ddns.put", {"name": name, **record})

    def delete(self, name: str) -> Any:
        """Stop updating a record (ddns:admin)."""
        return self._ask("ddns.delete", {"name": name})

    def status(self, name: str | None = None) -> Any:
        """State of the records of `name`, or of all (ddns:admin)."""
        return self._ask("ddns.status", given(name=name))

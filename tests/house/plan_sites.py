"""A built-in plugin that plans, in a real daemon, beside the real root helper in a network namespace."""

from __future__ import annotations

from typing import Any

from latticed.plans import protocol
from tests.house import apply_helpers, firewalled, hosting


class PlanSite:
    """One daemon that has the plugin `plugin_id` active, one helper, and the namespaces."""

    plugin_id: str

    def __init__(self, host: hosting.Host, helper: apply_helpers.Place, net: firewalled.Net) -> None:
        self.host, self.helper, self.net = host, helper, net

    def put(self, document: dict[str, Any]) -> None:
        """Set the plugin's configuration, and wait until the plugin is armed with it."""
        answer = self.host.daemon.ask("PUT", f"/api/plugins/by-id/{self.plugin_id}/config", {"config": document})
        assert answer.status == 200, answer
        what = f"{self.plugin_id} to be armed again"
        self.host.daemon.until(lambda: self.host.runtime(self.plugin_id)["state"] == "armed", what)

    def do(self, action: str, payload: Any = None) -> Any:
        return self.host.result(self.plugin_id, action, payload)

    def refused(self, action: str, payload: Any = None) -> str:
        """What the plugin, or the daemon, says against an invocation."""
        answer = self.host.invoke(self.plugin_id, action, payload)
        assert answer.status != 200 or answer.json()["ok"] is False, answer
        return answer.body.decode()

    def applied(self) -> str:
        """The name of the plugin's plan, approved by root, applied and confirmed."""
        plan = str(self.do("plan")["sha256"])
        review = self.helper.review(plan).review
        for request in (
            protocol.Approve(plan=plan, review=review),
            protocol.Apply(plan=plan, confirm_within_s=60),
            protocol.Confirm(plan=plan),
        ):
            answer = self.helper.ask(request)
            assert isinstance(answer, protocol.Moved), answer
        return plan

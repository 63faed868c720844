"""The table of host calls, as in contracts §9."""

from __future__ import annotations

from latticed.model import capability, hostcall

# Copied from contracts §9.
CALLS = {
    "kv:read": "kv.get kv.list",
    "kv:write": "kv.put kv.delete",
    "log:write": "log.write",
    "http:egress": "http.do mail.send",
    "notify:send": "notify.send",
    "audit:read": "audit.query",
    "node:read": "node.facts node.metrics node.journal",
    "node:admin": "node.set_labels",
    "monitor:read": "monitor.list monitor.results",
    "monitor:admin": "monitor.put monitor.delete",
    "static:read": "static.get static.list",
    "static:write": "static.put static.delete",
    "task:read": "task.list task.get",
    "task:run": "task.submit task.cancel service.put service.delete service.status service.save service.saved"
    " service.revert",
    "tunnel:admin": "tunnel.put tunnel.delete tunnel.status",
    "worker:route": "route.put route.delete",
    "network:plan": "network.state network.plan network.plans",
    "network:apply": "network.apply",
    "ddns:admin": "ddns.put ddns.delete ddns.status",
}
DENIALS = (
    "capability_denied capability_not_granted rate_limited too_large bad_params not_found service_unavailable "
    "egress_blocked quota_exceeded deadline_exceeded audit_unavailable internal"
).split()


def test_capability_of_each_call_equals_the_contract():
    """The set of calls equals the contract, too."""
    expected = {call: name for name, calls in CALLS.items() for call in calls.split()}
    assert dict(hostcall.CAPABILITY_OF) == expected


def test_every_capability_opens_at_least_one_call():
    """Otherwise granting it would have no effect."""
    assert {name: list(hostcall.calls_of(name)) for name in capability.RISKS} == {
        name: calls.split() for name, calls in CALLS.items()
    }


def test_denial_codes_equal_the_contract():
    """Plugins depend on these codes."""
    assert [denial.value for denial in hostcall.Denial] == DENIALS

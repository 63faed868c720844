"""latticectl ddns, monitor, service and route: aligned rows, JSON, and retrying a denied record."""

from __future__ import annotations

import json

import pytest

AT = "2025-01-31T08:00:00.000000Z"
DDNS = {
    "plugin": "acme.home",
    "name": "home.example.org",
    "type": "A",
    "state": "denied",
    "resting": False,
    "address": "93.184.215.14",
    "published": None,
    "last_change": None,
    "last_error": {"code": "denied", "message": "the token may not edit\x1b this zone", "at": AT},
}
MONITOR = {
    "plugin": "acme.watch",
    "name": "web",
    "kind": "http",
    "target": "https://example.org/",
    "state": "up",
    "resting": True,
    "since": AT,
    "last": {"at": AT, "outcome": "error", "code": "content_coding", "reason": "br"},
}
SERVICE = {
    "plugin": "acme.store",
    "name": "backend",
    "program": "node",
    "state": "running",
    "pid": 4242,
    "restarts": 3,
    "started_at": AT,
    "last_error": None,
}
ROUTE = {
    "plugin": "acme.page",
    "path": "/acme.page/",
    "target": "invoke",
    "action": "show",
    "state": "refused",
    "url": None,
    "reason": "/acme.page/ belongs to acme.other",
}
VERBS = {
    "ddns": (
        "ddns",
        "records",
        DDNS,
        ["home.example.org", "denied", "93.184.215.14", "denied: the token may not edit\\x1b"],
    ),
    "monitor": ("monitors", "monitors", MONITOR, ["https://example.org/", "resting", "error", "content_coding: br"]),
    "service": ("services", "services", SERVICE, ["backend", "node", "running", "4242", "3"]),
    "route": ("routes", "routes", ROUTE, ["/acme.page/", "invoke show", "refused", "belongs to acme.other"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_list_prints_aligned_rows_of_all_plugins_or_one(ctl, api, verb):
    """Each verb has one; as JSON it is a list."""
    kind, member, row, shown = VERBS[verb]
    api.override[f"GET {kind}"] = (200, {member: [row], "next": None})
    ran = ctl(verb, "list", "--abs-time")
    head, line = ran.out.splitlines()
    assert (ran.code, ran.err, head.split()[0]) == (0, "", "PLUGIN")
    assert line.startswith(row["plugin"])
    assert all(words in line for words in shown), line
    assert ctl(verb, "list", row["plugin"], "--format", "json").json == [row]
    assert api.asked[-1] == f"GET /api/{kind}?plugin={row['plugin']}&limit=500"
    assert ctl(verb, "list", "NO ID").code == 4
    api.override[f"GET {kind}"] = (200, {member: "odd"})
    assert "no proper list" in ctl(verb, "list").err


def test_list_follows_pages_until_the_last(ctl, api):
    """A daemon that repeats a page does not cause an endless loop."""
    api.override["GET monitors"] = (200, {"monitors": [MONITOR], "next": "acme.watch/web"})
    assert len(ctl("monitor", "list", "--format", "json").json) == 2
    assert api.asked[-1] == "GET /api/monitors?after=acme.watch%2Fweb&limit=500"


def test_ddns_retry_prints_the_retried_records(ctl, api):
    """With when that is; of those that are not, it prints why."""
    url = "POST ddns/acme.home/home.example.org/retry"
    api.override[url] = (200, {"records": [{**DDNS, "state": "pending"}]})
    assert ctl("ddns", "retry", "acme.home", "home.example.org").out == "home.example.org A is tried again now\n"
    assert json.loads(api.bodies[-1]) == {}
    api.override[url] = (200, {"records": [{**DDNS, "state": "pending", "next_try": "2025-01-31T08:00:01.5Z"}]})
    assert ctl("ddns", "retry", "acme.home", "home.example.org").out == "home.example.org A is tried again now\n"
    api.override[url] = (200, {"records": [{**DDNS, "resting": True}]})
    assert "once its plugin may act" in ctl("ddns", "retry", "acme.home", "home.example.org", "--type", "A").out
    assert json.loads(api.bodies[-1]) == {"type": "A"}
    shown = {
        "is tried again 2099-01-31T08:00:00Z": {"state": "pending", "next_try": "2099-01-31T08:00:00.5Z"},
        "has no address (no_address): it is tried once it has one": {"state": "no_address"},
        "is published already": {"state": "published", "next_try": "2099-01-31T08:00:00.5Z"},
    }
    api.override[url] = (200, {"records": [{**DDNS, **row} for row in shown.values()]})
    ran = ctl("ddns", "retry", "acme.home", "home.example.org", "--abs-time")
    assert ran.out.splitlines() == [f"home.example.org A {words}" for words in shown]
    api.override[url] = (200, {"records": []})
    ran = ctl("ddns", "retry", "acme.home", "home.example.org")
    assert (ran.code, ran.out) == (0, "home.example.org is published already\n")

"""What the console may ask the daemon: a table that is held against the control API's own."""

from __future__ import annotations

from typing import Any

import pytest

from latticed.console import forwarded
from latticed.model.capability import RISKS, Risk
from latticed.model.errors import Problem
from latticed.rpc.access import Scope
from latticed.rpc.routes import ROUTES

API = {(one.method, one.path.removeprefix("/api/")): one for one in ROUTES}


@pytest.mark.parametrize("one", [*forwarded.READING, *forwarded.ACTING], ids=str)
def test_each_route_is_one_of_the_api_that_takes_no_more_than_operate(one: forwarded.ForwardedRoute):
    known = {(method, path.replace("{item}", "{x}")): found for (method, path), found in API.items()}
    assert known[one.method, one.template.replace("{item}", "{x}")].scope in {Scope.NONE, Scope.READ, Scope.OPERATE}


@pytest.mark.parametrize("one", [*forwarded.READING, *forwarded.FLEET], ids=str)
def test_reading_is_by_get(one: forwarded.ForwardedRoute):
    assert not one.acting
    assert forwarded.route("GET", _parts(one.template), act=False) == one


@pytest.mark.parametrize("one", forwarded.ACTING, ids=str)
def test_acting_takes_act(one: forwarded.ForwardedRoute):
    with pytest.raises(Problem) as refused:
        forwarded.route(one.method, _parts(one.template), act=False)
    assert refused.value.code == "console_reads"
    assert forwarded.route(one.method, _parts(one.template), act=True) == one


@pytest.mark.parametrize(
    ("method", "path"),
    sorted(set(API) - {(one.method, one.template) for one in (*forwarded.READING, *forwarded.ACTING)}),
)
def test_no_other_route_of_the_api_is_forwarded(method: str, path: str):
    """Secrets, configurations, values, approvals, trust and backups among them."""
    with pytest.raises(Problem) as refused:
        forwarded.route(method, _parts(path), act=True)
    assert refused.value.code == "not_forwarded"


@pytest.mark.parametrize("part", ["..", ".", "", "a/b", "a\\b", "a%2fb", "a\nb", "a?b", "a#b", "é", "x" * 254, "a b"])
def test_no_value_of_a_placeholder_leads_elsewhere(part: str):
    for parts in (
        ("tasks", part),
        ("plugins", "by-id", part),
        ("plugins", "by-id", part, "logs"),
        ("market", "plugins", part),
        ("fleet", "nodes", part),
    ):
        with pytest.raises(Problem) as refused:
            forwarded.route("GET", parts, act=True)
        assert refused.value.code == "not_forwarded"


@pytest.mark.parametrize("name", [one for one, risk in RISKS.items() if risk is Risk.HOST])
@pytest.mark.parametrize(("path", "member"), [("plugins/lifecycle", "accept"), ("market/install", "accept")])
def test_no_consent_to_host_risk_is_forwarded(path: str, member: str, name: str):
    one = forwarded.route("POST", path.split("/"), act=True)
    with pytest.raises(Problem) as refused:
        forwarded.body(one, {member: ["kv:read", name]})
    assert refused.value.code == "needs_command"


@pytest.mark.parametrize("name", ["host=example.org:443", "feature=processes", "sandbox=open", "*", "", "KV:READ"])
def test_no_consent_but_to_a_capability_by_name_is_forwarded(name: str):
    one = forwarded.route("PUT", ["plugins", "by-id", "acme.demo", "grants"], act=True)
    with pytest.raises(Problem) as refused:
        forwarded.body(one, {"grant": [name]})
    assert refused.value.code == "needs_command"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "plugins/lifecycle", {"id": "acme.demo", "status": "active", "accept_hosts": ["*"]}),
        ("POST", "plugins/lifecycle", {"id": "acme.demo", "status": "active", "allow_downgrade": True}),
        ("POST", "plugins/by-id/acme.demo/upgrade", {"accept_publisher": "evil"}),
        ("POST", "plugins/by-id/acme.demo/upgrade", {"retry": True}),
        ("POST", "plugins/by-id/acme.demo/forget", {"purge": True}),
        ("PUT", "plugins/by-id/acme.demo/grants", {"hosts": ["*"]}),
        ("PUT", "plugins/by-id/acme.demo/grants", {"permits": []}),
        ("PUT", "plugins/by-id/acme.demo/grants", {"force": True}),
        ("POST", "market/install", {"id": "acme.demo", "accept_age": "1.0.0"}),
    ],
)
def test_no_other_member_of_a_body_is_forwarded(method: str, path: str, body: dict[str, Any]):
    one = forwarded.route(method, path.split("/"), act=True)
    with pytest.raises(Problem) as refused:
        forwarded.body(one, body)
    assert refused.value.code == "not_forwarded"


def test_what_is_of_less_than_host_risk_can_be_consented_to():
    one = forwarded.route("PUT", ["plugins", "by-id", "acme.demo", "grants"], act=True)
    forwarded.body(one, {"grant": ["kv:write"], "trim": ["http:egress"]})


def _parts(template: str) -> list[str]:
    values = {"{id}": "acme.demo", "{task}": "5c0f", "{sha}": "ab" * 32, "{item}": "cd" * 16, "{name}": "a.example.org"}
    return [values.get(part, "x" if part.startswith("{") else part) for part in template.lstrip("/").split("/")]

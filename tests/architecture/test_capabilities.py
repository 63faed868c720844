"""Tables of several packages that must agree: capabilities and host calls, routes and scopes, problems and statuses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import latticed
from latticed.model import capability, hostcall, verdict
from latticed.rpc import problems
from latticed.rpc.access import BY_WORD, Scope
from latticed.rpc.events import SCOPE_OF
from latticed.rpc.routes import ROUTES
from latticed.settings import SCOPES
from tests.house import in_process

PACKAGE = Path(latticed.__file__).parent
REACHABLE = ("lifecycle", "rpc", "catalog", "host", "supervisor", "broker", "runners")
"""Packages whose Problems may become an answer of the control API."""
NEVER_ANSWERED = {
    *(
        "settings_invalid",
        "socket_unusable",
        "runtime_in_use",
        "runtime_unusable",
        "state_unusable",
        "internal",
    ),  # at start, before there is an API
    *("ledger_sound", "floors_invalid", "backup_invalid", "backup_foreign"),  # by the offline verbs of latticed
    *("policy_missing", "policy_unreadable", "policy_unsafe"),  # shown by health
    *("directory_missing", "directory_unreadable"),  # likewise
}


@pytest.mark.parametrize("name", sorted(capability.RISKS))
def test_every_capability_has_a_host_call(name):
    """Each call of a capability needs that capability and no other."""
    calls = hostcall.calls_of(name)
    assert calls
    assert {hostcall.CAPABILITY_OF[call] for call in calls} == {name}


async def test_services_serve_the_table_of_host_calls_and_nothing_else():
    async with in_process.opened() as home:
        served = set(home.app.broker.services)
    assert served == set(hostcall.CAPABILITY_OF)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_has_a_scope(route):
    """One, or several; only health requires none."""
    assert isinstance(route.scope, Scope)
    assert (route.scope is Scope.NONE) == (route.path == "/api/health")


def test_every_scope_can_be_granted_in_the_settings():
    """The settings accept no other word, and all scopes together are `Scope.ALL`."""
    assert set(BY_WORD) == set(SCOPES)
    everything = Scope.NONE
    for scope in BY_WORD.values():
        everything |= scope
    assert everything == Scope.ALL


def test_every_audited_action_has_a_scope():
    """The scope is one of its own, or `operate`."""
    actions = {
        keyword.value.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "action" and isinstance(keyword.value, ast.Constant)
    }
    assert {"host.call", "plugin.runtime", "plugin.status", "trust.revoked", "api.refused"} <= actions
    assert set(SCOPE_OF) <= {action.partition(".")[0] for action in actions} | {"ledger", "plugin"}
    assert all(scope in {Scope.READ, Scope.OPERATE} for scope in SCOPE_OF.values())


def _raised(package: str) -> set[str]:
    """The codes of every Problem that a package raises by a literal code."""
    calls = (
        node
        for path in (PACKAGE / package).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem" and node.args
    )
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


@pytest.mark.parametrize("package", REACHABLE)
def test_every_problem_code_of_the_api_has_a_status(package):
    """500 is for faults of latticed, not for codes that the table lacks."""
    assert _raised(package) - NEVER_ANSWERED <= set(problems.STATUS_OF)


def test_every_verdict_code_has_status_409():
    """Contracts §5 promises it."""
    assert {problems.STATUS_OF[code.value] for code in verdict.Code} == {409}


def test_every_problem_has_an_error_status():
    assert all(400 <= status < 600 for status in problems.STATUS_OF.values())

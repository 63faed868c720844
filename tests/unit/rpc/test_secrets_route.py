"""Secrets over the control API: set, bind, list, never read; every change is audited with its outcome."""

from __future__ import annotations

import json

import pytest

from tests.house import in_process

VALUE = "correct horse battery staple"


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


def told(home):
    """(action, decision, code, name) of the audit events about secrets."""
    events = [event for event in home.events() if event["action"].startswith("secret.")]
    return [(event["action"], event["decision"], event["code"], event["target"]) for event in events]


async def test_secret_is_set_bound_listed_unbound_and_deleted(home):
    """Versions count up, bindings show; the value is in no answer and in no event."""
    answers = [
        await home.ask("PUT", "/api/secrets/TOKEN", VALUE.encode()),
        await home.ask("PUT", "/api/secrets/TOKEN", b"another value"),
        await home.ask("PUT", "/api/secrets/TOKEN/plugins/acme.demo", {}),
        await home.ask("GET", "/api/secrets"),
        await home.ask("DELETE", "/api/secrets/TOKEN/plugins/acme.demo"),
        await home.ask("DELETE", "/api/secrets/TOKEN"),
    ]
    assert [answer.status for answer in answers] == [200] * 6
    assert [answers[0]["version"], answers[1]["version"]] == [1, 2]
    (row,) = answers[3]["secrets"]
    assert (row["name"], row["version"], row["plugins"], row["usable"]) == ("TOKEN", 2, ["acme.demo"], True)
    assert VALUE not in json.dumps([*answers, *home.events()])
    assert told(home) == [
        (f"secret.{action}", "allow", "", "TOKEN") for action in ("set", "set", "bind", "unbind", "delete")
    ]
    assert (await home.ask("GET", "/api/secrets"))["secrets"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "TOKEN", b"", 400, "bad_request"),
        ("PUT", "lower", b"value", 400, "bad_request"),
        ("PUT", "TOKEN", b"x" * (1 << 17), 413, "too_large"),
        ("DELETE", "TOKEN", None, 404, "not_found"),
        ("PUT", "TOKEN/plugins/acme.demo", {}, 404, "not_found"),
        ("PUT", "TOKEN/plugins/Not%20An%20Id", {}, 400, "bad_request"),
        ("DELETE", "TOKEN/plugins/acme.demo", None, 404, "not_found"),
    ],
)
async def test_refused_change_of_a_secret_is_audited_as_denied(home, method, path, body, status, code):
    answer = await home.ask(method, f"/api/secrets/{path}", body)
    assert (answer.status, answer.code) == (status, code), answer
    assert [(decision, found) for _, decision, found, _ in told(home)] == [("allow", ""), ("deny", code)]
    assert (await home.ask("GET", "/api/secrets"))["secrets"] == []


async def test_secret_that_is_not_utf_8_is_refused(home):
    """Nothing is recorded."""
    answer = await home.ask("PUT", "/api/secrets/TOKEN", b"\xff")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert told(home) == []


async def test_secret_value_cannot_be_read(home):
    """No route returns a value."""
    await home.ask("PUT", "/api/secrets/TOKEN", VALUE.encode())
    for path in ("/api/secrets/TOKEN", "/api/secrets/TOKEN/value", "/api/secrets/TOKEN/plugins/acme.demo"):
        assert (await home.ask("GET", path)).status in {404, 405}


async def test_secrets_require_scope_host(home, monkeypatch):
    """403 with `operate`, and without any scope."""
    in_process.be(monkeypatch, 4242)
    for method, path in (("GET", ""), ("PUT", "/TOKEN"), ("DELETE", "/TOKEN"), ("PUT", "/TOKEN/plugins/acme.demo")):
        answer = await home.ask(method, f"/api/secrets{path}", b"{}" if method == "PUT" else None)
        assert (answer.status, answer.code) == (403, "access_denied"), answer

"""Every route over the real socket: who may use it, and how it refuses."""

from __future__ import annotations

import asyncio
import io
import json
from types import SimpleNamespace

import pytest
from aiohttp import ClientPayloadError
from yarl import URL

from latticed.kit.log_limit import EVERY_S, LogLimiter
from latticed.rpc import app, counts, plugins, views
from latticed.rpc.access import BY_WORD, Scope
from latticed.rpc.routes import ROUTES
from tests.house import in_process

ID = "acme.demo"
USER = 4_242
PROBLEM = {"type", "title", "status", "code", "detail", "hint"}
WORDS = {"read": Scope.READ, "operate": Scope.OPERATE, "host": Scope.HOST, "trust": Scope.TRUST}


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        found.drop(capabilities=["kv:read", "kv:write", "task:run"])
        await found.seen(ID)
        yield found


@pytest.fixture
def be(monkeypatch, home):
    """Act as a user with the given scopes from now on."""

    def someone(*words, uid=USER, scopes=Scope.NONE):
        in_process.be(monkeypatch, uid)
        api = home.app.api
        granted = scopes
        for word in words:
            granted |= BY_WORD[word]
        api.access = type(api.access)(users={uid: granted}, groups={}, names={uid: "tester"})

    return someone


def url(route):
    parts = {
        "id": ID,
        "bucket": "default",
        "key": "a",
        "name": "TOKEN",
        "item": "0" * 32,
        "task": "0" * 32,
        "sha": "0" * 64,
    }
    return route.path.format(**parts)


async def status_of(home, route):
    """Reads only the status, because an event stream does not end."""
    async with (
        asyncio.timeout(in_process.DEADLINE_S),
        home.session.request(route.method, f"http://latticed{url(route)}") as answer,
    ):
        return answer.status, answer.content_type


def test_every_route_names_its_scope_once():
    """No route is in the table twice; only health requires no scope."""
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    assert [route.path for route in ROUTES if route.scope is Scope.NONE] == ["/api/health"]
    for route in ROUTES:
        if route.method != "GET":
            assert route.scope is not Scope.READ, "who may only read changes nothing"


async def test_route_refuses_a_peer_without_its_scope(home, be):
    """All other scopes do not help; the refusal names the missing one and is audited."""
    guarded = [route for route in ROUTES if route.scope is not Scope.NONE]
    for uid, route in enumerate(guarded, USER):  # one user each: the denials of one coalesce
        be(uid=uid, scopes=Scope.ALL & ~route.scope)
        mark = home.mark()
        answer = await home.ask(route.method, url(route))
        assert (answer.status, answer.code) == (403, "access_denied"), route
        missing = [word for word, scope in WORDS.items() if scope in route.scope]
        assert f"the scope {', '.join(missing)}," in answer["detail"]
        assert f"uid {uid}" in answer["detail"]
        (event,) = [e for e in home.events(after=mark) if e["action"] == "api.refused"]
        assert event["actor"].startswith(f"uid:{uid} user:tester pid:")
        assert (event["target"], event["decision"]) == (f"{route.method} {url(route)}", "deny")


async def test_route_admits_a_peer_with_exactly_its_scope(home, be):
    """The answer is the handler's, never 403, 405 or 500."""
    for route in ROUTES:
        be(scopes=route.scope)
        status, kind = await status_of(home, route)
        assert status not in {403, 405, 500, 501}, (route, status)
        assert status < 400 or kind == "application/problem+json"


async def test_overflow_uid_has_no_scope(home, be, monkeypatch):
    """uid 65534 is refused even if it was granted scopes; health shows it only the status."""
    be("read", "operate", "host", "trust", uid=65_534)
    assert (await home.ask("GET", "/api/plugins")).status == 403
    assert dict(await home.ask("GET", "/api/health")) == {"status": "ok"}
    be("read")
    well = dict(await home.ask("GET", "/api/health"))
    assert (well["status"], well["problems"], well["sandbox"]["floor"]) == ("ok", [], "isolated")


async def test_root_has_every_scope(home, be):
    """The settings do not name it."""
    be(uid=0)
    assert (await home.ask("GET", "/api/audit")).status == 200
    assert (await home.decide(ID, "installed", accept=["task:run"])).status == 200


@pytest.mark.parametrize(
    "consent", [{"accept": ["task:run"]}, {"accept_hosts": ["a.example:443"]}, {"allow_downgrade": True}]
)
async def test_host_risk_consent_requires_scope_host(home, be, consent):
    """With `operate` alone an install is possible; consent to more is refused, and audited."""
    be("operate")
    answer = await home.decide(ID, "installed", **consent)
    assert (answer.status, answer.code) == (403, "access_denied")
    assert "scope host" in answer["detail"]
    assert [e["code"] for e in home.events(action="api.refused")] == ["access_denied"]
    assert (await home.decide(ID, "installed", accept=["kv:read"])).status == 200
    assert (await home.plugin(ID))["granted"] == ["kv:read", "kv:write"]


async def test_granting_host_risk_requires_scope_host_but_trimming_does_not(home, be):
    """`operate` is enough to take anything away."""
    be("operate")
    path = f"/api/plugins/by-id/{ID}/grants"
    assert (await home.ask("PUT", path, {"grant": ["task:run"]})).status == 403
    assert (await home.ask("PUT", path, {"trim": ["task:run", "kv:read"]}))["granted"] == ["kv:write"]
    assert (await home.ask("PUT", path, {"grant": ["kv:read"]}))["granted"] == ["kv:read", "kv:write"]
    be("operate", "host")
    assert (await home.ask("PUT", path, {"grant": ["task:run"]}))["masked"] == []
    assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {"accept_publisher": "x.y"})).status == 409
    be("operate")
    assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {"accept_publisher": "x.y"})).status == 403


# Problem documents.

DECIDE = "/api/plugins/lifecycle"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/", None, 404, "not_found"),
        ("GET", "/api/nothing", None, 404, "not_found"),
        ("GET", "/api/plugins/by-id/acme.none", None, 404, "not_found"),
        ("GET", "/api/kv/default/none", None, 404, "not_found"),
        ("DELETE", "/api/kv/default/none", None, 404, "not_found"),
        ("DELETE", "/api/plugins", None, 405, "method_not_allowed"),
        ("POST", DECIDE, b"", 400, "bad_request"),
        ("POST", DECIDE, b"{", 400, "bad_request"),
        ("POST", DECIDE, b"[]", 400, "bad_request"),
        ("POST", DECIDE, b"null", 400, "bad_request"),
        ("POST", DECIDE, b'\xef\xbb\xbf{"id": "acme.demo", "status": "installed"}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "installed", "force": true}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "active", "status": "installed"}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "verified"}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "ACTIVE"}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": 7, "status": "active"}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "installed", "accept": "kv:read"}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "installed", "accept": ["no:such"]}', 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "\\ud800", "status": "installed"}', 400, "bad_request"),
        ("POST", DECIDE, b"[" * 100_000, 400, "bad_request"),
        ("PUT", "/api/kv/default/a", b"x" * ((64 << 10) + 1), 409, "quota_exceeded"),
        ("GET", "/api/kv/default/%0a", None, 400, "bad_request"),
        ("PUT", "/api/kv/%1b/a", b"", 400, "bad_request"),
        ("POST", DECIDE, b'{"id": "acme.demo", "status": "active"}', 409, "invalid_transition"),
        ("POST", "/api/plugins/verify", b'{"name": "../x"}', 400, "bad_request"),
        ("POST", "/api/plugins/verify", b'{"name": ""}', 400, "bad_request"),
        ("POST", "/api/plugins/verify", b'{"name": ".hidden"}', 400, "bad_request"),
        ("POST", "/api/plugins/verify", b'{"name": "none"}', 404, "not_found"),
        ("POST", "/api/trust/lift", b'{"kind": "keys", "value": "a"}', 400, "bad_request"),
        ("POST", "/api/trust/lift", b'{"kind": "key", "value": "a"}', 404, "not_found"),
        ("GET", "/api/audit?limit=0", None, 400, "bad_request"),
        ("GET", "/api/audit?limit=1001", None, 400, "bad_request"),
        ("GET", "/api/audit?after=-1", None, 400, "bad_request"),
        ("GET", "/api/audit?after=99999999999999999999", None, 400, "bad_request"),
        ("GET", "/api/audit?since=yesterday", None, 400, "bad_request"),
        ("GET", "/api/audit?since=2026-01-01T00:00:00", None, 400, "bad_request"),
        ("GET", "/api/audit?since=0001-01-01T00:00:00%2B23:59", None, 400, "bad_request"),
        ("GET", "/api/audit?since=9999-12-31T23:59:59-23:59", None, 400, "bad_request"),
    ],
)
async def test_refusals_are_problem_documents(home, method, path, body, status, code):
    """RFC 9457 with a code, a detail and a hint; the daemon keeps serving."""
    data = None if body is None else io.BytesIO(body)
    async with home.session.request(method, f"http://latticed{path}", data=data) as answer:
        found = json.loads(await answer.read())
        assert answer.content_type == "application/problem+json"
    assert set(found) == PROBLEM
    assert (answer.status, found["status"], found["code"]) == (status, status, code), found
    assert found["title"]
    assert found["detail"]
    assert found["type"] == "about:blank"
    if status == 405:
        assert set(answer.headers["Allow"].replace(" ", "").split(",")) >= {"GET"}
    assert (await home.ask("GET", "/api/health")).status == 200


async def test_every_route_refuses_unknown_query_parameters(home):
    """Repeated ones are refused, too: a typing error must not silently select a default."""
    for route in ROUTES:
        body = None if route.method == "GET" else b"{}"
        answer = await home.ask(route.method, f"{url(route)}?colour=red", body)
        assert (answer.status, answer.code) == (400, "bad_request"), route
        assert "colour" in answer["detail"]
    for query in ("limit=1&limit=2", "after=0&after=0"):
        assert (await home.ask("GET", f"/api/audit?{query}")).status == 400


async def test_unexpected_exception_is_500_without_details(home, monkeypatch):
    """The traceback is only in the log."""

    def broken():
        raise RuntimeError("/var/lib/latticed/secret")

    monkeypatch.setattr(home.app.api.lifecycle, "known", broken)
    answer = await home.ask("GET", "/api/plugins")
    assert (answer.status, answer.code) == (500, "internal")
    assert "secret" not in json.dumps(answer)


# What the routes answer.


async def test_plugin_lists_are_sorted_equal_and_show_no_path(home):
    """Both lists are the same; times are RFC 3339 UTC; absent values are left out."""
    for name in ("z", "b", "m"):
        home.drop(name, id=f"acme.{name}{name}")
        await home.seen(f"acme.{name}{name}")
    await home.decide("acme.mm", "installed")
    rows = (await home.ask("GET", "/api/plugins"))["rows"]
    assert rows == (await home.ask("GET", "/api/plugins/lifecycle"))["rows"]
    assert [row["id"] for row in rows] == ["acme.bb", "acme.demo", "acme.mm", "acme.zz"]
    text = json.dumps(rows)
    assert str(home.root) not in text
    assert "null" not in text
    always = {"id", "name", "type", "capabilities", "artifact_sha256", "available", "status", "runtime", "granted"}
    for row in rows:
        assert always <= set(row)
        assert {"state", "runner", "health", "message"} <= set(row["runtime"])
        assert row["verified_at"].endswith("Z")
        assert ("installed_at" in row) == (row["id"] == "acme.mm")


async def test_streamed_plugin_list_equals_the_cached_one(home, monkeypatch):
    """Rows beyond the size of the cache are made anew."""
    for name in ("z", "b", "m", "k"):
        home.drop(name, id=f"acme.{name}{name}")
        await home.seen(f"acme.{name}{name}")
    short = (await home.ask("GET", "/api/plugins"))["rows"]
    home.app.api.shown.clear()
    monkeypatch.setattr(views, "ROWS_KEPT", 3)
    monkeypatch.setattr(plugins, "ROWS_AT_ONCE", 2)
    for _ in range(2):
        assert (await home.ask("GET", "/api/plugins"))["rows"] == short
    assert len(home.app.api.shown) == 3


async def test_interrupted_plugin_list_closes_the_connection(home, monkeypatch):
    """The client sees an incomplete answer, and no other answer follows."""
    home.drop("b", id="acme.bb")
    await home.seen("acme.bb")
    monkeypatch.setattr(views, "ROWS_KEPT", 0)
    monkeypatch.setattr(plugins, "ROWS_AT_ONCE", 1)
    whole = views.plugin_row

    def row(api, record):
        if record.id == "acme.demo":
            raise RuntimeError("/var/lib/latticed/secret")
        return whole(api, record)

    monkeypatch.setattr(views, "plugin_row", row)
    with pytest.raises(ClientPayloadError):
        await home.ask("GET", "/api/plugins")
    monkeypatch.setattr(views, "plugin_row", whole)
    assert len((await home.ask("GET", "/api/plugins"))["rows"]) == 2


async def test_repeated_failures_are_logged_once_with_a_count(home, monkeypatch):
    """Each request gets 500, but cannot fill the disk with log entries."""
    said, now_s = [], 1_000.0

    def fail(api):
        raise RuntimeError("found by asking for metrics")

    monkeypatch.setattr(app, "_failures", LogLimiter())
    monkeypatch.setattr(app.log, "error", lambda event, **fields: said.append((event, fields["count"])), raising=False)
    monkeypatch.setattr(app, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(counts, "count_plugins", fail)
    assert {(await home.ask("GET", "/metrics")).status for _ in range(50)} == {500}
    now_s += EVERY_S
    assert (await home.ask("GET", "/metrics")).status == 500
    assert said == [("request_failed", 1), ("request_failed", 50)]


async def test_kv_values_are_set_read_listed_and_deleted(home):
    """Values are raw bytes, keys come by page, changes are audited without the value."""
    raw = bytes(range(256))
    assert (await home.ask("PUT", "/api/kv/default/k%20ey", raw)).status in {200, 204}
    assert (await home.ask("GET", "/api/kv/default/k%20ey"))["raw"] == raw
    assert (await home.ask("GET", "/api/kv/default?prefix=k"))["keys"] == ["k ey"]
    assert (await home.ask("DELETE", "/api/kv/default/k%20ey")).status in {200, 204}
    assert (await home.ask("GET", "/api/kv/default"))["keys"] == []
    actions = [event["action"] for event in home.events() if event["target"] == "default/k ey"]
    assert actions == ["kv.put", "kv.delete"]


@pytest.mark.parametrize("name", ["%ff", "%ed%a0%80", "%c3%28"])
async def test_path_that_is_not_utf_8_is_refused_or_not_found(home, name):
    """It is never a 500."""
    for method, path in (
        ("GET", f"/api/kv/default/{name}"),
        ("PUT", f"/api/kv/{name}/a"),
        ("GET", f"/api/plugins/by-id/{name}"),
        ("POST", f"/api/plugins/by-id/{name}/restart"),
        ("GET", f"/api/audit?target={name}"),
    ):
        async with home.session.request(method, URL(f"http://latticed{path}", encoded=True)) as answer:
            assert answer.status < 500, (method, path, answer.status)


async def test_verify_returns_a_verdict_and_stores_nothing(home):
    """The bundle is named within the plugin directory."""
    found = await home.ask("POST", "/api/plugins/verify", {"name": "demo"})
    assert (found["ok"], found["id"], found["code"]) == (True, ID, None)
    (home.plugin_dir / "empty").mkdir()
    found = await home.ask("POST", "/api/plugins/verify", {"name": "empty"})
    assert (found["ok"], found["code"]) == (False, "manifest_missing")


async def test_rejected_bundles_are_listed_with_their_reason(home):
    """They are named by directory, with the id they claim if that can be read."""
    home.drop("second", id=ID)
    await in_process.until(home.app.api.lifecycle.rejected, "rejected")
    (row,) = (await home.ask("GET", "/api/plugins/rejected"))["rows"]
    assert (row["name"], row["code"], row["id"]) == ("second", "duplicate_id", ID)
    assert row["reason"]
    assert row["hint"]


async def test_audit_events_are_paged_and_filtered(home):
    """Oldest first with a cursor; newest first on request; filters match whole fields."""
    await home.decide(ID, "installed")
    await home.decide(ID, "installed")
    everything = (await home.ask("GET", "/api/audit"))["events"]
    assert [event["seq"] for event in everything] == list(range(1, len(everything) + 1))
    page = await home.ask("GET", "/api/audit?limit=1")
    assert page["next"] == "1.0"
    assert (await home.ask("GET", f"/api/audit?limit=1&after={page['next']}"))["events"] == everything[1:2]
    denied = (await home.ask("GET", "/api/audit?decision=deny&action=plugin.status"))["events"]
    assert [event["code"] for event in denied] == ["invalid_transition"]
    newest = (await home.ask("GET", "/api/audit?newest=1&limit=1"))["events"]
    assert newest[0]["seq"] == len(everything)
    assert (await home.ask("GET", "/api/audit?since=2999-01-01T00:00:00Z"))["events"] == []


async def test_event_stream_shows_only_what_the_scopes_permit(home, be):
    """`read` sees no detail; host calls come only on request; ids are seqs of the chain."""
    instance = await home.armed(ID)
    await instance.call("kv.get", key="a")
    mark = home.mark()
    be("read")
    seen = await streamed(home, "since=0", until=mark.decisions)
    assert all("detail" not in event for event in seen)
    assert {event["action"] for event in seen} == {"plugin.status", "plugin.runtime"}
    be("operate")
    seen = await streamed(home, "since=0&host_calls=1", until=str(mark))
    assert [event["seq"] for event in seen if "chain" not in event] == list(range(1, mark.decisions + 1))
    assert [event["action"] for event in seen if event.get("chain") == "calls"] == ["host.call"]
    assert all("detail" in event for event in seen)


async def streamed(home, query, *, until):
    """The events of a stream up to the id `until`."""
    seen, at = [], ""
    async with (
        asyncio.timeout(in_process.DEADLINE_S),
        home.session.get(f"http://latticed/api/events?{query}") as answer,
    ):
        assert answer.content_type == "text/event-stream"
        async for line in answer.content:
            if line.startswith(b"id: "):
                at = line[4:].decode().strip()
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))
                if at == str(until):
                    break
    return seen


async def test_head_request_is_answered_on_every_get_route(home):
    """The same status and type without a body; streams are not produced."""
    mark = home.mark()
    for route in ROUTES:
        if route.method != "GET":
            continue
        async with asyncio.timeout(in_process.DEADLINE_S), home.session.head(f"http://latticed{url(route)}") as head:
            assert await head.read() == b""
        if isinstance(route.form.answer, str) and "Content-Length" not in head.headers:
            assert head.content_type == route.form.answer
            continue
        async with asyncio.timeout(in_process.DEADLINE_S), home.session.get(f"http://latticed{url(route)}") as got:
            assert (head.status, head.content_type) == (got.status, got.content_type), route
    assert [event["action"] for event in home.events(after=mark)] == []


async def test_head_request_for_a_streamed_list_completes(home, monkeypatch):
    monkeypatch.setattr(views, "ROWS_KEPT", 0)
    async with asyncio.timeout(in_process.DEADLINE_S), home.session.head("http://latticed/api/plugins") as head:
        assert (head.status, head.content_type) == (200, "application/json")


async def test_head_request_requires_the_scope_of_get(home, be):
    be(uid=4_711)
    async with home.session.head("http://latticed/api/plugins") as head:
        assert head.status == 403


async def test_rejected_bundles_are_listed_up_to_a_limit(home):
    for name in "abc":
        home.drop(name, id=f"acme.{name}", author=None, capabilities=["kv:steal"])
    await in_process.until(lambda: len(home.app.api.lifecycle.rejected()) == 3, "three to be refused")
    for limit, names in (("", ["a", "b", "c"]), ("?limit=2", ["a", "b"]), ("?limit=9&about=acme.b", ["b"])):
        found = await home.ask("GET", f"/api/plugins/rejected{limit}")
        assert [row["name"] for row in found["rows"]] == names
    assert (await home.ask("GET", "/api/plugins/rejected?limit=0")).status == 400


async def test_plugins_id_in_the_place_of_its_bucket_is_told_where_its_values_are(home):
    home.drop()
    await home.seen("acme.demo")
    answer = await home.ask("GET", "/api/kv/acme.demo/a")
    assert (answer.status, answer["hint"]) == (404, "latticectl kv list plugin:acme.demo")
    assert not (await home.ask("GET", "/api/kv/default/a"))["hint"]
    invoked = await home.ask("POST", "/api/plugins/by-id/acme.demo/invoke", {"action": "a"})
    assert (invoked.code, invoked["hint"]) == ("not_armed", "latticectl explain acme.demo")

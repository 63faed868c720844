"""route.put and route.delete: parameters, paths, answers of each target, and what a restart restores."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from types import SimpleNamespace

import pytest

from latticed.host.call import HostError
from latticed.host.route import targets as route_targets
from latticed.host.route.table import RouteRequest
from latticed.host.route.targets import MAX_ANSWER_BYTES, MAX_IN_FLIGHT
from latticed.kit.log_limit import LogLimiter
from latticed.ledger import routes as rows
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from tests.house import backends, in_process, ingresses, processes, routed
from tests.house.routed import ID

OTHER = "acme.other"
HERE = f"/{ID}/"
TEMPLATE = {"target": "template", "template": "hello {{path}}"}
INVOKE = {"target": "invoke", "action": "web"}


@pytest.fixture
async def world(tmp_path):
    async with routed.opened(tmp_path) as found:
        yield found


async def page(world, path, *fields, **options):
    return await world.ask(options.pop("method", "GET"), path, *fields, table=world.pages, **options)


# Templates.


async def test_template_route_answers_at_its_path(world):
    """The call returns the URL; pages have a sandbox policy and nosniff."""
    answer = await world.put(path=HERE, **TEMPLATE)
    assert answer == {"ok": True, "path": HERE, "url": f"{world.pages.listener.url}{HERE}", "message": ""}
    found = await page(world, f"{HERE}a%20b?x=1")
    assert (found.status, found.body) == (200, f"hello {HERE}a b".encode())
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert found.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert (await page(world, HERE, method="POST")).status == 405


async def test_stored_values_are_read_with_rights_of_the_plugin(world):
    """Values are escaped in HTML and not expanded again; a denied kv.get renders empty, a failing one gives 503."""
    world.plugins.values = {f"plugin:{ID}/who": "<b>{{path}}</b>"}
    template = f"<p>{{{{kv:plugin:{ID}/who}}}} {{{{query:q}}}} {{{{kv:default/x}}}}</p>"
    await world.put(path=HERE, target="template", template=template, content_type="text/html")
    answer = await page(world, f"{HERE}?q=%26")
    assert answer.body == b"<p>&lt;b&gt;{{path}}&lt;/b&gt; &amp; </p>"
    assert {(one, method) for one, method, _ in world.plugins.called} == {(ID, "kv.get")}
    world.plugins.denial = Denial.CAPABILITY_NOT_GRANTED
    assert (await page(world, HERE)).body == b"<p>  </p>"
    world.plugins.denial = Denial.AUDIT_UNAVAILABLE
    assert (await page(world, HERE)).status == 503


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"template": "x fetch('/')"}, "source_blocked: expected a template, which is data, found .*fetch"),
        ({"template": "{{path"}, "not closed in line 1"),
        ({"template": ""}, "template: expected some text"),
        ({"template": "x" * 300_000}, "at most 262144 bytes"),
        ({"template": "\ud800"}, "without lone surrogates"),
        ({"content_type": "text/javascript"}, "source_blocked: expected content_type"),
        ({"content_type": "image/svg+xml"}, "source_blocked"),
        ({"action": "x"}, "action: goes with the target invoke, found template"),
        ({"login": "${secret:X}"}, "login: goes with the target service"),
        ({"public": ["/x"]}, "public: goes with the target service"),
    ],
)
async def test_bad_parameters_of_template_route_are_refused(world, params, word):
    """Templates, content types, and parameters of other targets; no route is stored."""
    error = await world.refused(path=HERE, **{**TEMPLATE, **params})
    assert error.code is Denial.BAD_PARAMS
    assert re.search(word, error.reason), error.reason
    assert world.kept() == []
    assert not world.pages.in_use


# Actions.


async def test_action_gets_request_and_its_result_is_the_response(world):
    """Cookie, Authorization and X-Forwarded-* are not passed on."""
    await world.put(path=f"{HERE}hook", **INVOKE, methods=["POST"])
    world.plugins.reply = {
        "ok": True,
        "message": "",
        "result": {"status": 202, "content_type": "application/json", "body": '{"a":1}'},
        "error": None,
    }
    fields = ["Content-Type: text/x", "X-Hub-Signature: abc", "Cookie: a=b", "Authorization: x", "X-Forwarded-For: 1"]
    answer = await page(world, f"{HERE}hook/x?a=1&a=2&b", *fields, method="POST", body="h\u00e9".encode())
    assert (answer.status, answer.body) == (202, b'{"a":1}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    ((plugin_id, action, payload),) = world.plugins.asked
    assert (plugin_id, action) == (ID, "web")
    assert payload == {
        "method": "POST",
        "path": f"{HERE}hook/x",
        "query": [["a", "1"], ["a", "2"], ["b", ""]],
        "headers": {"content-type": "text/x", "x-hub-signature": "abc"},
        "body": "h\u00e9",
        "body_base64": None,
    }
    assert (await page(world, f"{HERE}hook")).status == 405


async def test_page_of_action_may_load_its_own_style_and_images(world, capsys, monkeypatch):
    """By the host that was asked, and the plugin's prefix; too many styles are refused, and the log says why."""
    monkeypatch.setattr(route_targets, "_REFUSED", LogLimiter())  # other tests have answers refused, too
    await world.put(path=f"{HERE}page", **INVOKE)
    style = "<style>p { color: red }</style>"
    world.plugins.reply = {"ok": True, "result": {"content_type": "text/html", "body": style}}
    answer = await page(world, f"{HERE}page", "Host: localhost:99")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    digest = base64.b64encode(hashlib.sha256(b"p { color: red }").digest()).decode()
    assert answer.headers["content-security-policy"] == (
        "sandbox; default-src 'none'; base-uri 'none'; form-action 'none';"
        f" style-src 'sha256-{digest}' localhost:99{HERE}; img-src localhost:99{HERE}"
    )
    assert (await page(world, f"{HERE}page", method="HEAD")).headers["content-security-policy"].count("sha256") == 1
    world.plugins.reply = {"ok": True, "result": {"content_type": "text/html", "body": style * 1_000}}
    answer = await page(world, f"{HERE}page")
    assert (answer.status, "content-security-policy" in answer.headers) == (502, True)
    told = capsys.readouterr().out
    assert "route_answer_refused" in told
    assert "at most 16 <style> elements, found more" in told
    for size in range(1_048_577, 1_048_587):
        world.plugins.reply = {"ok": True, "result": {"body": "x" * size}}
        assert (await page(world, f"{HERE}page")).status == 502
    assert capsys.readouterr().out.count("route_answer_refused") == 1, "not one for each size"
    world.plugins.reply = {"ok": True, "result": {"content_type": "image/svg+xml", "body": "<svg/>"}}
    policy = (await page(world, f"{HERE}page")).headers["content-security-policy"]
    assert policy == "sandbox; default-src 'none'; style-src 'unsafe-inline'"


async def test_template_may_have_styles_but_not_any_number_of_them(world):
    html = {"target": "template", "content_type": "text/html", "path": HERE}
    await world.put(**html, template="<style>a{}</style>{{query:q}}")
    answer = await page(world, f"{HERE}?q=%3Cstyle%3Eb%7B%7D%3C/style%3E")
    assert answer.headers["content-security-policy"].count("sha256-") == 1
    refused = await world.refused(**html, template="<style>a{}</style>" * 17)
    assert refused.reason == "source_blocked: expected a page with at most 16 <style> elements, found more"


async def test_binary_bodies_of_action_are_base64(world):
    """They are so in the request and in the result."""
    await world.put(path=HERE, **INVOKE, methods=["PUT"])
    coded = base64.b64encode(b"\xff\x00").decode()
    world.plugins.reply = {"ok": True, "result": {"body_base64": coded, "content_type": "image/png"}}
    answer = await page(world, HERE, method="PUT", body=b"\x00\xff")
    assert (answer.status, answer.body) == (200, b"\xff\x00")
    payload = world.plugins.asked[0][2]
    assert (payload["body"], payload["body_base64"]) == (None, base64.b64encode(b"\x00\xff").decode())


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        ({"ok": False, "message": "secret words", "error": "more of them"}, 502, "plugin_error"),
        ({"ok": True, "result": None}, 502, "plugin_error"),
        ({"ok": True, "result": "text"}, 502, "plugin_error"),
        ({"ok": True, "result": {"headers": {}}}, 502, "plugin_error"),
        ({"ok": True, "result": {"userinfo": "upload=1\r\nSet-Cookie: a=b"}}, 502, "plugin_error"),
        ({"ok": True, "result": {"userinfo": {"upload": 1}}}, 502, "plugin_error"),
        ({"ok": True, "result": {"status": 101}}, 502, "plugin_error"),
        ({"ok": True, "result": {"status": 302}}, 502, "plugin_error"),
        ({"ok": True, "result": {"status": True}}, 502, "plugin_error"),
        ({"ok": True, "result": {"status": 200.0}}, 502, "plugin_error"),
        ({"ok": True, "result": {"status": 204}}, 502, "plugin_error"),
        ({"ok": True, "result": {"content_type": "text/html\r\nX: y"}}, 502, "plugin_error"),
        ({"ok": True, "result": {"content_type": 1}}, 502, "plugin_error"),
        ({"ok": True, "result": {"body": "a", "body_base64": "YQ=="}}, 502, "plugin_error"),
        ({"ok": True, "result": {"body": 1}}, 502, "plugin_error"),
        ({"ok": True, "result": {"body": "\ud800"}}, 502, "plugin_error"),
        ({"ok": True, "result": {"body_base64": "?"}}, 502, "plugin_error"),
        ({"ok": True, "result": {"body": "x" * (MAX_ANSWER_BYTES + 1)}}, 502, "output_too_large"),
        (Problem("not_armed", "it is stopped"), 503, "not_armed"),
        (Problem("deadline_exceeded", "late"), 504, "deadline_exceeded"),
        (Problem("protocol_error", "garbage"), 502, "protocol_error"),
    ],
)
async def test_bad_action_result_is_an_error_code(world, reply, status, code):
    """The response has the code and none of the plugin's own text."""
    await world.put(path=HERE, **INVOKE)
    world.plugins.reply = reply
    answer = await page(world, HERE)
    assert (answer.status, answer.code) == (status, code)
    assert b"words" not in answer.body
    assert b"them" not in answer.body


async def test_request_over_limit_of_concurrent_actions_is_503_busy(world):
    """Each action may be a process."""
    await world.put(path=HERE, **INVOKE)
    world.plugins.hold = asyncio.Event()
    waiting = [asyncio.ensure_future(page(world, HERE)) for _ in range(MAX_IN_FLIGHT)]
    await ingresses.until(lambda: len(world.plugins.asked) == MAX_IN_FLIGHT, "all are there")
    answer = await page(world, HERE)
    assert (answer.status, answer.code) == (503, "busy")
    world.plugins.hold.set()
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
    assert (await page(world, HERE)).status == 200


@pytest.mark.parametrize(
    "params",
    [
        {"action": ""},
        {"action": "a b"},
        {"action": "x" * 129},
        {"methods": ["get"]},
        {"methods": ["CONNECT"]},
        {"template": "x"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
async def test_bad_parameters_of_action_route_are_refused(world, params):
    """Names of actions, methods, and parameters of other targets."""
    assert (await world.refused(path=HERE, **{**INVOKE, **params})).code is Denial.BAD_PARAMS


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/other/",
        f"/{OTHER}/",
        f"/{ID}x/",
        "/.well-known/",
        "/.well-known/acme-challenge/",
        f"/{ID}/../{OTHER}/",
        f"/{ID}/./x/",
        f"/{ID}//x/",
        f"/{ID}/%2e%2e/",
        f"/{ID}/a b/",
        f"/{ID}/a?b/",
        f"/{ID}/\n/",
        f"/{ID}/" + "x" * 255,
        f"/{ID}" + "/x" * 9,
        "",
        ID,
    ],
)
async def test_route_paths_outside_own_prefix_are_refused(world, path):
    """They are of other plugins' prefixes, reserved, or not in normal form."""
    error = await world.refused(path=path, **TEMPLATE)
    assert error.code is Denial.BAD_PARAMS
    assert world.kept() == []


async def test_granted_prefix_is_served_until_revoked(world):
    """So are paths below it; reserved paths stay refused although they are granted."""
    world.plugins.granted_prefixes[ID] = frozenset({"/shop/", "/.well-known/"})
    await world.put(path="/shop/", **TEMPLATE)
    await world.put(path="/shop/cart/", target="template", template="cart")
    assert (await world.refused(path="/.well-known/x/", **TEMPLATE)).code is Denial.BAD_PARAMS
    assert (await world.refused(path="/shopping/", **TEMPLATE)).code is Denial.BAD_PARAMS
    assert (await page(world, "/shop/cart/x")).body == b"cart"
    world.plugins.granted_prefixes[ID] = frozenset()
    world.pass_s(1.0)
    await ingresses.until(lambda: not world.pages.in_use, "given back")
    world.plugins.granted_prefixes[ID] = frozenset({"/shop/"})
    world.pass_s(1.0)
    assert world.pages.find("/shop/cart/x").plugin_id == ID


@pytest.mark.parametrize("granted", [True, False])
async def test_put_that_cannot_be_stored_leaves_the_earlier_route_if_its_prefix_is_still_granted(
    world, monkeypatch, granted
):
    """The caller gets the error of the disk whether the earlier route returns or not."""
    world.plugins.granted_prefixes[ID] = frozenset({"/shop/"})
    await world.put(path="/shop/", target="template", template="first")

    async def write(*_, **__):
        if not granted:
            world.plugins.granted_prefixes[ID] = frozenset()
        raise Problem("ledger_unavailable", "the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(world.keeper, "_ledger", SimpleNamespace(write=write))
        with pytest.raises(HostError, match="the disk is full"):
            await world.put(path="/shop/", target="template", template="second")
    if granted:
        assert (await page(world, "/shop/")).body == b"first"
    else:
        assert world.pages.find("/shop/") is None


async def test_granted_root_prefix_does_not_include_other_prefixes(world):
    """`/` serves what no longer prefix matches; it gives no claim to paths below it."""
    world.plugins.granted_prefixes[ID] = frozenset({"/"})
    await world.put(path="/", **TEMPLATE)
    for path in (f"/{OTHER}/", "/x/", "/.well-known/"):
        assert (await world.refused(path=path, **TEMPLATE)).code is Denial.BAD_PARAMS
    await world.put(OTHER, path=f"/{OTHER}/", target="template", template="other")
    assert (await page(world, "/x/y")).body == b"hello /x/y"
    assert (await page(world, f"/{OTHER}/x")).body == b"other"
    assert (await page(world, "/.well-known/x")).status == 404


async def test_route_path_of_another_plugin_is_refused(world):
    """The error names the owner; the path is free once that route is deleted."""
    world.plugins.granted_prefixes = {ID: frozenset({"/app/"}), OTHER: frozenset({"/app/"})}
    await world.put(ID, path="/app/", **TEMPLATE)
    error = await world.refused(OTHER, path="/app/", **TEMPLATE)
    assert (error.code, f"route_taken: cannot serve this route: /app/ belongs to {ID}") == (
        Denial.BAD_PARAMS,
        error.reason,
    )
    assert await world.call(ID, "route.delete", path="/app") == {"ok": True}
    assert await world.call(ID, "route.delete", path="/app/") == {"ok": False}
    assert (await world.put(OTHER, path="/app/", **TEMPLATE))["ok"]
    assert [row.plugin_id for row in world.kept()] == [OTHER]


async def test_put_replaces_route_of_same_path(world):
    """The new one may have another target; a refused put leaves the route as it was."""
    await world.put(path=HERE, target="template", template="one")
    await world.put(path=HERE, target="template", template="two")
    assert (await page(world, HERE)).body == b"two"
    assert (await world.refused(path=HERE, target="template", template="{{")).code is Denial.BAD_PARAMS
    assert (await page(world, HERE)).body == b"two"
    await world.put(path=HERE, **INVOKE)
    assert (await page(world, HERE)).body == b"hi"
    assert len(world.kept()) == 1


async def test_route_put_over_quota_changes_nothing(tmp_path):
    """The quotas are of routes and bytes per plugin, and of routes in total."""
    async with routed.opened(tmp_path) as world:
        world.keeper._quota = rows.RouteQuota(routes=2, total_bytes=700, all_routes=3)
        for name in ("a", "b"):
            await world.put(path=f"{HERE}{name}/", target="template", template=name)
        error = await world.refused(path=f"{HERE}c/", target="template", template="c")
        assert (error.code, "at most 2 routes" in error.reason) == (Denial.QUOTA_EXCEEDED, True)
        assert (await page(world, f"{HERE}c/")).status == 404
        error = await world.refused(path=f"{HERE}b/", target="template", template="b" * 700)
        assert error.code is Denial.QUOTA_EXCEEDED
        assert (await page(world, f"{HERE}b/")).body == b"b"
        await world.put(OTHER, path=f"/{OTHER}/", **TEMPLATE)
        assert (await world.refused(OTHER, path=f"/{OTHER}/x/", **TEMPLATE)).code is Denial.QUOTA_EXCEEDED


# Restarts, and plugins that stop.


async def test_routes_are_restored_after_restart(tmp_path):
    """Templates, actions and services, once their plugin is active."""
    plugins = routed.SimulatedPlugins()
    async with backends.running() as backend:
        async with routed.opened(tmp_path, plugins=plugins) as world:
            await world.serve(backend, path=f"{HERE}app/", public=["/feed"])
            await world.put(path=f"{HERE}page/", target="template", template="page")
            await world.put(path=f"{HERE}hook/", **INVOKE)
        plugins.live.discard(ID)
        async with routed.opened(tmp_path, plugins=plugins) as world:
            assert not world.pages.in_use
            assert not world.services.in_use
            plugins.live.add(ID)
            world.pass_s(1.0)
            assert (await world.pages.wait_for_listener(10)).url
            assert (await world.services.wait_for_listener(10)).url
            assert (await page(world, f"{HERE}page/")).body == b"page"
            assert (await page(world, f"{HERE}hook/")).body == b"hi"
            assert (await world.get(f"{HERE}app/feed")).status == 200
            assert (await world.get(f"{HERE}app/x")).status == 401
    assert backend.paths == ["/feed"]


async def test_routes_of_inactive_plugin_give_404(world):
    """They do from the next request on; the next recheck releases the prefix and closes the listener."""
    await world.put(path=HERE, **TEMPLATE)
    await world.put(path=f"{HERE}hook/", **INVOKE)
    world.plugins.live.discard(ID)
    assert (await page(world, HERE)).status == 404
    assert (await page(world, f"{HERE}hook/")).status == 404
    assert world.plugins.asked == []
    world.pass_s(1.0)
    await ingresses.until(lambda: not world.pages.listener.url, "no listener")
    world.plugins.live.add(ID)
    world.pass_s(1.0)
    assert (await world.pages.wait_for_listener(10)).url
    assert (await page(world, HERE)).status == 200


async def test_forgetting_plugin_deletes_its_routes(world):
    """Rows and claims of that plugin only."""
    await world.put(path=HERE, **TEMPLATE)
    await world.put(OTHER, path=f"/{OTHER}/", **TEMPLATE)
    await world.keeper.forget(ID)
    world.pass_s(1.0)
    assert (await page(world, HERE)).status == 404
    assert (await page(world, f"/{OTHER}/")).status == 200
    assert [row.plugin_id for row in world.kept()] == [OTHER]


async def test_unreadable_route_row_does_not_stop_other_routes(tmp_path):
    async with routed.opened(tmp_path) as world:
        await world.put(path=HERE, **TEMPLATE)
        await world.put(path=f"{HERE}x/", **TEMPLATE)
        for path, spec in ((HERE, "{"), (f"{HERE}y/", '{"path":"/y/","target":"service","origin":"gopher://x"}')):
            await world.ledger.write(
                lambda tx, path=path, spec=spec: rows.put(tx, ID, path, spec, rows.RouteQuota(), now_us=1)
            )
    async with routed.opened(tmp_path) as world:
        assert [route.spec.path for route in world.keeper._routes.values()] == [f"{HERE}x/"]
        assert (await world.pages.wait_for_listener(10)).url
        assert (await page(world, f"{HERE}x/")).status == 200


async def test_route_that_cannot_be_written_is_not_served(world, monkeypatch):
    """The call is service_unavailable, and the previous route still answers."""
    await world.put(path=HERE, target="template", template="old")

    async def full(*_, **__):
        raise Problem("ledger_unavailable", "the disk is full")

    monkeypatch.setattr(world.ledger, "write", full)
    for path in (HERE, f"{HERE}new/"):
        error = await world.refused(path=path, target="template", template="new")
        assert error.code is Denial.SERVICE_UNAVAILABLE
    assert (await page(world, HERE)).body == b"old"
    assert (await page(world, f"{HERE}new/")).body == b"old"  # it lies below the old one


# Services.


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


SERVICE = {"path": HERE, "target": "service", "login": "${secret:WEB}", "origin": "http://127.0.0.1:3000"}


async def test_service_without_listener_is_refused(tmp_path):
    """The error names the setting; pages have a listener of their own."""
    async with routed.opened(tmp_path, on=False) as world:
        error = await world.refused(**SERVICE)
        assert (error.code, "http.service_listen is not set" in error.reason) == (Denial.SERVICE_UNAVAILABLE, True)
        assert world.services.listener.fault == "http.service_listen is not set"
        assert (await world.put(path=HERE, **TEMPLATE))["url"]


async def test_services_wait_while_their_listener_is_not_set(tmp_path, backend):
    """Their rows stay without a claim, and are served once the listener is set again."""
    plugins = routed.SimulatedPlugins()
    async with routed.opened(tmp_path, plugins=plugins) as world:
        await world.serve(backend, public=["/feed"])
    async with routed.opened(tmp_path, plugins=plugins, on=False) as world:
        assert not world.services.in_use
        assert len(world.kept()) == 1
    async with routed.opened(tmp_path, plugins=plugins) as world:
        assert (await world.services.wait_for_listener(10)).url
        assert (await world.get(f"{HERE}feed")).status == 200


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"origin": ""}, "origin: expected scheme"),
        ({"origin": "https://127.0.0.1:3000"}, "found the scheme https"),
        ({"origin": "http://backend:3000"}, "the address that the name is pinned to"),
        ({"origin": "http://127.0.0.1:3000/path"}, "origin: expected"),
        ({"origin": "http://0.0.0.0:3000"}, "unspecified|this network"),
        ({"login": "hunter2hunter2"}, "expected a reference such as"),
        ({"login": "x${secret:WEB}"}, "expected a reference such as"),
        ({"login": "${secret:web}"}, "expected a reference such as"),
        ({"login": "${secret:NONE}"}, "the operator has bound no secret 'NONE'"),
        ({"login": "${secret:SHORT}"}, "expected a password of 8 characters"),
        ({"login": ""}, "login: expected a password"),
        ({"public": ["feed"]}, "public: expected a path"),
        ({"public": ["/a/../b"]}, "public: expected segments"),
        ({"public": ["/**/a"]}, "public: expected segments"),
        ({"public": ["/a*"]}, "public: expected segments"),
        ({"public": ["/%2e"]}, "public: expected segments"),
        ({"public": ["/x"] * 33}, "at most 32 patterns"),
        ({"path": "/acme.demo/\u00fc/"}, "path: expected segments"),
        ({"path": "/acme.demo/a+b/"}, "path: expected segments"),
    ],
)
async def test_bad_parameters_of_service_route_are_refused(world, params, word):
    """Origins, logins, public paths and prefixes; the reason never contains a password."""
    world.plugins.origins[ID] = ("http://127.0.0.1:3000",)
    for name, value in (("WEB", routed.KEPT), ("SHORT", "hunter2")):
        await world.secrets.set(name, value)
        await world.secrets.bind(name, ID)
    error = await world.refused(**{**SERVICE, **params})
    assert error.code is Denial.BAD_PARAMS
    assert re.search(word, error.reason), error.reason
    assert "hunter2" not in error.reason
    assert world.kept() == []


async def test_service_needs_bound_origin_and_secret(world):
    """Both are bound to this plugin; the origin has the same scheme, port and address."""
    await world.secrets.set("WEB", routed.KEPT)
    await world.secrets.bind("WEB", OTHER)
    for origins in ((), ("http://127.0.0.1:3001",), ("http://127.0.0.2:3000",), ("tcp://127.0.0.1:3000",)):
        world.plugins.origins[ID] = origins
        error = await world.refused(**SERVICE)
        assert (error.code, "does not let routes lead to" in error.reason) == (Denial.EGRESS_BLOCKED, True)
    world.plugins.origins[ID] = ("http://127.0.0.1:3000",)
    assert "no secret" in (await world.refused(**SERVICE)).reason
    await world.secrets.bind("WEB", ID)
    assert (await world.put(**SERVICE))["ok"]
    world.plugins.origins[ID] = ("http://app.lan:3000=10.0.0.1",)
    error = await world.refused(**{**SERVICE, "origin": "http://app.lan:3000=10.0.0.2"})
    assert error.code is Denial.EGRESS_BLOCKED


async def test_second_plugin_is_refused_at_service_listener(world, backend):
    """To a browser the listener is one origin: one plugin's pages could act for another's users."""
    await world.serve(backend)
    await world.serve(backend, path=f"{HERE}more/")
    await world.secrets.bind("WEB", OTHER)
    world.plugins.origins[OTHER] = (backend.origin,)
    wanted = {**SERVICE, "path": f"/{OTHER}/", "origin": backend.origin}
    error = await world.refused(OTHER, **wanted)
    assert (error.code, f"{ID} has services there" in error.reason) == (Denial.BAD_PARAMS, True)
    world.plugins.live.discard(ID)
    world.pass_s(1.0)
    assert (await world.put(OTHER, **wanted))["ok"]
    world.plugins.live.add(ID)
    world.pass_s(1.0)
    assert (await world.get(f"/{ID}/")).status == 404
    assert (await world.get(f"/{OTHER}/")).status == 401


async def test_put_moves_route_between_listeners(world, backend):
    """It goes from pages to services and back, and is never on both."""
    await world.put(path=HERE, **TEMPLATE)
    await world.serve(backend)
    assert (world.pages.in_use, world.services.in_use) == (False, True)
    await world.put(path=HERE, **TEMPLATE)
    assert (world.pages.in_use, world.services.in_use) == (True, False)


def test_headers_passed_to_action_are_bounded():
    """Their number and length are; bytes that are no UTF-8 are replaced."""
    headers = {f"X-{n}": "v" for n in range(100)} | {"X-Long": "v" * 5_000, "Accept": "a\udcff"}
    told = route_targets.invoke_payload(RouteRequest(method="GET", path="/", headers=headers))
    assert len(told["headers"]) == route_targets.MAX_HEADERS
    assert "x-long" not in told["headers"]
    told = route_targets.invoke_payload(RouteRequest(method="GET", path="/", headers={"Accept": "a\udcff"}))
    assert told["headers"] == {"accept": "a\ufffd"}


# Callers that are cancelled: by the deadline of a host call, or the end of their plugin.


async def cancelled(world, call):
    """Cancel `call` while it waits for a slow disk; afterwards the disk has done all that it was asked."""
    disk = threading.Event()
    slow = asyncio.create_task(world.ledger.write(lambda _: disk.wait(60)))
    task = asyncio.ensure_future(call)
    await in_process.until(world.keeper._changing.locked, "its turn")
    task.cancel()
    disk.set()
    await asyncio.gather(task, slow, return_exceptions=True)
    await in_process.until(lambda: not world.keeper._changing.locked(), "its end")
    assert task.cancelled()


async def test_put_of_a_route_that_is_cancelled_on_a_slow_disk_is_the_same_before_and_after_a_restart(tmp_path):
    """New, and in place of another: it was on disk and not in memory, and a restart served what nobody could delete."""
    async with routed.opened(tmp_path) as world:
        await cancelled(world, world.put(path=HERE, **TEMPLATE))
        assert (await page(world, HERE)).status == 200
        await cancelled(world, world.put(path=HERE, target="template", template="new"))
        assert (await page(world, HERE)).body == b"new"
        assert list(world.keeper.stored(ID)) == [HERE]
    async with routed.opened(tmp_path) as world:
        await world.pages.wait_for_listener(processes.PATIENCE_S)
        assert (await page(world, HERE)).body == b"new"


async def test_deletion_of_a_route_that_is_cancelled_on_a_slow_disk_is_the_same_before_and_after_a_restart(tmp_path):
    async with routed.opened(tmp_path) as world:
        await world.put(path=HERE, **TEMPLATE)
        await cancelled(world, world.call(ID, "route.delete", path=HERE))
        assert world.pages.find(HERE) is None
        assert (world.kept(), world.keeper.stored(ID)) == ([], {})
    async with routed.opened(tmp_path) as world:
        assert (world.kept(), world.keeper.stored(ID)) == ([], {})


async def test_plugin_that_may_not_act_while_its_route_is_stored_is_not_served(world):
    disk = threading.Event()
    slow = asyncio.create_task(world.ledger.write(lambda _: disk.wait(60)))
    put = asyncio.create_task(world.put(path=HERE, **TEMPLATE))
    await in_process.until(lambda: world.keeper.stored(ID), "the route")
    world.plugins.live.remove(ID)
    world.keeper.recheck(ID)
    assert world.pages.find(HERE) is None
    disk.set()
    await asyncio.gather(put, slow, return_exceptions=True)
    assert world.pages.find(HERE) is None

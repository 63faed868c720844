"""Each host call has a typed method that asks for it by its name, and says which capability it needs."""

from __future__ import annotations

import base64
import inspect
import re

import msgspec
import pytest

from latticed.model import hostcall
from latticed.sdk import Plugin
from latticed.sdk.calls import Calls, HostError
from tests.house import in_process

JOURNAL = {"entries": [1], "cursor": "c", "gap": True}
PAGE = {"keys": ["a"], "next": None}
HTTP = {"status_code": 200, "header": {"Content-Type": ["text/plain"], "x": "y"}, "body_base64": "aMOkLA=="}
MORE = {
    "service": {"program": "web", "args": ["-v"]},
    "tunnel": {"tunnel": "t", "ingress": [{"service": "http_status:404"}]},
    "ddns": {"type": "A", "provider": "cloudflare", "secret": "TOKEN"},
}
ROWS = [
    # group, method, arguments, host call, parameters, the host's answer, what the method returns
    ("kv", "get", ("a",), {}, "kv.get", {"key": "a"}, {"ok": True, "value_base64": "w6Q=", "version": 1}, "ä"),
    ("kv", "get", ("a",), {}, "kv.get", {"key": "a"}, {"ok": False}, None),
    (
        "kv",
        "get_bytes",
        ("a",),
        {},
        "kv.get",
        {"key": "a"},
        {"ok": True, "value_base64": "/w==", "version": 1},
        b"\xff",
    ),
    ("kv", "get_bytes", ("a",), {}, "kv.get", {"key": "a"}, {"ok": False}, None),
    (
        *("kv", "get_entry", ("a",), {"bucket": "plugin:acme.disk"}),
        *("kv.get", {"key": "a", "bucket": "plugin:acme.disk"}),
        {"ok": True, "value_base64": "/w==", "version": 7},
        (b"\xff", 7),
    ),
    ("kv", "get_entry", ("a",), {}, "kv.get", {"key": "a"}, {"ok": False}, (None, 0)),
    (
        *("kv", "put_if", (7, "a", "1"), {}),
        *("kv.put", {"key": "a", "if_version": 7, "value": "1"}, {"ok": True, "version": 8}, True),
    ),
    (
        *("kv", "put_if", (0, "a", b"1"), {}),
        *("kv.put", {"key": "a", "if_version": 0, "value_base64": "MQ=="}, {"ok": False, "version": 8}, False),
    ),
    ("kv", "put", ("a", "ä"), {}, "kv.put", {"key": "a", "value": "ä"}, {"ok": True}, None),
    ("kv", "put", ("a", b"\xff"), {}, "kv.put", {"key": "a", "value_base64": "/w=="}, {"ok": True}, None),
    ("kv", "delete", ("a",), {}, "kv.delete", {"key": "a"}, {"ok": True}, True),
    ("kv", "delete", ("a",), {}, "kv.delete", {"key": "a"}, {"ok": False}, False),
    ("kv", "keys", ("p",), {}, "kv.list", {"prefix": "p"}, PAGE, ["a"]),
    *(
        (
            "log",
            level,
            ("hi",),
            {"n": 1},
            "log.write",
            {"level": level, "message": "hi", "fields": {"n": "1"}},
            {},
            None,
        )
        for level in ("debug", "info", "warning", "error")
    ),
    (
        *("log", "error", ("failed",), {"message": "why", "level": 3}, "log.write"),
        *({"level": "error", "message": "failed", "fields": {"message": "why", "level": "3"}}, {}, None),
    ),
    ("log", "write", ("odd", "hi"), {}, "log.write", {"level": "odd", "message": "hi", "fields": {}}, {}, None),
    ("audit", "events", (3,), {}, "audit.query", {"after": 3}, {"events": [{"seq": 4}], "next": None}, [{"seq": 4}]),
    (
        *("audit", "events", (), {"action": "a", "decision": "deny"}, "audit.query"),
        *({"action": "a", "decision": "deny"}, {"events": [], "next": None}, []),
    ),
    ("http", "request", ("PUT", "u"), {}, "http.do", {"method": "PUT", "url": "u"}, HTTP, ...),
    (
        "http",
        "get",
        ("u",),
        {"headers": {"a": "b"}},
        "http.do",
        {"method": "GET", "url": "u", "header": {"a": "b"}},
        HTTP,
        ...,
    ),
    (
        "http",
        "request",
        ("POST", "u"),
        {"sign": {"secret": "${secret:A}", "id": "m1"}},
        "http.do",
        {"method": "POST", "url": "u", "sign": {"secret": "${secret:A}", "id": "m1"}},
        HTTP,
        ...,
    ),
    ("http", "get", ("u",), {"service": "web"}, "http.do", {"method": "GET", "url": "u", "service": "web"}, HTTP, ...),
    ("http", "post", ("u", "t"), {}, "http.do", {"method": "POST", "url": "u", "body": "t"}, HTTP, ...),
    ("http", "post", ("u", b"t"), {}, "http.do", {"method": "POST", "url": "u", "body_base64": "dA=="}, HTTP, ...),
    ("mail", "send", ("a", "s", "b"), {}, "mail.send", {"to": "a", "subject": "s", "body": "b"}, 1, 1),
    ("mail", "send", (("a", "b"), "s", "b"), {}, "mail.send", {"to": ["a", "b"], "subject": "s", "body": "b"}, 1, 1),
    ("notify", "send", ("t",), {}, "notify.send", {"title": "t", "body": ""}, {"ok": True, "id": "n1"}, "n1"),
    (
        *("notify", "send", ("t", "b"), {"severity": "error", "event": "e", "dedupe": "d"}, "notify.send"),
        *({"title": "t", "body": "b", "severity": "error", "event": "e", "dedupe": "d"}, {"id": "n1"}, "n1"),
    ),
    ("node", "facts", (), {}, "node.facts", {}, {"a": 1}, {"a": 1}),
    ("node", "metrics", (), {}, "node.metrics", {}, {"a": 1}, {"a": 1}),
    ("node", "journal", ("sshd",), {}, "node.journal", {"filter": "sshd", "cursor": ""}, JOURNAL, ([1], "c")),
    (
        *("node", "journal", ("sshd", "c"), {"limit": 5}, "node.journal"),
        *({"filter": "sshd", "cursor": "c", "limit": 5}, JOURNAL, ([1], "c")),
    ),
    ("node", "journal_page", ("sshd",), {}, "node.journal", {"filter": "sshd", "cursor": ""}, JOURNAL, JOURNAL),
    ("node", "set_labels", ({"a": None},), {}, "node.set_labels", {"labels": {"a": None}}, {"labels": {}}, {}),
    ("monitor", "list", (), {}, "monitor.list", {}, {"monitors": [1], "next": None}, [1]),
    ("monitor", "results", ("m",), {}, "monitor.results", {"name": "m"}, {"state": "up"}, {"state": "up"}),
    (
        *("monitor", "results", ("m",), {"owner": "acme.o", "after": 3, "limit": 5}, "monitor.results"),
        *({"name": "m", "owner": "acme.o", "after": 3, "limit": 5}, {}, {}),
    ),
    (
        *("monitor", "put", ("m", "tcp", "h:1"), {"failures": 3}, "monitor.put"),
        *({"name": "m", "kind": "tcp", "target": "h:1", "failures": 3}, {"ok": True}, {"ok": True}),
    ),
    ("monitor", "delete", ("m",), {}, "monitor.delete", {"name": "m"}, {"ok": False}, False),
    ("static", "list", (), {}, "static.list", {"prefix": ""}, {"files": [1], "next": None}, [1]),
    (
        *("static", "list", ("p",), {"plugin": "acme.o", "digests": True}, "static.list"),
        *({"prefix": "p", "plugin": "acme.o", "digests": True}, {"files": [], "next": None}, []),
    ),
    ("static", "get", ("p",), {}, "static.get", {"path": "p"}, {"ok": False}, {"ok": False}),
    (
        *("static", "get", ("p",), {"offset": 1, "length": 2, "plugin": "acme.o"}, "static.get"),
        *({"path": "p", "offset": 1, "length": 2, "plugin": "acme.o"}, {"ok": True}, {"ok": True}),
    ),
    ("static", "get_bytes", ("p",), {}, "static.get", {"path": "p", "offset": 0}, {"ok": False}, None),
    ("static", "put", ("p", "t"), {}, "static.put", {"path": "p", "content": "t"}, {"ok": True}, {"ok": True}),
    ("static", "put", ("p", b"\xff"), {}, "static.put", {"path": "p", "content_base64": "/w=="}, {}, {}),
    ("static", "delete", ("p",), {}, "static.delete", {"path": "p"}, {"ok": True}, True),
    ("task", "list", (), {}, "task.list", {}, 1, 1),
    ("task", "get", ("t",), {}, "task.get", {"id": "t"}, 1, 1),
    ("task", "submit", ("s",), {}, "task.submit", {"interpreter": "sh", "script": "s"}, 1, 1),
    (
        *("task", "submit", ("s",), {"interpreter": "bash", "targets": ("a",), "timeout_s": 5}, "task.submit"),
        *({"interpreter": "bash", "script": "s", "targets": ["a"], "timeout_s": 5}, 1, 1),
    ),
    (
        *("task", "submit", ("s",), {"name": "vacuum"}, "task.submit"),
        *({"interpreter": "sh", "script": "s", "name": "vacuum"}, 1, 1),
    ),
    ("task", "list", ("done",), {"after": 7, "limit": 5}, "task.list", {"state": "done", "after": 7, "limit": 5}, 1, 1),
    ("task", "cancel", ("t",), {}, "task.cancel", {"id": "t"}, 1, 1),
    *(
        row
        for group in ("service", "tunnel", "ddns")
        for row in (
            (group, "put", ("n",), MORE[group], f"{group}.put", {"name": "n", **MORE[group]}, 1, 1),
            (group, "delete", ("n",), {}, f"{group}.delete", {"name": "n"}, 1, 1),
            (group, "status", (), {}, f"{group}.status", {}, 1, 1),
            (group, "status", ("n",), {}, f"{group}.status", {"name": "n"}, 1, 1),
        )
    ),
    ("service", "delete", ("n",), {"data": True}, "service.delete", {"name": "n", "data": True}, 1, 1),
    ("service", "save", ("n", ["f"]), {}, "service.save", {"name": "n", "files": ["f"]}, 1, 1),
    ("service", "saved", ("n",), {}, "service.saved", {"name": "n"}, 1, 1),
    ("service", "revert", ("n", "c"), {}, "service.revert", {"name": "n", "id": "c"}, 1, 1),
    ("route", "put", ("/p", "template"), {}, "route.put", {"path": "/p", "target": "template"}, 1, 1),
    (
        *("route", "put", ("/p", "invoke"), {"action": "page", "methods": ["GET"]}, "route.put"),
        *({"path": "/p", "target": "invoke", "action": "page", "methods": ["GET"]}, 1, 1),
    ),
    ("route", "delete", ("/p",), {}, "route.delete", {"path": "/p"}, 1, 1),
    ("network", "state", ("nft",), {}, "network.state", {"kind": "nft"}, 1, 1),
    ("network", "plan", ("nft", {}), {}, "network.plan", {"kind": "nft", "intent": {}}, 1, 1),
    ("network", "plans", (), {}, "network.plans", {}, 1, 1),
    ("network", "plans", ("ab",), {}, "network.plans", {"sha256": "ab"}, 1, 1),
    ("network", "plans", (), {"after": 7, "limit": 5}, "network.plans", {"after": 7, "limit": 5}, 1, 1),
    ("ddns", "delete", ("n",), {"type": "A"}, "ddns.delete", {"name": "n", "type": "A"}, 1, 1),
    ("ddns", "status", ("n",), {"type": "A"}, "ddns.status", {"name": "n", "type": "A"}, 1, 1),
    ("network", "apply", ("ab",), {}, "network.apply", {"sha256": "ab"}, 1, 1),
]


def _groups():
    properties = {name: one for name, one in vars(Plugin).items() if isinstance(one, property)}
    plugin = Plugin()
    return {name: type(getattr(plugin, name)) for name in properties}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}.{row[1]}")
def test_sdk_method_makes_its_host_call_and_converts_the_answer(row):
    """The call has exactly these parameters; the answer is converted to Python types."""
    group, name, args, kwargs, call, params, answer, expected = row
    asked = []

    def ask(method, params):
        asked.append((method, params))
        return answer

    plugin = Plugin()
    plugin.connect(ask)
    method = getattr(getattr(plugin, group), name)
    found = method(*args, **kwargs)
    found = list(found) if inspect.isgenerator(found) else found
    assert asked == [(call, params)]
    assert expected is ... or found == expected
    assert f"({hostcall.CAPABILITY_OF[call]})" in method.__doc__


def test_every_sdk_method_has_a_row_and_every_host_call_a_method():
    public = {
        (group, name)
        for group, kind in _groups().items()
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    assert public == {row[:2] for row in ROWS}
    assert {row[4] for row in ROWS} == set(hostcall.CAPABILITY_OF)
    assert {row[0] for row in ROWS} == {call.partition(".")[0] for call in hostcall.CAPABILITY_OF}


def test_every_group_of_sdk_methods_has_a_docstring():
    for kind in _groups().values():
        assert issubclass(kind, Calls)
        assert len(kind.__doc__.split()) >= 3


def test_every_typed_method_names_known_capabilities():
    for kind in _groups().values():
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                (capability,) = re.findall(r"\((\w+:\w+)\)", method.__doc__)
                assert capability in hostcall.CAPABILITY_OF.values()


def test_sdk_lists_request_pages_lazily_until_the_last():
    """A page is requested only when the iterator needs it; the last one has no `next`."""
    following = {None: (["a", "b"], "b"), "b": (["c"], None)}
    asked = []

    def ask(method, params):
        asked.append(params)
        keys, after = following[params.get("after")]
        return {"keys": keys, "next": after}

    plugin = Plugin()
    plugin.connect(ask)
    keys = plugin.kv.keys("p")
    assert next(keys) == "a"
    assert asked == [{"prefix": "p"}]
    assert list(keys) == ["b", "c"]
    assert asked == [{"prefix": "p"}, {"prefix": "p", "after": "b"}]


def test_sdk_requests_audit_events_page_by_page():
    """The first page begins after the given seq."""
    following = {5: ([{"seq": 6}, {"seq": 7}], 7), 7: ([{"seq": 8}], None)}
    plugin = Plugin()
    plugin.connect(lambda _, params: dict(zip(("events", "next"), following[params["after"]], strict=True)))
    assert [event["seq"] for event in plugin.audit.events(5)] == [6, 7, 8]


def test_static_file_is_assembled_from_its_chunks():
    """Starts over if the file changes meanwhile; None if it is removed."""
    files = [b"abcde", b"abcde", b"vwxyz", b"vwxyz", b"vwxyz", b"vwxyz", b"", None]

    def ask(method, params):
        data = files.pop(0)
        if data is None:
            return {"ok": False}
        part = base64.b64encode(data[params["offset"] : params["offset"] + 2]).decode()
        return {"ok": True, "content_base64": part, "bytes": len(data), "etag": data.decode()}

    plugin = Plugin()
    plugin.connect(ask)
    assert plugin.static.get_bytes("p") == b"vwxyz"
    assert plugin.static.get_bytes("p") == b""
    assert plugin.static.get_bytes("p") is None
    assert files == []


async def test_host_services_accept_the_sdks_parameters():
    """This is checked for every host call that this version implements."""
    async with in_process.opened() as home:
        services = dict(home.app.broker.services)
    assert {"kv.get", "http.do", "notify.send", "node.journal", "monitor.put", "static.put"} <= set(services)
    for group, name, _, _, call, params, *_ in ROWS:
        if call in services:
            taken = msgspec.convert(params, services[call].params, strict=True)
            assert taken is not None, f"{group}.{name}"


def test_http_response_offers_text_json_and_headers():
    """Header names in any case, one value or several; the body as bytes, text or JSON."""
    plugin = Plugin()
    plugin.connect(lambda *_: HTTP)
    found = plugin.http.get("u")
    assert (found.status, found.body, found.text()) == (200, "hä,".encode(), "hä,")
    assert (found.header("content-type"), found.header("X"), found.header("none")) == ("text/plain", "y", None)
    plugin.connect(lambda *_: {"status_code": 204})
    assert (plugin.http.get("u").body, plugin.http.get("u").headers) == (b"", {})
    plugin.connect(lambda *_: {"status_code": 200, "header": {"a": []}, "body_base64": "eyJhIjoxfQ=="})
    assert plugin.http.get("u").json() == {"a": 1}
    assert plugin.http.get("u").header("a") == "[]"
    assert plugin.http.get("u").redirected is None
    moved = {"method": "GET", "url": "http://a.example/"}
    plugin.connect(lambda *_: {**HTTP, "redirected": moved})
    assert plugin.http.post("u", "text").redirected == moved
    plugin.connect(lambda *_: HTTP)
    with pytest.raises(ValueError, match="Expecting"):
        plugin.http.get("u").json()


def test_any_host_call_can_be_made_by_name():
    """Calls without a method, or with newer parameters; `method` may be the name of a parameter."""
    asked = []
    plugin = Plugin()
    plugin.connect(lambda *call: asked.append(call))
    plugin.call("http.do", method="GET", self="x", host_call="y")
    assert asked == [("http.do", {"method": "GET", "self": "x", "host_call": "y"})]


def test_host_call_of_unconnected_plugin_raises():
    """A plugin is not connected in its constructor."""
    with pytest.raises(HostError, match="not connected") as caught:
        Plugin().kv.get("a")
    assert caught.value.code == "service_unavailable"
    assert str(caught.value).startswith("service_unavailable: kv.get")

"""Workers: what may be activated, what they answer, what they read and what is on record of it."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc

import pytest

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.bundle import read
from latticed.host.call import Caller, HostError
from latticed.host.route import template
from latticed.host.route.table import RouteListener, RouteRequest, RouteTable
from latticed.kit.clock import SystemClock
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.model.runtime import Health
from latticed.runners import worker
from latticed.runners.worker import WorkerRunner
from tests.house import ingresses, supervisors


@pytest.fixture
async def outside(tmp_path):
    async with ingresses.opened(tmp_path) as found:
        yield found


async def blocked(outside, source, **fields):
    with pytest.raises(Problem) as caught:
        await outside.admit(source, **fields)
    return caught.value


async def test_template_is_served_on_its_route(outside):
    """The example of the contract, with a value from the operator's bucket."""
    await outside.put("default", "message", b"world")
    instance = await outside.arm(b"hello {{path}} {{kv:default/message}}")
    answer = await outside.get("/acme.demo/a%20b/%C3%BC")
    assert (answer.status, answer.body.decode()) == (200, "hello /acme.demo/a b/ü world")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (instance.pid, instance.sandbox) == (0, "")
    assert instance.message == f"serves /acme.demo/ at {outside.routes.listener.url}"
    assert (await instance.check()).health is Health.HEALTHY


async def test_changed_value_shows_in_the_next_answer(outside):
    """The template is parsed once, values are read for each request."""
    await outside.arm(b"{{kv:plugin:acme.demo/k}}")
    assert (await outside.get("/acme.demo/")).body == b""
    await outside.put("plugin:acme.demo", "k", b"one")
    assert (await outside.get("/acme.demo/")).body == b"one"


async def test_reference_in_requested_path_is_not_expanded(outside):
    """A requester cannot read values that the template does not name."""
    await outside.put("default", "secret", b"hidden")
    await outside.arm(b"<{{path}}|{{query:q}}>")
    written = "%7B%7Bkv:default/secret%7D%7D"
    answer = await outside.get(f"/acme.demo/{written}?q={written}")
    assert answer.body == b"</acme.demo/{{kv:default/secret}}|{{kv:default/secret}}>"
    assert (await outside.get("/acme.demo/{{kv:default/secret}}")).body.count(b"hidden") == 0
    assert outside.calls() == []


async def test_reference_in_stored_value_is_not_expanded(outside):
    await outside.put("default", "secret", b"hidden")
    await outside.put("default", "a", b"{{kv:default/secret}}{{path}}")
    await outside.arm(b"<{{kv:default/a}}>")
    assert (await outside.get("/acme.demo/x")).body == b"<{{kv:default/secret}}{{path}}>"
    assert len(outside.calls()) == 1


async def test_html_values_are_escaped(outside):
    """Paths, query fields and stored values; the template's own markup stays."""
    await outside.put("default", "a", b"<script>")
    await outside.arm(b"<p title='{{query:t}}'>{{path}}{{kv:default/a}}</p>", routes={"content_type": "text/html"})
    answer = await outside.get("/acme.demo/%3Ci%3E?t=%27%22%26")
    assert answer.body == b"<p title='&#x27;&quot;&amp;'>/acme.demo/&lt;i&gt;&lt;script&gt;</p>"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("text/plain", "text/plain"),
        ("Text/HTML; charset=UTF-8", "text/html"),
        ("text/markdown", "text/markdown"),
        ("text/csv;charset=utf-8", "text/csv"),
    ],
)
async def test_text_content_types_are_served_as_utf8(outside, said, sent):
    await outside.arm(b"x", routes={"content_type": said})
    assert (await outside.get("/acme.demo/")).headers["content-type"] == f"{sent}; charset=utf-8"


@pytest.mark.parametrize(
    "said",
    [
        "application/json",
        "text/javascript",
        "text/x-ecmascript",
        "image/svg+xml",
        "text/plain; charset=utf-7",
        "text/",
        "text/a b",
        "text/html, text/plain",
        "",
        "text/html; x=y",
    ],
)
async def test_content_type_that_is_not_safe_text_is_refused(outside, said):
    """A script cannot be escaped; other types are not text."""
    problem = await blocked(outside, b"x", routes={"content_type": said})
    assert (problem.code, "content_type" in problem.reason) == ("source_blocked", True)


@pytest.mark.parametrize("said", ["text/xml", "text/xsl", "text/vnd.x+xml"])
async def test_values_in_xml_content_types_are_escaped(outside, said):
    await outside.arm(b"{{query:q}}", routes={"content_type": said})
    assert (await outside.get("/acme.demo/?q=<a>")).body == b"&lt;a&gt;"


# What may be activated.


@pytest.mark.parametrize("source", [b"a\nfetch(1)", b"{{path", b"\xff", b"x" * (template.MAX_BYTES + 1)])
async def test_invalid_template_is_refused_before_the_start(outside, source):
    """`admit` refuses it, and so does `start`; no prefix is claimed."""
    assert (await blocked(outside, source)).code == "source_blocked"
    with pytest.raises(Problem, match="source_blocked"):
        await outside.arm(source)
    assert not outside.routes.in_use


async def test_oversized_artifact_is_refused_without_being_read_whole(outside, monkeypatch):
    """3.2 MB of placeholders: no more than the largest template and one byte is read."""
    held: list[int] = []
    real = worker._memory

    def memory(room):
        held.append(room)
        return real(room)

    monkeypatch.setattr(worker, "_memory", memory)
    tracemalloc.start()
    try:
        problem = await blocked(outside, b"{{path}}" * 400_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "at most 262144 bytes" in problem.reason
    assert held == [template.MAX_BYTES + 1]
    assert peak < 8 << 20, "the test's own copy is 3.2 MB"


async def test_artifact_with_other_digest_is_refused(outside):
    plugin, path = outside.plugin(b"hello")
    (path / "artifact").write_bytes(b"hullo")
    with (
        read.open_bundle(path, limits=read.ReadLimits(), owners=supervisors.owners()) as pair,
        pytest.raises(Problem, match="digest_mismatch"),
    ):
        await outside.worker.admit(plugin, pair)


async def test_activation_with_taken_route_is_refused(tmp_path):
    """The error names the plugin that holds it; once that one stops, the route is free."""
    async with ingresses.opened(tmp_path) as outside:
        outside.worker = WorkerRunner(outside.routes, granted_prefixes=lambda _: frozenset({"/app"}))
        wanted = {"routes": {"prefixes": ["/app/"]}}
        first = await outside.arm(b"first", id="acme.first", **wanted)
        problem = await blocked(outside, b"second", id="acme.second", **wanted)
        assert problem.code == "route_taken"
        assert "acme.first" in problem.reason
        with pytest.raises(Problem, match="route_taken"):
            await outside.arm(b"second", id="acme.second", **wanted)
        assert (await outside.get("/app/x")).body == b"first"
        await outside.admit(b"first, again", id="acme.first", **wanted)
        await first.stop(1.0)
        await outside.arm(b"second", id="acme.second", **wanted)
        assert (await outside.get("/app/x")).body == b"second"


async def test_declared_prefixes_without_grant_are_not_served(outside):
    """The plugin's own prefix needs no grant."""
    await outside.arm(b"x", routes={"prefixes": ["/app/", "/.well-known/"]})
    assert (await outside.get("/acme.demo/")).status == 200
    assert (await outside.get("/app/")).status == 404
    assert (await outside.get("/.well-known/x")).status == 404


# Reads through the Gate, and their audit.


async def test_references_without_kv_read_are_empty_and_audited(outside):
    """The capability is not declared, or not granted."""
    await outside.put("default", "k", b"value")
    await outside.arm(b"<{{kv:default/k}}>", capabilities=["worker:route"])
    assert (await outside.get("/acme.demo/")).body == b"<>"
    assert outside.calls() == [("deny", "capability_denied")]
    await outside.arm(b"<{{kv:default/k}}>", id="acme.two", granted=frozenset({"worker:route"}))
    assert (await outside.get("/acme.two/")).body == b"<>"
    assert outside.calls()[1:] == [("deny", "capability_not_granted")]


@pytest.mark.parametrize(
    "reference", ["private/k", "plugin:acme.other/k", "default/missing", "default/..", "default/a/b"]
)
async def test_unreadable_reference_renders_empty(outside, reference):
    """Another plugin's bucket, one that is not for workers, a missing key, an invalid key."""
    for bucket in ("private", "plugin:acme.other"):
        await outside.put(bucket, "k", b"secret")
    await outside.arm(b"<{{kv:%s}}>" % reference.encode())
    assert (await outside.get("/acme.demo/")).body == b"<>"
    assert len(outside.calls()) >= 1


async def test_referenced_values_are_read_once_each_and_concurrently(outside, monkeypatch):
    """Eight references to four values cause four concurrent calls."""
    for key in "abcd":
        await outside.put("default", key, key.encode())
    instance = await outside.arm(b"".join(b"{{kv:default/%c}}" % key for key in b"abcdabcd"))
    under_way, most = 0, 0
    real = instance._gate.call

    async def call(method, params):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        try:
            return await real(method, params)
        finally:
            under_way -= 1

    monkeypatch.setattr(instance._gate, "call", call)
    assert (await outside.get("/acme.demo/")).body == b"abcdabcd"
    assert outside.calls() == [("allow", "")] * 4
    assert most == 4


async def test_stored_bytes_that_are_not_utf8_are_replaced(outside):
    await outside.put("default", "k", b"a\xffb")
    await outside.arm(b"{{kv:default/k}}")
    assert (await outside.get("/acme.demo/")).body.decode() == "a\ufffdb"


@pytest.mark.parametrize(
    ("denial", "status"),
    [
        (Denial.AUDIT_UNAVAILABLE, 503),
        (Denial.SERVICE_UNAVAILABLE, 503),
        (Denial.RATE_LIMITED, 503),
        (Denial.DEADLINE_EXCEEDED, 504),
        (Denial.INTERNAL, 500),
    ],
)
async def test_failed_read_fails_the_whole_answer(outside, monkeypatch, denial, status):
    """The problem has a code; there is no partial body, and no details of an internal error."""
    instance = await outside.arm(b"{{kv:default/a}}{{kv:default/b}}")

    async def call(method, params):
        if params["key"] == "b":
            raise HostError(denial, "a secret of the inside")
        return {"ok": True, "value": "a"}

    monkeypatch.setattr(instance._gate, "call", call)
    answer = await outside.get("/acme.demo/")
    assert (answer.status, answer.code) == (status, denial.value)
    assert status == 500 or b"secret" not in answer.body
    reply = await instance.invoke("render", None)
    assert (reply["ok"], reply["error"].partition(":")[0]) == (False, denial.value)


async def test_too_large_an_answer_is_502_output_too_large(outside):
    await outside.put("default", "k", b"x" * 60_000)
    await outside.arm(b"{{query:small}}" + b"{{kv:default/k}}" * 20)
    answer = await outside.get("/acme.demo/")
    assert (answer.status, answer.code) == (502, "output_too_large")


async def test_trimming_worker_route_makes_the_route_404(outside):
    """It is so from the next request on; a grant serves it again at once."""
    instance = await outside.arm(b"x")
    instance._gate.regrant(frozenset({"kv:read"}))
    assert (await outside.get("/acme.demo/")).status == 404
    checkup = await instance.check()
    assert (checkup.health, "not granted" in checkup.message) == (Health.DEGRADED, True)
    instance._gate.regrant(ingresses.EVERYTHING)
    assert (await outside.get("/acme.demo/")).status == 200


async def test_worker_without_worker_route_claims_no_route(outside):
    """It can still be invoked."""
    instance = await outside.arm(b"hi {{path}}", capabilities=["kv:read"])
    assert not outside.routes.in_use
    assert "does not declare worker:route" in instance.message
    assert (await instance.check()).health is Health.HEALTHY
    assert (await instance.invoke("render", {"path": "/x"}))["result"]["body"] == "hi /x"


async def test_invoke_renders_the_template(outside):
    """Path, query and method may be given; the result is what a request would be answered with."""
    instance = await outside.arm(b"{{method}} {{path}} {{query:a}}")
    payload = {"path": "/p", "query": {"a": "1"}, "method": "HEAD"}
    assert await instance.invoke("render", payload) == {
        "ok": True,
        "message": "",
        "result": {"content_type": "text/plain; charset=utf-8", "body": "HEAD /p 1"},
        "error": None,
    }
    assert (await instance.invoke("render", None))["result"]["body"] == "GET /acme.demo/ "


@pytest.mark.parametrize(
    ("action", "payload"),
    [
        ("deliver", None),
        ("render", []),
        ("render", "x"),
        ("render", {"path": 1}),
        ("render", {"method": "POST"}),
        ("render", {"method": ["GET"]}),
        ("render", {"query": []}),
        ("render", {"query": {"a": 1}}),
        ("render", {"body": ""}),
    ],
)
async def test_unknown_action_or_malformed_payload_is_bad_request(outside, action, payload):
    instance = await outside.arm(b"x")
    with pytest.raises(Problem, match="bad_request"):
        await instance.invoke(action, payload)


# Start and stop.


async def test_stopping_worker_releases_its_route(outside):
    """Stopping a second time does nothing."""
    instance = await outside.arm(b"x")
    await instance.stop(1.0)
    await instance.stop(1.0)
    assert not outside.routes.in_use


async def test_worker_without_listener_is_degraded_with_the_reason():
    """It is healthy once there is a listener."""
    routes = RouteTable()
    gate = _gate()
    instance = worker.Serving(gate, template.parse(b"x"), "text/plain; charset=utf-8", routes)
    instance.claim = routes.claim("acme.demo", ["/acme.demo/"], instance)
    routes.set_listener(RouteListener(fault="cannot listen at http://127.0.0.1:1: Address already in use"))
    checkup = await instance.check()
    assert checkup.health is Health.DEGRADED
    assert checkup.message.startswith("listener unavailable for /acme.demo/: cannot listen")
    assert instance.message == checkup.message
    routes.set_listener(RouteListener(url="http://127.0.0.1:8787"))
    assert (await instance.check()).health is Health.HEALTHY


async def test_start_cancelled_during_read_ends_after_the_read_and_claims_no_route(outside, monkeypatch):
    """A thread reads from the bundle, which may be closed only afterwards."""
    reading, go_on, done = threading.Event(), threading.Event(), []
    real = worker._source

    def source(pair, sha256):
        reading.set()
        go_on.wait(ingresses.PATIENCE_S)
        done.append(real(pair, sha256))
        return done[0]

    monkeypatch.setattr(worker, "_source", source)
    task = asyncio.create_task(outside.arm(b"x"))
    await asyncio.to_thread(reading.wait, ingresses.PATIENCE_S)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [b"x"]
    assert not outside.routes.in_use


async def test_start_cancelled_while_waiting_for_listener_releases_route(outside):
    routes = RouteTable()
    routes.set_listener(RouteListener())
    outside.worker = WorkerRunner(routes)
    task = asyncio.create_task(outside.arm(b"x"))
    await ingresses.until(lambda: routes.in_use, "the claim")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not routes.in_use


def _gate():
    broker = Broker({}, record=None, clock=SystemClock(), gate_limits=GateLimits())  # type: ignore[arg-type]
    rights = Rights(declared=ingresses.EVERYTHING, granted=ingresses.EVERYTHING)
    return broker.gate(Caller(plugin_id="acme.demo"), rights)


async def test_each_armed_worker_takes_under_4_kib_besides_its_source():
    """Template, route and Gate, measured over a thousand workers."""
    source = b"<h1>{{path}}</h1> {{kv:default/message}} {{query:who}} {{method}}" + b"." * 2_000
    routes, count = RouteTable(), 1_000
    broker = Broker({}, record=None, clock=SystemClock(), gate_limits=GateLimits())  # type: ignore[arg-type]
    kept = []

    def arm(number):
        plugin_id = f"acme.p{number:05d}"
        rights = Rights(declared=ingresses.EVERYTHING, granted=ingresses.EVERYTHING)
        gate = broker.gate(Caller(plugin_id=plugin_id), rights)
        instance = worker.Serving(gate, template.parse(source), "text/html; charset=utf-8", routes)
        instance.claim = routes.claim(plugin_id, [f"/{plugin_id}/"], instance)
        return instance

    arm(99_999)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept.extend(map(arm, range(count)))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    each = (after - before) / count - len(source)
    assert each < 4_096, f"{each:.0f} bytes"
    request = RouteRequest(method="GET", path="/acme.p00500/", headers={})
    assert routes.find("/acme.p00500/") is kept[500].claim
    assert request.body == b""

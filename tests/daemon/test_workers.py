"""Workers against the real daemon: templates are dropped, activated, requested over HTTP, refused, tampered with."""

from __future__ import annotations

import contextlib
import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.house import bundles, daemons, hosting, ports, raw_http, route_clients

pytestmark = pytest.mark.daemon

HELLO = b"hello {{path}} {{kv:default/message}}"
ANY_PORT = '[http]\nlisten = "127.0.0.1:0"\n'
ID = "acme.hello"


def up(host, template=HELLO, plugin_id=ID, **fields):
    """A worker, armed; its URL."""
    drop(host, template, plugin_id, **fields)
    host.daemon.activate(plugin_id)
    return route_clients.url_of(host.daemon, plugin_id)


def drop(host, template, plugin_id=ID, **fields):
    wanted = {"type": "worker", "capabilities": ["worker:route", "kv:read"], **fields}
    host.drop(plugin_id, template, **wanted)


def installed(host, template, plugin_id=ID, **fields):
    drop(host, template, plugin_id, **fields)
    host.daemon.until(lambda: host.daemon.plugin(plugin_id), f"{plugin_id} to be seen")
    assert host.daemon.set_status("installed", plugin_id).status == 200


def said(done):
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.fixture(scope="module")
def host():
    """One daemon for all tests, which must not block; each test has plugins of its own."""
    with hosting.hosting(ANY_PORT, probed=True) as found, found.daemon.turns.short():
        yield found


@pytest.fixture
def url(host):
    """The URL of acme.hello, for the duration of the test."""
    record = host.daemon.plugin(ID)
    if record is None:
        yield up(host)
    else:
        assert host.daemon.set_status("active", ID).status == 200
        yield route_clients.url_of(host.daemon, ID)
    if host.daemon.plugin(ID)["status"] == "active":
        assert host.daemon.set_status("disabled", ID).status == 200


def test_template_is_served_with_the_operators_value(host, url):
    """A changed value shows at once; each read is audited; the log names the listener."""
    assert route_clients.text(url, f"/{ID}/x") == f"hello /{ID}/x "
    said(host.daemon.ctl("kv", "set", "default", "message", "world"))
    assert route_clients.text(url, f"/{ID}/x") == f"hello /{ID}/x world"
    assert route_clients.text(url, f"/{ID}/a%20b%2Fc") == f"hello /{ID}/a b/c world"
    assert route_clients.text(url, f"/{ID}") == f"hello /{ID} world"
    calls = host.daemon.events(action="host.call", actor=f"plugin:{ID}")
    assert {(one["target"], one["decision"]) for one in calls} == {("kv.get", "allow")}
    assert len(calls) == 4
    assert host.daemon.logged("ingress_listening")[-1]["address"] == url


def test_references_in_request_or_value_are_not_expanded(host, url):
    """The path of the request and a stored value contain some."""
    said(host.daemon.ctl("kv", "set", "default", "message", "{{path}}"))
    assert (
        route_clients.text(url, f"/{ID}/%7B%7Bkv:default/secret%7D%7D")
        == f"hello /{ID}/{{{{kv:default/secret}}}} {{{{path}}}}"
    )


HALVES = [
    b"",
    b"GET /",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (1 << 20),
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000,
    b"POST /acme.hello/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 999_999,
    b"GET /" + b"%41" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /acme.hello/ HTTP/1.1\r\nHost: x\r\n\r\n" * 5_000,
]


def test_hundreds_of_stalled_connections_do_not_delay_a_request(host, url):
    """They are silent, or send partial, endless or pipelined requests."""
    where = urlsplit(url)
    with host.daemon.turns.short(), contextlib.ExitStack() as stack:
        for number in range(210):
            sock = stack.enter_context(socket.create_connection((where.hostname, where.port)))
            sock.settimeout(0.0)
            with contextlib.suppress(BlockingIOError):  # what is not read is not waited for
                raw_http.send_anyway(sock, HALVES[number % len(HALVES)])
            if number % 10 == 0:
                assert route_clients.text(url, f"/{ID}/x").startswith(f"hello /{ID}/x")
        assert route_clients.text(url, f"/{ID}/x").startswith(f"hello /{ID}/x")


def test_disabling_the_last_worker_closes_the_http_port(host, url):
    """Once activated again, it is served, on any port that the kernel chooses."""
    assert host.daemon.set_status("disabled", ID).status == 200
    host.daemon.until(lambda: not route_clients.listens(url), "the port to be free")
    assert host.daemon.set_status("active", ID).status == 200
    assert route_clients.text(route_clients.url_of(host.daemon, ID), f"/{ID}/").startswith(f"hello /{ID}/")


def test_http_port_does_not_serve_the_control_api(host, url):
    """It does not serve it by its paths, by another name of the host, or by any method."""
    for path in ("/api/plugins", "/api/health", "/metrics", "/openapi.json", "/", "/api/plugins/lifecycle"):
        answer = route_clients.ask(url, path)
        assert (answer.status, answer.code) == (404, "not_found"), path
    assert route_clients.ask(url, f"/{ID}/../api/plugins").status == 400
    assert route_clients.ask(url, f"/{ID}/", Host="evil.example").status == 421
    assert route_clients.ask(url, f"/{ID}/", method="POST").status == 405
    assert host.daemon.get("/api/health").status == 200


def test_second_plugin_with_a_granted_route_cannot_be_activated(host):
    """It can be once the first one is disabled."""
    for number in ("one", "two"):
        installed(host, number.encode(), f"acme.{number}", routes={"prefixes": ["/shop/"]})
        said(host.daemon.ctl("caps", "grant", f"acme.{number}", "prefix=/shop"))
    assert host.daemon.set_status("active", "acme.one").status == 200
    answer = host.daemon.set_status("active", "acme.two")
    assert (answer.status, answer.code) == (409, "route_taken")
    assert "acme.one" in answer.json()["detail"]
    assert host.daemon.plugin("acme.two")["status"] == "installed"
    assert route_clients.text(route_clients.url_of(host.daemon, "acme.one"), "/shop/1") == "one"
    assert host.daemon.set_status("disabled", "acme.one").status == 200
    assert host.daemon.set_status("active", "acme.two").status == 200
    url = route_clients.url_of(host.daemon, "acme.two")
    assert route_clients.text(url, "/shop/1") == "two"
    assert route_clients.ask(url, "/acme.one/").status == 404
    assert host.daemon.set_status("disabled", "acme.two").status == 200


def test_prefix_is_served_only_while_granted(host):
    """The plugin's own prefix is always served; a grant or trim takes effect with the restart of the plugin."""
    plugin_id = "acme.guest"
    url = up(host, b"guest", plugin_id, routes={"prefixes": ["/guest/"]})
    assert route_clients.ask(url, "/guest/").status == 404
    for change, status in (("grant", 200), ("trim", 404)):
        changed = host.daemon.ctl("caps", change, plugin_id, "prefix=/guest/")
        assert (changed.returncode, "from its next start" in changed.stderr) == (0, change == "grant"), changed
        assert host.daemon.post(f"/api/plugins/by-id/{plugin_id}/restart").status == 200
        url = route_clients.url_of(host.daemon, plugin_id)
        assert route_clients.ask(url, "/guest/").status == status
        assert route_clients.text(url, f"/{plugin_id}/") == "guest"
    for wrong in ("prefix=/.well-known/x", "prefix=/../x", "prefix=shop"):
        assert host.daemon.ctl("caps", "grant", plugin_id, wrong).returncode == 2
    assert host.daemon.set_status("disabled", plugin_id).status == 200


def test_bucket_is_read_only_once_it_is_granted(host):
    """Any other than `default`, another plugin's too; the grant takes effect at once, for that one only."""
    plugin_id, of_another = "acme.reader", "plugin:acme.hello"
    for bucket in ("shared", "private", of_another):
        said(host.daemon.ctl("kv", "set", bucket, "word", f"from {bucket}"))
    url = up(host, b"[{{kv:shared/word}}][{{kv:private/word}}][{{kv:plugin:acme.hello/word}}]", plugin_id)
    assert route_clients.text(url, f"/{plugin_id}/") == "[][][]"
    said(host.daemon.ctl("caps", "grant", plugin_id, "bucket=shared"))
    assert route_clients.text(url, f"/{plugin_id}/") == "[from shared][][]"
    said(host.daemon.ctl("caps", "trim", plugin_id, "bucket=shared"))
    assert route_clients.text(url, f"/{plugin_id}/") == "[][][]"
    said(host.daemon.ctl("caps", "grant", plugin_id, f"bucket={of_another}"))
    assert route_clients.text(url, f"/{plugin_id}/") == f"[][][from {of_another}]"
    assert host.daemon.ctl("caps", "grant", plugin_id, f"bucket={of_another}@acme").returncode == 2
    assert host.daemon.set_status("disabled", plugin_id).status == 200


@pytest.mark.parametrize(
    ("template", "word"),
    [(b"fine\nrequire('fs')\n", "`require(` in line 2"), (b"{{path}} {{kv:default/x}\n", "not closed in line 1")],
)
def test_worker_with_invalid_template_cannot_be_activated(host, template, word):
    """409 with the reason, in latticectl too; the status is unchanged, and the refusal is audited."""
    plugin_id = f"acme.blocked-{len(template)}"
    installed(host, template, plugin_id)
    answer = host.daemon.set_status("active", plugin_id)
    assert (answer.status, answer.code) == (409, "source_blocked")
    assert word in answer.json()["detail"]
    assert host.daemon.plugin(plugin_id)["status"] == "installed"
    done = host.daemon.ctl("activate", plugin_id)
    assert (done.returncode, word in done.stderr) == (1, True), done
    (refusal, *_) = host.daemon.events(action="plugin.status", target=plugin_id, decision="deny")
    assert refusal["code"] == "source_blocked"


def test_values_in_html_template_are_escaped(host):
    """The page has a sandbox policy as well."""
    plugin_id = "acme.page"
    url = up(host, b"<p>{{path}}</p>", plugin_id, routes={"content_type": "text/html"})
    answer = route_clients.ask(url, f"/{plugin_id}/%3Cscript%3E")
    assert answer.body == f"<p>/{plugin_id}/&lt;script&gt;</p>".encode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert host.daemon.set_status("disabled", plugin_id).status == 200


def test_tampered_template_is_no_longer_served(host, url):
    """It is refused at once, and audited; with its bytes restored it is served again."""
    artifact = host.daemon.place.plugins / ID / "artifact"
    before = bundles.tamper(artifact)
    host.daemon.until_state("failed", ID, code="digest_mismatch")
    host.daemon.until(lambda: not route_clients.listens(url), "nobody to listen")
    artifact.write_bytes(before)
    host.daemon.until_state("armed", ID)
    assert route_clients.text(route_clients.url_of(host.daemon, ID), f"/{ID}/").startswith("hello")


def test_http_port_in_use_degrades_only_its_workers():
    """They are armed and degraded, with the reason, and served once the port is free."""
    port = ports.free()
    with (
        socket.create_server(("127.0.0.1", port)) as squatter,
        hosting.hosting(f'[http]\nlisten = "127.0.0.1:{port}"\n') as host,
    ):
        drop(host, HELLO)
        record = host.daemon.activate(ID)
        assert "listener unavailable" in record["runtime"]["message"]
        assert f"127.0.0.1:{port}" in record["runtime"]["message"]
        host.daemon.until(lambda: host.runtime(ID)["health"] == "degraded", "it to be degraded")
        host.up("acme.demo", bundles.ARTIFACT)
        assert host.invoke("acme.demo", "anything").status == 200
        assert host.daemon.get("/api/health").status == 200
        shown = json.loads(host.daemon.ctl("--format", "json", "list").stdout)
        assert [one["runtime"]["state"] for one in shown] == ["armed", "armed"]
        squatter.close()
        host.daemon.until(lambda: route_clients.listens(f"http://127.0.0.1:{port}"), "the port to be taken")
        assert route_clients.text(f"http://127.0.0.1:{port}", f"/{ID}/").startswith("hello")


def test_workers_are_served_again_after_a_restart():
    """They have the same template and value, on the port of the settings."""
    acme = bundles.author("acme")
    with daemons.placed(settings=ANY_PORT) as place:
        place.trust_us(acme)
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=acme)
            said(daemon.ctl("kv", "set", "default", "message", "world"))
            up(host)
            assert daemon.stop() == 0
        with place.running() as daemon:
            daemon.until_state("armed", ID)
            assert route_clients.text(route_clients.url_of(daemon, ID), f"/{ID}/x") == f"hello /{ID}/x world"

"""A real sing-box serves what is rendered, and real clients carry HTTP with what their users are given."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading

import pytest

from latticed.system.proxy import applied, check, decode, devices, links, render, subscriptions
from latticed.system.proxy.subscriptions import Format
from tests.house import cores, ports, proxies

pytestmark = pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX)
MADE = {
    "vless": lambda tls: proxies.vless(tls=tls),
    "vless-ws": lambda tls: proxies.vless(tls=tls, ws={"path": "/chat", "host": "vpn.example.org"}),
    "vless-vision": lambda tls: proxies.vless(tls=tls, flow="xtls-rprx-vision"),
    "vmess": lambda _: proxies.vmess(),
    "vmess-ws-tls": lambda tls: proxies.vmess(tls=tls, ws={"path": "/"}),
    "trojan": lambda tls: proxies.trojan(tls=tls),
    "shadowsocks-256": lambda _: proxies.shadowsocks(),
    "shadowsocks-128": lambda _: proxies.shadowsocks(method="2022-blake3-aes-128-gcm"),
    "hysteria2": lambda tls: proxies.hysteria(tls=tls),
    "hysteria2-obfs": lambda tls: proxies.hysteria(tls=tls, obfs="${secret:PROXY_OBFS}"),
    "reality": lambda _: proxies.reality(),
}


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_words):
        pass


@pytest.fixture
def origin():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def intent_of(inbound, *, users=None, reach_private=True):
    """On loopback, with a port of its own for the API, which tells that the core is up."""
    made = {**inbound, "listen": "127.0.0.1", "port": ports.free()}
    intent = decode.read(
        proxies.document(
            made,
            host="127.0.0.1",
            api={**proxies.API, "port": ports.free()},
            users=users or [proxies.user("anna"), proxies.user("ben")],
            reach_private=reach_private,
        )
    )
    assert check.check(intent) == ()
    return intent


@contextlib.contextmanager
def served(intent, tmp_path, now_s=0):
    rendering = render.render(intent, proxies.secrets(intent))
    with cores.running(applied.config(applied.read(rendering), now_s), tmp_path, "server", intent.api.port) as core:
        yield core


def fetched(subscription, tmp_path, origin):
    """What a client with this subscription gets: a status, or None where it gets nothing."""
    port = ports.free()
    trusted = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    with cores.running(cores.client(subscription, port), tmp_path, "client", port, **trusted):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=cores.PATIENCE_S)
        try:
            connection.set_tunnel("127.0.0.1", origin)
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


@pytest.mark.parametrize("name", MADE)
def test_a_share_link_parsed_back_carries_http(name, tmp_path, origin):
    if name == "reality" and not cores.has_utls(cores.sing_box()):
        pytest.skip(cores.NO_UTLS)
    intent = intent_of(MADE[name](cores.certificate(tmp_path, "vpn.example.org")))
    given = devices.links(intent, "anna", proxies.secrets(intent))
    listed = subscriptions.write(given, Format.BASE64)
    back = [links.read(one) for one in subscriptions.lines(listed)]
    assert back == list(given)
    with served(intent, tmp_path):
        assert fetched(subscriptions.write(back, Format.SING_BOX), tmp_path, origin) == (200, b"hello")


@pytest.mark.parametrize("name", ["vless", "shadowsocks-256", "hysteria2"])
def test_who_is_over_is_gone_and_nobody_else(name, tmp_path, origin):
    users = [proxies.user("anna", expires_at=100), proxies.user("ben")]
    intent = intent_of(MADE[name](cores.certificate(tmp_path, "vpn.example.org")), users=users)
    secrets = proxies.secrets(intent)
    documents = [subscriptions.write(devices.links(intent, one, secrets), Format.SING_BOX) for one in ("anna", "ben")]
    with served(intent, tmp_path, now_s=100):
        assert [fetched(one, tmp_path, origin) for one in documents] == [None, (200, b"hello")]


def test_users_do_not_reach_this_host_unless_said_so(tmp_path, origin):
    intent = intent_of(proxies.vmess(), reach_private=False)
    document = subscriptions.write(devices.links(intent, "anna", proxies.secrets(intent)), Format.SING_BOX)
    with served(intent, tmp_path):
        assert fetched(document, tmp_path, origin) is None


def test_a_subscription_of_nobody_goes_nowhere(tmp_path, origin):
    cores.certificate(tmp_path, "vpn.example.org")
    assert fetched(subscriptions.write((), Format.SING_BOX), tmp_path, origin) is None

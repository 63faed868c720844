"""What an intent of proxies must not mean, of itself and on a host: what the cores' own checks let pass."""

from __future__ import annotations

import pytest

from latticed.system.proxy import check, decode
from latticed.system.proxy.facts import BoundPort, PortFacts
from tests.house import proxies

BEHIND = {"listen": "127.0.0.1", "front": "cdn.example.org:443", "ws": {"path": "/"}}


def codes(plain, facts=None):
    return [(one.code, one.path) for one in check.check(decode.read(plain), facts)]


def without(inbound, field):
    return {name: value for name, value in inbound.items() if name != field}


def test_every_protocol_at_once_is_fine():
    plain = proxies.document(
        proxies.vless(),
        proxies.reality(),
        proxies.vmess(),
        proxies.trojan(),
        proxies.shadowsocks(),
        proxies.hysteria(),
        {**without(proxies.vless("ws", 8_081), "tls"), **BEHIND},
        users=[proxies.user("anna", quota_bytes=1), proxies.user("ben", enabled=False, inbounds=["ss"])],
    )
    assert codes(plain) == []


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (proxies.document(proxies.vless("a"), proxies.vless("b")), ("duplicate_port", "inbounds[1].port")),
        (
            proxies.document(proxies.vless(), proxies.trojan(port=443, listen="192.0.2.1")),
            ("duplicate_port", "inbounds[1].port"),
        ),
        (
            proxies.document(proxies.vless(), proxies.trojan(port=443, listen="::")),
            ("duplicate_port", "inbounds[1].port"),
        ),
        (proxies.document(proxies.shadowsocks(port=443), proxies.hysteria()), ("duplicate_port", "inbounds[1].port")),
        (proxies.document(proxies.vless(port=9_180)), ("duplicate_port", "api.port")),
        (proxies.document(proxies.vless("a"), proxies.trojan("a")), ("duplicate", "inbounds[1].tag")),
        (proxies.document(outbounds=[{"tag": "a"}, {"tag": "a"}]), ("duplicate", "outbounds[1].tag")),
        (proxies.document(outbounds=[{"tag": "direct"}]), ("reserved_tag", "outbounds[0].tag")),
        (proxies.document(proxies.vless("latticed-api")), ("reserved_tag", "inbounds[0].tag")),
        (proxies.document(proxies.vless(outbound="nowhere")), ("unknown_outbound", "inbounds[0].outbound")),
        (
            proxies.document(users=[proxies.user("a"), proxies.user("b", inbounds=["x"])]),
            ("unknown_inbound", "users[1].inbounds[0]"),
        ),
        (proxies.document(users=[proxies.user("a"), proxies.user("a")]), ("duplicate", "users[1].id")),
        (
            proxies.document(users=[proxies.user("a"), proxies.user("b", label="a")]),
            ("duplicate_credential", "users[1]"),
        ),
        (
            proxies.document(users=[proxies.user("a"), proxies.user("b", uuid="${secret:PROXY_USERS#a.uuid}")]),
            ("duplicate_credential", "users[1]"),
        ),
        (
            proxies.document(proxies.shadowsocks(), users=[proxies.user("a", key="${secret:PROXY_SS#ss}")]),
            ("duplicate_credential", "users[0]"),
        ),
        (
            proxies.document(proxies.trojan(), users=[proxies.user("a", password="${secret:PROXY_API}")]),
            ("duplicate_credential", "users[0]"),
        ),
        (proxies.document(secret_name=""), ("no_credential", "users[0]")),
        (proxies.document(users=[]), ("no_eligible_users", "inbounds[0]")),
        (proxies.document(users=[proxies.user("a", enabled=False)]), ("no_eligible_users", "inbounds[0]")),
        (
            proxies.document(proxies.vless(), proxies.trojan(), users=[proxies.user("a", inbounds=["tr"])]),
            ("no_eligible_users", "inbounds[0]"),
        ),
        (proxies.document(without(proxies.trojan(), "tls")), ("no_tls", "inbounds[0].tls")),
        (proxies.document({**without(proxies.trojan(), "tls"), **BEHIND}), ("no_tls", "inbounds[0].tls")),
        (proxies.document(without(proxies.hysteria(), "tls")), ("no_tls", "inbounds[0].tls")),
        (proxies.document(without(proxies.vless(), "tls")), ("no_tls", "inbounds[0].tls")),
        (proxies.document(proxies.vless(front="x.example:443")), ("front_open", "inbounds[0].front")),
        (proxies.document(proxies.vmess(front="x.example:443")), ("front_open", "inbounds[0].front")),
        (proxies.document(proxies.reality(tls=dict(proxies.TLS))), ("tls_twice", "inbounds[0]")),
        (proxies.document(proxies.reality(flow="", ws={"path": "/"})), ("reality_ws", "inbounds[0].ws")),
        (
            proxies.document(proxies.vless(flow="xtls-rprx-vision", ws={"path": "/"})),
            ("flow_without_tls", "inbounds[0].flow"),
        ),
        (
            proxies.document(proxies.reality(reality={**proxies.REALITY, "short_ids": ["ab", "ab"]})),
            ("duplicate", "inbounds[0].reality.short_ids[1]"),
        ),
        (proxies.document(api={**proxies.API, "listen": "0.0.0.0"}), ("api_open", "api.listen")),
        (proxies.document(api={**proxies.API, "listen": "192.0.2.1"}), ("api_open", "api.listen")),
        (proxies.document(core="xray"), ("api_without_auth", "api")),
        (without(proxies.document(proxies.hysteria(), core="xray"), "api"), ("not_of_core", "inbounds[0].protocol")),
        (
            without(proxies.document(users=[proxies.user("a", quota_bytes=1)], core="xray"), "api"),
            ("quota_uncounted", "users[0].quota_bytes"),
        ),
        (
            without(proxies.document(users=[proxies.user("a", quota_bytes=1)]), "api"),
            ("quota_uncounted", "users[0].quota_bytes"),
        ),
    ],
)
def test_what_the_cores_would_take_is_refused(plain, expected):
    assert codes(plain) == [expected]


@pytest.mark.parametrize(
    "pair",
    [
        (proxies.vless(), proxies.hysteria()),
        (proxies.vless("a", listen="192.0.2.1"), proxies.vless("b", listen="192.0.2.2")),
    ],
)
def test_other_transports_and_addresses_share_a_port(pair):
    assert codes(proxies.document(*pair)) == []


def test_ports_of_ssh_and_of_others_are_refused():
    facts = PortFacts(
        listeners=(BoundPort(transport="udp", port=443, owner="caddy"), BoundPort(transport="tcp", port=9_180)),
        ssh_ports=(22,),
    )
    plain = proxies.document(proxies.vless(port=22), proxies.hysteria(), proxies.trojan())
    found = check.check(decode.read(plain), facts)
    assert [(one.code, one.path) for one in found] == [
        ("ssh_port", "inbounds[0].port"),
        ("port_taken", "inbounds[1].port"),
        ("port_taken", "api.port"),
    ]
    assert "caddy" in found[1].expected
    assert codes(plain) == []


def test_no_more_than_a_hundred_findings_are_told():
    many = [proxies.user(f"u{index}", label="same") for index in range(2_000)]
    assert len(codes(proxies.document(users=many))) == 100

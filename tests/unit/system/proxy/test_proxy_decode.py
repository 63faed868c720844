"""Intents of proxies from JSON: what is taken, and what is refused with its place, before any core could see it."""

from __future__ import annotations

import contextlib
import copy
import random

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.proxy import decode
from latticed.system.proxy.intent import (
    Core,
    CredentialForm,
    Flow,
    HostPort,
    Method,
    Protocol,
    forms_of,
    reference,
    references,
)
from tests.house import proxies

HOSTILE = (
    *("x\n", "\nx", "x;y", "x y", "x\ty", "x\x00", "x\x1b[31m", "x#y", "x=y", 'x"', "x'", "x$y", "x`y`", "x\\y"),
    *("x\u2028", "xé", "x\ud800", "\u0661", "x{", "x}", "x|y", "x&y", "x<y", "x>y", "$(id)", "x,y", "x(y)", "ｘ"),
)
TAGS = (*HOSTILE, "", "-x", ".x", "a" * 129, "a/b", "a@b", None, 1, True, [], {})
HOSTS = (
    *HOSTILE,
    "",
    "-x.example",
    "x-.example",
    "a..b",
    "a" * 64,
    ".",
    "1.2.3",
    "1.2.3.4.5",
    "::1",
    "x/y",
    "x:1",
    None,
    1,
)
PLACES = (
    *HOSTILE,
    "",
    "x",
    "x:",
    ":443",
    "x:0",
    "x:65536",
    "x:99999",
    "::1:443",
    "[::1]",
    "[::ffff:1.2.3.4]:1",
    "x:4 3",
    443,
)
FILES = (
    *HOSTILE,
    "",
    "x",
    "etc/x",
    "/",
    "//x",
    "/x/",
    "/../x",
    "/x/..",
    "/./x",
    "/x/.",
    "/x//y",
    "/" + "a" * 65,
    None,
    1,
)
SHORT_IDS = (*HOSTILE, "0", "abc", "ABCD", "0123456789abcdef01", "xyzw", None, 12, True)
PORTS = (0, -1, 70_000, 65_536, 2**70, 1.5, True, None, "443", [443])
SECRETS = (
    *HOSTILE,
    *("", "hunter22", "PROXY", "${secret:}", "${secret:proxy}", "${secret:PROXY", "${secret:PROXY}x", "x${secret:P}"),
    *("${secret:P#}", "${secret:P#a b}", "${secret:P}\n", "${secret:P#a/b}", "${secret:P}${secret:P}", None, 1),
)
LABELS = (*HOSTILE, "a/b", "a" * 49, None, 1, [])
NAMES = (*HOSTILE, "", "Anna", "1a", "a" * 33, "a.b", None, 1)
PATHS = (*HOSTILE, "", "x", "/x?y", "/x%20", "/" + "a" * 128, None, 1)
ALPN = (*HOSTILE, "", "H2", "a" * 17, None, 1)


def findings(plain):
    with pytest.raises(IntentRefused) as refused:
        decode.read(plain)
    return refused.value.findings


def test_a_whole_intent_is_read():
    front = proxies.vless(ws={"path": "/chat", "host": "cdn.example.org"}, listen="192.0.2.1", outbound="second")
    found = decode.read(
        proxies.document(
            front,
            proxies.reality(),
            proxies.shadowsocks(method="2022-blake3-aes-128-gcm"),
            proxies.hysteria(obfs="${secret:OBFS}", up_mbps=10),
            users=[
                proxies.user("anna", quota_bytes=5, expires_at=9, label="anna.2"),
                proxies.user("ben", inbounds=["ss"]),
            ],
            outbounds=[{"tag": "second", "source": "192.0.2.1"}],
        )
    )
    assert (found.core, found.host, found.secret_name) == (Core.SING_BOX, "vpn.example.org", "PROXY_USERS")
    first, second, third, fourth = found.inbounds
    assert (first.protocol, str(first.listen), first.port, first.ws.path) == (Protocol.VLESS, "192.0.2.1", 443, "/chat")
    assert (second.flow, second.reality.handshake) == (Flow.VISION, HostPort(host="www.example.com", port=443))
    assert (third.method, third.password) == (Method.AES_128, "PROXY_SS#ss")
    assert (fourth.obfs, fourth.up_mbps, fourth.down_mbps) == ("OBFS", 10, None)
    anna, ben = found.users
    assert forms_of(found, anna) == (CredentialForm.KEY, CredentialForm.PASSWORD, CredentialForm.UUID)
    assert forms_of(found, ben) == (CredentialForm.KEY,)
    assert reference(found, anna, CredentialForm.UUID) == "PROXY_USERS#anna.2.uuid"
    assert references(found) == {
        "OBFS": "password",
        "PROXY_API": "password",
        "PROXY_REALITY": "key",
        "PROXY_SS#ss": "key",
        "PROXY_USERS#anna.2.key": "key",
        "PROXY_USERS#anna.2.password": "password",
        "PROXY_USERS#anna.2.uuid": "uuid",
        "PROXY_USERS#ben.key": "key",
    }


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("inbounds[0].tag", TAGS),
        ("inbounds[0].outbound", TAGS),
        ("inbounds[0].port", PORTS),
        ("inbounds[0].listen", (*HOSTILE, "", "10.0.0.0/8", "::ffff:1.2.3.4", "fe80::1%eth0", "localhost", None, 1)),
        ("inbounds[0].tls.server_name", HOSTS),
        ("inbounds[0].tls.certificate_file", FILES),
        ("inbounds[0].tls.key_file", FILES),
        ("inbounds[0].tls.alpn[0]", ALPN),
        ("inbounds[0].ws.path", PATHS),
        ("inbounds[0].ws.host", HOSTS),
        ("inbounds[0].front", PLACES),
        ("inbounds[1].reality.handshake", PLACES),
        ("inbounds[1].reality.short_ids[0]", SHORT_IDS),
        ("inbounds[1].reality.private_key", SECRETS),
        ("inbounds[1].reality.public_key", (*HOSTILE, "", "A" * 42, "A" * 44, "A" * 42 + "B", "A" * 42 + "=", None, 1)),
        ("inbounds[1].flow", (*HOSTILE, "xtls-rprx-direct", None, 1)),
        ("inbounds[2].method", (*HOSTILE, "aes-256-gcm", "2022-blake3-chacha20-poly1305", "none", None, 1)),
        ("inbounds[2].password", SECRETS),
        ("inbounds[3].obfs", SECRETS),
        ("inbounds[3].up_mbps", (0, -1, 1.5, True, None, "10", 2**70)),
        ("outbounds[0].source", (*HOSTILE, "", "10.0.0.0/8", None, 1)),
        ("users[0].id", NAMES),
        ("users[0].label", LABELS),
        ("users[0].name", (*tuple(one for one in HOSTILE if one != "x y"), "a" * 129, None, 1)),
        ("users[0].uuid", SECRETS),
        ("users[0].password", SECRETS),
        ("users[0].key", SECRETS),
        ("users[0].quota_bytes", (0, -1, 1.5, True, None, "10", 2**54)),
        ("users[0].expires_at", (-1, 1.5, True, None, "10", 2**54)),
        ("users[0].enabled", (0, 1, "yes", None, [])),
        ("users[0].inbounds[0]", TAGS),
        ("api.secret", SECRETS),
        ("api.port", PORTS),
        ("host", HOSTS),
        ("core", (*HOSTILE, "", "v2ray", None, 1)),
        ("secret_name", (*HOSTILE, "users", "1A", "A" * 65, "A#b", None, 1)),
        ("reach_private", (0, 1, "yes", None)),
    ],
)
def test_what_is_not_of_the_form_is_refused_where_it_stands(place, values):
    for value in values:
        plain = whole()
        where = plain
        *steps, last = place.replace("[", ".[").split(".")
        for step in steps:
            where = where[int(step[1:-1])] if step.startswith("[") else where[step]
        where[int(last[1:-1]) if last.startswith("[") else last] = value
        found = findings(plain)
        assert [one.path for one in found if one.path.startswith(place)], (value, found)
        assert all(str(one).isascii() and str(one).isprintable() for one in found)


def test_no_secret_in_clear_is_shown():
    plain = whole()
    plain["users"][0]["password"] = plain["api"]["secret"] = "correct-horse-battery"
    assert "correct-horse" not in " ".join(f"{one} {one.hint}" for one in findings(plain))


@pytest.mark.parametrize(
    "place", ["", "inbounds[0]", "inbounds[0].tls", "inbounds[1].reality", "inbounds[0].ws", "users[0]", "api"]
)
def test_unknown_fields_are_refused(place):
    plain = whole()
    where = plain
    for step in (one for one in place.replace("[", ".[").split(".") if one):
        where = where[int(step[1:-1])] if step.startswith("[") else where[step]
    where["alterId"] = 0
    (found,) = findings(plain)
    assert (found.code, found.path) == ("unknown_key", place or "intent")


@pytest.mark.parametrize(
    ("inbound", "field"),
    [
        (proxies.shadowsocks(tls=dict(proxies.TLS)), "tls"),
        (proxies.trojan(reality=dict(proxies.REALITY)), "reality"),
        (proxies.hysteria(ws={"path": "/"}), "ws"),
        (proxies.vmess(flow="xtls-rprx-vision"), "flow"),
        (proxies.vless(method="2022-blake3-aes-256-gcm"), "method"),
        (proxies.vless(obfs="${secret:X}"), "obfs"),
        (proxies.trojan(password="${secret:X}"), "password"),
        (proxies.trojan(up_mbps=1), "up_mbps"),
        (proxies.shadowsocks(front="x.example:443"), "front"),
    ],
)
def test_fields_of_other_protocols_are_refused(inbound, field):
    (found,) = findings(proxies.document(inbound))
    assert (found.code, found.path) == ("not_of_protocol", f"inbounds[0].{field}")


def test_two_thousand_users_are_the_most():
    many = [proxies.user(f"u{index}") for index in range(2_001)]
    assert len(decode.read(proxies.document(users=many[:2_000])).users) == 2_000
    (found,) = findings(proxies.document(users=many))
    assert (found.code, found.path) == ("too_many", "users")


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_changed_is_read_or_refused(seed):
    rng = random.Random(seed)
    plain = whole()
    for _ in range(rng.randrange(1, 4)):
        damaged(rng, plain)
    with contextlib.suppress(IntentRefused):
        decode.read(plain)


def damaged(rng, value):
    """Something deep inside `value` is another thing now."""
    while True:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value))) if value else None
        inner = value[key] if key is not None else None
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            value = inner
            continue
        if key is not None:
            value[key] = rng.choice([None, 1, "", "x\n", [], {}, [[]], {"x": {}}, -1, True, 2**70, float("nan")])
        return


def whole():
    return copy.deepcopy(
        proxies.document(
            proxies.vless(tls={**proxies.TLS, "alpn": ["h2"]}, ws={"path": "/"}),
            proxies.reality(),
            proxies.shadowsocks(),
            proxies.hysteria(),
            users=[proxies.user("anna", inbounds=["ss"])],
            outbounds=[{"tag": "second"}],
        )
    )

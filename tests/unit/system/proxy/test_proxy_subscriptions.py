"""Subscriptions: every link of a user in the form that a program reads, and what is left of his quota."""

from __future__ import annotations

import base64
import json

import pytest

from latticed.system.proxy import check, decode, devices, links, subscriptions
from latticed.system.proxy.subscriptions import Format
from tests.house import cores, proxies


@pytest.fixture
def given():
    plain = proxies.document(
        proxies.vless(ws={"path": "/chat", "host": "cdn.example.org"}),
        proxies.reality(),
        proxies.vmess(),
        proxies.trojan(),
        proxies.shadowsocks(),
        proxies.hysteria(obfs="${secret:PROXY_OBFS}"),
    )
    intent = decode.read(plain)
    return devices.links(intent, "anna", proxies.secrets(intent))


def test_base64_is_a_link_a_line(given):
    document = subscriptions.write(given, Format.BASE64)
    assert [links.read(one) for one in subscriptions.lines(document)] == list(given)


def test_base64_of_others_is_read_too(given):
    text = "\r\n".join(links.write(one) for one in given)
    wrapped = base64.encodebytes(text.encode())
    bare = base64.urlsafe_b64encode(text.encode()).rstrip(b"=")
    assert subscriptions.lines(wrapped) == subscriptions.lines(bare) == tuple(text.split("\r\n"))
    for hostile in (b"!", b"\xff", b"/w==", "ü".encode()):
        with pytest.raises(ValueError):
            subscriptions.lines(hostile)


def test_sing_box_takes_its_profile(given, tmp_path):
    program = cores.sing_box() or pytest.skip(cores.NO_SING_BOX)
    taken = given if cores.has_utls(program) else [one for one in given if one.security != "reality"]
    assert cores.checked(program, subscriptions.write(taken, Format.SING_BOX), tmp_path) == ""
    assert cores.checked(program, subscriptions.write((), Format.SING_BOX), tmp_path) == ""
    found = json.loads(subscriptions.write(given, Format.SING_BOX))
    assert found["outbounds"][0]["outbounds"] == [one.name for one in given]
    reality = next(one for one in found["outbounds"] if one["tag"] == "reality")
    assert reality["tls"]["reality"] == {
        "enabled": True,
        "public_key": proxies.REALITY["public_key"],
        "short_id": "0123abcd",
    }
    assert reality["tls"]["utls"] == {"enabled": True, "fingerprint": "chrome"}


def test_clash_is_one_proxy_a_link_and_a_group_of_all(given):
    found = json.loads(subscriptions.write(given, Format.CLASH))
    named = {one["name"]: one for one in found["proxies"]}
    assert found["proxy-groups"] == [{"name": "_proxy", "type": "select", "proxies": [one.name for one in given]}]
    assert found["rules"] == ["MATCH,_proxy"]
    keys = {name: sorted(one) for name, one in named.items()}
    common = ["name", "port", "server", "type"]
    assert keys["ss"] == sorted([*common, "cipher", "password", "udp"])
    assert keys["tr"] == sorted([*common, "password", "sni", "udp"])
    assert keys["fast"] == sorted([*common, "obfs", "obfs-password", "password", "sni"])
    assert keys["vm"] == sorted([*common, "alterId", "cipher", "udp", "uuid"])
    assert named["front"]["ws-opts"] == {"path": "/chat", "headers": {"Host": "cdn.example.org"}}
    assert named["reality"]["reality-opts"] == {"public-key": proxies.REALITY["public_key"], "short-id": "0123abcd"}
    assert (named["reality"]["tls"], named["reality"]["servername"]) == (True, "www.example.com")
    assert (named["reality"]["flow"], named["ss"]["type"]) == ("xtls-rprx-vision", "ss")
    assert json.loads(subscriptions.write((), Format.CLASH))["rules"] == ["MATCH,REJECT"]


TAGS = ("proxy", "direct", "local", "DIRECT", "REJECT", "REJECT-DROP", "PASS", "COMPATIBLE", "GLOBAL")


def tagged(*tags):
    intent = decode.read(proxies.document(*(proxies.trojan(tag, 8_000 + at) for at, tag in enumerate(tags))))
    assert check.check(intent) == ()
    return devices.links(intent, "anna", proxies.secrets(intent))


def test_sing_box_takes_a_profile_of_inbounds_whatever_their_tags_are(tmp_path):
    program = cores.sing_box() or pytest.skip(cores.NO_SING_BOX)
    assert cores.checked(program, subscriptions.write(tagged(*TAGS), Format.SING_BOX), tmp_path) == ""


def test_no_name_of_a_clash_profile_is_there_twice_or_one_of_its_own():
    found = json.loads(subscriptions.write(tagged(*TAGS), Format.CLASH))
    names = [one["name"] for one in (*found["proxies"], *found["proxy-groups"])]
    assert len(set(names)) == len(TAGS) + 1
    assert not set(names) & {"DIRECT", "REJECT", "REJECT-DROP", "PASS", "COMPATIBLE", "GLOBAL"}
    assert set(found["proxy-groups"][0]["proxies"]) == {one["name"] for one in found["proxies"]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 2, None, None), "upload=1; download=2"),
        ((0, 0, 1 << 40, 1_800_000_000), "upload=0; download=0; total=1099511627776; expire=1800000000"),
    ],
)
def test_userinfo_tells_what_is_used_and_what_is_left(given, expected):
    up, down, quota, until = given
    assert subscriptions.userinfo(up_bytes=up, down_bytes=down, quota_bytes=quota, expires_at=until) == expected

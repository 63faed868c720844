"""Share links as other programs write them, each form of each protocol: read whole and written again, or refused."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import string

import pytest

from latticed.system.proxy import decode, devices, links
from latticed.system.proxy.intent import Flow, Method, Protocol
from latticed.system.proxy.links import NoLink, ShareLink
from tests.house import proxies

UUID = "b831381d-6324-4d53-ad4f-8cda48b30811"
PBK = "jNXHt1yRo0vDuchQlIP6Z0ZvjT3KtzVI-T4E7RoLJS0"
KEY32 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
KEY16 = "+/8CAwQFBgcICQoLDA0ODw=="
KEY16_QUOTED = "%2B%2F8CAwQFBgcICQoLDA0ODw%3D%3D"


def b64(text, *, url=False, pad=True):
    made = (base64.urlsafe_b64encode if url else base64.b64encode)(text.encode()).decode()
    return made if pad else made.rstrip("=")


def vmess_json(**changes):
    plain = {
        "v": "2", "ps": "vm", "add": "vm.example.org", "port": "443", "id": UUID, "aid": "0", "scy": "auto",
        "net": "ws", "type": "none", "host": "cdn.example.org", "path": "/chat", "tls": "tls", "sni": "", "alpn": "",
        "fp": "",
    }  # fmt: skip
    return {name: value for name, value in {**plain, **changes}.items() if value is not ...}


def vmess(text=None, *, url=False, pad=True, **changes):
    return "vmess://" + b64(json.dumps(vmess_json(**changes)) if text is None else text, url=url, pad=pad)


VM = ShareLink(
    protocol=Protocol.VMESS, name="vm", host="vm.example.org", port=443, credential=UUID, security="tls",
    websocket=True, path="/chat", ws_host="cdn.example.org", cipher="auto",
)  # fmt: skip
VL = ShareLink(protocol=Protocol.VLESS, host="a.example.org", port=443, credential=UUID)
TR = ShareLink(protocol=Protocol.TROJAN, host="a.example.org", port=443, credential="pass:w@rd", security="tls")
SS = ShareLink(
    protocol=Protocol.SHADOWSOCKS, host="a.example.org", port=8388, credential=KEY32, name="ss", method=Method.AES_256
)
HY = ShareLink(protocol=Protocol.HYSTERIA2, host="a.example.org", port=443, credential="pass", security="tls")
TAKEN = {
    # VLESS: the proposal that v2rayN, Xray's panels and NekoBox follow
    f"vless://{UUID}@a.example.org:443": VL,
    f"vless://{UUID}@a.example.org:443?encryption=none&security=none&type=tcp&headerType=none#x": ShareLink(
        protocol=Protocol.VLESS, host="a.example.org", port=443, credential=UUID, name="x"
    ),
    f"vless://{UUID}@a.example.org:443?type=tcp&security=reality&pbk={PBK}&fp=chrome&sni=www.example.com&sid=6cabf01472a3"
    f"&spx=%2F&flow=xtls-rprx-vision#%F0%9F%87%A9%F0%9F%87%AA%20DE": ShareLink(
        protocol=Protocol.VLESS, host="a.example.org", port=443, credential=UUID, name="🇩🇪 DE", security="reality",
        public_key=PBK, fingerprint="chrome", server_name="www.example.com", short_id="6cabf01472a3", spider="/",
        flow=Flow.VISION,
    ),
    f"vless://{UUID.upper()}@[2001:db8::1]:8443/?type=raw&security=tls&sni=A.example.org&alpn=h2%2Chttp%2F1.1"
    "&fp=firefox": ShareLink(
        protocol=Protocol.VLESS, host="2001:db8::1", port=8443, credential=UUID, security="tls",
        server_name="a.example.org", alpn=("h2", "http/1.1"), fingerprint="firefox",
    ),
    f"vless://{UUID}@a.example.org:443?security=tls&type=ws&path=/?ed%3D2560&host=cdn.example.org"
    "&encryption=none#ws raw": ShareLink(
        protocol=Protocol.VLESS, host="a.example.org", port=443, credential=UUID, security="tls", name="ws raw",
        websocket=True, path="/", ws_host="cdn.example.org", early_data=2560,
    ),
    f"vless://{UUID}@a.example.org:443?security=tls&type=ws&packetEncoding=xudp&allowInsecure=1&path=%2Fws": ShareLink(
        protocol=Protocol.VLESS, host="a.example.org", port=443, credential=UUID, security="tls", websocket=True,
        path="/ws", insecure=True,
    ),
    # Trojan: of trojan-gfw, of v2rayN, of Shadowrocket
    "trojan://pass%3Aw%40rd@a.example.org:443": TR,
    "trojan://pass%3Aw%40rd@a.example.org:443?peer=b.example.org&allowInsecure=0#t": ShareLink(
        protocol=Protocol.TROJAN, host="a.example.org", port=443, credential="pass:w@rd", security="tls", name="t",
        server_name="b.example.org",
    ),
    "trojan://p@a.example.org:443?security=tls&type=ws&host=cdn.example.org&path=%2Fx&sni=b.example.org&fp=": ShareLink(
        protocol=Protocol.TROJAN, host="a.example.org", port=443, credential="p", security="tls", websocket=True,
        path="/x", ws_host="cdn.example.org", server_name="b.example.org",
    ),
    # Shadowsocks: SIP002 percent-encoded, in base64url and base64, and the form of before
    f"ss://2022-blake3-aes-256-gcm:{KEY32.replace('=', '%3D')}@a.example.org:8388#ss": SS,
    f"ss://2022-blake3-aes-256-gcm:{KEY32}@a.example.org:8388/#ss": SS,
    f"ss://{b64(f'2022-blake3-aes-256-gcm:{KEY32}', url=True, pad=False)}@a.example.org:8388#ss": SS,
    f"ss://{b64(f'2022-blake3-aes-256-gcm:{KEY32}')}@a.example.org:8388?type=tcp#ss": SS,
    f"ss://{b64(f'2022-blake3-aes-256-gcm:{KEY32}@a.example.org:8388')}#ss": SS,
    f"ss://2022-blake3-aes-128-gcm:{KEY16_QUOTED}%3A{KEY16_QUOTED}@[2001:db8::1]:8388": ShareLink(
        protocol=Protocol.SHADOWSOCKS, host="2001:db8::1", port=8388, credential=f"{KEY16}:{KEY16}",
        method=Method.AES_128,
    ),
    # VMess: of v2rayN (texts, numbers, null, old, lines), as a URL, of Shadowrocket
    vmess(): VM,
    vmess(url=True, pad=False): VM,
    vmess(port=443, aid=0, v=2, sni=None, alpn=..., fp=..., scy=...): VM,
    vmess(json.dumps(vmess_json(), indent=2)): VM,
    vmess(tls="", net="tcp", host="", path="", ps="ü 1", scy="aes-128-gcm"): ShareLink(
        protocol=Protocol.VMESS, name="ü 1", host="vm.example.org", port=443, credential=UUID, cipher="aes-128-gcm"
    ),
    vmess(tls="none", net="tcp", host="", path="/", ps=""): ShareLink(
        protocol=Protocol.VMESS, host="vm.example.org", port=443, credential=UUID, cipher="auto"
    ),
    f"vmess://{UUID}@vm.example.org:443?type=ws&security=tls&host=cdn.example.org&path=%2Fchat&encryption=auto#vm": VM,
    "vmess://" + b64(f"auto:{UUID}@vm.example.org:443", pad=False)
    + "?remarks=vm&obfs=websocket&path=/chat&obfsParam=cdn.example.org&tls=1&alterId=0": VM,
    # Hysteria2
    "hysteria2://pass@a.example.org": HY,
    "hy2://pass@a.example.org:443/": HY,
    "hysteria2://pass@a.example.org:443/?sni=real.example.com&insecure=1&obfs=salamander"
    "&obfs-password=gawr%26gura#h": ShareLink(
        protocol=Protocol.HYSTERIA2, host="a.example.org", port=443, credential="pass", security="tls", name="h",
        server_name="real.example.com", insecure=True, obfs="gawr&gura",
    ),
    "hysteria2://user:pass@a.example.org:8443?alpn=h3": ShareLink(
        protocol=Protocol.HYSTERIA2, host="a.example.org", port=8443, credential="user:pass", security="tls",
        alpn=("h3",),
    ),
}  # fmt: skip
REFUSED = {
    # by what of them
    f"vless://{UUID}@a.example.org:443?type=grpc&serviceName=x": "transport",
    f"vless://{UUID}@a.example.org:443?type=xhttp&mode=auto": "transport",
    f"vless://{UUID}@a.example.org:443?type=kcp&seed=x": "transport",
    f"vless://{UUID}@a.example.org:443?type=tcp&headerType=http&host=x.example": "headerType",
    f"vless://{UUID}@a.example.org:443?encryption=mlkem768x25519plus.native.0rtt.x": "encryption",
    f"vless://{UUID}@a.example.org:443?security=xtls": "security",
    f"vless://{UUID}@a.example.org:443?security=reality&sni=x.example": "pbk",
    f"vless://{UUID}@a.example.org:443?security=tls&pbk={PBK}": "pbk",
    f"vless://{UUID}@a.example.org:443?security=reality&pbk={PBK}&sid=abc": "sid",
    f"vless://{UUID}@a.example.org:443?security=reality&pbk={PBK}&pqv=abc": "pqv",
    f"vless://{UUID}@a.example.org:443?flow=xtls-rprx-direct&security=tls": "flow",
    f"vless://{UUID}@a.example.org:443?flow=xtls-rprx-vision": "flow",
    f"vless://{UUID}@a.example.org:443?ech=AEn%2B": "ech",
    f"vless://{UUID}@a.example.org:443?sni=a.example&sni=b.example": "once",
    f"vless://{UUID}@a.example.org": "port",
    f"vless://{UUID}@a.example.org:0": "port",
    f"vless://{UUID}@a.example.org:70000": "port",
    f"vless://{UUID}@a..example:443": "host name",
    f"vless://{UUID}@bücher.example:443": "host name",
    f"vless://{UUID}@[::g]:443": "who@host:port",
    "vless://not-a-uuid@a.example.org:443": "UUID",
    f"vless://{UUID}@a.example.org:443\n": "newlines",
    f"vless://{UUID}@a.example.org:443#a%0Ab": "newlines",
    f"vless://{UUID}@a.example.org:443#a\u2028b": "newlines",
    f"vless://{UUID}@a.example.org:443?path=%0d%0aX&type=ws": "newlines",
    f"vless://{UUID}@a.example.org:443?sni=%ff": "UTF-8",
    f"vless://{UUID}@a.example.org:443#{'a' * 4096}": "4096",
    "trojan://p@a.example.org:443?security=none": "tls",
    "trojan://p@a.example.org:443?security=reality": "pbk",
    "trojan://p@a.example.org:443?type=grpc": "transport",
    "trojan://p@a.example.org:443?plugin=obfs-local%3Bobfs%3Dwebsocket": "plugin",
    "trojan://@a.example.org:443": "who@host:port",
    "trojan-go://p@a.example.org:443": "link of",
    f"ss://{b64('aes-256-gcm:secret')}@a.example.org:8388": "method",
    f"ss://2022-blake3-chacha20-poly1305:{KEY32}@a.example.org:8388": "method",
    f"ss://2022-blake3-aes-256-gcm:{KEY16_QUOTED}@a.example.org:8388": "keys of 32",
    f"ss://2022-blake3-aes-256-gcm:{KEY32}@a.example.org:8388/?plugin=v2ray-plugin%3Btls": "plugin",
    f"ss://2022-blake3-aes-256-gcm:{KEY32}:{KEY32}:{KEY32}@a.example.org:8388": "key of a server",
    "ss://!!!!@a.example.org:8388": "base64",
    vmess(aid="64"): "aid",
    vmess(net="grpc"): "transport",
    vmess(net="h2"): "transport",
    vmess(net="quic"): "transport",
    vmess(net="tcp", type="http"): "type",
    vmess(tls="reality"): "tls",
    vmess(scy="rc4"): "cipher",
    vmess(id="x"): "UUID",
    vmess(port="70000"): "port",
    vmess(ps="a\nb"): "newlines",
    vmess(extra="x"): "extra",
    vmess(add=["x"]): "texts and numbers",
    vmess("[1]"): "Quantumult",
    vmess("{" * 5000): "4096",
    vmess("{" * 1000): "JSON",
    vmess("vm = vmess, vm.example.org, 443, auto, " + UUID): "Quantumult",
    vmess() + "?remarks=x": "parameters behind JSON",
    "vmess://" + b64(f"auto:{UUID}@vm.example.org:443") + "?obfs=http": "obfs",
    "vmess://" + b64(f"auto:{UUID}@vm.example.org:443") + "?alterId=2": "alterId",
    "hysteria2://pass@a.example.org:443,5000-6000/": "port",
    "hysteria2://pass@a.example.org:443/?mport=5000-6000": "mport",
    "hysteria2://pass@a.example.org/?obfs=gecko&obfs-password=x": "obfs",
    "hysteria2://pass@a.example.org/?obfs=salamander": "obfs-password",
    "hysteria2://pass@a.example.org/?pinSHA256=deadbeef": "pinSHA256",
    "hysteria2://a.example.org/": "who@host:port",
    "hysteria://a.example.org:443?auth=x": "link of",
    "ssr://YWJj": "link of",
    "tuic://x": "link of",
    "wireguard://x": "link of",
    "https://a.example.org/": "link of",
    "": "link of",
    "vless": "link of",
    "vless://": "who@host:port",
}


@pytest.mark.parametrize(("text", "link"), TAKEN.items())
def test_what_other_programs_write_is_read_whole_and_written_again(text, link):
    assert links.read(text) == link
    written = links.write(link)
    assert written.isascii()
    assert links.read(written) == link


@pytest.mark.parametrize(("text", "what"), REFUSED.items())
def test_what_has_no_place_here_is_refused_by_its_name(text, what):
    with pytest.raises(NoLink) as refused:
        links.read(text)
    assert what in refused.value.reason
    # Nobody's password gets into a log this way.
    assert UUID not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_links_are_written_in_the_form_that_most_programs_read():
    intent = decode.read(
        proxies.document(
            proxies.reality(), proxies.trojan(), proxies.shadowsocks(), proxies.hysteria(), proxies.vmess()
        )
    )
    secrets = proxies.secrets(intent)
    found = {one.name: links.write(one) for one in devices.links(intent, "anna", secrets)}
    uuid, password = secrets["PROXY_USERS#anna.uuid"], secrets["PROXY_USERS#anna.password"]
    assert found["reality"] == (
        f"vless://{uuid}@vpn.example.org:8443?encryption=none&flow=xtls-rprx-vision&security=reality"
        f"&sni=www.example.com&fp=chrome&pbk={PBK}&sid=0123abcd&type=tcp#reality"
    )
    assert found["tr"] == f"trojan://{password}@vpn.example.org:8444?security=tls&sni=vpn.example.org&type=tcp#tr"
    assert found["fast"] == f"hysteria2://{password}@vpn.example.org:443/?sni=vpn.example.org#fast"
    assert found["ss"].startswith("ss://2022-blake3-aes-256-gcm:")
    assert found["ss"].count("%3A") == 1
    assert json.loads(base64.b64decode(found["vm"].removeprefix("vmess://")))["id"] == uuid


def test_a_front_is_what_devices_dial():
    inbound = proxies.vless(listen="127.0.0.1", front="cdn.example.org:8443", ws={"path": "/chat"})
    del inbound["tls"]
    intent = decode.read(proxies.document(inbound))
    (found,) = devices.links(intent, "anna", proxies.secrets(intent))
    assert (found.host, found.port, found.security, found.server_name) == (
        "cdn.example.org",
        8443,
        "tls",
        "cdn.example.org",
    )


def test_who_is_not_let_in_has_no_links_and_what_cannot_be_dialled_is_said():
    reality = proxies.reality()
    del reality["reality"]["public_key"]
    plain = proxies.document(reality, users=[proxies.user("anna"), proxies.user("ben", enabled=False)])
    intent = decode.read(plain)
    secrets = proxies.secrets(intent)
    assert devices.links(intent, "ben", secrets) == devices.links(intent, "nobody", secrets) == ()
    with pytest.raises(NoLink, match="public_key"):
        devices.links(intent, "anna", secrets)
    intent = decode.read({name: value for name, value in plain.items() if name != "host"})
    with pytest.raises(NoLink, match="host"):
        devices.links(intent, "anna", secrets)


@pytest.mark.parametrize("seed", range(100))
def test_the_links_of_any_intent_parse_back(seed):
    intent = decode.read(proxies.sound(random.Random(seed)))
    for user in intent.users:
        for link in devices.links(intent, user.id, proxies.secrets(intent)):
            assert links.read(links.write(link)) == link


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_changed_in_a_link_is_read_whole_or_refused(seed):
    rng = random.Random(seed)
    text = rng.choice(list(TAKEN))
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(text) + 1)
        put = rng.choice(["", *string.printable, "%00", "%0A", "%", "é", "&x=y", "&sni=", "://", "\ud800"])
        text = text[:place] + put + text[place + rng.randrange(3) :]
    with contextlib.suppress(NoLink):
        link = links.read(text)
        assert links.read(links.write(link)) == link
        assert "\n" not in links.write(link)


@pytest.mark.parametrize("seed", range(100))
def test_any_bytes_are_no_crash(seed):
    rng = random.Random(seed)
    scheme = rng.choice(["vless", "vmess", "trojan", "ss", "hysteria2", "hy2"])
    body = "".join(chr(rng.randrange(0x250)) for _ in range(rng.randrange(80)))
    if rng.random() < 0.6:
        body = b64(body, url=rng.random() < 0.5)
    with contextlib.suppress(NoLink):
        links.read(f"{scheme}://{body}")

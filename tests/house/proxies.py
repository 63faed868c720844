"""Random intents of proxies, as documents: valid, small, with every field now and then. And real cores, where they are.

singbox = proxies.sing_box() or pytest.skip(...)
"""

from __future__ import annotations

import base64
import hashlib
import random
import uuid
from typing import Any

from latticed.system.proxy import check, decode
from latticed.system.proxy import intent as model

REALITY = {
    "server_name": "www.example.com",
    "handshake": "www.example.com:443",
    "private_key": "${secret:PROXY_REALITY}",
    "public_key": "jNXHt1yRo0vDuchQlIP6Z0ZvjT3KtzVI-T4E7RoLJS0",
    "short_ids": ["0123abcd"],
}
TLS = {
    "server_name": "vpn.example.org",
    "certificate_file": "/etc/ssl/vpn/fullchain.pem",
    "key_file": "/etc/ssl/vpn/privkey.pem",
}
API = {"port": 9_180, "secret": "${secret:PROXY_API}"}


def document(*inbounds: dict[str, Any], users: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """Of one user, and an inbound of VLESS unless others are given."""
    return {
        "host": "vpn.example.org",
        "secret_name": "PROXY_USERS",
        "api": dict(API),
        "inbounds": list(inbounds) or [vless()],
        "users": [user("anna")] if users is None else users,
        **changes,
    }


def user(user_id: str, **changes: Any) -> dict[str, Any]:
    return {"id": user_id, **changes}


def vless(tag: str = "front", port: int = 443, **changes: Any) -> dict[str, Any]:
    return {"tag": tag, "protocol": "vless", "port": port, "tls": dict(TLS), **changes}


def reality(tag: str = "reality", port: int = 8_443, **changes: Any) -> dict[str, Any]:
    made = {"tag": tag, "protocol": "vless", "port": port, "flow": "xtls-rprx-vision", "reality": dict(REALITY)}
    return {**made, **changes}


def vmess(tag: str = "vm", port: int = 8_080, **changes: Any) -> dict[str, Any]:
    return {"tag": tag, "protocol": "vmess", "port": port, **changes}


def trojan(tag: str = "tr", port: int = 8_444, **changes: Any) -> dict[str, Any]:
    return {"tag": tag, "protocol": "trojan", "port": port, "tls": dict(TLS), **changes}


def shadowsocks(tag: str = "ss", port: int = 8_388, **changes: Any) -> dict[str, Any]:
    return {"tag": tag, "protocol": "shadowsocks", "port": port, "password": f"${{secret:PROXY_SS#{tag}}}", **changes}


def hysteria(tag: str = "fast", port: int = 443, **changes: Any) -> dict[str, Any]:
    return {"tag": tag, "protocol": "hysteria2", "port": port, "tls": dict(TLS), **changes}


def secrets(intent: model.ProxyIntent) -> dict[str, str]:
    """A value of its form for every reference, the same for the same reference."""
    return {name: value(name, form) for name, form in model.references(intent).items()}


def value(name: str, form: str) -> str:
    digest = hashlib.sha256(f"{name} {form}".encode()).digest()
    match form:
        case "uuid":
            return str(uuid.UUID(bytes=digest[:16], version=4))
        case "key":
            return base64.b64encode(digest).decode()
        case _:
            return base64.urlsafe_b64encode(digest).decode().rstrip("=").replace("-", ".")


def sound(rng: random.Random) -> dict[str, Any]:
    """A document that decode and check take."""
    while True:
        found = anything(rng)
        if not check.check(decode.read(found)):
            return found


def anything(rng: random.Random) -> dict[str, Any]:
    """A document of the right form, most of which pass check."""
    core = rng.choice(["sing-box", "sing-box", "xray"])
    makers = [vless, reality, vmess, trojan, shadowsocks, *([hysteria] if core == "sing-box" else [])]
    inbounds = []
    for index in range(rng.randrange(5)):
        made = rng.choice(makers)(f"in{index}", 10_000 + index)
        if made["protocol"] in {"vless", "vmess", "trojan"} and "reality" not in made and rng.random() < 0.5:
            made["ws"] = {
                "path": rng.choice(["/", "/chat"]),
                **({"host": "cdn.example.org"} if rng.random() < 0.5 else {}),
            }
        if made["protocol"] == "vless" and "ws" in made and rng.random() < 0.5:
            del made["tls"]
            made |= {"listen": "127.0.0.1", "front": "cdn.example.org:443"}
        if made["protocol"] == "shadowsocks":
            made["method"] = rng.choice(list(model.Method))
        if made["protocol"] == "hysteria2" and rng.random() < 0.5:
            made |= {"obfs": "${secret:PROXY_OBFS}", "up_mbps": 50, "down_mbps": 200}
        if rng.random() < 0.3:
            made["outbound"] = "second"
        inbounds.append(made)
    found = document(*inbounds, users=[_user(rng, index, inbounds, core) for index in range(rng.randrange(1, 6))])
    found["inbounds"] = inbounds
    found |= {"core": core, "outbounds": [{"tag": "second", "source": rng.choice(["192.0.2.7", "2001:db8::7"])}]}
    if core == "xray":
        del found["api"]
    if rng.random() < 0.3:
        found["reach_private"] = rng.random() < 0.5
    return found


def _user(rng: random.Random, index: int, inbounds: list[dict[str, Any]], core: str) -> dict[str, Any]:
    made = user(f"user-{index}")
    if rng.random() < 0.2:
        made["enabled"] = False
    if rng.random() < 0.4:
        made["expires_at"] = rng.randrange(1_700_000_000, 1_900_000_000)
    if rng.random() < 0.4 and core == "sing-box":
        made["quota_bytes"] = rng.randrange(1, 1 << 40)
    if rng.random() < 0.4:
        made["inbounds"] = [one["tag"] for one in inbounds if rng.random() < 0.6]
    if rng.random() < 0.2:
        made["label"] = f"user-{index}.2"
    if rng.random() < 0.2:
        made["uuid"] = f"${{secret:UUID_{index}}}"
    return made

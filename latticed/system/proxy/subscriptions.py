"""What a device fetches at its user's token: all his links, in the form that its program reads."""

from __future__ import annotations

import base64
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from latticed.system.proxy import links
from latticed.system.proxy.intent import Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latticed.system.proxy.links import ShareLink

LOCAL_PORT: Final = 2_080
"""Of the device, where programs find the proxy: HTTP and SOCKS."""
SELECTED: Final = "_proxy"
"""The outbound, or group, that stands for all. No tag of an inbound begins like that."""
_DIRECT: Final = "_direct"
_CLASH_OWN: Final = frozenset({"DIRECT", "REJECT", "REJECT-DROP", "PASS", "COMPATIBLE", "GLOBAL"})
"""What Clash names itself, and takes no proxy with."""
_HEADER: Final = "Sec-WebSocket-Protocol"
"""Where a WebSocket carries its early data."""


class Format(StrEnum):
    BASE64 = "base64"
    SING_BOX = "sing-box"
    CLASH = "clash"


MEDIA_TYPES: Final = {
    Format.BASE64: "text/plain; charset=utf-8",
    Format.SING_BOX: "application/json",
    # JSON is YAML, and leaves no doubt about quotes.
    Format.CLASH: "text/yaml; charset=utf-8",
}


def write(found: Sequence[ShareLink], form: Format) -> bytes:
    """The document of these links, whose names differ; also of none."""
    match form:
        case Format.BASE64:
            return base64.b64encode("".join(f"{links.write(one)}\n" for one in found).encode("utf-8"))
        case Format.SING_BOX:
            return _json(_sing_box(found))
        case _:
            return _json(_clash(found))


def lines(document: bytes) -> tuple[str, ...]:
    """The links of a document in base64, as other tools write it too; ValueError for none."""
    joined = b"".join(document.split()).replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    found = base64.b64decode(joined + b"=" * (-len(joined) % 4), validate=True).decode("utf-8")
    return tuple(one for line in found.split("\n") if (one := line.strip()))


def userinfo(*, up_bytes: int, down_bytes: int, quota_bytes: int | None, expires_at: int | None) -> str:
    """The header `subscription-userinfo`, as clients show it: bytes, and seconds since 1970."""
    told = [f"upload={up_bytes}", f"download={down_bytes}"]
    if quota_bytes is not None:
        told.append(f"total={quota_bytes}")
    if expires_at is not None:
        told.append(f"expire={expires_at}")
    return "; ".join(told)


def _json(found: dict[str, Any]) -> bytes:
    return (json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _sing_box(found: Sequence[ShareLink]) -> dict[str, Any]:
    names = [one.name for one in found]
    select = [{"type": "selector", "tag": SELECTED, "outbounds": names}] if names else []
    return {
        "log": {"level": "warn"},
        "inbounds": [{"type": "mixed", "tag": "local", "listen": "127.0.0.1", "listen_port": LOCAL_PORT}],
        "outbounds": [*select, *(_outbound(one) for one in found), {"type": "direct", "tag": _DIRECT}],
        # Nothing goes past the proxy, also when there is none.
        "route": {"final": SELECTED} if names else {"rules": [{"action": "reject"}], "final": _DIRECT},
    }


def _outbound(link: ShareLink) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": str(link.protocol),
        "tag": link.name,
        "server": link.host,
        "server_port": link.port,
    }
    if link.protocol in {Protocol.VLESS, Protocol.VMESS}:
        made["uuid"] = link.credential
    else:
        made["password"] = link.credential
    if link.flow:
        made["flow"] = str(link.flow)
    if link.cipher:
        made["security"] = link.cipher
    if link.method is not None:
        made["method"] = str(link.method)
    if link.obfs:
        made["obfs"] = {"type": "salamander", "password": link.obfs}
    if link.security:
        made["tls"] = _tls(link)
    if link.websocket:
        early = {"max_early_data": link.early_data, "early_data_header_name": _HEADER} if link.early_data else {}
        headers = {"headers": {"Host": link.ws_host}} if link.ws_host else {}
        made["transport"] = {"type": "ws", "path": link.path, **headers, **early}
    return made


def _tls(link: ShareLink) -> dict[str, Any]:
    made: dict[str, Any] = {"enabled": True}
    if link.server_name:
        made["server_name"] = link.server_name
    if link.alpn:
        made["alpn"] = list(link.alpn)
    if link.insecure:
        made["insecure"] = True
    if link.fingerprint:
        made["utls"] = {"enabled": True, "fingerprint": link.fingerprint}
    if link.public_key:
        made["reality"] = {"enabled": True, "public_key": link.public_key, "short_id": link.short_id}
    return made


def _clash(found: Sequence[ShareLink]) -> dict[str, Any]:
    names = [_clash_name(one) for one in found]
    groups = [{"name": SELECTED, "type": "select", "proxies": names}] if names else []
    return {
        "mixed-port": LOCAL_PORT,
        "allow-lan": False,
        "mode": "rule",
        "proxies": [_proxy(one) for one in found],
        "proxy-groups": groups,
        "rules": [f"MATCH,{SELECTED if names else 'REJECT'}"],
    }


def _clash_name(link: ShareLink) -> str:
    return f"_{link.name}" if link.name in _CLASH_OWN else link.name


def _proxy(link: ShareLink) -> dict[str, Any]:
    """One entry of `proxies`, as mihomo reads it."""
    kind = "ss" if link.protocol is Protocol.SHADOWSOCKS else str(link.protocol)
    made: dict[str, Any] = {"name": _clash_name(link), "type": kind, "server": link.host, "port": link.port}
    if link.protocol in {Protocol.VLESS, Protocol.VMESS}:
        made["uuid"] = link.credential
    else:
        made["password"] = link.credential
    if link.protocol is not Protocol.HYSTERIA2:
        made["udp"] = True
    if link.protocol is Protocol.VMESS:
        made |= {"alterId": 0, "cipher": link.cipher or "auto"}
    if link.method is not None:
        made["cipher"] = str(link.method)
    if link.flow:
        made["flow"] = str(link.flow)
    if link.obfs:
        made |= {"obfs": "salamander", "obfs-password": link.obfs}
    if link.security:
        made |= _clash_tls(link)
    if link.websocket:
        headers = {"headers": {"Host": link.ws_host}} if link.ws_host else {}
        early = {"max-early-data": link.early_data, "early-data-header-name": _HEADER} if link.early_data else {}
        made |= {"network": "ws", "ws-opts": {"path": link.path, **headers, **early}}
    return made


def _clash_tls(link: ShareLink) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if link.protocol in {Protocol.VLESS, Protocol.VMESS}:
        made["tls"] = True
    if link.server_name:
        name = "servername" if link.protocol in {Protocol.VLESS, Protocol.VMESS} else "sni"
        made[name] = link.server_name
    if link.alpn:
        made["alpn"] = list(link.alpn)
    if link.insecure:
        made["skip-cert-verify"] = True
    if link.fingerprint:
        made["client-fingerprint"] = link.fingerprint
    if link.public_key:
        made["reality-opts"] = {"public-key": link.public_key, "short-id": link.short_id}
    return made

"""The configuration of sing-box 1.14 for an intent, as JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.system.proxy import intent as model
from latticed.system.proxy import networks, values
from latticed.system.proxy.check import API_TAG
from latticed.system.proxy.intent import DIRECT, CredentialForm, Protocol, reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.system.proxy.intent import Inbound, Outbound, ProxyIntent, User

Plain = dict[str, Any]


def config(intent: ProxyIntent, secrets: Mapping[str, str]) -> Plain:
    """Of an intent that passed `check`. `secrets`: the value of each reference, or what is shown."""
    inbounds = sorted(intent.inbounds, key=lambda one: one.tag)
    outbounds = sorted(intent.outbounds, key=lambda one: one.tag)
    found: Plain = {
        "log": {"level": "warn"},
        "inbounds": [_inbound(intent, one, secrets) for one in inbounds],
        "outbounds": [{"type": "direct", "tag": DIRECT}, *(_outbound(one) for one in outbounds)],
        "route": {"rules": _rules(intent, inbounds), "final": DIRECT},
    }
    if not intent.reach_private:
        # What `resolve` below asks: the resolver of this host.
        found["dns"] = {"servers": [{"type": "local", "tag": "host"}]}
    if intent.api is not None:
        api = intent.api
        found["services"] = [
            {
                "type": "api",
                "tag": API_TAG,
                "listen": str(api.listen),
                "listen_port": api.port,
                "secret": secrets[api.secret],
            }
        ]
    return found


def _rules(intent: ProxyIntent, inbounds: list[Inbound]) -> list[Plain]:
    rules: list[Plain] = []
    if not intent.reach_private:
        # Resolved first: a name may mean an address of this host.
        rules += [{"action": "resolve"}, {"ip_cidr": list(networks.PRIVATE), "action": "reject"}]
        # Rules are asked for the first datagram of a session alone; so all others go where that one went.
        rules.append({"action": "route-options", "udp_connect": True})
    by_outbound: dict[str, list[str]] = {}
    for one in inbounds:
        if one.outbound != DIRECT:
            by_outbound.setdefault(one.outbound, []).append(one.tag)
    rules += [{"inbound": by_outbound[tag], "action": "route", "outbound": tag} for tag in sorted(by_outbound)]
    return rules


def _outbound(outbound: Outbound) -> Plain:
    found: Plain = {"type": "direct", "tag": outbound.tag}
    if outbound.source is not None:
        found[f"inet{outbound.source.version}_bind_address"] = str(outbound.source)
    return found


def _inbound(intent: ProxyIntent, inbound: Inbound, secrets: Mapping[str, str]) -> Plain:
    found: Plain = {
        "type": str(inbound.protocol),
        "tag": inbound.tag,
        "listen": str(inbound.listen),
        "listen_port": inbound.port,
        "users": [_user(intent, inbound, one, secrets) for one in intent.users_of(inbound)],
    }
    if tls := _tls(inbound, secrets):
        found["tls"] = tls
    if inbound.ws is not None:
        headers = {"headers": {"Host": inbound.ws.host}} if inbound.ws.host else {}
        found["transport"] = {"type": "ws", "path": inbound.ws.path, **headers}
    if inbound.protocol is Protocol.SHADOWSOCKS:
        found["method"] = str(inbound.method)
        found["password"] = values.shadowsocks(secrets[inbound.password], inbound.method)
    if inbound.obfs:
        found["obfs"] = {"type": "salamander", "password": secrets[inbound.obfs]}
    for name in ("up_mbps", "down_mbps"):
        if (most := getattr(inbound, name)) is not None:
            found[name] = most
    return found


def _user(intent: ProxyIntent, inbound: Inbound, user: User, secrets: Mapping[str, str]) -> Plain:
    form = model.FORMS[inbound.protocol]
    value = secrets[reference(intent, user, form)]
    match form:
        case CredentialForm.UUID:
            flow = {"flow": str(inbound.flow)} if inbound.flow else {}
            return {"name": user.id, "uuid": value, **flow}
        case CredentialForm.KEY:
            return {"name": user.id, "password": values.shadowsocks(value, inbound.method)}
        case _:
            return {"name": user.id, "password": value}


def _tls(inbound: Inbound, secrets: Mapping[str, str]) -> Plain:
    if inbound.reality is not None:
        reality = inbound.reality
        return {
            "enabled": True,
            "server_name": reality.server_name,
            "reality": {
                "enabled": True,
                "handshake": {"server": reality.handshake.host, "server_port": reality.handshake.port},
                "private_key": values.x25519(secrets[reality.private_key]),
                "short_id": sorted(reality.short_ids),
            },
        }
    if inbound.tls is None:
        return {}
    alpn = {"alpn": list(inbound.tls.alpn)} if inbound.tls.alpn else {}
    return {
        "enabled": True,
        "server_name": inbound.tls.server_name,
        "certificate_path": inbound.tls.certificate_file,
        "key_path": inbound.tls.key_file,
        **alpn,
    }

"""The configuration of xray for an intent, as JSON values; v2ray reads it too, but for REALITY and Shadowsocks 2022."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.system.proxy import intent as model
from latticed.system.proxy import networks, values
from latticed.system.proxy.intent import BLOCK, DIRECT, CredentialForm, Protocol, reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.system.proxy.intent import Inbound, Outbound, ProxyIntent, User

Plain = dict[str, Any]


def config(intent: ProxyIntent, secrets: Mapping[str, str]) -> Plain:
    """Of an intent that passed `check`. `secrets`: the value of each reference, or what is shown."""
    inbounds = sorted(intent.inbounds, key=lambda one: one.tag)
    others = [_outbound(one) for one in sorted(intent.outbounds, key=lambda one: one.tag)]
    direct, block = {"protocol": "freedom", "tag": DIRECT}, {"protocol": "blackhole", "tag": BLOCK}
    return {
        "log": {"loglevel": "warning", "access": "none"},
        "inbounds": [_inbound(intent, one, secrets) for one in inbounds],
        # The first is what takes everything that no rule names.
        "outbounds": [block, direct, *others],
        # IPOnDemand: a name may mean an address of this host.
        "routing": {"domainStrategy": "IPOnDemand", "rules": _rules(intent, inbounds)},
    }


def _rules(intent: ProxyIntent, inbounds: list[Inbound]) -> list[Plain]:
    rules: list[Plain] = []
    if not intent.reach_private:
        # Written out: `geoip:private` needs a file that may be missing. To xray a mapped address is its IPv4 address.
        private = [one for one in networks.PRIVATE if one != networks.MAPPED]
        rules.append({"type": "field", "ip": private, "outboundTag": BLOCK})
    by_outbound: dict[str, list[str]] = {}
    for one in inbounds:
        by_outbound.setdefault(one.outbound, []).append(one.tag)
    # A name that is not found is asked for again by each rule, and by the outbound: it gets no further without a public
    # address, since it may mean this host by then. No rule takes what another inbound's did not.
    found: Plain = {"network": "tcp,udp"} if intent.reach_private else {"ip": list(networks.PUBLIC)}
    rules += [
        {"type": "field", "inboundTag": by_outbound[tag], "outboundTag": tag, **found} for tag in sorted(by_outbound)
    ]
    return rules


def _outbound(outbound: Outbound) -> Plain:
    source = {"sendThrough": str(outbound.source)} if outbound.source is not None else {}
    return {"protocol": "freedom", "tag": outbound.tag, **source}


def _inbound(intent: ProxyIntent, inbound: Inbound, secrets: Mapping[str, str]) -> Plain:
    settings: Plain = {"clients": [_client(intent, inbound, one, secrets) for one in intent.users_of(inbound)]}
    if inbound.protocol is Protocol.VLESS:
        settings["decryption"] = "none"
    if inbound.protocol is Protocol.SHADOWSOCKS:
        settings["method"] = str(inbound.method)
        settings["password"] = values.shadowsocks(secrets[inbound.password], inbound.method)
        settings["network"] = "tcp,udp"
    return {
        "tag": inbound.tag,
        "protocol": str(inbound.protocol),
        "listen": str(inbound.listen),
        "port": inbound.port,
        "settings": settings,
        "streamSettings": _stream(inbound, secrets),
    }


def _client(intent: ProxyIntent, inbound: Inbound, user: User, secrets: Mapping[str, str]) -> Plain:
    form = model.FORMS[inbound.protocol]
    value = secrets[reference(intent, user, form)]
    match form:
        case CredentialForm.UUID:
            flow = {"flow": str(inbound.flow)} if inbound.flow else {}
            return {"email": user.id, "id": value, **flow}
        case CredentialForm.KEY:
            return {"email": user.id, "password": values.shadowsocks(value, inbound.method)}
        case _:
            return {"email": user.id, "password": value}


def _stream(inbound: Inbound, secrets: Mapping[str, str]) -> Plain:
    found: Plain = {"network": "tcp", "security": "none"}
    if inbound.ws is not None:
        found["network"] = "ws"
        headers = {"headers": {"Host": inbound.ws.host}} if inbound.ws.host else {}
        found["wsSettings"] = {"path": inbound.ws.path, **headers}
    if inbound.tls is not None:
        files = {"certificateFile": inbound.tls.certificate_file, "keyFile": inbound.tls.key_file}
        alpn = {"alpn": list(inbound.tls.alpn)} if inbound.tls.alpn else {}
        found["security"] = "tls"
        found["tlsSettings"] = {"serverName": inbound.tls.server_name, "certificates": [files], **alpn}
    if inbound.reality is not None:
        reality = inbound.reality
        host = f"[{reality.handshake.host}]" if ":" in reality.handshake.host else reality.handshake.host
        found["security"] = "reality"
        found["realitySettings"] = {
            "dest": f"{host}:{reality.handshake.port}",
            "serverNames": [reality.server_name],
            "privateKey": values.x25519(secrets[reality.private_key]),
            "shortIds": sorted(reality.short_ids),
        }
    return found

"""The share links of a user: one for each inbound that lets him in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.system.proxy import values
from latticed.system.proxy.intent import FORMS, CredentialForm, Protocol, reference
from latticed.system.proxy.links import FINGERPRINT, NoLink, ShareLink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.system.proxy.intent import Inbound, ProxyIntent, User


def links(intent: ProxyIntent, user_id: str, secrets: Mapping[str, str]) -> tuple[ShareLink, ...]:
    """Sorted by tag; none for who is not enabled, or is not there. `secrets`: the value of each reference.

    NoLink for an inbound that says too little to be dialled.
    """
    found = []
    for inbound in sorted(intent.inbounds, key=lambda one: one.tag):
        user = next((one for one in intent.users_of(inbound) if one.id == user_id), None)
        if user is not None:
            found.append(_link(intent, inbound, user, secrets))
    return tuple(found)


def references(intent: ProxyIntent, user_id: str) -> dict[str, str]:
    """The references that his links hold, each with its form; none for who is not let in."""
    found: dict[str, str] = {}
    for inbound in intent.inbounds:
        user = next((one for one in intent.users_of(inbound) if one.id == user_id), None)
        if user is None:
            continue
        form = FORMS[inbound.protocol]
        found[reference(intent, user, form)] = str(form)
        if inbound.password:
            found[inbound.password] = str(CredentialForm.KEY)
        if inbound.obfs:
            found[inbound.obfs] = str(CredentialForm.PASSWORD)
    return found


def _link(intent: ProxyIntent, inbound: Inbound, user: User, secrets: Mapping[str, str]) -> ShareLink:
    credential = secrets[reference(intent, user, FORMS[inbound.protocol])]
    host = inbound.front.host if inbound.front else intent.host
    if not host:
        raise NoLink("no device could dial this: give the intent a host")
    shadowsocks = inbound.protocol is Protocol.SHADOWSOCKS
    if shadowsocks:
        keys = (secrets[inbound.password], credential)
        credential = ":".join(values.shadowsocks(one, inbound.method) for one in keys)
    tls, reality, ws = inbound.tls, inbound.reality, inbound.ws
    if reality is not None and not reality.public_key:
        raise NoLink(f"the inbound {inbound.tag} has no public_key, which its clients need: put it into the intent")
    security = "reality" if reality else "tls" if tls or inbound.front else ""
    server_name = reality.server_name if reality else tls.server_name if tls else host if inbound.front else ""
    return ShareLink(
        protocol=inbound.protocol,
        name=inbound.tag,
        host=host,
        port=inbound.front.port if inbound.front else inbound.port,
        credential=credential,
        security=security,
        server_name=server_name,
        alpn=tls.alpn if tls else (),
        fingerprint=FINGERPRINT if reality else "",
        public_key=reality.public_key if reality else "",
        short_id=reality.short_ids[0] if reality else "",
        flow=inbound.flow,
        websocket=ws is not None,
        path=ws.path if ws else "",
        ws_host=ws.host if ws else "",
        method=inbound.method if shadowsocks else None,
        cipher="auto" if inbound.protocol is Protocol.VMESS else "",
        obfs=secrets[inbound.obfs] if inbound.obfs else "",
    )

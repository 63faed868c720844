"""What an intent means, and whether that can be meant: all findings at once, without and with facts of the host.

`sing-box check` takes ports and users twice, outbounds that are not there and Trojan without TLS; xray takes port
70000 and unknown fields (docs/internals/system-plugins.md). A core that gets no users lets everybody in (Hysteria2),
or everybody with the server's key (Shadowsocks). So each of these is refused here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.system.findings import MAX_FINDINGS, Finding, twice
from latticed.system.proxy.intent import BLOCK, DIRECT, TRANSPORTS, Core, Flow, Protocol, forms_of, reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.addresses import Address
    from latticed.system.proxy.facts import PortFacts
    from latticed.system.proxy.intent import Inbound, ProxyIntent

API_TAG: Final = "latticed-api"
RESERVED: Final = frozenset({API_TAG, BLOCK})
"""Tags that renderings give to parts of their own."""
_SING_BOX_ONLY: Final = frozenset({Protocol.HYSTERIA2})


def check(intent: ProxyIntent, facts: PortFacts | None = None) -> tuple[Finding, ...]:
    """Every fault (at most 100) in the meaning of an intent that `decode.read` took; with facts, of the host too."""
    found = [*_tags(intent), *_users(intent), *_ports(intent), *_api(intent)]
    for index, inbound in enumerate(intent.inbounds):
        found += _inbound(intent, inbound, f"inbounds[{index}]")
    if facts is not None:
        found += _host(intent, facts)
    return tuple(found[:MAX_FINDINGS])


def _tags(intent: ProxyIntent) -> Iterator[Finding]:
    """Tags twice, and those that nothing has. Inbounds and outbounds are told apart by the cores."""
    for what, tags in (("inbounds", intent.inbounds), ("outbounds", intent.outbounds)):
        names = [one.tag for one in tags]
        yield from twice(names, "duplicate", what, ".tag", "a tag of its own")
        reserved = RESERVED | ({DIRECT} if what == "outbounds" else set())
        for index, name in enumerate(names):
            if name in reserved:
                expected = f"another tag than {', '.join(sorted(reserved))}"
                yield Finding(code="reserved_tag", path=f"{what}[{index}].tag", expected=expected, found=repr(name))
    outbounds = {DIRECT, *(one.tag for one in intent.outbounds)}
    for index, inbound in enumerate(intent.inbounds):
        if inbound.outbound not in outbounds:
            path, expected = f"inbounds[{index}].outbound", f"one of {', '.join(sorted(outbounds))[:200]}"
            yield Finding(code="unknown_outbound", path=path, expected=expected, found=repr(inbound.outbound))
    inbounds = {one.tag for one in intent.inbounds}
    for index, user in enumerate(intent.users):
        for place, tag in enumerate(user.inbounds or ()):
            if tag not in inbounds:
                path = f"users[{index}].inbounds[{place}]"
                yield Finding(code="unknown_inbound", path=path, expected="the tag of an inbound", found=repr(tag))


def _users(intent: ProxyIntent) -> Iterator[Finding]:
    yield from twice([one.id for one in intent.users], "duplicate", "users", ".id", "each id once")
    owners: dict[str, str] = {}
    own = _own(intent)
    for index, user in enumerate(intent.users):
        for form in forms_of(intent, user):
            name = reference(intent, user, form)
            if not name:
                hint = f"set secret_name, or the user's own {form}"
                expected = f"a credential: his inbounds need the form {form}"
                yield Finding(code="no_credential", path=f"users[{index}]", expected=expected, found="none", hint=hint)
                continue
            other = own.get(name) or owners.get(name)
            if other is not None and other != user.id:
                expected = f"a credential of his own, not that of {other}"
                found = f"${{secret:{name}}}"
                yield Finding(code="duplicate_credential", path=f"users[{index}]", expected=expected, found=found)
            owners.setdefault(name, user.id)
        if user.quota_bytes is not None and (intent.core is Core.XRAY or intent.api is None):
            expected = "no quota: xray's API has no login, so nothing counts" if intent.core is Core.XRAY else "an api"
            path = f"users[{index}].quota_bytes"
            yield Finding(code="quota_uncounted", path=path, expected=expected, found=str(user.quota_bytes))
    for index, inbound in enumerate(intent.inbounds):
        if not intent.users_of(inbound):
            expected = "a user who is enabled: without one it would let in others, or nobody"
            hint = f"enable one, or leave the inbound {inbound.tag} out"
            yield Finding(
                code="no_eligible_users", path=f"inbounds[{index}]", expected=expected, found="none", hint=hint
            )


def _own(intent: ProxyIntent) -> dict[str, str]:
    """References of the intent that are nobody's credential, each with whose it is."""
    found = {"" if intent.api is None else intent.api.secret: "the api"}
    for one in intent.inbounds:
        found[one.password] = found[one.obfs] = f"the inbound {one.tag}"
        if one.reality is not None:
            found[one.reality.private_key] = f"the inbound {one.tag}"
    found.pop("", None)
    return found


def _inbound(intent: ProxyIntent, inbound: Inbound, path: str) -> Iterator[Finding]:
    secured = inbound.tls is not None or inbound.reality is not None
    if inbound.tls is not None and inbound.reality is not None:
        yield Finding(code="tls_twice", path=path, expected="tls or reality", found="both")
    if inbound.protocol in {Protocol.TROJAN, Protocol.HYSTERIA2} and inbound.tls is None:
        expected = f"tls: {inbound.protocol} is nothing without"
        yield Finding(code="no_tls", path=f"{path}.tls", expected=expected, found="none")
    if inbound.protocol is Protocol.VLESS and not secured and not inbound.listen.is_loopback:
        expected = "tls or reality: VLESS encrypts nothing; or loopback behind a front"
        yield Finding(code="no_tls", path=f"{path}.tls", expected=expected, found="none")
    if inbound.front is not None and (secured or not inbound.listen.is_loopback):
        expected = "an inbound on loopback without tls: the front ends TLS"
        found = "tls" if secured else str(inbound.listen)
        yield Finding(code="front_open", path=f"{path}.front", expected=expected, found=found)
    if inbound.reality is not None and inbound.ws is not None:
        yield Finding(code="reality_ws", path=f"{path}.ws", expected="no WebSocket beneath REALITY", found="one")
    if inbound.flow is Flow.VISION and (not secured or inbound.ws is not None):
        expected = "tls or reality, and no WebSocket, beneath it"
        yield Finding(code="flow_without_tls", path=f"{path}.flow", expected=expected, found=str(inbound.flow))
    if intent.core is Core.XRAY and inbound.protocol in _SING_BOX_ONLY:
        expected = "a protocol that xray has, or the core sing-box"
        yield Finding(code="not_of_core", path=f"{path}.protocol", expected=expected, found=str(inbound.protocol))
    if inbound.reality is not None and len(set(inbound.reality.short_ids)) < len(inbound.reality.short_ids):
        yield from twice(list(inbound.reality.short_ids), "duplicate", f"{path}.reality.short_ids", "", "each once")


def _ports(intent: ProxyIntent) -> Iterator[Finding]:
    """Two listeners of ours at one place. The kernel lets no second one onto 0.0.0.0 where another has one address."""
    seen: dict[tuple[str, int], list[tuple[Address, str]]] = {}
    places = [
        (transport, one.port, one.listen, f"inbounds[{index}].port")
        for index, one in enumerate(intent.inbounds)
        for transport in TRANSPORTS[one.protocol]
    ]
    if intent.api is not None:
        places.append(("tcp", intent.api.port, intent.api.listen, "api.port"))
    told = set()
    for transport, port, listen, path in places:
        others = seen.setdefault((transport, port), [])
        other = next((name for address, name in others if _meet(listen, address)), None)
        if other is not None and path not in told:
            told.add(path)
            expected = f"a port of its own, not that of {other}"
            yield Finding(code="duplicate_port", path=path, expected=expected, found=f"{port}/{transport}")
        others.append((listen, path))


def _meet(one: Address, other: Address) -> bool:
    return one == other or one.is_unspecified or other.is_unspecified


def _api(intent: ProxyIntent) -> Iterator[Finding]:
    if intent.api is None:
        return
    if intent.core is Core.XRAY:
        expected = "none: that of xray has no login, so any program of this host could use it"
        yield Finding(code="api_without_auth", path="api", expected=expected, found="one")
    if not intent.api.listen.is_loopback:
        expected = "a loopback address"
        yield Finding(code="api_open", path="api.listen", expected=expected, found=str(intent.api.listen))


def _host(intent: ProxyIntent, facts: PortFacts) -> Iterator[Finding]:
    """Ports that something else has."""
    taken = {(one.transport, one.port): one.owner for one in facts.listeners}
    places = [
        (transport, one.port, f"inbounds[{index}].port")
        for index, one in enumerate(intent.inbounds)
        for transport in TRANSPORTS[one.protocol]
    ]
    if intent.api is not None:
        places.append(("tcp", intent.api.port, "api.port"))
    for transport, port, path in places:
        if transport == "tcp" and port in facts.ssh_ports:
            expected = "another port than that of SSH"
            yield Finding(code="ssh_port", path=path, expected=expected, found=str(port))
        elif (transport, port) in taken:
            owner = taken[transport, port] or "something else"
            expected = f"a port that nothing else has bound ({owner} has it)"
            yield Finding(code="port_taken", path=path, expected=expected, found=f"{port}/{transport}")

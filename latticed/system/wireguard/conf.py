"""The file of one device, as wg-quick(8) and the apps take it, and a file of a host read to be taken over."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.system.findings import MAX_FINDINGS, Finding, IntentRefused, shown
from latticed.system.wireguard import decode, reach
from latticed.system.wireguard.intent import Topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.addresses import Network
    from latticed.system.wireguard.intent import WgMember, WgNetwork

MAX_CONF_CHARACTERS: Final = 256 << 10
_SECTION: Final = re.compile(r"\[(Interface|Peer)\]", re.IGNORECASE)
_SETTING: Final = re.compile(r"([A-Za-z]+)\s*=\s*(.*)")
_NOT_IN_ID: Final = re.compile(r"[^a-z0-9_-]+")
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9._:/@-]+")
_HOOKS: Final = frozenset({"preup", "postup", "predown", "postdown", "saveconfig", "table", "fwmark"})


def device(tunnel: WgNetwork, member: WgMember, *, private_key: str, server_key: str) -> str:
    """The file of a member's device; ValueError where the network says no endpoint to dial.

    `private_key` empty: a line to be filled in by whoever has it. A preshared key stands in it as its reference, which
    the host replaces in the answer.
    """
    if tunnel.endpoint is None:
        raise ValueError(f"the network {tunnel.name} has no endpoint, so no device could dial it")
    return "".join(f"{line}\n" for line in _device(tunnel, member, private_key, server_key))


def _device(tunnel: WgNetwork, member: WgMember, private_key: str, server_key: str) -> Iterator[str]:
    yield "[Interface]"
    yield f"PrivateKey = {private_key}" if private_key else f"# PrivateKey = (of the public key {member.public_key})"
    yield f"Address = {', '.join(str(ipaddress.ip_network(one)) for one in member.addresses)}"
    if servers := reach.dns(tunnel, member):
        yield f"DNS = {', '.join(map(str, servers))}"
    mtu = tunnel.mtu if member.mtu is None else member.mtu
    if mtu is not None:
        yield f"MTU = {mtu}"
    keepalive_s = tunnel.keepalive_s if member.keepalive_s is None else member.keepalive_s
    yield ""
    yield "[Peer]"
    yield f"PublicKey = {server_key}"
    if member.preshared_key:
        yield f"PresharedKey = ${{secret:{member.preshared_key}}}"
    yield f"AllowedIPs = {', '.join(map(str, reach.routes(tunnel, member)))}"
    yield f"Endpoint = {tunnel.endpoint}"
    if keepalive_s:
        yield f"PersistentKeepalive = {keepalive_s}"
    if tunnel.topology is Topology.HUB:
        return
    # Within the network's own range, which leads to this host: the longer prefix wins (cryptokey routing).
    for other in sorted(tunnel.members, key=lambda one: one.id):
        if other.id == member.id or not other.enabled:
            continue
        yield ""
        yield "[Peer]"
        yield f"# {other.id}"
        yield f"PublicKey = {other.public_key}"
        yield f"AllowedIPs = {', '.join(map(str, _own(other)))}"
        if other.endpoint is not None:
            yield f"Endpoint = {other.endpoint}"
            if keepalive_s:
                yield f"PersistentKeepalive = {keepalive_s}"


def _own(member: WgMember) -> tuple[Network, ...]:
    return (*(ipaddress.ip_network(one) for one in member.addresses), *member.subnets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What a file becomes: a network as plain JSON values, and the secrets that the operator has to set.

    `secrets`: by name, where in the file its value stands (`PrivateKey`, `PresharedKey of anna`); never the value.
    """

    network: dict[str, Any]
    secrets: dict[str, str]


def adopt(text: str, *, name: str, secret: str) -> Adopted:
    """The network of a host's wg-quick file, under the interface's `name`. IntentRefused with what it cannot be.

    `secret`: the name of the private key's secret; preshared keys get `secret_PSK_n`. A comment beside a peer is its
    name. What runs commands is refused: latticed runs none.
    """
    reader = _Conf(text)
    network: dict[str, Any] = {"name": name, "private_key": f"${{secret:{secret}}}", "members": []}
    secrets = {secret: "PrivateKey"}
    for section, settings, comment in reader.sections():
        if section == "interface":
            _adopt_interface(network, settings, reader)
        else:
            member = _adopted(settings, comment, {one["id"] for one in network["members"]})
            if "PresharedKey".lower() in settings:
                label = f"{secret}_PSK_{len(secrets)}"
                secrets[label] = f"PresharedKey of {member['id']}"
                member["preshared_key"] = f"${{secret:{label}}}"
            network["members"].append(member)
    if reader.findings:
        raise IntentRefused(reader.findings)
    decode.read({"networks": [network]})
    return Adopted(network=network, secrets=secrets)


class _Conf:
    """The sections of a file, each with its settings in lower case and its comment; faults are findings."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.findings: list[Finding] = []

    def refuse(self, code: str, line: int, expected: str, found: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(code=code, path=f"line {line}", expected=expected, found=found))

    def sections(self) -> Iterator[tuple[str, dict[str, str], str]]:
        if len(self._text) > MAX_CONF_CHARACTERS:
            expected = f"at most {MAX_CONF_CHARACTERS} characters"
            self.findings.append(Finding(code="too_large", path="conf", expected=expected, found=str(len(self._text))))
            return
        section, settings, comment = "", dict[str, str](), ""
        for number, raw in enumerate(self._text.splitlines(), 1):
            line, _, words = raw.partition("#")
            line, words = line.strip(), words.strip()
            if found := _SECTION.fullmatch(line):
                if section:
                    yield section, settings, comment
                section, settings, comment = found[1].lower(), {}, words
            elif line:
                self._setting(line, number, section, settings)
            elif words and section and not settings:
                comment = comment or words
        if section:
            yield section, settings, comment

    def _setting(self, line: str, number: int, section: str, settings: dict[str, str]) -> None:
        found = _SETTING.fullmatch(line)
        key = found[1].lower() if found else ""
        if found is None or not section:
            # Not the line itself: it may be a key that somebody wrote in a wrong form.
            self.refuse("bad_line", number, "a section or KEY = VALUE", "something else")
        elif key in _HOOKS:
            self.refuse("hook", number, "no commands and options of wg-quick", shown(found[1]))
        elif key in settings and key in {"address", "allowedips", "dns"}:
            settings[key] += f", {found[2]}"
        elif key in settings:
            self.refuse("duplicate", number, "each setting once", shown(found[1]))
        else:
            settings[key] = found[2].strip()


def _adopt_interface(network: dict[str, Any], settings: dict[str, str], reader: _Conf) -> None:
    known = {"privatekey", "address", "listenport", "mtu", "dns"}
    for key in settings.keys() - known:
        reader.refuse("unknown_key", 1, "a setting of wg-quick's [Interface]", shown(key))
    network["addresses"] = _split(settings.get("address", ""))
    network["listen_port"] = _whole(settings.get("listenport", "51820"))
    if "mtu" in settings:
        network["mtu"] = _whole(settings["mtu"])


def _adopted(settings: dict[str, str], comment: str, taken: set[str]) -> dict[str, Any]:
    """One peer. Single addresses are its own, all else is behind it."""
    allowed = _split(settings.get("allowedips", ""))
    own = [one.partition("/")[0] for one in allowed if re.search(r"^[^/:]+(/32)?$|^[^/]*:[^/]*(/128)?$", one)]
    behind = [one for one in allowed if one.partition("/")[0] not in own]
    base = _NOT_IN_ID.sub("-", comment.lower()).strip("-_")[:28] or "peer"
    base = base if base[0].isalpha() else f"p-{base}"
    number, found = 1, base
    while found in taken:
        number += 1
        found = f"{base}-{number}"
    member: dict[str, Any] = {"id": found, "public_key": settings.get("publickey", ""), "addresses": own}
    if name := _NOT_IN_NAME.sub(" ", comment).strip()[:128]:
        member["name"] = name
    if behind:
        member["subnets"] = behind
    if "endpoint" in settings:
        member["endpoint"] = settings["endpoint"]
    if "persistentkeepalive" in settings:
        keepalive = settings["persistentkeepalive"].lower()
        member["keepalive_s"] = 0 if keepalive == "off" else _whole(keepalive)
    return member


def _split(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _whole(text: str) -> Any:
    """The number; the text where it is none, which the decoder then refuses with its place."""
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else text

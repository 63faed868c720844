"""An intent from plain JSON values, strictly (`system.reading`)."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from latticed.system.findings import IntentRefused
from latticed.system.nft_guard.intent import Ports, Proto
from latticed.system.reading import MISSING, Reader, Told, is_host
from latticed.system.wireguard import intent as model

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.model.addresses import Address, Network
    from latticed.system.reading import Read

KEY_BYTES: Final = 32
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{43}=")
_KEY_EXPECTED: Final = "a key of 32 bytes in base64, as wg genkey and wg pubkey print it"
_ENDPOINT: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)):([0-9]{1,5})"
)
_ENDPOINT_EXPECTED: Final = "host and port, as vpn.example.org:51820 or [2001:db8::1]:51820"
_INTERFACE_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}")
_HOOKS: Final = frozenset({"PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig", "Table", "FwMark"})
"""Of wg-quick(8): commands that root would run, and keys that change what is not ours."""
_DEVICE_KEYS: Final = "endpoint dns routes mtu keepalive_s may_reach"
_NETWORK_KEYS: Final = f"name topology listen_port private_key public_key addresses members held {_DEVICE_KEYS}"
_MEMBER_KEYS: Final = f"id name public_key preshared_key addresses subnets enabled expires_at {_DEVICE_KEYS}"


def read(plain: Any) -> model.Intent:
    """The intent in plain JSON values, or IntentRefused with every fault of its form (at most 100).

    What the form cannot show (members that have one address, a key twice) is for `check`.
    """
    reader = _WgReader()
    intent = reader.intent(plain)
    if reader.findings:
        raise IntentRefused(reader.findings)
    return intent


def is_key(text: str) -> bool:
    """Whether `text` is the one way to write 32 bytes in base64, and not the bytes that stand for no key."""
    if not _KEY.fullmatch(text):
        return False
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    # A sloppy decoder takes 4 texts for the same key, and a key twice would not be seen.
    return len(value) == KEY_BYTES and base64.b64encode(value).decode("ascii") == text and any(value)


class _WgReader(Reader):
    def intent(self, plain: Any) -> model.Intent:
        fields = self.fields(plain, "", "networks")
        networks = self.each(fields, "networks", "networks", model.MAX_NETWORKS, self.tunnel)
        for what, most, count in (
            ("members", model.MAX_MEMBERS, sum(len(one.members) for one in networks)),
            ("held", model.MAX_HELD, sum(len(one.held) for one in networks)),
        ):
            if count > most:
                self.refuse("too_many", "networks", f"at most {most} {what} in all", Told(str(count)))
        return model.Intent(networks=networks)

    def tunnel(self, value: Any, path: str) -> model.WgNetwork:
        fields = self._refused_hooks(value, path, _NETWORK_KEYS, "name listen_port private_key addresses")
        default = model.WgNetwork.__dataclass_fields__["may_reach"].default
        addresses = self.each(fields, "addresses", f"{path}.addresses", model.MAX_ADDRESSES, self.interface_address)
        if "addresses" in fields and not addresses:
            self.refuse("missing_key", f"{path}.addresses", "an address of this host in the network", Told("none"))
        keepalive_s = self.optional(fields, "keepalive_s", path, 0, model.MAX_KEEPALIVE_S)
        return model.WgNetwork(
            name=self.interface(fields["name"], f"{path}.name") if "name" in fields else "",
            topology=self.choice(fields, "topology", path, model.Topology.HUB),
            listen_port=self.integer(fields.get("listen_port", 1), f"{path}.listen_port", 1, 65_535),
            private_key=self._reference(fields, "private_key", path),
            public_key=self._key(fields, "public_key", path),
            addresses=addresses,
            endpoint=self.endpoint(fields["endpoint"], f"{path}.endpoint") if "endpoint" in fields else None,
            dns=self.each(fields, "dns", f"{path}.dns", model.MAX_ADDRESSES, self.address),
            routes=self.each(fields, "routes", f"{path}.routes", model.MAX_REACH, self.network),
            mtu=self.optional(fields, "mtu", path, *model.MTU),
            keepalive_s=model.KEEPALIVE_S if keepalive_s is None else keepalive_s,
            may_reach=self._listed(fields, "may_reach", path, model.MAX_REACH, self.reach, default),
            members=self.each(fields, "members", f"{path}.members", model.MAX_MEMBERS, self.member),
            held=self.each(fields, "held", f"{path}.held", model.MAX_HELD, self.held_addresses),
        )

    def member(self, value: Any, path: str) -> model.WgMember:
        fields = self._refused_hooks(value, path, _MEMBER_KEYS, "id public_key addresses")
        expires_at = self.optional(fields, "expires_at", path, 0, model.MAX_EXPIRY_S)
        addresses = self.each(fields, "addresses", f"{path}.addresses", model.MAX_ADDRESSES, self.own_address)
        if "addresses" in fields and not addresses:
            self.refuse("missing_key", f"{path}.addresses", "an address of the member", Told("none"))
        return model.WgMember(
            id=self.name(fields.get("id", MISSING), f"{path}.id"),
            name=self.comment(fields, path, "name"),
            public_key=self._key(fields, "public_key", path),
            preshared_key=self._reference(fields, "preshared_key", path),
            addresses=addresses,
            subnets=self.each(fields, "subnets", f"{path}.subnets", model.MAX_REACH, self.network),
            endpoint=self.endpoint(fields["endpoint"], f"{path}.endpoint") if "endpoint" in fields else None,
            enabled=self.boolean(fields, "enabled", path, default=True),
            expires_at=expires_at,
            may_reach=self._listed(fields, "may_reach", path, model.MAX_REACH, self.reach, None),
            dns=self._listed(fields, "dns", path, model.MAX_ADDRESSES, self.address, None),
            routes=self._listed(fields, "routes", path, model.MAX_REACH, self.network, None),
            mtu=self.optional(fields, "mtu", path, *model.MTU),
            keepalive_s=self.optional(fields, "keepalive_s", path, 0, model.MAX_KEEPALIVE_S),
        )

    def held_addresses(self, value: Any, path: str) -> model.Held:
        fields = self.fields(value, path, "id addresses", "id addresses")
        return model.Held(
            id=self.name(fields.get("id", MISSING), f"{path}.id"),
            addresses=self.each(fields, "addresses", f"{path}.addresses", model.MAX_ADDRESSES, self.own_address),
        )

    def reach(self, value: Any, path: str) -> model.Reach:
        """`server`, `members`, a network, or an object of one of them with protocol and ports."""
        if not isinstance(value, dict):
            return model.Reach(to=self._place(value, path))
        fields = self.fields(value, path, "to proto ports", "to")
        proto = self.choice(fields, "proto", path, Proto.ANY)
        ports = self.each(fields, "ports", f"{path}.ports", model.MAX_PORT_ENTRIES, self.port_range)
        if ports and proto not in {Proto.TCP, Proto.UDP}:
            self.refuse("ports_without_protocol", f"{path}.ports", "proto tcp or udp", Told(f"ports with {proto}"))
        return model.Reach(to=self._place(fields.get("to", "server"), f"{path}.to"), proto=proto, ports=ports)

    # Values

    def port_range(self, value: Any, path: str) -> Ports:
        return Ports(*self.ports(value, path))

    def address(self, value: Any, path: str) -> Address:
        """One address, with or without /32 or /128."""
        network = self.network(value, path)
        if network.prefixlen != network.max_prefixlen:
            self.refuse("bad_address", path, "one address", str(network))
        return network.network_address

    def own_address(self, value: Any, path: str) -> Address:
        """As `address`. WireGuard would give a member with a wider one the traffic of others, and their addresses."""
        network = self.network(value, path)
        if network.prefixlen != network.max_prefixlen:
            hint = "networks behind a member are its subnets"
            self.refuse("member_too_wide", path, f"one address, /{network.max_prefixlen}", str(network), hint)
        return network.network_address

    def interface_address(self, value: Any, path: str) -> model.Interface:
        """This host's address with the length of the network, as 10.80.0.1/24."""
        nothing = ipaddress.ip_interface("192.0.2.1/24")
        expected = "this host's address with the length of the network, as 10.80.0.1/24"
        if not isinstance(value, str) or not _INTERFACE_ADDRESS.fullmatch(value):
            self.refuse("bad_address", path, expected, value)
            return nothing
        try:
            found = ipaddress.ip_interface(value)
        except ValueError:
            self.refuse("bad_address", path, expected, value)
            return nothing
        # Here for what is no network either: an IPv4 address within IPv6.
        before = len(self.findings)
        self.network(str(found.network), path)
        return found if len(self.findings) == before else nothing

    def endpoint(self, value: Any, path: str) -> model.Endpoint:
        nothing = model.Endpoint(host="192.0.2.1", port=1)
        found = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
        if found is None or not 1 <= int(found[3]) <= 65_535 or not _is_host(found[1], found[2]):
            self.refuse("bad_endpoint", path, _ENDPOINT_EXPECTED, value)
            return nothing
        host = str(ipaddress.IPv6Address(found[1])) if found[1] else found[2].lower()
        return model.Endpoint(host=host, port=int(found[3]))

    def _place(self, value: Any, path: str) -> model.Place | Network:
        if isinstance(value, str) and value in {str(one) for one in model.Place}:
            return model.Place(value)
        return self.network(value, path)

    def _key(self, fields: dict[str, Any], name: str, path: str) -> str:
        if name not in fields:
            return ""
        value = fields[name]
        if not isinstance(value, str) or not is_key(value):
            self.refuse("bad_key", f"{path}.{name}", _KEY_EXPECTED, value)
            return ""
        return value

    def _reference(self, fields: dict[str, Any], name: str, path: str) -> str:
        return self.reference(fields, name, path, "latticed.wireguard")

    def _listed(
        self,
        fields: dict[str, Any],
        name: str,
        path: str,
        most: int,
        read_one: Callable[[Any, str], Read],
        default: Any,
    ) -> Any:
        """As `each`; `default` where there is no such list, which an empty one is not."""
        return self.each(fields, name, f"{path}.{name}", most, read_one) if name in fields else default

    def _refused_hooks(self, value: Any, path: str, known: str, required: str) -> dict[str, Any]:
        """As `fields`; keys of wg-quick that run commands have a finding of their own."""
        hooks = sorted(_HOOKS.intersection(value)) if isinstance(value, dict) else []
        for hook in hooks:
            hint = "leave it out: latticed makes interface and rules itself, and runs no commands"
            self.refuse("hook", path, "no commands and options of wg-quick", hook, hint)
        rest = {key: inner for key, inner in value.items() if key not in hooks} if hooks else value
        return self.fields(rest, path, known, required)


def _is_host(six: str | None, other: str) -> bool:
    """Whether it is an address or a host name in ASCII."""
    if six is None:
        return is_host(other)
    try:
        return ipaddress.IPv6Address(six).ipv4_mapped is None
    except ValueError:
        return False

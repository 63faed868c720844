"""Parameters of ddns.put, validated once: names in normal form, numbers within bounds.

    name    "Home.Example.ORG."  ->  "home.example.org"
    name    "*.example.org"      ->  "*.example.org"
    server  "ns.example.org"     ->  "ns.example.org:53"
    server  "[2001:db8::1]:54"   ->  "[2001:db8::1]:54"

A `DdnsPut` is what a plugin asks for, a `DdnsSpec` what is stored and published.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from latticed.host.call import HostError, Params, Whole
from latticed.host.secret.references import REFERENCE
from latticed.model import addresses, hosts
from latticed.model.hostcall import Denial

Type = Literal["A", "AAAA"]
Provider = Literal["cloudflare", "rfc2136"]
Algorithm = Literal["hmac-sha256", "hmac-sha384", "hmac-sha512"]

AUTOMATIC: Final = 1
"""The provider's own choice of a TTL; where it has none, AUTOMATIC_S."""
AUTOMATIC_S: Final = 300
TTL_S: Final = (60, 86_400)
"""Bounds of a TTL in seconds, both included; 60 and a day are those that Cloudflare takes."""
DNS_PORT: Final = 53
_HIGHEST_PORT: Final = 65_535
# Classes of `model.addresses` that `ddns.private` allows; loopback, link-local and the like never are.
_PRIVATE: Final = frozenset({"private", "shared (carrier NAT)"})
_INTERFACE: Final = re.compile(r"[!-.0-~]{1,15}")  # netdevice(7): 15 bytes, no '/' and no white space
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


class DdnsPut(Params, frozen=True):
    """Parameters of ddns.put."""

    name: str
    """A full domain name, also `*.example.org`; only one plugin can have a name and type."""
    type: Type
    """Type of the record."""
    provider: Provider
    """Who has the zone."""
    secret: str
    """`${secret:NAME}`: an API token (Zone Read, DNS Edit), or a TSIG key in base64."""
    ttl: Whole = AUTOMATIC
    """60 to 86,400 seconds; 1 is automatic (rfc2136: 300)."""
    zone: str = ""
    """Empty: found."""
    address: str = ""
    """The address to publish; this or `interface`."""
    interface: str = ""
    """The interface whose public address is published."""
    server: str = ""
    """rfc2136: `host` or `host:port` (TCP)."""
    key: str = ""
    """rfc2136: name of the TSIG key."""
    algorithm: Algorithm = "hmac-sha256"
    """rfc2136: of the TSIG key."""
    retry: bool = False
    """Try again what was denied."""


class DdnsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """As `DdnsPut`, checked. `secret` is a reference, never a value; `server` is `host:port`, empty for cloudflare.

    Its JSON is stored in the ledger (`encode`): a field that is added needs a default, or stored rows no longer decode.
    """

    name: str
    type: Type
    provider: Provider
    secret: str
    ttl: int
    zone: str
    address: str
    interface: str
    server: str
    key: str
    algorithm: Algorithm

    def asks_elsewhere(self, other: DdnsSpec) -> bool:
        """Whether provider, zone or server differ: then the status of one says nothing about the other."""
        return (self.provider, self.zone, self.server) != (other.provider, other.zone, other.server)

    def asks_otherwise(self, other: DdnsSpec) -> bool:
        """Whether anything but the address differs: then what was denied before may be accepted now."""
        # Both are left out: to follow an interface instead of a fixed address changes the address only.
        return msgspec.structs.replace(self, address="", interface="") != msgspec.structs.replace(
            other, address="", interface=""
        )


def checked(asked: DdnsPut, *, private: bool) -> DdnsSpec:
    """The spec; HostError bad_params names the field and what was expected. `private`: addresses of private networks
    are allowed, too. Whether the secret is bound, and the server may be reached, is not checked here.
    """
    name = record_name(asked.name)
    zone = _name("zone", asked.zone) if asked.zone else ""
    if zone and not is_below(name, zone):
        raise bad("name", f"one within the zone {zone}")
    if asked.ttl != AUTOMATIC and not TTL_S[0] <= asked.ttl <= TTL_S[1]:
        raise bad("ttl", f"{AUTOMATIC} (automatic) or {TTL_S[0]} to {TTL_S[1]} seconds")
    # Only a reference: the spec is stored in the ledger, where a value would be in clear.
    if REFERENCE.fullmatch(asked.secret) is None:
        raise bad("secret", "a reference, ${secret:NAME}, and nothing else")
    if bool(asked.address) == bool(asked.interface):
        raise bad("address", "exactly one of address and interface")
    if asked.interface and not _INTERFACE.fullmatch(asked.interface):
        raise bad("interface", "the name of a network interface")
    server, key = _key_and_server(asked)
    return DdnsSpec(
        name=name,
        type=asked.type,
        provider=asked.provider,
        secret=asked.secret,
        ttl=asked.ttl,
        zone=zone,
        address=_address(asked, private=private) if asked.address else "",
        interface=asked.interface,
        server=server,
        key=key,
        algorithm=asked.algorithm,
    )


def record_name(given: str) -> str:
    """The normal form of a record's name: lower case, ASCII, no trailing dot; a wildcard keeps its `*.`."""
    star = "*." if given.startswith("*.") else ""
    return star + _name("name", given[len(star) :])


def may_publish(address: addresses.Address, *, private: bool) -> bool:
    """Whether this address may be published: public ones, with `private` also those of private networks."""
    kind = addresses.blocked_class(address)
    return kind is None or (private and kind in _PRIVATE)


def version(kind: Type) -> int:
    """The IP version of the addresses of this type."""
    return 4 if kind == "A" else 6


def is_below(name: str, zone: str) -> bool:
    """Whether a name is a zone's own or below it; both in normal form."""
    return name == zone or name.endswith(f".{zone}")


def host_and_port(server: str) -> tuple[str, int]:
    """The parts of a checked `server`, the host without brackets: "[2001:db8::1]:54" gives ("2001:db8::1", 54)."""
    host, _, port = server.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def addresses_in(spec: DdnsSpec) -> tuple[addresses.Address, ...]:
    """The address that was given, as a tuple of one; empty when the record follows an interface."""
    found = hosts.address_of(spec.address)
    return () if found is None else (found,)


def encode(spec: DdnsSpec) -> str:
    """A spec as it is stored in a row of the ledger: JSON."""
    return msgspec.json.encode(spec).decode("utf-8")


def decode(stored: str) -> DdnsSpec:
    """What `encode` wrote; msgspec.ValidationError or DecodeError for anything else."""
    return msgspec.json.decode(stored, type=DdnsSpec)


def bad(name: str, expected: str) -> HostError:
    """HostError bad_params for a field: `name: expected …`."""
    return HostError(Denial.BAD_PARAMS, f"{name}: expected {expected}")


def _name(field: str, given: str) -> str:
    """A domain name of at least two labels in normal form; HostError bad_params naming the field."""
    try:
        name = hosts.normal(given)
    except hosts.NotAHost as error:
        raise HostError(Denial.BAD_PARAMS, f"{field}: {error}") from error
    # `hosts.normal` also takes addresses and names of one label, and neither can be a record of a zone.
    if hosts.address_of(name) is not None or "." not in name:
        raise bad(field, "a full domain name")
    return name


def _address(asked: DdnsPut, *, private: bool) -> str:
    """The address in its normal spelling, if it fits the type and may be published; HostError bad_params otherwise."""
    address = hosts.address_of(asked.address)
    if address is None or address.version != version(asked.type):
        raise bad("address", f"an IPv{version(asked.type)} address, for the type is {asked.type}")
    if not may_publish(address, private=private):
        found = addresses.blocked_class(address)
        raise bad("address", f"a public one (the operator decides, ddns.private), found one that is {found}")
    return str(address)


def _key_and_server(asked: DdnsPut) -> tuple[str, str]:
    """(server, key) for rfc2136, both in normal form, empty for cloudflare; HostError bad_params."""
    if asked.provider == "cloudflare":
        for field in ("server", "key"):
            if getattr(asked, field):
                raise bad(field, "nothing, for it says nothing about cloudflare")
        return "", ""
    try:
        key = hosts.normal(asked.key)
    except hosts.NotAHost as error:
        raise HostError(Denial.BAD_PARAMS, f"key: expected the name of a TSIG key ({error})") from error
    return _server(asked.server), key


def _server(given: str) -> str:
    """`host:port` in normal form; without a port it is DNS_PORT. HostError bad_params."""
    host, colon, port = given.rpartition(":")
    # No port: a bare host, or an IPv6 address in brackets, whose last colon is its own.
    if not colon or (given.startswith("[") and given.endswith("]")):
        host, port = given, str(DNS_PORT)
    if not _PORT.fullmatch(port) or int(port) > _HIGHEST_PORT:
        raise bad("server", "host or host:port, an IPv6 address in brackets")
    try:
        return f"{hosts.bracketed(hosts.normal(host))}:{port}"
    except hosts.NotAHost as error:
        raise HostError(Denial.BAD_PARAMS, f"server: {error}") from error

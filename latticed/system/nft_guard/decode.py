"""An intent from plain JSON values, strictly: unknown keys, wrong types, names and numbers out of bounds are findings.

All findings are collected, so that an operator mends a document once. The decoder goes only as deep as the model, so
that no nesting reaches it: a list where a name belongs is a finding, whatever the list holds.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.system.nft_guard import intent as model
from latticed.system.nft_guard.findings import MAX_FINDINGS, Finding, IntentRefused, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from enum import StrEnum

    from latticed.model.addresses import Network

    Choice = TypeVar("Choice", bound=StrEnum)
    Read = TypeVar("Read")

# fullmatch everywhere: `$` would let a newline pass at the end. No \d or \w, which match beyond ASCII.
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_NAME_EXPECTED: Final = "a name: a-z, then at most 31 of a-z 0-9 _ -"
# Linux allows any 15 bytes but `/`, `:` and white space (dev_valid_name). Narrower here: nft takes `eth*` for a pattern
# even in quotes, and ends a quoted name at a quote.
INTERFACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_INTERFACE_EXPECTED: Final = "an interface name: at most 15 of A-Z a-z 0-9 _ . -, no pattern"
_COMMENT: Final = re.compile(r"[A-Za-z0-9 ._:/@-]{0,128}")
_COMMENT_EXPECTED: Final = "at most 128 of A-Z a-z 0-9 space . _ : / @ -"
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?")
_ADDRESS_EXPECTED: Final = "an address or network, as 203.0.113.0/24 or 2001:db8::/32"
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PORTS_EXPECTED: Final = 'a port 1 to 65535 or a range as "8000-8010"'
_MAPPED: Final = ipaddress.ip_network("::ffff:0:0/96")

_MISSING: Final = object()


def read(plain: Any) -> model.Intent:
    """The intent in plain JSON values, or IntentRefused with every fault of its form (at most 100).

    What the form cannot show (names that nothing has, a firewall that locks out) is for `check`.
    """
    reader = _Reader()
    intent = reader.intent(plain)
    if reader.findings:
        raise IntentRefused(reader.findings)
    return intent


class _Reader:
    """Collects findings; what could not be read is replaced by something harmless, so that reading goes on."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def refuse(self, code: str, path: str, expected: str, value: Any, hint: str = "") -> None:
        found = value if isinstance(value, _Told) else shown(value)
        self.findings.append(Finding(code=code, path=path, expected=expected, found=found, hint=hint))
        if len(self.findings) == MAX_FINDINGS:
            raise IntentRefused(self.findings)

    # The document

    def intent(self, plain: Any) -> model.Intent:
        fields = self.fields(plain, "", "zones groups bindings bans never")
        zones = self.each(fields, "zones", "zones", model.MAX_ZONES, self.zone)
        groups = self.each(fields, "groups", "groups", model.MAX_GROUPS, self.group)
        bindings = self.bindings(fields.get("bindings", _MISSING), "bindings")
        bans = self.each(fields, "bans", "bans", model.MAX_BANS, self.ban)
        never = self.each(fields, "never", "never", model.MAX_NETWORKS, self.network)
        self._unique([zone.name for zone in zones], "zones", ".name")
        self._unique([group.name for group in groups], "groups", ".name")
        if not self.findings:  # what stands for unreadable addresses is the same for all
            self._unique([str(ban.network) for ban in bans], "bans", ".address")
        count = sum(len(group.rules) for group in groups) + len(bindings.overrides)
        if count > model.MAX_BOUND_RULES:
            expected = f"at most {model.MAX_BOUND_RULES} rules in all"
            self.refuse("too_many", "groups", expected, _Told(str(count)))
        return model.Intent(zones=zones, groups=groups, bindings=bindings, bans=bans, never=never)

    def zone(self, value: Any, path: str) -> model.Zone:
        fields = self.fields(value, path, "name interfaces cidrs forward", "name")
        return model.Zone(
            name=self.name(fields.get("name", _MISSING), f"{path}.name"),
            interfaces=self.each(fields, "interfaces", f"{path}.interfaces", model.MAX_INTERFACES, self.interface),
            cidrs=self.each(fields, "cidrs", f"{path}.cidrs", model.MAX_NETWORKS, self.network),
            forward=self.choice(fields, "forward", path, model.Forward.LEAVE),
        )

    def group(self, value: Any, path: str) -> model.Group:
        fields = self.fields(value, path, "name rules", "name")
        rules = self.each(fields, "rules", f"{path}.rules", model.MAX_RULES, self.rule)
        ports = sum(ports.high - ports.low + 1 for rule in rules for ports in rule.ports)
        if ports > model.MAX_PORTS:
            expected = f"at most {model.MAX_PORTS} ports in a group"
            self.refuse("too_many_ports", f"{path}.rules", expected, _Told(str(ports)), "divide the group")
        return model.Group(name=self.name(fields.get("name", _MISSING), f"{path}.name"), rules=rules)

    def bindings(self, value: Any, path: str) -> model.Bindings:
        if value is _MISSING:
            return model.Bindings()
        fields = self.fields(value, path, "groups overrides trusted_zones managed")
        groups = self.each(fields, "groups", f"{path}.groups", model.MAX_GROUPS, self.name)
        trusted = self.each(fields, "trusted_zones", f"{path}.trusted_zones", model.MAX_ZONES, self.name)
        self._unique(groups, f"{path}.groups")
        self._unique(trusted, f"{path}.trusted_zones")
        overrides = self.each(fields, "overrides", f"{path}.overrides", model.MAX_RULES, self.rule)
        ports = sum(ports.high - ports.low + 1 for rule in overrides for ports in rule.ports)
        if ports > model.MAX_PORTS:
            expected = f"at most {model.MAX_PORTS} ports in all overrides"
            self.refuse("too_many_ports", f"{path}.overrides", expected, _Told(str(ports)), "put rules into groups")
        managed = self.boolean(fields, "managed", path, default=True)
        return model.Bindings(groups=groups, overrides=overrides, trusted_zones=trusted, managed=managed)

    def rule(self, value: Any, path: str) -> model.Rule:
        fields = self.fields(value, path, "dir action proto ports remote rate log comment")
        remotes = self.each(fields, "remote", f"{path}.remote", model.MAX_NETWORKS, self.remote)
        return model.Rule(
            direction=self.choice(fields, "dir", path, model.Direction.IN),
            action=self.choice(fields, "action", path, model.Action.ACCEPT),
            proto=self.choice(fields, "proto", path, model.Proto.ANY),
            ports=self.each(fields, "ports", f"{path}.ports", model.MAX_PORT_ENTRIES, self.ports),
            remotes=tuple(one for one in remotes if not isinstance(one, str)),
            remote_zones=tuple(one for one in remotes if isinstance(one, str)),
            rate=self.rate(fields["rate"], f"{path}.rate") if "rate" in fields else None,
            log=self.boolean(fields, "log", path, default=False),
            comment=self.comment(fields, path),
        )

    def rate(self, value: Any, path: str) -> model.Rate:
        fields = self.fields(value, path, "packets per burst", "packets")
        packets = self.integer(fields.get("packets", 1), f"{path}.packets", 1, model.MAX_RATE)
        per = self.choice(fields, "per", path, model.Per.SECOND)
        burst = self.integer(fields.get("burst", 5), f"{path}.burst", 1, model.MAX_RATE)
        return model.Rate(packets=packets, per=per, burst=burst)

    def ban(self, value: Any, path: str) -> model.Ban:
        fields = self.fields(value, path, "address expires_at comment", "address expires_at")
        network = self.network(fields.get("address", "0.0.0.0"), f"{path}.address")  # noqa: S104 - stands for none
        expires_at = self.integer(fields.get("expires_at", 0), f"{path}.expires_at", 0, model.MAX_EXPIRY_S)
        # An address of IPv6 stands for its /64; as a set of plain /64s and addresses, the bans of a table need no
        # intervals, which nft 1.0.6 refuses to overlap.
        if network.version == 6 and network.prefixlen == 128:
            network = network.supernet(new_prefix=64)
        if network.prefixlen != (32 if network.version == 4 else 64):
            hint = "ban wider networks with an override that drops"
            self.refuse("bad_ban", f"{path}.address", "an IPv4 address, or an IPv6 address or /64", str(network), hint)
        return model.Ban(network=network, expires_at=expires_at, comment=self.comment(fields, path))

    # Values

    def fields(self, value: Any, path: str, known: str, required: str = "") -> dict[str, Any]:
        """The object's fields, when it is one; unknown and missing ones are findings."""
        if not isinstance(value, dict):
            self.refuse("wrong_type", path or "intent", "an object", value)
            return {}
        names = known.split()
        for name in value:
            if name not in names:
                place = f"{path}.{name}" if isinstance(name, str) and _NAME.fullmatch(name) else path or "intent"
                self.refuse("unknown_key", place, f"one of {', '.join(names)}", name)
        for name in required.split():
            if name not in value:
                self.refuse("missing_key", f"{path}.{name}", "a value", _Told("none"))
        return value

    def each(
        self, fields: dict[str, Any], name: str, path: str, most: int, read_one: Callable[[Any, str], Read]
    ) -> tuple[Read, ...]:
        """Every item of a list, which may be missing."""
        value = fields.get(name, _MISSING)
        if value is _MISSING:
            return ()
        if not isinstance(value, list):
            self.refuse("wrong_type", path, "a list", value)
            return ()
        if len(value) > most:
            self.refuse("too_many", path, f"at most {most} items", _Told(str(len(value))))
            return ()
        return tuple(read_one(item, f"{path}[{index}]") for index, item in enumerate(value))

    def name(self, value: Any, path: str) -> str:
        if value is _MISSING:
            return ""
        return self._text(value, path, "bad_name", _NAME, _NAME_EXPECTED)

    def interface(self, value: Any, path: str) -> str:
        return self._text(value, path, "bad_interface", INTERFACE, _INTERFACE_EXPECTED)

    def comment(self, fields: dict[str, Any], path: str) -> str:
        value = fields.get("comment", "")
        return self._text(value, f"{path}.comment", "bad_comment", _COMMENT, _COMMENT_EXPECTED)

    def remote(self, value: Any, path: str) -> Network | str:
        """A network, or the name of a zone: names begin with a letter and have no `:`, so no text is both."""
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        return self.network(value, path)

    def network(self, value: Any, path: str) -> Network:
        """An address or network; no host bits, no scope (`fe80::1%eth0`), no netmask in dots, no ::ffff:1.2.3.4."""
        nothing = ipaddress.ip_network("192.0.2.0/32")
        if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
            self.refuse("bad_address", path, _ADDRESS_EXPECTED, value)
            return nothing
        try:
            network = ipaddress.ip_network(value)
        except ValueError:
            self.refuse("bad_address", path, f"{_ADDRESS_EXPECTED}, without host bits", value)
            return nothing
        if isinstance(network, ipaddress.IPv6Network) and network.overlaps(_MAPPED) and network.prefixlen >= 96:
            self.refuse("bad_address", path, "an IPv4 address in its own form, not within IPv6", value)
            return nothing
        return network

    def ports(self, value: Any, path: str) -> model.Ports:
        low = high = 0
        if type(value) is int:
            low = high = value
        elif isinstance(value, str) and (found := _PORTS.fullmatch(value)):
            low = int(found[1])
            high = int(found[2] or found[1])
        if not 1 <= low <= high <= 65_535:
            self.refuse("bad_port", path, _PORTS_EXPECTED, value)
            return model.Ports(1, 1)
        return model.Ports(low, high)

    def integer(self, value: Any, path: str, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:  # a bool is an int to isinstance
            self.refuse("bad_number", path, f"an integer from {least} to {most}", value)
            return least
        return value

    def boolean(self, fields: dict[str, Any], name: str, path: str, *, default: bool) -> bool:
        value = fields.get(name, default)
        if not isinstance(value, bool):
            self.refuse("wrong_type", f"{path}.{name}", "true or false", value)
            return default
        return value

    def choice(self, fields: dict[str, Any], name: str, path: str, default: Choice) -> Choice:
        value = fields.get(name, str(default))
        kind = type(default)
        if not isinstance(value, str) or value not in {str(one) for one in kind}:
            self.refuse("bad_choice", f"{path}.{name}", f"one of {', '.join(kind)}", value)
            return default
        return kind(value)

    def _text(self, value: Any, path: str, code: str, pattern: re.Pattern[str], expected: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.refuse(code, path, expected, value)
            return ""
        return value

    def _unique(self, names: Iterable[str], path: str, suffix: str = "") -> None:
        seen: set[str] = set()
        for index, name in enumerate(names):
            if name and name in seen:
                self.refuse("duplicate", f"{path}[{index}]{suffix}", "each once", name)
            seen.add(name)


class _Told(str):
    """Text for `found` that is no value of the document."""

    __slots__ = ()

"""Documents from outside read strictly: each fault is a finding with its place, and reading goes on.

    class _Reader(reading.Reader):
        def zone(self, value: Any, path: str) -> Zone:
            fields = self.fields(value, path, "name cidrs", "name")
            return Zone(name=self.name(fields.get("name", MISSING), f"{path}.name"), …)

A reader goes only as deep as its model, so that no nesting reaches it: a list where a name belongs is a finding,
whatever the list holds.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.system.findings import MAX_FINDINGS, Finding, IntentRefused, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from enum import StrEnum

    from latticed.model.addresses import Network

    Choice = TypeVar("Choice", bound=StrEnum)
    Read = TypeVar("Read")

# fullmatch everywhere: `$` would let a newline pass at the end. No \d or \w, which match beyond ASCII.
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
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
_REFERENCE: Final = re.compile(r"\$\{secret:([A-Z][A-Z0-9_]{0,63}(?:#[A-Za-z0-9_.@-]{1,64})?)\}")
_REFERENCE_EXPECTED: Final = "a secret, as ${secret:NAME} or ${secret:NAME#label}"
_MAX_HOST: Final = 253
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MAPPED: Final = ipaddress.ip_network("::ffff:0:0/96")

MISSING: Final = object()
"""Stands for a field that is not there."""


class Told(str):
    """Text for `found` that is no value of the document."""

    __slots__ = ()


class Reader:
    """Collects findings; what could not be read is replaced by something harmless, so that reading goes on."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def refuse(self, code: str, path: str, expected: str, value: Any, hint: str = "") -> None:
        found = value if isinstance(value, Told) else shown(value)
        self.findings.append(
            Finding(code=code, path=path.removeprefix(".") or "intent", expected=expected, found=found, hint=hint)
        )
        if len(self.findings) == MAX_FINDINGS:
            raise IntentRefused(self.findings)

    def fields(self, value: Any, path: str, known: str, required: str = "") -> dict[str, Any]:
        """The object's fields, when it is one; unknown and missing ones are findings."""
        if not isinstance(value, dict):
            self.refuse("wrong_type", path, "an object", value)
            return {}
        names = known.split()
        for name in value:
            if name not in names:
                place = f"{path}.{name}" if isinstance(name, str) and NAME.fullmatch(name) else path
                self.refuse("unknown_key", place, f"one of {', '.join(names)}", name)
        for name in required.split():
            if name not in value:
                self.refuse("missing_key", f"{path}.{name}", "a value", Told("none"))
        return value

    def each(
        self, fields: dict[str, Any], name: str, path: str, most: int, read_one: Callable[[Any, str], Read]
    ) -> tuple[Read, ...]:
        """Every item of a list, which may be missing."""
        value = fields.get(name, MISSING)
        if value is MISSING:
            return ()
        if not isinstance(value, list):
            self.refuse("wrong_type", path, "a list", value)
            return ()
        if len(value) > most:
            self.refuse("too_many", path, f"at most {most} items", Told(str(len(value))))
            return ()
        return tuple(read_one(item, f"{path}[{index}]") for index, item in enumerate(value))

    def name(self, value: Any, path: str) -> str:
        if value is MISSING:
            return ""
        return self.text(value, path, "bad_name", NAME, _NAME_EXPECTED)

    def interface(self, value: Any, path: str) -> str:
        return self.text(value, path, "bad_interface", INTERFACE, _INTERFACE_EXPECTED)

    def comment(self, fields: dict[str, Any], path: str, name: str = "comment") -> str:
        value = fields.get(name, "")
        return self.text(value, f"{path}.{name}", "bad_comment", _COMMENT, _COMMENT_EXPECTED)

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

    def ports(self, value: Any, path: str) -> tuple[int, int]:
        """The lowest and the highest of a port or range."""
        low = high = 0
        if type(value) is int:
            low = high = value
        elif isinstance(value, str) and (found := _PORTS.fullmatch(value)):
            low = int(found[1])
            high = int(found[2] or found[1])
        if not 1 <= low <= high <= 65_535:
            self.refuse("bad_port", path, _PORTS_EXPECTED, value)
            return 1, 1
        return low, high

    def integer(self, value: Any, path: str, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:  # a bool is an int to isinstance
            self.refuse("bad_number", path, f"an integer from {least} to {most}", value)
            return least
        return value

    def optional(self, fields: dict[str, Any], name: str, path: str, least: int, most: int) -> int | None:
        """As `integer`; None where the field is not there."""
        return self.integer(fields[name], f"{path}.{name}", least, most) if name in fields else None

    def reference(self, fields: dict[str, Any], name: str, path: str, plugin: str) -> str:
        """What stands between the braces. A value in clear is not shown, lest it get further than it has."""
        if name not in fields:
            return ""
        found = _REFERENCE.fullmatch(fields[name]) if isinstance(fields[name], str) else None
        if found is None:
            hint = f"latticectl secret set NAME; latticectl secret bind NAME {plugin}"
            self.refuse("bad_secret", f"{path}.{name}", _REFERENCE_EXPECTED, Told("something else"), hint)
            return ""
        return found[1]

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

    def text(self, value: Any, path: str, code: str, pattern: re.Pattern[str], expected: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.refuse(code, path, expected, value)
            return ""
        return value

    def unique(self, names: Iterable[str], path: str, suffix: str = "") -> None:
        seen: set[str] = set()
        for index, name in enumerate(names):
            if name and name in seen:
                self.refuse("duplicate", f"{path}[{index}]{suffix}", "each once", name)
            seen.add(name)


def is_host(text: str) -> bool:
    """Whether it is an IPv4 address or a host name in ASCII; digits and dots alone are an address or nothing."""
    if re.fullmatch(r"[0-9.]+", text):
        try:
            return bool(ipaddress.IPv4Address(text))
        except ValueError:
            return False
    return len(text) <= _MAX_HOST and all(_LABEL.fullmatch(label) for label in text.split("."))

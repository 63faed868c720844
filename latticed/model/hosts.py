"""The one form of a host name: lower case, ASCII, no trailing dot; addresses as `ipaddress` writes them.

Whatever could be read as an address in a second way (`127.1`, `0x7f000001`, `2130706433`, `0177.0.0.1`) is refused,
because a resolver would accept it (RFC 3986, section 7.4). Names: RFC 1123, IDNA 2008 with UTS 46 (RFC 5891).
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Address

MAX_CHARACTERS: Final = 253
"""Longest host name in its text form: the 255 bytes of RFC 1035, section 2.3.4, hold no more."""
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
"""A label of 1 to 63 characters (RFC 1035); with `_`, which names of services have (RFC 2782)."""
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
"""A last label like this makes inet_aton(3) read the whole as an address."""
_LOCAL_NAMES: Final = frozenset({"localhost", "local", "localdomain", "internal", "intranet", "home.arpa", "onion"})
"""Names that no public resolver answers for (RFC 6761, 6762, 7686, 8375); `internal` is ICANN's for private use."""


class NotAHost(ValueError):
    """A text that names no host, or more than one; its message says what was expected."""


def normal(text: str) -> str:
    """The normal form of a host: a name, an IPv4 address or an IPv6 address without brackets; NotAHost otherwise.

    `API.Example.ORG.` gives `api.example.org`, `[::1]` gives `::1`, `bücher.example` gives `xn--bcher-kva.example`.
    """
    if not 1 <= len(text) <= MAX_CHARACTERS + 1:  # before any work: IDNA's rules take long over long texts
        raise NotAHost(f"expected a host name of 1 to {MAX_CHARACTERS} characters")
    if text.startswith("["):
        return _v6(text)
    # Mapped first, so that digits and dots of another script are seen by the checks below.
    name = text.lower() if text.isascii() else _mapped(text)
    name = name.removesuffix(".")
    if not 1 <= len(name) <= MAX_CHARACTERS:
        raise NotAHost(f"expected a host name of 1 to {MAX_CHARACTERS} characters")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # The text as it was given, not as mapped: an address in digits of another script is refused.
        return _v4(text)
    return ".".join(_label(one) for one in labels)


def address_of(host: str) -> Address | None:
    """The address that a host in normal form is, or None when it is a name."""
    try:
        return IPv6Address(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        return None


def bracketed(host: str) -> str:
    """A host in normal form as it is written in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def local_name(host: str) -> str | None:
    """Why a name in normal form cannot be public (single label, reserved domain), in words; None when it can.

    Of names only: an address has to be judged by `addresses.blocked_class`.
    """
    if "." not in host:
        return "a name without a dot belongs to this network"
    for suffix in _LOCAL_NAMES:
        if host.endswith(f".{suffix}") or host == suffix:
            return f"names below {suffix} are not public"
    return None


def _v6(text: str) -> str:
    """The IPv6 address in brackets, in its shortest form; NotAHost for anything else."""
    if not text.endswith("]") or "%" in text:
        raise NotAHost("expected an IPv6 address in brackets, without a zone")
    try:
        address = IPv6Address(text[1:-1])
    except AddressValueError as error:
        raise NotAHost("expected an IPv6 address in brackets") from error
    if (mapped := address.ipv4_mapped) is not None:  # from Python 3.13 written in another way
        return f"::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}"
    return address.compressed


def _v4(text: str) -> str:
    """The IPv4 address of four decimal numbers; any other form is NotAHost."""
    try:
        return str(IPv4Address(text.removesuffix(".")))
    except AddressValueError as error:
        raise NotAHost("expected a name, or an IPv4 address as four decimal numbers") from error


def _mapped(text: str) -> str:
    """A name with letters beyond ASCII, mapped by UTS 46: width, case, East Asian dots.

    NotAHost for what it disallows.
    """
    import idna

    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
    except (idna.IDNAError, UnicodeError, IndexError) as error:
        raise NotAHost("expected a host name that IDNA allows") from error
    return mapped.lower()


def _label(label: str) -> str:
    """One label in ASCII; NotAHost for what DNS or IDNA does not allow."""
    if label.isascii() and not label.startswith("xn--"):
        if not _LABEL.fullmatch(label):
            raise NotAHost("expected labels of 1 to 63 letters, digits, '-' and '_'")
        return label
    import idna

    try:
        encoded = idna.alabel(idna.ulabel(label) if label.isascii() else label).decode("ascii")
    except (idna.IDNAError, UnicodeError, IndexError) as error:
        raise NotAHost("expected a host name that IDNA allows") from error
    # An A-label must be the one that its U-label encodes to (RFC 5891, section 5.4): else two texts would be one name.
    if label.isascii() and encoded != label:
        raise NotAHost("expected a host name that IDNA allows")
    return encoded

"""Which headers a caller may send, and which of an answer it gets (RFC 9110, section 5; RFC 9112, section 6)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Header = tuple[str, str]

MAX_HEADERS: Final = 64
"""Names in one request."""
MAX_NAME_CHARACTERS: Final = 128
MAX_HEADER_BYTES: Final = 32 << 10
"""Bytes of all names and values together, of a request and of a response."""
USER_AGENT: Final = "latticed"
# A field name is a token (RFC 9110, sections 5.1 and 5.6.2).
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
# All control characters but tab (RFC 9110, section 5.5), and surrogates, which UTF-8 cannot encode.
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_REFUSED: Final = frozenset(
    """host content-length transfer-encoding trailer te connection keep-alive upgrade expect http2-settings
    proxy-authenticate proxy-authorization proxy-connection proxy""".split()
)
"""Set by the host: where a request goes, its framing, and what is between two hops."""
_OVERRIDDEN: Final = frozenset({"accept-encoding"})  # responses are decoded here, so only identity is requested
_LEFT_OUT: Final = _REFUSED | {"content-encoding"}
_SAFE_ACROSS_ORIGINS: Final = frozenset({"accept", "accept-language", "cache-control", "content-type", "user-agent"})
"""Headers that are sent on when a redirect leads to another origin; any other may hold a credential."""


def checked(header: Mapping[str, str]) -> tuple[Header, ...]:
    """The headers of a request as they are sent, with Accept-Encoding and User-Agent; HostError `bad_params` or
    `too_large` names what is refused, never a value.
    """
    if len(header) > MAX_HEADERS:
        raise HostError(Denial.TOO_LARGE, f"header: expected at most {MAX_HEADERS}, found {len(header)}")
    header_list, seen = [("Accept-Encoding", "identity")], {""}
    for name, value in header.items():
        _check_name(name, seen)
        seen.add(name.lower())
        check_value(name, value)
        if name.lower() not in _OVERRIDDEN:
            # White space around a value is not part of it (RFC 9110, section 5.5).
            header_list.append((name, value.strip(" \t")))
    check_size(header_list)
    if "user-agent" not in seen:
        header_list.append(("User-Agent", USER_AGENT))
    return tuple(header_list)


def check_value(name: str, value: str) -> None:
    """HostError `bad_params` when a value could end its line, and so add a header; the value is not repeated."""
    if _UNSAFE.search(value):
        raise HostError(Denial.BAD_PARAMS, f"header {name}: expected a value without control characters")


def check_size(header_list: Iterable[Header]) -> None:
    """HostError `too_large` when all headers together are more than MAX_HEADER_BYTES."""
    # 4: colon, space, CR and LF.
    if sum(len(name) + len(value.encode("utf-8")) + 4 for name, value in header_list) > MAX_HEADER_BYTES:
        raise HostError(Denial.TOO_LARGE, f"header: expected at most {MAX_HEADER_BYTES} bytes")


def across_origins(header_list: tuple[Header, ...], secret: frozenset[str]) -> tuple[Header, ...]:
    """The headers that are sent on to another origin: those of _SAFE_ACROSS_ORIGINS, except the ones in `secret`."""
    safe = _SAFE_ACROSS_ORIGINS - secret | {"accept-encoding"}
    return tuple((name, value) for name, value in header_list if name.lower() in safe)


def without_body(header_list: tuple[Header, ...]) -> tuple[Header, ...]:
    """The headers of a request that is sent on without its body: none that begins with `Content-`."""
    return tuple((name, value) for name, value in header_list if not name.lower().startswith("content-"))


def received(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers of an answer: canonical names (`Content-Type`), repeated ones joined; HostError when too large.

    Framing and encoding are left out: callers get the body decoded.
    """
    found: dict[str, str] = {}
    size = 0
    for raw_name, raw_value in raw:
        # Counted before decoding, over all fields, also those that are left out.
        size += len(raw_name) + len(raw_value)
        if size > MAX_HEADER_BYTES:
            raise HostError(Denial.TOO_LARGE, f"the answer's header: expected at most {MAX_HEADER_BYTES} bytes")
        # Latin-1 decodes every byte, so a broken name raises nothing.
        name = "-".join(part.capitalize() for part in raw_name.decode("latin-1").split("-"))
        value = _UNSAFE.sub(" ", _text(raw_value)).strip()
        if name.lower() not in _LEFT_OUT:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _check_name(name: str, seen: set[str]) -> None:
    """HostError `bad_params` unless it is a token, not set by the host, and not in `seen` (lower case)."""
    if len(name) > MAX_NAME_CHARACTERS or not _TOKEN.fullmatch(name):
        raise HostError(Denial.BAD_PARAMS, "header: expected names of letters, digits and - (RFC 9110, section 5.6.2)")
    if name.lower() in _REFUSED or name.lower().startswith("proxy-"):
        raise HostError(Denial.BAD_PARAMS, f"header {name}: this one is set by the host")
    if name.lower() in seen:
        raise HostError(Denial.BAD_PARAMS, f"header {name}: expected once")


def _text(value: bytes) -> str:
    """A value as UTF-8, else as Latin-1, which every byte sequence is (RFC 9110, section 5.5)."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")

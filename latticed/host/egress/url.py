"""URLs, parsed once and strictly (RFC 3986): one that two parsers could read differently is refused.

    http://API.example.org:80/a?b#c  ->  Target(scheme="http", host="api.example.org", port=80, path="/a?b")

A difference between two parsers is how a check is passed with one host and the connection made to another.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin

from latticed.host.call import HostError
from latticed.host.secret.references import REFERENCE
from latticed.kit.value import Value
from latticed.model import hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CHARACTERS: Final = 8_192
"""Of a whole URL or a Location, as it was given."""
MAX_ENCODED_CHARACTERS: Final = 16_384
"""Of path and query once they are encoded, with secrets in place."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
HIGHEST_PORT: Final = 65_535
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)
# Authority, path, query and fragment, of what follows `//` (RFC 3986, appendix B).
_PARTS: Final = re.compile(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?")
# Without leading zeros, signs and digits of other scripts, which int() would take.
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
# White space, control characters and separators, surrogates, and the backslash, which browsers read as a slash.
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\\u0080-\u00a0\u2028\u2029\ud800-\udfff]")
_SAFE: Final = "%/:?@!$&'()*+,;=-._~[]"  # what RFC 3986 lets stand in a path or a query; the rest is encoded
# Without `/ ? # & = + %`: the value of a secret cannot add a segment or a field, or be decoded to something else.
_SAFE_IN_VALUES: Final = ":@!$'()*,;-._~"


class Target(Value, frozen=True, kw_only=True):
    """Where a request goes: scheme `http` or `https`, host in normal form, port, and path with its query,
    percent-encoded and ready to send.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """(scheme, host, port): what redirects are compared by."""
        return self.scheme, self.host, self.port

    @property
    def shown(self) -> str:
        """Host and port, for messages: never the path, which may hold secrets."""
        return f"{hosts.bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{hosts.bracketed(self.host)}{port}{self.path}"


def parse(text: str, *, expand: Callable[[str], str] | None = None) -> Target:
    """The target of an absolute URL; HostError `bad_params` for what is no plain URL, `egress_blocked` for a scheme or
    host that no request goes to.

    The fragment is dropped. `expand` gives the values of references to secrets, in path and query only: a secret is
    never part of a host or port. Messages contain nothing of the URL but its scheme.
    """
    if len(text) > MAX_CHARACTERS:
        raise _bad(f"expected at most {MAX_CHARACTERS} characters, found {len(text)}")
    if _UNSAFE.search(text):
        raise _bad("expected no white space, control characters and backslashes")
    found = _SCHEME.match(text)
    if found is None:
        raise _bad("expected http://… or https://…")
    scheme = found[1].lower()
    if scheme not in DEFAULT_PORTS:
        raise HostError(Denial.EGRESS_BLOCKED, f"scheme not allowed: expected http or https, found {scheme[:32]}")
    rest = text[found.end() :]
    if not rest.startswith("//") or (parts := _PARTS.fullmatch(rest[2:])) is None:
        raise _bad("expected two slashes and a host after the scheme")
    host, port = _authority(parts[1], DEFAULT_PORTS[scheme])
    query = "" if parts[3] is None else f"?{parts[3]}"
    return Target(scheme=scheme, host=host, port=port, path=_encoded((parts[2] or "/") + query, expand))


def refer(base: Target, location: str) -> Target:
    """Where a Location header of an answer from `base` leads, absolute or relative; HostError as in `parse`."""
    if _SCHEME.match(location):
        return parse(location)
    if location.startswith("//"):
        return parse(f"{base.scheme}:{location}")
    if _UNSAFE.search(location):
        raise _bad("expected no white space, control characters and backslashes")
    # Only path and query are taken from what urljoin returns: the host is always that of `base`.
    # Only one slash at the front: urljoin would read `//x/` of the base as a host.
    joined = _PARTS.fullmatch(urljoin("/" + base.path.lstrip("/"), location.partition("#")[0]))
    if joined is None or len(location) > MAX_CHARACTERS:
        raise _bad(f"expected at most {MAX_CHARACTERS} characters")
    path = "/" + (joined[1] + joined[2]).lstrip("/")
    query = "" if joined[3] is None else f"?{joined[3]}"
    return replace(base, path=_encoded(path + query, None))


def _encoded(raw: str, expand: Callable[[str], str] | None) -> str:
    """A path and query as they are sent; values of secrets are encoded, so that they cannot add segments."""
    parts, size, end = [], 0, 0
    for found in REFERENCE.finditer(raw):
        if expand is None:  # a Location header: a reference in it is text
            break
        value = expand(found[0])
        # Before it is encoded, which makes none shorter: a short URL may refer to a long value many times.
        size += len(value)
        if size > MAX_ENCODED_CHARACTERS:
            raise _too_long()
        parts += [quote(raw[end : found.start()], safe=_SAFE), quote(value, safe=_SAFE_IN_VALUES)]
        end = found.end()
    path = "".join([*parts, quote(raw[end:], safe=_SAFE)])
    if len(path) > MAX_ENCODED_CHARACTERS:
        raise _too_long()
    return path


def _too_long() -> HostError:
    return _bad(f"expected at most {MAX_ENCODED_CHARACTERS} characters once it is encoded")


def _authority(text: str, default_port: int) -> tuple[str, int]:
    """Host in normal form, and port. HostError `bad_params`, or `egress_blocked` when it can be read in two ways."""
    # `http://good.example@evil.example/` is at evil.example: user names are refused rather than cut off.
    if "@" in text:
        raise _bad("expected no user name and password; send them in a header")
    host, port = text, ""
    if text.startswith("["):
        host, bracket, after = text.partition("]")
        host += bracket
        if after and not after.startswith(":"):
            raise _bad("expected a port after the address")
        has_port, port = bool(after), after[1:]
    else:
        host, colon, port = text.partition(":")
        has_port = bool(colon)
    if has_port and port and (not _PORT.fullmatch(port) or int(port) > HIGHEST_PORT):
        raise _bad(f"expected a port from 1 to {HIGHEST_PORT}")
    if not host:
        raise _bad("expected a host")
    try:
        # An empty port after the colon is the default (RFC 3986, section 3.2.3).
        return hosts.normal(host), int(port) if port else default_port
    except hosts.NotAHost as error:
        raise HostError(Denial.EGRESS_BLOCKED, f"host not understood: {error}") from error


def _bad(expected: str) -> HostError:
    return HostError(Denial.BAD_PARAMS, f"url: {expected}")

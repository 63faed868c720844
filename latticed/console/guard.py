"""Which requests of a browser are answered at all, and the headers of each answer. Pure.

A browser sends to a loopback address whatever page asked it to, so that an address is no proof of who asks. Against

- DNS rebinding: `Host` must be one that this console goes by; a name that a stranger points here is none of them;
- requests of other sites, plugins' pages on other ports of 127.0.0.1 included: `Origin` must be the console's own for
  all that is no GET, and `Sec-Fetch-Site` must not say that another site or another origin of this one asked;
- framing: `frame-ancestors 'none'`, and X-Frame-Options for what does not know it.
"""

from __future__ import annotations

import ipaddress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PORTS: Final = {"http": 80, "https": 443}
_LARGEST_PORT: Final = 65535
_OURS: Final = frozenset({"", "none", "same-origin"})
"""Of Sec-Fetch-Site: an older browser, an address that somebody typed or a terminal opened, or this console itself."""

HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        # What operators see of their host is not for a disk, nor for the list of what was open.
        "Cache-Control": "no-store",
    }
)


class ListenAt(NamedTuple):
    """Where to listen: `host` and `port` of a loopback address, or `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""


class PageOrigin(NamedTuple):
    """A scheme with `host[:port]`, as browsers send it in Origin; the port is left out where it is the scheme's own."""

    scheme: str
    authority: str

    @property
    def text(self) -> str:
        return f"{self.scheme}://{self.authority}"


def listen_at(given: str) -> ListenAt:
    """`127.0.0.1:0`, `[::1]:8080`, `localhost:8080` or `/run/user/1000/ui.sock`; Problem usage for all else."""
    if given.startswith("/"):
        return ListenAt(path=given)
    host, colon, port = given.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > _LARGEST_PORT:
        raise _usage("--listen", "127.0.0.1:PORT or the path of a unix socket", given)
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise _usage("--listen", "a loopback address", given) from error
    if not address.is_loopback:
        hint = "from elsewhere: ssh -L, or a TLS proxy of yours with --origin https://NAME"
        raise Problem("usage", f"--listen: expected a loopback address, found {given[:80]!r}", hint)
    return ListenAt(host=str(address), port=int(port))


def origin(given: str) -> PageOrigin:
    """`https://console.example.org` or `http://127.0.0.1:8080`; Problem usage for what browsers do not send as one."""
    try:
        split = urlsplit(given)
        port = split.port
    except ValueError as error:
        raise _usage("--origin", "https://NAME[:PORT]", given) from error
    name = split.hostname or ""
    plain = split.path in {"", "/"} and not (split.query or split.fragment or split.username or split.password)
    # Browsers send it in ASCII: what is not can only be the name in another writing.
    if split.scheme not in _PORTS or not name or not plain or not given.isascii() or not given.isprintable():
        raise _usage("--origin", "https://NAME[:PORT]", given)
    # A session over http can be read on its way.
    if split.scheme == "http" and not _is_loopback(name):
        raise Problem(
            "usage", f"--origin: expected https, found {given[:80]!r}", "http is for loopback addresses alone"
        )
    shown = f"[{name}]" if ":" in name else name
    return PageOrigin(split.scheme, shown if port in {None, _PORTS[split.scheme]} else f"{shown}:{port}")


def origins(at: ListenAt, given: Sequence[PageOrigin]) -> frozenset[PageOrigin]:
    """Everything that a browser may call this console by; `at` with the port that it got."""
    if at.path:
        return frozenset(given)
    shown = f"[{at.host}]" if ":" in at.host else at.host
    own = {origin(f"http://{name}:{at.port}") for name in (shown, "localhost")}
    return frozenset({*own, *given})


def called_by(host: str, known: Iterable[PageOrigin]) -> PageOrigin:
    """The origin with this `Host`; Problem foreign_host for any other."""
    found = next((one for one in known if one.authority == host.lower()), None)
    if found is None:
        hint = "behind a proxy or another port: latticectl ui --origin URL, as the browser shows it"
        raise Problem("foreign_host", "this console does not go by that name", hint)
    return found


def check_site(method: str, called: PageOrigin, sent_origin: str | None, fetch_site: str) -> None:
    """Refuse what another page asks for: Problem foreign_origin."""
    safe = method in {"GET", "HEAD"}
    # A GET has an Origin only where a script asks. A form of a page with `no-referrer` is sent with Origin "null"
    # (Fetch, "append a request Origin header"); that it is the console's own then only Sec-Fetch-Site says, which no
    # page can set.
    of_form = sent_origin == "null" and fetch_site == "same-origin"
    ours = sent_origin == called.text or of_form or (safe and sent_origin is None)
    if not ours or fetch_site not in _OURS:
        raise Problem("foreign_origin", "another page asked for this", "open the console itself")


def cookie(name: str, value: str, path: str, called: PageOrigin) -> str:
    """The value of Set-Cookie for a session. Without `Expires`, it ends with the browser."""
    secure = "; Secure" if called.scheme == "https" else ""
    return f"{name}={value}; Path={path}; HttpOnly; SameSite=Strict{secure}"


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _usage(option: str, expected: str, found: str) -> Problem:
    return Problem("usage", f"{option}: expected {expected}, found {found[:80]!r}")

"""What an operator wants of nginx: the typed model, as `decode.read` makes it of JSON.

    {"resolvers": ["127.0.0.53"], "acme_webroot": "/var/www/acme",
     "real_ip": {"from": ["203.0.113.0/24"], "header": "X-Forwarded-For"},
     "access": [{"name": "office", "allow": ["192.0.2.0/24"]}],
     "sites": [
        {"name": "shop", "domains": ["shop.example.org", "*.shop.example.org"],
         "tls": {"certificate": "/etc/letsencrypt/live/shop/fullchain.pem",
                 "key": "/etc/letsencrypt/live/shop/privkey.pem", "force": true, "hsts": {"max_age_s": 31536000}},
         "upstream": {"scheme": "http", "host": "10.0.0.5", "port": 8080}, "websockets": true,
         "locations": [{"path": "/admin", "upstream": "services", "access": "office"},
                       {"path": "/robots.txt", "match": "exact", "answer": 404}]},
        {"name": "old", "domains": ["old.example.org"], "redirect": {"to": "https://shop.example.org"}}]}

Every text in it is parsed or of a small alphabet: there are no snippets of nginx's language.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Address, Network

MAX_SITES: Final = 1_000
MAX_DOMAINS: Final = 64
"""Of one site."""
MAX_LOCATIONS: Final = 64
"""Of one site."""
MAX_ACCESS: Final = 64
MAX_ALLOW: Final = 1_000
"""Networks of one access list."""
MAX_PROXIES: Final = 256
MAX_RESOLVERS: Final = 4
MAX_LISTEN: Final = 16
MAX_FILES: Final = 4_000
"""Published files of one plugin; an intent of 256 KiB has fewer."""
MAX_BODY_MB: Final = 10_240
BODY_MB: Final = 16
"""Largest request body unless said otherwise, in MiB."""
DRAIN_S: Final = 30
MAX_DRAIN_S: Final = 3_600
MAX_HSTS_S: Final = 63_072_000
"""Two years, which is what browsers' preload lists ask for."""
ANSWERS: Final = (403, 404, 410, 503)
REDIRECTS: Final = (301, 302, 307, 308)


class Scheme(StrEnum):
    HTTP = "http"
    HTTPS = "https"


class Own(StrEnum):
    """latticed's own two HTTP listeners, the only ones of ours that nginx may forward to (settings `[http]`)."""

    HTTP = "http"
    SERVICES = "services"


class Match(StrEnum):
    """`prefix`: paths that begin with it, the longest one first, as nginx does (`/api` is `/apix` too)."""

    PREFIX = "prefix"
    EXACT = "exact"


class RealIpHeader(StrEnum):
    FORWARDED_FOR = "X-Forwarded-For"
    REAL_IP = "X-Real-IP"
    CLOUDFLARE = "CF-Connecting-IP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """`host`: an address, or a name that is looked up while nginx runs. `verify`: the certificate of an `https` one."""

    scheme: Scheme
    host: str
    port: int
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Files:
    """A directory of this host."""

    root: str


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """The files that `plugin` has published, as NginxIntent.published lists them."""

    plugin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """`keep`: path and query of the request follow `to`."""

    to: str
    status: int = 308
    keep: bool = True


@dataclass(frozen=True, slots=True)
class BareAnswer:
    """A status and nothing else: a dead host."""

    status: int


Handler = Upstream | Own | Files | PublishedFiles | Redirect | BareAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """`access`: name of the list that holds here, in place of the site's; empty: the site's."""

    path: str
    handler: Handler
    match: Match = Match.PREFIX
    access: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hsts:
    max_age_s: int
    subdomains: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """`certificate` with its chain, and `key`: paths. `force`: plain HTTP is sent here."""

    certificate: str
    key: str
    force: bool = True
    hsts: Hsts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """`domains`: in normal form, `*.` before one for all names below it. `access`: empty for everybody."""

    name: str
    domains: tuple[str, ...]
    handler: Handler
    tls: Tls | None = None
    locations: tuple[Location, ...] = ()
    access: str = ""
    websockets: bool = False
    max_body_mb: int = BODY_MB
    enabled: bool = True

    def handlers(self) -> tuple[tuple[str, Handler, str], ...]:
        """(path in the document, what is done, access list) of the site itself and of each location."""
        each = (
            (f".locations[{index}]", one.handler, one.access or self.access) for index, one in enumerate(self.locations)
        )
        return (("", self.handler, self.access), *each)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessList:
    """Who may come in: `allow` and nobody else."""

    name: str
    allow: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RealIp:
    """The proxies before this host, whose word in `header` counts for the address of a client."""

    proxies: tuple[Network, ...]
    header: RealIpHeader = RealIpHeader.FORWARDED_FOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Addresses and ports of all sites; without `addresses`, every IPv4 and IPv6 address.

    One for all, since nginx 1.22 takes `ssl` and `http2` as properties of a socket, whichever site says so.
    """

    addresses: tuple[Address, ...] = ()
    http: int = 80
    https: int = 443
    http2: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """Files of one plugin, as they were when it was planned: `files` are (path, SHA-256), by path."""

    plugin: str
    publisher: str
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxIntent:
    """`drain_s`: how long connections of before a reload go on, websockets above all. `published`: what the plugin adds
    to a configuration that publishes files, one set for each plugin.
    """

    sites: tuple[Site, ...] = ()
    listen: Listen = field(default_factory=Listen)
    access: tuple[AccessList, ...] = ()
    resolvers: tuple[Address, ...] = ()
    real_ip: RealIp | None = None
    acme_webroot: str = ""
    drain_s: int = DRAIN_S
    published: tuple[FileSet, ...] = ()

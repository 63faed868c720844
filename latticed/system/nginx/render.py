"""An intent as the whole configuration of an nginx of its own: `nginx.conf`, and one file for each site.

    #file sites/shop.conf
    server {
        listen 0.0.0.0:80;
        …

One bad site must not keep nginx from starting, so each site is written twice: as it is wanted (`sites/`), and so that
nothing in it can fail (`unserved/`): it answers 503, and challenges for its certificate. Whoever puts the files into
place takes the second for a site whose certificate is missing, or that nginx does not take (`applied`). An upstream's
name is looked up when somebody asks for the site (`resolver`), since nginx does not start with one that is unknown.

The same intent gives the same bytes, whatever the order of its lists and keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model import hosts
from latticed.system.nginx import file_sets, syntax
from latticed.system.nginx.check import CHALLENGES
from latticed.system.nginx.intent import BareAnswer, Files, Match, Own, PublishedFiles, Redirect, Scheme, Upstream
from latticed.system.nginx.syntax import Directive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latticed.model.addresses import Network
    from latticed.system.nginx.facts import NginxPlace
    from latticed.system.nginx.intent import AccessList, Handler, Hsts, Listen, NginxIntent, Site

MARK: Final = "#file "
MAIN: Final = "nginx.conf"
SITES: Final = "sites"
UNSERVED: Final = "unserved"
PUBLISHED: Final = "published"
"""Below it what is copied for sites that publish a plugin's files; nginx does not read it."""
PROBE: Final = "probe.conf"
"""A server on a socket of its own that says which generation of the files answers (`applied.probe`)."""
AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"
"""Who is believed about an `https` upstream: package ca-certificates."""
MIME_TYPES: Final = "/etc/nginx/mime.types"
_UNAVAILABLE: Final = "@unavailable"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def render(intent: NginxIntent, place: NginxPlace) -> bytes:
    """The text of an intent that passed `check`; ASCII. `#file NAME` begins each file."""
    return "".join(f"{MARK}{name}\n{text}" for name, text in files(intent, place).items()).encode("ascii")


def files(intent: NginxIntent, place: NginxPlace) -> Mapping[str, str]:
    """The same by name, `nginx.conf` first and the others in order. KeyError for a listener that `place` has not."""
    made = {MAIN: syntax.text(_main(intent, place))}
    for site in sorted(intent.sites, key=lambda one: one.name):
        served = _served(intent, site, place) if site.enabled else _unserved(intent, site)
        made[f"{SITES}/{site.name}.conf"] = syntax.text(served)
    for site in sorted(intent.sites, key=lambda one: one.name):
        made[f"{UNSERVED}/{site.name}.conf"] = syntax.text(_unserved(intent, site))
    used = {one.plugin for _, one in _handlers(intent) if isinstance(one, PublishedFiles)}
    for one in sorted(intent.published, key=lambda one: one.plugin):
        if one.plugin in used:
            made[f"{PUBLISHED}/{one.plugin}"] = file_sets.text(one)
    return made


def _handlers(intent: NginxIntent) -> Iterator[tuple[Site, Handler]]:
    """What sites that are switched on do."""
    return ((site, one) for site in intent.sites if site.enabled for _, one, _ in site.handlers())


def _simple(name: str, *args: str | int) -> Directive:
    return Directive(name, tuple(map(str, args)))


def _main(intent: NginxIntent, place: NginxPlace) -> Iterator[Directive]:
    yield _simple("user", place.user)
    yield _simple("worker_processes", "auto")
    # A service has 1,024 files by default (systemd.exec(5), LimitNOFILE). Each connection is one, and what is asked for
    # by it may be more. Where this cannot be had nginx says so in its log, and goes on.
    yield _simple("worker_rlimit_nofile", 16_384)
    # Workers of before a reload end then, with the websockets that they still have.
    yield _simple("worker_shutdown_timeout", f"{intent.drain_s}s")
    yield _simple("pid", f"{place.directory}/nginx.pid")
    # To a file it would grow with what strangers send: it is rotated by nobody.
    yield _simple("error_log", "syslog:server=unix:/dev/log,tag=latticed_nginx", "error")
    yield Directive("events", block=(_simple("worker_connections", 4_096),))
    yield Directive("http", block=tuple(_http(intent, place)))


def _http(intent: NginxIntent, place: NginxPlace) -> Iterator[Directive]:
    yield _simple("include", MIME_TYPES)
    yield _simple("default_type", "application/octet-stream")
    yield _simple("access_log", "off")
    yield _simple("server_tokens", "off")
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        yield _simple(f"{kind}_temp_path", f"{place.directory}/{kind}")
    # A name of 253 characters fits into no smaller bucket, and then nginx does not start.
    yield _simple("server_names_hash_bucket_size", 512)
    yield _simple("server_names_hash_max_size", 65_536)
    yield _simple("variables_hash_bucket_size", 128)
    yield _simple("variables_hash_max_size", 4_096)
    yield _simple("ssl_protocols", "TLSv1.2", "TLSv1.3")
    yield _simple("ssl_session_cache", "shared:latticed:10m")
    yield _simple("ssl_session_tickets", "off")
    if intent.resolvers:
        found = sorted(intent.resolvers, key=lambda one: (one.version, one))
        yield _simple("resolver", *(hosts.bracketed(str(one)) for one in found), "valid=30s")
        yield _simple("resolver_timeout", "5s")
    if intent.real_ip is not None:
        for network in _ordered(intent.real_ip.proxies):
            yield _simple("set_real_ip_from", str(network))
        yield _simple("real_ip_header", intent.real_ip.header)
        yield _simple("real_ip_recursive", "on")
    # No other protocol: requests of h2c would reach an upstream past the access lists.
    upgrade = (_simple("default", ""), _simple("~*^websocket$", "websocket"))
    yield Directive("map", ("$http_upgrade", "$latticed_upgrade"), upgrade)
    # An empty Connection keeps the connection to an upstream that is asked for no websocket.
    connection = (_simple("default", ""), _simple("websocket", "upgrade"))
    yield Directive("map", ("$latticed_upgrade", "$latticed_connection"), connection)
    # The port that the client named, with its colon: what is listened at may be another one (NAT).
    port = (_simple("default", ""), _simple("~^[^:]+(:[0-9]{1,5})$", "$1"))
    yield Directive("map", ("$http_host", "$latticed_port"), port)
    for one in sorted(intent.access, key=lambda one: one.name):
        yield Directive("geo", (_access(one.name),), tuple(_allowed(one)))
    yield Directive("server", block=tuple(_catch_all(intent.listen)))
    yield _simple("include", f"{SITES}/*.conf")
    yield _simple("include", PROBE)


def _allowed(access: AccessList) -> Iterator[Directive]:
    yield _simple("default", 0)
    for network in _ordered(access.allow):
        yield _simple(str(network), 1)


def _catch_all(listen: Listen) -> Iterator[Directive]:
    """Who asks for no site of ours is told nothing: no certificate, no answer."""
    yield from _listens(listen, "http", "default_server")
    yield from _listens(listen, "https", "default_server")
    yield _simple("server_name", "_")
    yield _simple("ssl_reject_handshake", "on")
    yield _simple("return", 444)


def _listens(listen: Listen, scheme: str, *more: str) -> Iterator[Directive]:
    port = listen.https if scheme == "https" else listen.http
    flags = () if scheme == "http" else ("ssl", "http2") if listen.http2 else ("ssl",)
    found = sorted(listen.addresses, key=lambda one: (one.version, one))
    for address in [hosts.bracketed(str(one)) for one in found] or ["0.0.0.0", "[::]"]:  # noqa: S104 - the operator's wish
        yield _simple("listen", f"{address}:{port}", *flags, *more)


def _served(intent: NginxIntent, site: Site, place: NginxPlace) -> Iterator[Directive]:
    """One or two servers: without TLS, and with."""
    names = _simple("server_name", *sorted(site.domains))
    copies = {one.plugin: file_sets.digest(file_sets.text(one)) for one in intent.published}
    sends = [*_sends(site), *_locations(site, place, copies)]
    head = [*_listens(intent.listen, "http"), names, *_challenges(intent)]
    tls = site.tls
    if tls is not None and tls.force:
        target = f"https://$host{_port('https', intent.listen.https)}$request_uri"
        head.append(Directive("location", ("/",), (_simple("return", 308, target),)))
        yield Directive("server", block=tuple(head))
    else:
        yield Directive("server", block=(*head, *sends))
    if tls is None:
        yield _refused(intent, names)
    else:
        head = [*_listens(intent.listen, "https"), names, *_challenges(intent)]
        head += [_simple("ssl_certificate", tls.certificate), _simple("ssl_certificate_key", tls.key)]
        if tls.hsts is not None:
            head.append(_simple("add_header", "Strict-Transport-Security", _hsts(tls.hsts), "always"))
        yield Directive("server", block=(*head, *sends))


def _unserved(intent: NginxIntent, site: Site) -> Iterator[Directive]:
    names = _simple("server_name", *sorted(site.domains))
    answer = Directive("location", ("/",), (_simple("return", 503),))
    yield Directive("server", block=(*_listens(intent.listen, "http"), names, *_challenges(intent), answer))
    yield _refused(intent, names)


def _refused(intent: NginxIntent, names: Directive) -> Directive:
    """Without a certificate nothing can be said by TLS. Another site, with `*.` of the same domain, must not answer."""
    refusal = (_simple("ssl_reject_handshake", "on"), _simple("return", 444))
    return Directive("server", block=(*_listens(intent.listen, "https"), names, *refusal))


def _hsts(hsts: Hsts) -> str:
    return f"max-age={hsts.max_age_s}" + ("; includeSubDomains" if hsts.subdomains else "")


def _challenges(intent: NginxIntent) -> Iterator[Directive]:
    if intent.acme_webroot:
        inside = (_simple("root", intent.acme_webroot), _simple("default_type", "text/plain"))
        yield Directive("location", ("^~", CHALLENGES), inside)


def _sends(site: Site) -> Iterator[Directive]:
    """What upstreams are told. A header that the client sent is not believed: its address is what nginx sees."""
    yield _simple("client_max_body_size", f"{site.max_body_mb}m")
    if any(isinstance(one, PublishedFiles) for _, one, _ in site.handlers()):
        # A plugin's text must not be taken for a script (system-plugins.md, static).
        yield _simple("add_header", "X-Content-Type-Options", "nosniff", "always")
    if not any(isinstance(one, Upstream | Own) for _, one, _ in site.handlers()):
        return
    yield _simple("proxy_http_version", "1.1")
    # $host is the name that the site was found by; Host may be another one where the request line has a name, too.
    yield _simple("proxy_set_header", "Host", "$host$latticed_port")
    yield _simple("proxy_set_header", "X-Real-IP", "$remote_addr")
    yield _simple("proxy_set_header", "X-Forwarded-For", "$remote_addr")
    yield _simple("proxy_set_header", "X-Forwarded-Proto", "$scheme")
    yield _simple("proxy_set_header", "X-Forwarded-Host", "$host$latticed_port")
    yield _simple("proxy_set_header", "Forwarded", "")
    yield _simple("proxy_set_header", "Proxy", "")
    # Programs take the path, or where they are, from some of these: past the access lists.
    for name in ("HTTP2-Settings", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Port"):
        yield _simple("proxy_set_header", name, "")
    yield _simple("proxy_set_header", "Upgrade", "$latticed_upgrade" if site.websockets else "")
    yield _simple("proxy_set_header", "Connection", "$latticed_connection" if site.websockets else "")
    if site.websockets:
        yield _simple("proxy_read_timeout", "3600s")
    # Of nginx itself, not what an upstream answers: it does not answer, or its name is not known.
    yield _simple("error_page", 502, 504, "=503", _UNAVAILABLE)
    yield Directive("location", (_UNAVAILABLE,), (_simple("return", 503),))


def _locations(site: Site, place: NginxPlace, copies: Mapping[str, str]) -> Iterator[Directive]:
    for one in sorted(site.locations, key=lambda one: (one.path, one.match)):
        where = ("=", one.path) if one.match is Match.EXACT else (one.path,)
        yield Directive("location", where, tuple(_handled(one.handler, one.access or site.access, place, copies)))
    yield Directive("location", ("/",), tuple(_handled(site.handler, site.access, place, copies)))


def _handled(handler: Handler, access: str, place: NginxPlace, copies: Mapping[str, str]) -> Iterator[Directive]:
    if access:
        # `allow` and `deny` are asked after `return`, and would keep nobody from what is sent on or answered.
        yield Directive("if", (f"({_access(access)}", "=", "0)"), (_simple("return", 403),))
    match handler:
        case Upstream():
            yield from _forwarded(handler)
        case Own():
            host, port = place.own[handler]
            yield _simple("proxy_pass", f"http://{hosts.bracketed(host)}:{port}")
        case Files(root):
            yield from _from_disk(root)
        case PublishedFiles(plugin):
            yield from _from_disk(f"{place.published}/{copies[plugin]}")
        case Redirect(to=to, status=status, keep=keep):
            yield _simple("return", status, f"{to.rstrip('/')}$request_uri" if keep else to)
        case BareAnswer(status):
            yield _simple("return", status)


def _forwarded(upstream: Upstream) -> Iterator[Directive]:
    target = f"{hosts.bracketed(upstream.host)}:{upstream.port}"
    if upstream.scheme is Scheme.HTTPS:
        yield _simple("proxy_ssl_server_name", "on")
        yield _simple("proxy_ssl_name", upstream.host)
        if upstream.verify:
            yield _simple("proxy_ssl_verify", "on")
            yield _simple("proxy_ssl_verify_depth", 5)
            yield _simple("proxy_ssl_trusted_certificate", AUTHORITIES)
    if hosts.address_of(upstream.host) is None:
        # With a variable nginx asks `resolver` for each request; else once, at its start, which then fails.
        yield _simple("set", "$latticed_upstream", target)
        target = "$latticed_upstream"
    yield _simple("proxy_pass", f"{upstream.scheme}://{target}")


def _from_disk(root: str) -> Iterator[Directive]:
    # Hidden files are none that anybody means to publish: .git, .env, .htpasswd.
    yield Directive("if", ("($uri", "~", "/[.])"), (_simple("return", 404),))
    yield _simple("root", root)
    yield _simple("index", "index.html")
    yield _simple("disable_symlinks", "if_not_owner", f"from={root}")
    yield _simple("try_files", "$uri", "$uri/", "=404")


def _access(name: str) -> str:
    return f"$latticed_access_{name}"


def _ordered(networks: tuple[Network, ...]) -> list[Network]:
    return sorted(set(networks), key=lambda one: (one.version, one))


def _port(scheme: str, port: int) -> str:
    return "" if port == _DEFAULT_PORTS[scheme] else f":{port}"

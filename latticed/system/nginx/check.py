"""What an intent means, and whether that can be meant: all findings at once, without and with facts of the host.

`nginx -t` takes a second server in a name, warns of a name that two servers have and goes on, and finds a port that is
taken good (docs/internals/system-plugins.md). So each of these is refused here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model import addresses, hosts
from latticed.system.findings import MAX_FINDINGS, Finding
from latticed.system.nginx.intent import Files, Own, PublishedFiles, Redirect, Scheme, Upstream

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from latticed.model.addresses import Address
    from latticed.system.nginx.facts import BoundSocket, NginxFacts, NginxPlace
    from latticed.system.nginx.intent import Handler, NginxIntent, Site

CHALLENGES: Final = "/.well-known/acme-challenge/"
"""Where an ACME server looks for its answers (RFC 8555, section 8.3)."""
WIDEST_PROXY: Final = {4: 8, 6: 16}
"""Shortest prefixes of `real_ip`: with a wider one, who is no proxy would name the address that he comes from."""
_METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)
_NO_HOST: Final = frozenset(
    {"this network", "unspecified", "multicast", "reserved", "discard", "unallocated", "zoned"}
    # Forms of IPv6 that hold an IPv4 address, which could be any of those that are refused.
    | {"IPv4 within IPv6", "NAT64", "Teredo", "6to4", "ISATAP"}
)


def check(intent: NginxIntent, place: NginxPlace, facts: NginxFacts | None = None) -> tuple[Finding, ...]:
    """Every fault (at most 100) in the meaning of an intent that `decode.read` took; with facts, of the host too."""
    found = [*_names(intent), *_shared(intent, place)]
    for index, site in enumerate(intent.sites):
        found += _site(intent, site, f"sites[{index}]", place)
    for path, one, _ in _handlers(intent):
        found += _handler(intent, one, path, place, facts)
    if facts is not None:
        found += _host(intent, facts)
    return tuple(found[:MAX_FINDINGS])


def _names(intent: NginxIntent) -> Iterator[Finding]:
    yield from _twice(
        ((f"sites[{index}].name", one.name) for index, one in enumerate(intent.sites)), "a name of its own"
    )
    yield from _twice(
        ((f"access[{index}].name", one.name) for index, one in enumerate(intent.access)), "a name of its own"
    )
    sets = ((f"published[{index}].plugin", one.plugin) for index, one in enumerate(intent.published))
    yield from _twice(sets, "the files of each plugin once")
    domains = (
        (f"sites[{index}].domains[{place}]", domain)
        for index, site in enumerate(intent.sites)
        for place, domain in enumerate(site.domains)
    )
    # nginx only warns, and the first of both has the name.
    yield from _twice(domains, "a domain that no other site has")
    known = {one.name for one in intent.access}
    for index, site in enumerate(intent.sites):
        named = [(f"sites[{index}].access", site.access)]
        named += [(f"sites[{index}].locations[{at}].access", one.access) for at, one in enumerate(site.locations)]
        for path, name in named:
            if name and name not in known:
                yield Finding(code="unknown_access", path=path, expected="the name of a list in access", found=name)


def _shared(intent: NginxIntent, place: NginxPlace) -> Iterator[Finding]:
    if intent.listen.http == intent.listen.https:
        expected = "another port than that of listen.http"
        yield Finding(code="duplicate", path="listen.https", expected=expected, found=str(intent.listen.https))
    listen = ((f"listen.addresses[{index}]", str(one)) for index, one in enumerate(intent.listen.addresses))
    yield from _twice(listen, "an address once")
    for index, listed in enumerate(intent.access):
        for at, network in enumerate(listed.allow):
            if network.prefixlen == 0:
                where = f"access[{index}].allow[{at}]"
                expected = "less than every address: a site without access is open to all"
                yield Finding(code="too_wide", path=where, expected=expected, found=str(network))
    for version in (4, 6):
        of_version = [one for one in intent.listen.addresses if one.version == version]
        if len(of_version) > 1 and any(one.is_unspecified for one in of_version):
            expected = f"no other IPv{version} address beside the one for all of them"
            yield Finding(code="duplicate", path="listen.addresses", expected=expected, found=str(len(of_version)))
    if intent.acme_webroot:
        yield from _below(intent.acme_webroot, place.files, "acme_webroot")
    for index, one in enumerate(intent.real_ip.proxies if intent.real_ip else ()):
        if one.prefixlen < WIDEST_PROXY[one.version]:
            expected = f"the networks of your proxies, /{WIDEST_PROXY[one.version]} at most"
            yield Finding(code="too_wide", path=f"real_ip.from[{index}]", expected=expected, found=str(one))


def _site(intent: NginxIntent, site: Site, path: str, place: NginxPlace) -> Iterator[Finding]:
    locations = (
        (f"{path}.locations[{index}].path", f"{one.match} {one.path}") for index, one in enumerate(site.locations)
    )
    yield from _twice(locations, "a path once")
    for index, one in enumerate(site.locations):
        where = f"{path}.locations[{index}].path"
        if one.path == "/" and one.match == "prefix":
            expected = "another path: what is done at / is said by the site itself"
            yield Finding(code="duplicate", path=where, expected=expected, found="/")
        if one.path.startswith("/.well-known"):
            expected = "a path apart from /.well-known, which certificates are asked for with"
            yield Finding(code="reserved_path", path=where, expected=expected, found=one.path)
    if site.tls is not None:
        yield from _below(site.tls.certificate, place.certificates, f"{path}.tls.certificate")
        yield from _below(site.tls.key, place.certificates, f"{path}.tls.key")
    if isinstance(site.handler, Redirect) and _loops(intent, site, site.handler):
        expected = "an address that is not this site's own"
        yield Finding(code="redirect_loop", path=f"{path}.redirect.to", expected=expected, found=site.handler.to)


def _loops(intent: NginxIntent, site: Site, redirect: Redirect) -> bool:
    """Whether a site that does nothing but send on sends to itself."""
    if site.tls is None:
        own = [("http", intent.listen.http, 80)]
    else:
        own = [("https", intent.listen.https, 443)]
        own += [("http", intent.listen.http, 80)]  # which is sent to https, if not served as that is
    scheme, rest = redirect.to.split("://", 1)
    authority, _, path = rest.partition("/")
    host, _, port = authority.partition(":") if not authority.startswith("[") else (authority, "", "")
    if not any(_covers(domain, host) for domain in site.domains):
        return False
    # `/` may be sent to `/app`, when that is a place where something else is done.
    if any(f"/{path}".startswith(one.path) and not isinstance(one.handler, Redirect) for one in site.locations):
        return False
    return any(scheme == name and int(port or default) == listens for name, listens, default in own)


def _covers(domain: str, host: str) -> bool:
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain


def _handlers(intent: NginxIntent) -> Iterator[tuple[str, Handler, str]]:
    for index, site in enumerate(intent.sites):
        for path, one, access in site.handlers():
            yield f"sites[{index}]{path}", one, access


def _handler(
    intent: NginxIntent, handler: Handler, path: str, place: NginxPlace, facts: NginxFacts | None
) -> Iterator[Finding]:
    match handler:
        case Upstream():
            yield from _upstream(intent, handler, f"{path}.upstream", place, facts)
        case Own() if facts is not None and handler not in place.own:
            hint = f"settings: http.{'service_listen' if handler is Own.SERVICES else 'listen'} names address and port"
            expected = "a listener of latticed that is switched on"
            yield Finding(code="no_listener", path=f"{path}.upstream", expected=expected, found=handler, hint=hint)
        case Files():
            yield from _below(handler.root, place.files, f"{path}.root")
        case PublishedFiles(plugin) if not any(one.plugin == plugin and one.files for one in intent.published):
            hint = "the plugin adds them: latticectl apply latticed.nginx"
            expected = "the id of a plugin whose files are in published"
            yield Finding(code="not_published", path=f"{path}.publish", expected=expected, found=plugin, hint=hint)


def _upstream(
    intent: NginxIntent, upstream: Upstream, path: str, place: NginxPlace, facts: NginxFacts | None
) -> Iterator[Finding]:
    where, host = f"{path}.host", upstream.host
    address = hosts.address_of(host)
    ours = [*place.listeners, *(() if facts is None else facts.ours)]
    if address is None:
        if not intent.resolvers:
            hint = 'as "resolvers": ["127.0.0.53"]; nginx does not read /etc/hosts'
            expected = "resolvers, that the name can be looked up with, or an address"
            yield Finding(code="no_resolver", path=where, expected=expected, found=host, hint=hint)
        if host == "localhost" or host.endswith(".localhost"):
            expected = "an address, as 127.0.0.1"
            yield Finding(code="bad_upstream", path=where, expected=expected, found=host)
        if host in _METADATA_NAMES:
            yield _metadata(where, host)
        # Nobody knows today what a name means tomorrow; our ports are none that others' programs have.
        if any(one.port == upstream.port for one in ours):
            yield _own(path, f"{host}:{upstream.port}")
        return
    kind = addresses.blocked_class(address)
    if upstream.scheme is Scheme.HTTPS and upstream.verify:
        # nginx 1.22 compares names only.
        expected = "a name, which the certificate can be compared with, or verify: false"
        yield Finding(code="unverifiable", path=where, expected=expected, found=host)
    if kind in {addresses.METADATA, "link-local"}:
        yield _metadata(where, host)
    elif kind in _NO_HOST:
        yield Finding(code="bad_upstream", path=where, expected="the address of one host", found=f"{host} ({kind})")
    if any(one.port == upstream.port and _meets(one.address, address, facts) for one in ours):
        yield _own(path, f"{host}:{upstream.port}")
    elif upstream.port in {intent.listen.http, intent.listen.https} and any(
        _meets(one, address, facts) for one in intent.listen.addresses or _ALL
    ):
        expected = "a server other than the nginx of this plan"
        yield Finding(code="upstream_loop", path=path, expected=expected, found=f"{host}:{upstream.port}")


_ALL: Final = tuple(hosts.address_of(one) for one in ("0.0.0.0", "::"))  # noqa: S104 - compared, never bound


def _meets(bound: Address | None, address: Address, facts: NginxFacts | None) -> bool:
    """Whether what is sent to `address` from this host gets to a socket that is bound to `bound`."""
    if bound is None:
        return False
    if bound.is_unspecified and bound.version in {address.version, 6}:
        return address.is_loopback or (facts is not None and address in facts.addresses)
    return bound == address


def _host(intent: NginxIntent, facts: NginxFacts) -> Iterator[Finding]:
    """What does not fit this host."""
    listen = intent.listen
    for index, address in enumerate(listen.addresses):
        if not (address.is_unspecified or address.is_loopback or address in facts.addresses):
            expected = "an address of this host"
            yield Finding(code="no_address", path=f"listen.addresses[{index}]", expected=expected, found=str(address))
    wanted = listen.addresses or _ALL
    for name in ("http", "https"):
        port = getattr(listen, name)
        clash = next((one for one in facts.taken if one.port == port and _clashes(one, wanted)), None)
        if clash is not None:
            found = f"{hosts.bracketed(str(clash.address))}:{port}"
            hint = "stop what listens there, or bind addresses of your own: listen.addresses"
            expected = "a port that nothing else has bound"
            yield Finding(code="port_taken", path=f"listen.{name}", expected=expected, found=found, hint=hint)


def _clashes(taken: BoundSocket, wanted: Iterable[Address | None]) -> bool:
    return any(
        one == taken.address
        or (
            one is not None
            and one.version == taken.address.version
            and (one.is_unspecified or taken.address.is_unspecified)
        )
        for one in wanted
    )


def _metadata(path: str, host: str) -> Finding:
    expected = "no address at which a cloud serves its machines"
    return Finding(code="metadata", path=path, expected=expected, found=host)


def _own(path: str, found: str) -> Finding:
    hint = 'write "upstream": "http" or "upstream": "services"'
    expected = "none of latticed's own listeners but http and services"
    return Finding(code="own_listener", path=path, expected=expected, found=found, hint=hint)


def _below(file: str, roots: Iterable[str], path: str) -> Iterator[Finding]:
    if not any(file.startswith(f"{root}/") for root in roots):
        expected = f"a path below {' or '.join(roots)}"
        yield Finding(code="outside_roots", path=path, expected=expected, found=file)


def _twice(values: Iterable[tuple[str, Hashable]], expected: str) -> Iterator[Finding]:
    seen: set[Hashable] = set()
    for path, value in values:
        if value in seen:
            yield Finding(code="duplicate", path=path, expected=expected, found=str(value))
        seen.add(value)

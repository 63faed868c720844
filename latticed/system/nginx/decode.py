"""An intent from plain JSON values, strictly (`system.reading`)."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from latticed.model import hosts, ids, published
from latticed.system.findings import IntentRefused
from latticed.system.nginx import intent as model
from latticed.system.reading import MISSING, Reader, Told

if TYPE_CHECKING:
    from latticed.model.addresses import Address

# None of them has anything that nginx takes for more than a character: no space, no quote, none of ; { } $ \ #.
_DOMAIN: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_DOMAIN_EXPECTED: Final = "a host name, as shop.example.org, or *. and a host name"
_FILE: Final = re.compile(r"(?:/[A-Za-z0-9_@+][A-Za-z0-9._@+-]{0,254}){1,32}")
_FILE_EXPECTED: Final = "an absolute path of A-Z a-z 0-9 . _ @ + - whose parts do not begin with a dot"
_PART: Final = "[A-Za-z0-9_~@+=:,!()*&-][A-Za-z0-9._~@+=:,!()*&-]{0,254}"
_PATH: Final = re.compile(f"/(?:{_PART}(?:/{_PART}){{0,31}}/?)?")
_PATH_EXPECTED: Final = "a path as nginx compares it: decoded, without // and parts that begin with a dot"
_TARGET: Final = re.compile(
    r"(https?)://(\[[0-9a-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?)(?::([0-9]{1,5}))?"
    r"((?:/[A-Za-z0-9._~@+=:,!()*&%-]{0,255}){0,32})"
)
_TARGET_EXPECTED: Final = "an address to go to, as https://shop.example.org/new, without query and fragment"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ACCESS: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ACCESS_EXPECTED: Final = "the name of an access list: a-z, then at most 31 of a-z 0-9 _"
_HANDLERS: Final = ("upstream", "root", "publish", "redirect", "answer")
_SITE_KEYS: Final = f"name domains tls locations access websockets max_body_mb enabled {' '.join(_HANDLERS)}"
_NOTHING: Final = model.BareAnswer(404)


def read(plain: Any) -> model.NginxIntent:
    """The intent in plain JSON values, or IntentRefused with every fault of its form (at most 100).

    What the form cannot show (a domain that two sites have, a list that there is not) is for `check`.
    """
    reader = _NginxReader()
    intent = reader.intent(plain)
    if reader.findings:
        raise IntentRefused(reader.findings)
    return intent


class _NginxReader(Reader):
    def intent(self, plain: Any) -> model.NginxIntent:
        fields = self.fields(plain, "", "sites listen access resolvers real_ip acme_webroot drain_s published")
        return model.NginxIntent(
            sites=self.each(fields, "sites", "sites", model.MAX_SITES, self.site),
            listen=self.listen(fields["listen"], "listen") if "listen" in fields else model.Listen(),
            access=self.each(fields, "access", "access", model.MAX_ACCESS, self.access_list),
            resolvers=self.each(fields, "resolvers", "resolvers", model.MAX_RESOLVERS, self.address),
            real_ip=self.real_ip(fields["real_ip"], "real_ip") if "real_ip" in fields else None,
            acme_webroot=self.file(fields["acme_webroot"], "acme_webroot") if "acme_webroot" in fields else "",
            drain_s=self.integer(fields.get("drain_s", model.DRAIN_S), "drain_s", 1, model.MAX_DRAIN_S),
            published=self.each(fields, "published", "published", model.MAX_SITES, self.file_set),
        )

    def file_set(self, value: Any, path: str) -> model.FileSet:
        fields = self.fields(value, path, "plugin publisher files", "plugin publisher files")
        files = fields.get("files")
        if not isinstance(files, dict) or len(files) > model.MAX_FILES:
            self.refuse("wrong_type", f"{path}.files", f"an object of at most {model.MAX_FILES} paths", Told("none"))
            files = {}
        for name, digest in files.items():
            if published.path_fault(name) is not None:
                self.refuse("bad_file", f"{path}.files", "paths of published files", name)
            elif not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                self.refuse("bad_digest", f"{path}.files", "a SHA-256 for each: 64 of 0-9 a-f", digest)
        return model.FileSet(
            plugin=self.plugin_id(fields.get("plugin", MISSING), f"{path}.plugin"),
            publisher=self.plugin_id(fields["publisher"], f"{path}.publisher") if fields.get("publisher") else "",
            files=tuple(sorted(files.items())),
        )

    def plugin_id(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or not ids.is_valid(value):
            self.refuse("bad_id", path, "the id of a plugin, as acme.site", value)
            return ""
        return value

    def listen(self, value: Any, path: str) -> model.Listen:
        fields = self.fields(value, path, "addresses http https http2")
        return model.Listen(
            addresses=self.each(fields, "addresses", f"{path}.addresses", model.MAX_LISTEN, self.address),
            http=self.integer(fields.get("http", 80), f"{path}.http", 1, 65_535),
            https=self.integer(fields.get("https", 443), f"{path}.https", 1, 65_535),
            http2=self.boolean(fields, "http2", path, default=True),
        )

    def access_list(self, value: Any, path: str) -> model.AccessList:
        fields = self.fields(value, path, "name allow", "name allow")
        return model.AccessList(
            name=self.access_name(fields, "name", path),
            allow=self.each(fields, "allow", f"{path}.allow", model.MAX_ALLOW, self.network),
        )

    def real_ip(self, value: Any, path: str) -> model.RealIp:
        fields = self.fields(value, path, "from header", "from")
        proxies = self.each(fields, "from", f"{path}.from", model.MAX_PROXIES, self.network)
        return model.RealIp(
            proxies=proxies, header=self.choice(fields, "header", path, model.RealIpHeader.FORWARDED_FOR)
        )

    def site(self, value: Any, path: str) -> model.Site:
        fields = self.fields(value, path, _SITE_KEYS, "name domains")
        domains = self.each(fields, "domains", f"{path}.domains", model.MAX_DOMAINS, self.domain)
        if fields.get("domains") == []:
            self.refuse("missing_key", f"{path}.domains", "a host name", Told("none"))
        return model.Site(
            name=self.name(fields.get("name", MISSING), f"{path}.name"),
            domains=domains,
            handler=self.handler(fields, path),
            tls=self.tls(fields["tls"], f"{path}.tls") if "tls" in fields else None,
            locations=self.each(fields, "locations", f"{path}.locations", model.MAX_LOCATIONS, self.location),
            access=self.access_name(fields, "access", path),
            websockets=self.boolean(fields, "websockets", path, default=False),
            max_body_mb=self.integer(
                fields.get("max_body_mb", model.BODY_MB), f"{path}.max_body_mb", 1, model.MAX_BODY_MB
            ),
            enabled=self.boolean(fields, "enabled", path, default=True),
        )

    def location(self, value: Any, path: str) -> model.Location:
        fields = self.fields(value, path, f"path match access {' '.join(_HANDLERS)}", "path")
        where = fields.get("path", "/")
        return model.Location(
            path=self.text(where, f"{path}.path", "bad_path", _PATH, _PATH_EXPECTED),
            match=self.choice(fields, "match", path, model.Match.PREFIX),
            handler=self.handler(fields, path),
            access=self.access_name(fields, "access", path),
        )

    def tls(self, value: Any, path: str) -> model.Tls:
        fields = self.fields(value, path, "certificate key force hsts", "certificate key")
        return model.Tls(
            certificate=self.file(fields["certificate"], f"{path}.certificate") if "certificate" in fields else "",
            key=self.file(fields["key"], f"{path}.key") if "key" in fields else "",
            force=self.boolean(fields, "force", path, default=True),
            hsts=self.hsts(fields["hsts"], f"{path}.hsts") if "hsts" in fields else None,
        )

    def hsts(self, value: Any, path: str) -> model.Hsts:
        fields = self.fields(value, path, "max_age_s subdomains", "max_age_s")
        return model.Hsts(
            max_age_s=self.integer(fields.get("max_age_s", 0), f"{path}.max_age_s", 0, model.MAX_HSTS_S),
            subdomains=self.boolean(fields, "subdomains", path, default=False),
        )

    def handler(self, fields: dict[str, Any], path: str) -> model.Handler:
        """What is done with a request: exactly one of `_HANDLERS`."""
        named = [one for one in _HANDLERS if one in fields]
        if len(named) != 1:
            found = Told(" and ".join(named) or "none")
            self.refuse("bad_handler", path or "intent", f"one of {', '.join(_HANDLERS)}", found)
            return _NOTHING
        (name,) = named
        value, where = fields[name], f"{path}.{name}"
        match name:
            case "upstream":
                return self.upstream(value, where)
            case "root":
                return model.Files(self.file(value, where))
            case "publish":
                return model.PublishedFiles(self.plugin_id(value, where))
            case "redirect":
                return self.redirect(value, where)
        return model.BareAnswer(self.one_of(value, where, model.ANSWERS))

    def upstream(self, value: Any, path: str) -> model.Upstream | model.Own:
        if isinstance(value, str):
            if value in {str(one) for one in model.Own}:
                return model.Own(value)
            self.refuse("bad_upstream", path, "http, services, or an object with scheme, host and port", value)
            return model.Own.HTTP
        fields = self.fields(value, path, "scheme host port verify", "scheme host port")
        return model.Upstream(
            scheme=self.choice(fields, "scheme", path, model.Scheme.HTTP),
            host=self.host(fields["host"], f"{path}.host") if "host" in fields else "192.0.2.1",
            port=self.integer(fields.get("port", 1), f"{path}.port", 1, 65_535),
            verify=self.boolean(fields, "verify", path, default=True),
        )

    def redirect(self, value: Any, path: str) -> model.Redirect:
        fields = self.fields(value, path, "to status keep", "to")
        target = fields.get("to", "https://example.org")
        found = _TARGET.fullmatch(target) if isinstance(target, str) else None
        if found is None or not 1 <= int(found[3] or 1) <= 65_535:
            self.refuse("bad_target", f"{path}.to", _TARGET_EXPECTED, target)
            target = ""
        else:
            host = hosts.bracketed(self.host(found[2], f"{path}.to"))
            port = f":{int(found[3])}" if found[3] else ""
            target = f"{found[1]}://{host}{port}{found[4]}"
        return model.Redirect(
            to=target,
            status=self.one_of(fields.get("status", 308), f"{path}.status", model.REDIRECTS),
            keep=self.boolean(fields, "keep", path, default=True),
        )

    def one_of(self, value: Any, path: str, known: tuple[int, ...]) -> int:
        if type(value) is not int or value not in known:
            self.refuse("bad_choice", path, f"one of {', '.join(map(str, known))}", value)
            return known[0]
        return value

    def domain(self, value: Any, path: str) -> str:
        """A name in normal form, or `*.` and one; no address."""
        below = "*." if isinstance(value, str) and value.startswith("*.") else ""
        host = self._host(value.removeprefix(below)) if isinstance(value, str) else None
        if host is None or hosts.address_of(host) is not None:
            self.refuse("bad_domain", path, _DOMAIN_EXPECTED, value)
            return ""
        return below + host

    def host(self, value: Any, path: str) -> str:
        """A name or address in normal form."""
        host = self._host(value) if isinstance(value, str) else None
        if host is None:
            self.refuse("bad_host", path, "a host name or an address, IPv6 in brackets", value)
            return "192.0.2.1"
        return host

    def _host(self, text: str) -> str | None:
        try:
            host = hosts.normal(text)
        except hosts.NotAHost:
            return None
        address = hosts.address_of(host)
        if isinstance(address, ipaddress.IPv6Address):
            return None if address.ipv4_mapped else host
        return host if address is not None or _DOMAIN.fullmatch(host) else None

    def address(self, value: Any, path: str) -> Address:
        """One address, not a network."""
        network = self.network(value, path)
        if network.num_addresses != 1 or (isinstance(value, str) and "/" in value):
            self.refuse("bad_address", path, "an address, as 127.0.0.53 or 2001:db8::1", value)
        return network.network_address

    def file(self, value: Any, path: str) -> str:
        """An absolute path without dot segments, empty parts and hidden ones."""
        return self.text(value, path, "bad_file", _FILE, _FILE_EXPECTED)

    def access_name(self, fields: dict[str, Any], name: str, path: str) -> str:
        if name not in fields:
            return ""
        return self.text(fields[name], f"{path}.{name}", "bad_name", _ACCESS, _ACCESS_EXPECTED)

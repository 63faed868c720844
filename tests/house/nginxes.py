"""nginx in tests: intents by chance, what an independent reader makes of a rendering, and real servers on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pwd
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import crossplane

from latticed.plans.nginx import place as place_by
from latticed.settings.programs import NginxSettings
from latticed.settings.shapes import HttpSettings
from latticed.system.nginx import applied, check, decode, render
from latticed.system.nginx.facts import NginxPlace
from latticed.system.nginx.intent import Own
from tests.house import ports

NGINX = "/usr/sbin/nginx"
PATIENCE_S = 20
PLACE = place_by(NginxSettings(), HttpSettings(listen="127.0.0.1:7180", service_listen="[::1]:7181"))


# Intents


def site(name="shop", **changes):
    """A site's document; a handler among `changes` takes the place of its upstream."""
    made = {"name": name, "domains": [f"{name}.example.org"], **changes}
    if not made.keys() & {"upstream", "root", "publish", "redirect", "answer"}:
        made["upstream"] = {"scheme": "http", "host": "10.0.0.5", "port": 8080}
    return made


LIVE = "/etc/letsencrypt/live"


def tls(name="shop", live=LIVE, **changes):
    return {"certificate": f"{live}/{name}/fullchain.pem", "key": f"{live}/{name}/privkey.pem", **changes}


def document(*sites, **changes):
    return {"sites": list(sites), **changes}


def published(plugin="acme.site", publisher="acme", **files):
    """What the plugin adds for sites that publish the files of `plugin`, each a SHA-256."""
    return {"plugin": plugin, "publisher": publisher, "files": files}


def sound(rng, live=LIVE):
    """A document without faults, by chance: each thing that an intent may have, in some of them."""
    lists = rng.sample(["office", "home", "lab_2"], rng.randint(0, 3))
    sites = []
    for name in rng.sample(["shop", "wiki", "old-one", "a_b", "files"], rng.randint(0, 5)):
        made = {**_handled(rng), "name": name, "domains": [f"{name.replace('_', '-')}.example.org"]}
        made["domains"] += rng.sample(
            [f"*.{name.replace('_', '-')}.example.net", f"{name.replace('_', '-')}-2.lan"], rng.randint(0, 2)
        )
        if rng.random() < 0.6:
            made["tls"] = tls(name, live, force=rng.random() < 0.5)
            if rng.random() < 0.5:
                made["tls"]["hsts"] = {"max_age_s": rng.randint(0, 10**7), "subdomains": rng.random() < 0.5}
        if lists and rng.random() < 0.5:
            made["access"] = rng.choice(lists)
        made["websockets"] = rng.random() < 0.5
        made["max_body_mb"] = rng.randint(1, 100)
        made["enabled"] = rng.random() < 0.8
        paths = rng.sample(["/api", "/api/", "/a-b_c~", "/static/x.css", "/v1/(x)*"], rng.randint(0, 4))
        made["locations"] = [
            {"path": path, "match": rng.choice(["prefix", "exact"]), **_handled(rng)}
            | ({"access": rng.choice(lists)} if lists and rng.random() < 0.4 else {})
            for path in paths
        ]
        sites.append(made)
    made = document(*sites, resolvers=rng.sample(["127.0.0.53", "2001:db8::53", "192.0.2.53"], rng.randint(1, 3)))
    made["access"] = [
        {
            "name": name,
            "allow": rng.sample(["192.0.2.0/24", "2001:db8::/32", "10.0.0.7/32", "10.0.0.0/8"], rng.randint(0, 4)),
        }
        for name in lists
    ]
    if rng.random() < 0.5:
        header = rng.choice(["X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP"])
        made["real_ip"] = {"from": ["203.0.113.0/24", "2001:db8:1::/48"], "header": header}
    if rng.random() < 0.5:
        made["acme_webroot"] = "/var/www/acme"
    if rng.random() < 0.5:
        made["listen"] = {"addresses": ["127.0.0.1", "::1"], "http": 8080, "https": 8443, "http2": rng.random() < 0.5}
    made["drain_s"] = rng.randint(1, 600)
    made["published"] = [published(**{"index.html": "ab" * 32, "a/b.css": "cd" * 32})]
    return made


def _handled(rng):
    host = rng.choice(["10.0.0.5", "[2001:db8::5]", "app.lan"])
    scheme = rng.choice(["http", "https"])
    upstream = {"scheme": scheme, "host": host, "port": rng.randint(9_000, 65_535)}
    if scheme == "http" or host != "app.lan":
        upstream["verify"] = scheme == "http"
    return rng.choice(
        [
            {"upstream": upstream},
            {"upstream": upstream},
            {"upstream": rng.choice(["http", "services"])},
            {"root": "/srv/www/site.d"},
            {"publish": "acme.site"},
            {
                "redirect": {
                    "to": "https://example.com/new",
                    "status": rng.choice([301, 308]),
                    "keep": rng.random() < 0.5,
                }
            },
            {"answer": rng.choice([403, 404, 410])},
        ]
    )


# What crossplane, another program's reader of nginx's language, makes of a rendering


def parsed(directory, main):
    """The directives of nginx.conf on disk, includes put in, as crossplane reads them."""
    payload = crossplane.parse(str(Path(directory) / main), combine=True)
    assert payload["status"] == "ok", str(payload["errors"])[:400]
    (config,) = payload["config"]
    return config["parsed"]


def meant(directory, main="nginx.conf", place=PLACE):
    """The document that a configuration on disk comes from. Sites that are switched off have `enabled: False` alone."""
    (block,) = (one["block"] for one in parsed(directory, main) if one["directive"] == "http")
    servers = [one for one in block if one["directive"] == "server"]
    catch_all, *rest = servers
    listens = [_listen(one) for one in _all(catch_all["block"], "listen")]
    made = {
        "listen": {
            "addresses": sorted({address for address, _, _ in listens} - {"0.0.0.0", "::"}),
            "http": next(port for _, port, flags in listens if "ssl" not in flags),
            "https": next(port for _, port, flags in listens if "ssl" in flags),
            "http2": any("http2" in flags for _, _, flags in listens),
        },
        "resolvers": sorted(one.strip("[]") for one in _one(block, "resolver")[:-1]),
        "access": {
            one["args"][0].removeprefix("$latticed_access_"): sorted(
                inner["directive"] for inner in one["block"] if inner["directive"] != "default"
            )
            for one in block
            if one["directive"] == "geo"
        },
        "real_ip": (sorted(args[0] for args in _all(block, "set_real_ip_from")), _one(block, "real_ip_header")),
        "sites": {},
    }
    for first, second in zip(rest[::2], rest[1::2], strict=True):
        found = _site(first["block"], second["block"], place, made)
        made["sites"][tuple(sorted(_one(first["block"], "server_name")))] = found
    return made


def wanted(plain, place=PLACE):
    """The same, of a document."""
    intent = decode.read(plain)
    made = {
        "listen": {
            "addresses": sorted(map(str, intent.listen.addresses)),
            "http": intent.listen.http,
            "https": intent.listen.https,
            "http2": intent.listen.http2,
        },
        "resolvers": sorted(map(str, intent.resolvers)),
        "access": {one.name: sorted({str(network) for network in one.allow}) for one in intent.access},
        "real_ip": (sorted(plain["real_ip"]["from"]), [plain["real_ip"]["header"]]) if intent.real_ip else ([], []),
        "sites": {},
    }
    for plain_site in plain["sites"]:
        key = tuple(sorted(plain_site["domains"]))
        if not plain_site.get("enabled", True):
            made["sites"][key] = {"enabled": False}
            continue
        tls_plain = plain_site.get("tls")
        found = {
            "enabled": True,
            "max_body_mb": plain_site["max_body_mb"],
            "tls": tls_plain and {"force": True, "hsts": None, **tls_plain},
            "places": {"/": _place(plain_site, plain_site.get("access", ""), intent)},
        }
        if "websockets" in plain_site and _forwards(plain_site):
            found["websockets"] = plain_site["websockets"]
        for one in plain_site.get("locations", []):
            key_of = ("= " if one.get("match") == "exact" else "") + one["path"]
            found["places"][key_of] = _place(one, one.get("access", plain_site.get("access", "")), intent)
        made["sites"][key] = found
    return made


def _forwards(plain_site):
    return any("upstream" in one for one in (plain_site, *plain_site.get("locations", [])))


def _place(plain, access, intent):
    (name,) = plain.keys() & {"upstream", "root", "publish", "redirect", "answer"}
    value = plain[name]
    if isinstance(value, dict) and name == "upstream":
        value = {**value, "host": value["host"].strip("[]")}
        value["verify"] = value.get("verify", True) and value["scheme"] == "https"
    if name == "publish":
        (one,) = (one for one in intent.published if one.plugin == value)
        lines = [f"{one.publisher}/{one.plugin}", *(f"{digest}  {path}" for path, digest in one.files)]
        value = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    return {name: value, "access": access}


def _site(first, second, place, shared):
    plain_http = {" ".join(one["args"]): one["block"] for one in first if one["directive"] == "location"}
    secure = {" ".join(one["args"]): one["block"] for one in second if one["directive"] == "location"}
    refused = _one(second, "ssl_reject_handshake") == ["on"]
    challenges = f"^~ {check.CHALLENGES}"
    if challenges in plain_http:
        shared["acme_webroot"] = _one(plain_http[challenges], "root")[0]
    if refused and not _one(first, "client_max_body_size"):
        assert _one(plain_http["/"], "return") == ["503"]
        return {"enabled": False}
    tls_found = None
    served, places = first, plain_http
    if not refused:
        (redirected,) = [_one(plain_http["/"], "return")]
        force = redirected[:1] == ["308"] and redirected[1].startswith("https://$host")
        hsts = next((args for args in _all(second, "add_header") if args[0] == "Strict-Transport-Security"), [])
        tls_found = {
            "certificate": _one(second, "ssl_certificate")[0],
            "key": _one(second, "ssl_certificate_key")[0],
            "force": force,
            "hsts": None,
        }
        if hsts:
            age, _, more = hsts[1].partition("; ")
            tls_found["hsts"] = {"max_age_s": int(age.removeprefix("max-age=")), "subdomains": bool(more)}
        served, places = second, secure
    found = {
        "enabled": True,
        "max_body_mb": int(_one(served, "client_max_body_size")[0].removesuffix("m")),
        "tls": tls_found,
        "places": {
            path: _handler_of(block, place)
            for path, block in places.items()
            if path not in {challenges, "@unavailable"}
        },
    }
    headers = {args[0]: args[1] for args in _all(served, "proxy_set_header")}
    if headers:
        assert headers["X-Forwarded-For"] == headers["X-Real-IP"] == "$remote_addr"
        found["websockets"] = headers["Upgrade"] != ""
    return found


def _handler_of(block, place):
    access = next((one["args"][0] for one in block if one["directive"] == "if"), "")
    access = access.removeprefix("$latticed_access_") if access.startswith("$latticed_access_") else ""
    if target := _one(block, "proxy_pass"):
        names = dict(_all(block, "set"))
        scheme, _, authority = target[0].partition("://")
        host, _, port = names.get(authority, authority).rpartition(":")
        host = host.strip("[]")
        for own, there in place.own.items():
            if there == (host, int(port)):
                return {"upstream": str(own), "access": access}
        upstream = {
            "scheme": scheme,
            "host": host,
            "port": int(port),
            "verify": _one(block, "proxy_ssl_verify") == ["on"],
        }
        return {"upstream": upstream, "access": access}
    if root := _one(block, "root"):
        below = root[0].removeprefix(f"{place.published}/")
        return {"publish" if below != root[0] else "root": below, "access": access}
    status, *rest = _one(block, "return")
    if not rest:
        return {"answer": int(status), "access": access}
    kept = rest[0].endswith("$request_uri")
    return {
        "redirect": {"to": rest[0].removesuffix("$request_uri"), "status": int(status), "keep": kept},
        "access": access,
    }


def _all(block, name):
    return [one["args"] for one in block if one["directive"] == name]


def _one(block, name):
    return next(iter(_all(block, name)), [])


def _listen(args):
    address, _, port = args[0].rpartition(":")
    return address.strip("[]"), int(port), set(args[1:])


# Real servers


def written(directory: Path, rendering: bytes, bad=()) -> Path:
    """The files of a rendering as nginx reads them; the path of nginx.conf."""
    for name, text in applied.tree(applied.read(rendering), bad).items():
        path = directory / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (directory / "conf" / render.PROBE).touch()
    return directory / "conf" / render.MAIN


def tried(main: Path) -> subprocess.CompletedProcess[bytes]:
    """nginx -t."""
    return subprocess.run([NGINX, "-t", "-e", "stderr", "-c", str(main)], check=False, capture_output=True, timeout=60)


def place_of(directory: Path, **own: int) -> NginxPlace:
    """A place below a directory of the test, whose files this process's own user serves."""
    return NginxPlace(
        directory=str(directory),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        own=MappingProxyType({Own(name): ("127.0.0.1", port) for name, port in own.items()}),
        certificates=(str(directory),),
        files=(str(directory),),
        static=str(directory / "static"),
    )


@dataclass
class Running:
    """An nginx of the test's own on loopback."""

    directory: Path
    place: NginxPlace
    http: int
    https: int
    child: subprocess.Popen[bytes]

    def get(self, host, path="/", *, source="127.0.0.1", **headers):
        """As `get`."""
        return get(self.http, host, path, source=source, **headers)

    def get_secure(self, host, path="/", *, authorities: Path, asks=None, **headers):
        """The same by TLS, whose server name is `host`; `asks`: another one in Host."""
        return get_secure(self.https, host, path, authorities=authorities, asks=asks, **headers)

    def reload(self, plain, bad=()):
        """Other files, and SIGHUP."""
        written(self.directory, render.render(decode.read(plain), self.place), bad)
        self.child.send_signal(signal.SIGHUP)


def get(port, host, path="/", *, source="127.0.0.1", **headers):
    """(status, headers, body) of a GET; (0, {}, b"") where the connection is closed without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))
    return _got(connection, host, path, headers)


def get_secure(port, host, path="/", *, authorities: Path, asks=None, **headers):
    """The same by TLS, whose server name is `host`; `asks`: another one in Host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.sock = _wrapped(port, host, ssl.create_default_context(cafile=str(authorities)))
    return _got(connection, asks or host, path, headers)


def serial(port, host, authorities: Path) -> str:
    """The serial number of the certificate that is presented for `host`."""
    with _wrapped(port, host, ssl.create_default_context(cafile=str(authorities))) as wrapped:
        return wrapped.getpeercert()["serialNumber"]


def presented(port, host) -> bytes:
    """The certificate that is presented for `host`, by whomever, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _wrapped(port, host, context) as wrapped:
        return wrapped.getpeercert(binary_form=True)


def _wrapped(port, host, context) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        return context.wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise


def _got(connection, host, path, headers):
    try:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return 0, {}, b""
    finally:
        connection.close()


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """A port of loopback that somebody else listens at."""
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextlib.contextmanager
def running(directory: Path, plain, bad=(), **own: int) -> Iterator[Running]:
    """nginx with the sites of a document, checked as an intent is; stopped afterwards."""
    first, second = ports.free(), ports.free()
    plain["listen"] = {**plain.get("listen", {}), "addresses": ["127.0.0.1"], "http": first, "https": second}
    place = place_of(directory, **own)
    intent = decode.read(plain)
    found = check.check(intent, place)
    assert found == (), found
    main = written(directory, render.render(intent, place), bad)
    child = subprocess.Popen([NGINX, "-e", "stderr", "-c", str(main), "-g", "daemon off;"], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            assert child.poll() is None, child.stderr and child.stderr.read()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", first), timeout=1):
                break
            assert time.monotonic() < until, "nginx does not listen"
            time.sleep(0.01)
        yield Running(directory, place, first, second, child)
    finally:
        child.terminate()
        child.communicate()


@dataclass
class Backend:
    """An upstream that answers with its name, and the headers that it was sent."""

    name: str
    port: int
    paths: list[str] = field(default_factory=list)


@contextlib.contextmanager
def backend(name: str, address: str = "127.0.0.1") -> Iterator[Backend]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            made.paths.append(self.path)
            body = json.dumps({"name": name, "headers": {key.lower(): value for key, value in self.headers.items()}})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    made = Backend(name, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

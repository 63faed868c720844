"""What is rendered for nginx, given to real nginx: it takes all of it, another reader reads the same, sites answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

from latticed.system.nginx import applied, decode, render
from tests.house import nginxes, ports, processes
from tests.house.nameservers import Nameserver

pytestmark = pytest.mark.root

RESOLVER = "127.0.53.53"
AUTHORITY = trustme.CA()


@pytest.fixture
def directory(tmp_path) -> Path:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    return tmp_path


def issued(directory: Path, name: str, *hosts: str) -> dict:
    """A site's `tls`, with a certificate that is there."""
    issued_one = AUTHORITY.issue_cert(*(hosts or (f"{name}.example.org",)))
    live = directory / "live" / name
    live.mkdir(parents=True, exist_ok=True)
    (live / "fullchain.pem").write_bytes(b"".join(one.bytes() for one in issued_one.cert_chain_pems))
    (live / "privkey.pem").write_bytes(issued_one.private_key_pem.bytes())
    return nginxes.tls(name, live=str(directory / "live"))


def to(backend: nginxes.Backend, host: str = "127.0.0.1") -> dict:
    return {"scheme": "http", "host": host, "port": backend.port}


@contextlib.contextmanager
def nameserver(zone) -> Iterator[None]:
    """A resolver at RESOLVER, port 53: nginx asks no other port."""
    loop = asyncio.new_event_loop()
    up, made = threading.Event(), {name: [[address]] for name, address in zone.items()}
    over = asyncio.Event()

    async def serve():
        transport, _ = await loop.create_datagram_endpoint(lambda: Nameserver(made), local_addr=(RESOLVER, 53))
        up.set()
        await over.wait()
        transport.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


# What it takes


@pytest.mark.parametrize("seed", range(60))
def test_nginx_takes_every_rendering_and_another_reader_reads_the_intent(directory, seed):
    plain = nginxes.sound(random.Random(seed), live=str(directory / "live"))
    for site in plain["sites"]:
        if "tls" in site:
            issued(directory, site["name"], "x.example.org")
    place = nginxes.place_of(directory, http=7_180, services=7_181)
    main = nginxes.written(directory, render.render(decode.read(plain), place))
    ended = nginxes.tried(main)
    assert ended.returncode == 0, ended.stderr
    assert b"[warn]" not in ended.stderr
    expected = nginxes.wanted(plain, place)
    found = nginxes.meant(main.parent, place=place)
    assert found.pop("acme_webroot", "") == (plain.get("acme_webroot", "") if plain["sites"] else "")
    assert found == expected


def test_the_longest_names_and_the_largest_intent_are_taken(directory):
    label = "a" * 63
    long = f"{label}.{label}.{label}.{'b' * 57}"
    sites = [nginxes.site(f"s{index}", answer=404) for index in range(999)]
    plain = nginxes.document(*sites, nginxes.site("long", domains=[f"{long}.de"[:253].strip(".")], answer=404))
    plain["listen"] = {"addresses": ["127.0.0.1"], "http": 8_080, "https": 8_443}
    plain["access"] = [
        {"name": f"{'l' * 28}_{index}", "allow": [f"10.{a}.{b}.0/24" for a in range(4) for b in range(250)]}
        for index in range(3)
    ]
    main = nginxes.written(directory, render.render(decode.read(plain), nginxes.place_of(directory)))
    ended = nginxes.tried(main)
    assert ended.returncode == 0, ended.stderr
    assert b"[warn]" not in ended.stderr


@pytest.mark.parametrize("broken", ["missing", "garbage", "key of another"])
def test_a_certificate_that_is_unusable_is_blamed_on_its_site_and_no_other(directory, broken):
    plain = nginxes.document(
        nginxes.site("bad", answer=404, tls=issued(directory, "bad")),
        nginxes.site("good", answer=404, tls=issued(directory, "good")),
    )
    live = directory / "live"
    match broken:
        case "missing":
            shutil.rmtree(live / "bad")
        case "garbage":
            (live / "bad" / "fullchain.pem").write_bytes(b"\x00nothing")
        case "key of another":
            shutil.copy(live / "good" / "privkey.pem", live / "bad" / "privkey.pem")
    place = nginxes.place_of(directory)
    rendering = render.render(decode.read(plain), place)
    ended = nginxes.tried(nginxes.written(directory, rendering))
    assert ended.returncode == 1
    assert applied.blamed(applied.read(rendering), ended.stderr) == {"bad"}
    assert nginxes.tried(nginxes.written(directory, rendering, {"bad"})).returncode == 0


# What it serves


def test_one_site_takes_down_no_other(directory):
    """20 sites; 5 upstreams have no name, 5 do not listen, 2 certificates are gone."""
    closed = ports.free()
    with nginxes.backend("up") as backend, nameserver({"up.lan": "127.0.0.1"}):
        sites = []
        for index in range(20):
            upstream = to(backend, "up.lan")
            if index < 5:
                upstream = {"scheme": "http", "host": f"gone-{index}.lan", "port": 80}
            elif index < 10:
                upstream = {"scheme": "http", "host": "127.0.0.1", "port": closed}
            site = nginxes.site(f"s{index}", upstream=upstream)
            if index in {10, 11}:
                site["tls"] = nginxes.tls(f"s{index}", live=str(directory / "live"))
            elif index in {12, 13}:
                site["tls"] = issued(directory, f"s{index}")
            sites.append(site)
        plain = nginxes.document(*sites, resolvers=[RESOLVER])
        with nginxes.running(directory, plain, bad={"s10", "s11"}) as nginx:
            for index in range(12):
                assert nginx.get(f"s{index}.example.org")[0] == 503, index
            for index in (12, 13):
                status, _, body = nginx.get_secure(f"s{index}.example.org", authorities=directory / "ca.pem")
                assert (status, json.loads(body)["name"]) == (200, "up")
            for index in range(14, 20):
                status, _, body = nginx.get(f"s{index}.example.org")
                assert (status, json.loads(body)["name"]) == (200, "up")
            with pytest.raises(ssl.SSLError):
                nginx.get_secure("s10.example.org", authorities=directory / "ca.pem")


def test_who_asks_for_no_site_gets_no_answer_and_no_certificate(directory):
    plain = nginxes.document(nginxes.site(answer=404, tls=issued(directory, "shop")))
    with nginxes.running(directory, plain) as nginx:
        for host in ("other.example.org", "127.0.0.1", "shop.example.org.evil.example", "_"):
            assert nginx.get(host) == (0, {}, b"")
            with pytest.raises(ssl.SSLError):
                nginx.get_secure(host, authorities=directory / "ca.pem")
        assert nginx.get_secure("shop.example.org", asks="other.example.org", authorities=directory / "ca.pem")[0] == 0


def test_a_site_without_tls_is_not_answered_for_by_a_wildcard_of_another(directory):
    star = nginxes.site("star", domains=["*.example.org"], answer=410, tls=issued(directory, "star", "*.example.org"))
    plain = nginxes.document(star, nginxes.site("shop", answer=404))
    with nginxes.running(directory, plain) as nginx:
        assert nginx.get_secure("a.example.org", authorities=directory / "ca.pem")[0] == 410
        with pytest.raises(ssl.SSLError):
            nginx.get_secure("shop.example.org", authorities=directory / "ca.pem")
        assert nginx.get_secure("a.example.org", asks="shop.example.org", authorities=directory / "ca.pem")[0] == 0


def test_plain_http_is_sent_to_tls_and_hsts_is_said_there_alone(directory):
    tls = issued(directory, "shop") | {"hsts": {"max_age_s": 600, "subdomains": True}}
    with nginxes.running(directory, nginxes.document(nginxes.site(answer=404, tls=tls))) as nginx:
        status, headers, _ = nginx.get("shop.example.org", "/a?b=c")
        assert (status, headers["Location"]) == (308, f"https://shop.example.org:{nginx.https}/a?b=c")
        assert "Strict-Transport-Security" not in headers
        status, headers, _ = nginx.get_secure("shop.example.org", authorities=directory / "ca.pem")
        assert (status, headers["Strict-Transport-Security"]) == (404, "max-age=600; includeSubDomains")


@pytest.mark.parametrize(("http2", "spoken"), [(True, "h2"), (False, "http/1.1")])
def test_http_2_is_offered_where_it_is_wanted(directory, http2, spoken):
    plain = nginxes.document(nginxes.site(answer=404, tls=issued(directory, "shop")), listen={"http2": http2})
    with nginxes.running(directory, plain) as nginx:
        context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", nginx.https), timeout=20) as raw,
            context.wrap_socket(raw, server_hostname="shop.example.org") as wrapped,
        ):
            assert wrapped.selected_alpn_protocol() == spoken


def test_a_client_s_address_is_what_listed_proxies_say_and_nobody_else(directory):
    with nginxes.backend("app") as backend:
        plain = nginxes.document(nginxes.site(upstream=to(backend)), real_ip={"from": ["127.0.0.9/32"]})
        with nginxes.running(directory, plain) as nginx:

            def seen(source, forwarded):
                forged = {"X_Real_IP": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X_Forwarded_Proto": "https"}
                _, _, body = nginx.get("shop.example.org", source=source, X_Forwarded_For=forwarded, **forged)
                headers = json.loads(body)["headers"]
                assert "forwarded" not in headers
                assert headers["x-forwarded-proto"] == "http"
                assert headers["x-real-ip"] == headers["x-forwarded-for"]
                return headers["x-forwarded-for"]

            assert seen("127.0.0.1", "198.51.100.7") == "127.0.0.1"
            assert seen("127.0.0.9", "198.51.100.7") == "198.51.100.7"
            assert seen("127.0.0.9", "6.6.6.6, 198.51.100.7") == "198.51.100.7"


def test_an_access_list_is_asked_before_everything_that_a_site_does(directory):
    (directory / "files" / "www").mkdir(parents=True)
    (directory / "files" / "www" / "x").write_text("x")
    with nginxes.backend("app") as backend:
        locations = [
            {"path": "/answer", "answer": 410},
            {"path": "/redirect", "redirect": {"to": "https://example.com"}},
            {"path": "/www", "root": str(directory / "files")},
            {"path": "/other", "answer": 410, "access": "others"},
        ]
        plain = nginxes.document(
            nginxes.site(upstream=to(backend), access="office", locations=locations),
            access=[{"name": "office", "allow": ["127.0.0.8/32"]}, {"name": "others", "allow": ["127.0.0.1/32"]}],
        )
        with nginxes.running(directory, plain) as nginx:
            answers = {"/": 200, "/answer": 410, "/redirect": 308, "/www/x": 200}
            for path, status in answers.items():
                assert nginx.get("shop.example.org", path, source="127.0.0.8")[0] == status
                assert nginx.get("shop.example.org", path)[0] == 403
            assert nginx.get("shop.example.org", "/other", source="127.0.0.8")[0] == 403
            assert nginx.get("shop.example.org", "/other")[0] == 410
            assert len(backend.paths) == 1


def test_files_are_served_and_neither_hidden_ones_nor_what_links_lead_out_to(directory):
    www = directory / "www"
    (www / ".git").mkdir(parents=True)
    for name, text in (("index.html", "start"), ("a.css", "css"), (".git/config", "secret"), (".env", "secret")):
        (www / name).write_text(text)
    (directory / "outside").write_text("secret")
    os.chown(directory / "outside", 65_534, 65_534)
    (www / "link").symlink_to(directory / "outside")
    with nginxes.running(directory, nginxes.document(nginxes.site(root=str(www)))) as nginx:
        status, headers, body = nginx.get("shop.example.org", "/")
        assert (status, body) == (200, b"start")
        assert headers["Content-Type"].startswith("text/html")
        assert nginx.get("shop.example.org", "/a.css")[1]["Content-Type"] == "text/css"
        for path in ("/.git/config", "/.env", "/%2egit/config", "/x/../.env", "/none", "/link", "/../outside"):
            status, _, body = nginx.get("shop.example.org", path)
            assert status in {400, 403, 404}
            assert b"secret" not in body


def test_challenges_for_a_certificate_are_answered_by_sites_with_one_and_without(directory):
    (directory / "acme" / ".well-known" / "acme-challenge").mkdir(parents=True)
    (directory / "acme" / ".well-known" / "acme-challenge" / "token").write_text("token.thumb")
    sites = [nginxes.site("one", answer=404, tls=issued(directory, "one"), access="nobody")]
    sites.append(nginxes.site("two", answer=404, tls=nginxes.tls("two", live=str(directory / "live"))))
    plain = nginxes.document(*sites, acme_webroot=str(directory / "acme"), access=[{"name": "nobody", "allow": []}])
    with nginxes.running(directory, plain, bad={"two"}) as nginx:
        for host in ("one.example.org", "two.example.org"):
            status, _, body = nginx.get(host, "/.well-known/acme-challenge/token")
            assert (status, body) == (200, b"token.thumb")


def test_a_reload_serves_the_new_content(directory):
    with nginxes.backend("old") as old, nginxes.backend("new") as new:
        plain = nginxes.document(nginxes.site(upstream=to(old)))
        with nginxes.running(directory, plain) as nginx:
            assert json.loads(nginx.get("shop.example.org")[2])["name"] == "old"
            plain["sites"][0]["upstream"] = to(new)
            nginx.reload(plain)
            until = time.monotonic() + nginxes.PATIENCE_S
            while json.loads(nginx.get("shop.example.org")[2])["name"] == "old":
                assert time.monotonic() < until
                time.sleep(0.01)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_an_upstream_is_told_the_name_and_port_that_were_asked_for(directory, version):
    """Also where the port that nginx listens at is another one; none where none was named."""
    with nginxes.backend("app") as backend:
        plain = nginxes.document(nginxes.site(upstream=to(backend), tls=issued(directory, "shop")))
        with nginxes.running(directory, plain) as nginx:

            def told(authority):
                there = ("--connect-to", f"::127.0.0.1:{nginx.https}", "--cacert", str(directory / "ca.pem"))
                command = ["curl", "--silent", "--fail", version, *there, f"https://{authority}/"]
                ended = subprocess.run(command, check=True, capture_output=True, timeout=60)
                headers = json.loads(ended.stdout)["headers"]
                assert headers["x-forwarded-host"] == headers["host"]
                return headers["host"]

            assert told("shop.example.org") == "shop.example.org"
            assert told("SHOP.example.org:9443") == "shop.example.org:9443"


@pytest.mark.parametrize(
    ("said", "told"),
    [("shop.example.org:8443", ":8443"), ("[2001:db8::1]:8443", ""), ("[2001:db8::1]", ""), ("x:", "")],
)
def test_a_port_is_taken_from_a_name_and_from_nothing_that_looks_like_one(directory, said, told):
    """The name that the site is found by is in the request line here, which holds before Host."""
    with nginxes.backend("app") as backend:
        plain = nginxes.document(nginxes.site(upstream=to(backend)))
        with nginxes.running(directory, plain) as nginx:
            _, _, body = nginx.get(said, "http://shop.example.org/")
            assert json.loads(body)["headers"]["host"] == f"shop.example.org{told}"


@contextlib.contextmanager
def echo() -> Iterator[SimpleNamespace]:
    """An upstream that agrees to a websocket and sends back what it is sent, byte for byte."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection):
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (chunk := connection.recv(1)):
                    return
                head += chunk
            lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
            headers = {name.lower(): value for name, value in lines.items()}
            if headers.get("upgrade") != "websocket" or headers.get("connection", "").lower() != "upgrade":
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                return
            digest = hashlib.sha1((headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())  # noqa: S324 - RFC 6455
            accept = base64.b64encode(digest.digest()).decode()
            answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            answer += f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
            connection.sendall(answer.encode())
            while chunk := connection.recv(4_096):
                connection.sendall(chunk)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield SimpleNamespace(port=server.getsockname()[1])
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def asked(nginx) -> tuple[socket.socket, bytes]:
    """A connection that has asked for a websocket, and the answer's first line."""
    connection = socket.create_connection(("127.0.0.1", nginx.http), timeout=20)
    request = "GET /ws HTTP/1.1\r\nHost: shop.example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    connection.sendall(
        f"{request}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return connection, head.split(b"\r\n")[0]


def test_a_websocket_is_carried_where_it_is_wanted_and_survives_a_reload_until_drain_s(directory):
    with echo() as upstream:
        plain = nginxes.document(nginxes.site(websockets=True, upstream=to(upstream)), drain_s=3)
        with nginxes.running(directory, plain) as nginx:
            connection, line = asked(nginx)
            with connection:
                assert line.startswith(b"HTTP/1.1 101")
                plain["sites"][0]["answer"] = 410
                del plain["sites"][0]["upstream"]
                nginx.reload(plain)
                until = time.monotonic() + nginxes.PATIENCE_S
                while nginx.get("shop.example.org")[0] != 410:
                    assert time.monotonic() < until
                    time.sleep(0.01)
                connection.sendall(b"\x81\x02hi")
                assert connection.recv(4) == b"\x81\x02hi"
                assert connection.recv(1) == b""  # after drain_s


def test_no_websocket_is_carried_where_it_is_not_wanted(directory):
    with echo() as upstream, nginxes.running(directory, nginxes.document(nginxes.site(upstream=to(upstream)))) as nginx:
        connection, line = asked(nginx)
        connection.close()
        assert line.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("WebSocket", "websocket"),
        ("h2c", None),
        ("h2c, websocket", None),
        ("websocket, h2c", None),
        ("xwebsocket", None),
    ],
)
def test_an_upstream_is_asked_for_a_websocket_and_no_other_protocol(directory, word, found):
    """By h2c any request would reach it, also for a location with an access list."""
    with nginxes.backend("app") as backend:
        plain = nginxes.document(nginxes.site(websockets=True, upstream=to(backend)))
        with nginxes.running(directory, plain) as nginx:
            hop = {"Connection": "Upgrade, HTTP2-Settings", "HTTP2_Settings": "AAMAAABkAAQAAP__"}
            headers = json.loads(nginx.get("shop.example.org", Upgrade=word, **hop)[2])["headers"]
            assert (headers.get("upgrade"), headers.get("connection")) == (found, found and "upgrade")
            assert "http2-settings" not in headers


def test_no_header_of_a_client_tells_an_upstream_another_path_or_port(directory):
    """Frameworks go by some of them, which the access list of a location never saw."""
    with (
        nginxes.backend("app") as backend,
        nginxes.running(directory, nginxes.document(nginxes.site(upstream=to(backend)))) as nginx,
    ):
        names = ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Port")
        given = {name.replace("-", "_"): "/admin" for name in names}
        headers = json.loads(nginx.get("shop.example.org", **given)[2])["headers"]
        assert {name.lower() for name in names} & headers.keys() == set()


def test_workers_may_open_more_files_than_they_are_given_connections(directory):
    """Each connection is a file, and what is asked for by it may be one or two more. Whoever starts nginx has 1,024."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, most))
    try:
        with nginxes.running(directory, nginxes.document(nginxes.site(answer=404))) as nginx:
            assert nginx.get("shop.example.org")[0] == 404  # there are workers
            workers = Path(f"/proc/{nginx.child.pid}/task/{nginx.child.pid}/children").read_text().split()
            # A worker sets its limit when it begins, be others at work already.
            processes.until(
                lambda: {resource.prlimit(int(one), resource.RLIMIT_NOFILE)[0] for one in workers} == {16_384},
                what="the limit of each worker",
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))

"""What an intent of nginx means, judged without nginx: what its own test takes, and must not be."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from latticed.plans.nginx import place
from latticed.settings.programs import NginxSettings
from latticed.settings.shapes import HttpSettings
from latticed.system.nginx import check, decode
from latticed.system.nginx.facts import BoundSocket, NginxFacts
from latticed.system.nginx.intent import Own
from tests.house import nginxes

HOST = (ipaddress.ip_address("192.0.2.10"), ipaddress.ip_address("2001:db8::10"))


def listener(address, port):
    return BoundSocket(ipaddress.ip_address(address), port)


FACTS = NginxFacts(
    addresses=HOST,
    taken=(listener("127.0.0.1", 22), listener("0.0.0.0", 3_000)),
    ours=(listener("127.0.0.1", 7_180), listener("::1", 7_181), listener("0.0.0.0", 7_190)),
)


def findings(plain, facts=None, place=nginxes.PLACE):
    return [(one.code, one.path) for one in check.check(decode.read(plain), place, facts)]


def to(host, port=8_080, **changes):
    changes = {"scheme": "http", **changes}
    return nginxes.document(nginxes.site(upstream={"host": host, "port": port, **changes}), resolvers=["127.0.0.53"])


def test_a_sound_intent_has_no_findings():
    plain = nginxes.document(
        nginxes.site(tls=nginxes.tls(), access="office"),
        nginxes.site("wiki", upstream="services", locations=[{"path": "/a", "root": "/srv/www"}]),
        nginxes.site("old", publish="acme.site"),
        access=[{"name": "office", "allow": ["192.0.2.0/24"]}],
        acme_webroot="/var/www/acme",
        published=[nginxes.published(**{"index.html": "ab" * 32})],
        real_ip={"from": ["203.0.113.0/24"]},
    )
    assert findings(plain, FACTS) == []


def test_the_page_s_example_has_no_findings():
    page = (Path(__file__).resolve().parents[4] / "docs/system-plugins/nginx.md").read_text(encoding="utf-8")
    assert findings(json.loads(page.split("```json\n")[1].split("```")[0]), FACTS) == []


@pytest.mark.parametrize("other", ["shop.example.org", "SHOP.example.org."])
def test_a_domain_is_of_one_site(other):
    plain = nginxes.document(nginxes.site(), nginxes.site("two", domains=["two.example.org", other]))
    assert findings(plain) == [("duplicate", "sites[1].domains[1]")]


def test_names_of_sites_and_lists_are_their_own():
    plain = nginxes.document(
        nginxes.site(),
        nginxes.site(domains=["b.example"]),
        access=[{"name": "a", "allow": []}, {"name": "a", "allow": []}],
    )
    assert findings(plain) == [("duplicate", "sites[1].name"), ("duplicate", "access[1].name")]


def test_a_list_that_there_is_not_is_named():
    plain = nginxes.document(nginxes.site(access="x", locations=[{"path": "/a", "answer": 404, "access": "y"}]))
    assert findings(plain) == [
        ("unknown_access", "sites[0].access"),
        ("unknown_access", "sites[0].locations[0].access"),
    ]


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "169.254.0.9",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "metadata.google.internal",
    ],
)
def test_no_upstream_is_the_metadata_of_a_cloud(host):
    assert findings(to(host)) == [("metadata", "sites[0].upstream.host")]


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "localhost",
    ],
)
def test_an_upstream_is_one_host_in_its_own_form(host):
    assert findings(to(host)) == [("bad_upstream", "sites[0].upstream.host")]


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", 7_180),
        ("[::1]", 7_181),
        ("127.0.0.1", 7_190),
        ("127.9.9.9", 7_190),
        ("192.0.2.10", 7_190),
        ("latticed.lan", 7_180),
    ],
)
def test_no_upstream_is_a_listener_of_latticed(host, port):
    assert findings(to(host, port), FACTS) == [("own_listener", "sites[0].upstream")]


@pytest.mark.parametrize(("host", "port"), [("192.0.2.10", 7_180), ("198.51.100.7", 7_190), ("127.0.0.1", 7_182)])
def test_another_host_s_port_of_the_same_number_is_an_upstream(host, port):
    assert findings(to(host, port), FACTS) == []


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 80), ("[::1]", 443), ("192.0.2.10", 443)])
def test_no_upstream_is_this_nginx(host, port):
    assert findings(to(host, port), FACTS) == [("upstream_loop", "sites[0].upstream")]


def test_latticed_s_own_listeners_are_known_by_its_settings():
    found = place(NginxSettings(), HttpSettings(listen="127.0.0.1:8787", service_listen="[::1]:8788"))
    assert dict(found.own) == {Own.HTTP: ("127.0.0.1", 8_787), Own.SERVICES: ("::1", 8_788)}
    assert dict(place(NginxSettings(), HttpSettings(listen="127.0.0.1:0")).own) == {}
    assert findings(to("[::1]", 8_788), place=found) == [("own_listener", "sites[0].upstream")]


def test_http_and_services_have_to_be_listeners_that_there_are():
    plain = nginxes.document(nginxes.site(upstream="services"))
    there = nginxes.place_of(Path("/srv"), http=7_180)
    assert findings(plain, FACTS, there) == [("no_listener", "sites[0].upstream")]


def test_a_name_needs_somebody_who_knows_it():
    plain = nginxes.document(nginxes.site(upstream={"scheme": "http", "host": "app.lan", "port": 80}))
    assert findings(plain) == [("no_resolver", "sites[0].upstream.host")]
    assert findings({**plain, "resolvers": ["127.0.0.53"]}) == []


def test_a_certificate_is_compared_with_a_name():
    assert findings(to("10.0.0.5", scheme="https")) == [("unverifiable", "sites[0].upstream.host")]
    assert findings(to("10.0.0.5", scheme="https", verify=False)) == []
    assert findings(to("app.lan", scheme="https")) == []


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/letsencryptx/a.pem", "/root/a.pem", "/srv/a.pem", "/etc/letsencrypt"]
)
def test_certificates_and_keys_lie_where_they_may(path):
    plain = nginxes.document(nginxes.site(tls=nginxes.tls(certificate=path, key=path)))
    assert findings(plain) == [("outside_roots", "sites[0].tls.certificate"), ("outside_roots", "sites[0].tls.key")]


@pytest.mark.parametrize("path", ["/etc", "/etc/letsencrypt/live", "/srv", "/srvx/y", "/var/lib/latticed"])
def test_files_lie_where_they_may(path):
    assert findings(nginxes.document(nginxes.site(root=path), acme_webroot=path)) == [
        ("outside_roots", "acme_webroot"),
        ("outside_roots", "sites[0].root"),
    ]


@pytest.mark.parametrize(
    ("locations", "code"),
    [
        ([{"path": "/a"}, {"path": "/a"}], "duplicate"),
        ([{"path": "/"}], "duplicate"),
        ([{"path": "/a", "match": "exact"}, {"path": "/a", "match": "exact"}], "duplicate"),
    ],
)
def test_a_path_is_said_once(locations, code):
    plain = nginxes.document(nginxes.site(locations=[{**one, "answer": 404} for one in locations]))
    assert findings(plain) == [(code, f"sites[0].locations[{len(locations) - 1}].path")]


def test_the_same_path_may_be_exact_and_a_prefix():
    locations = [{"path": "/a", "answer": 404}, {"path": "/a", "match": "exact", "answer": 410}]
    assert findings(nginxes.document(nginxes.site(locations=locations))) == []


@pytest.mark.parametrize("version", ["0.0.0.0/0", "::/0", "1.0.0.0/8", "0.0.0.0/7"])
def test_everybody_is_no_proxy(version):
    wide = version != "1.0.0.0/8"
    assert findings({"real_ip": {"from": [version]}}) == ([("too_wide", "real_ip.from[0]")] if wide else [])


@pytest.mark.parametrize(
    ("target", "tls", "looping"),
    [
        ("http://shop.example.org", False, True),
        ("http://shop.example.org:80/x", False, True),
        ("https://shop.example.org", False, False),
        ("http://shop.example.org:8080", False, False),
        ("https://other.example.org", True, False),
        ("https://shop.example.org/x", True, True),
        ("http://shop.example.org", True, True),
        ("https://shop.example.org/app", True, False),
    ],
)
def test_a_site_does_not_send_to_itself(target, tls, looping):
    changes = {"tls": nginxes.tls()} if tls else {}
    locations = [{"path": "/app", "upstream": "http"}]
    plain = nginxes.document(nginxes.site(redirect={"to": target}, locations=locations, **changes))
    assert findings(plain) == ([("redirect_loop", "sites[0].redirect.to")] if looping else [])


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ({"http": 3_000}, [("port_taken", "listen.http")]),
        ({"https": 3_000, "addresses": ["192.0.2.10"]}, [("port_taken", "listen.https")]),
        ({"http": 22, "addresses": ["192.0.2.10"]}, []),
        ({"http": 22}, [("port_taken", "listen.http")]),
        ({"addresses": ["192.0.2.99"]}, [("no_address", "listen.addresses[0]")]),
        ({"http": 443}, [("duplicate", "listen.https")]),
        ({"addresses": ["192.0.2.10", "192.0.2.10"]}, [("duplicate", "listen.addresses[1]")]),
        ({"addresses": ["0.0.0.0", "192.0.2.10"]}, [("duplicate", "listen.addresses")]),
    ],
)
def test_addresses_and_ports_are_this_host_s_and_free(listen, found):
    assert findings({"listen": listen}, FACTS) == found


def test_what_is_published_has_to_be_there():
    """And each plugin's files once, and some."""
    site = nginxes.site(publish="acme.site")
    for sets in ([], [nginxes.published()], [nginxes.published("acme.other", x="ab" * 32)]):
        assert findings(nginxes.document(site, published=sets)) == [("not_published", "sites[0].publish")]
    twice = nginxes.document(site, published=[nginxes.published(x="ab" * 32)] * 2)
    assert findings(twice) == [("duplicate", "published[1].plugin")]

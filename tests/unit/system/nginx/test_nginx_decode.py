"""Intents of nginx from JSON: what is taken, and what is refused with its place, before nginx could see it."""

from __future__ import annotations

import copy

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.nginx import decode
from latticed.system.nginx.intent import BareAnswer, Files, Hsts, Match, Own, Redirect, Scheme, Upstream
from tests.house import nginxes

HOSTILE = (
    *(
        "x;",
        "x;y",
        "x{",
        "x}",
        "x$host",
        "$x",
        'x"',
        '"x"',
        "x'",
        "x\\",
        "x y",
        "x\ty",
        "x\n",
        "\nx",
        "x\r",
        "x#y",
        "#",
    ),
    *("x\x00", "x\x1b[31m", "x\x7f", "x\x85", "x\u2028", "x\ud800", "x;}server{listen 81;", "x y;return 200 z", "${x}"),
    *("x`y`", "x|y", "x<y", "x>y", "../x", "x/../y", "x//y", "..", ".", "~ .*", "~x", "^x", "", " ", "x" * 300),
)
GOOD_IN_PATHS = ("", "~x")
NOT_TEXT = (None, True, 1, 1.5, [], ["x"], {}, {"x": 1})


def findings(plain):
    with pytest.raises(IntentRefused) as caught:
        decode.read(plain)
    return [(one.code, one.path) for one in caught.value.findings]


def one_site(**changes):
    return nginxes.document(nginxes.site(**changes), resolvers=["127.0.0.53"])


def test_a_document_becomes_the_typed_model():
    tls = nginxes.tls(hsts={"max_age_s": 60, "subdomains": True})
    plain = nginxes.document(
        nginxes.site(
            domains=["Shop.Example.ORG.", "*.bücher.example"],
            tls=tls,
            locations=[
                {"path": "/admin", "upstream": "services", "access": "office"},
                {"path": "/robots.txt", "match": "exact", "answer": 410},
                {"path": "/files/", "root": "/srv/www/files"},
                {"path": "/old", "redirect": {"to": "https://Example.org:8443/new"}},
            ],
        ),
        access=[{"name": "office", "allow": ["192.0.2.0/24"]}],
    )
    (site,) = decode.read(plain).sites
    assert site.domains == ("shop.example.org", "*.xn--bcher-kva.example")
    assert site.handler == Upstream(scheme=Scheme.HTTP, host="10.0.0.5", port=8080)
    assert site.tls is not None
    assert site.tls.force
    assert site.tls.hsts == Hsts(max_age_s=60, subdomains=True)
    assert [one.handler for one in site.locations] == [
        Own.SERVICES,
        BareAnswer(410),
        Files("/srv/www/files"),
        Redirect(to="https://example.org:8443/new"),
    ]
    assert [one.match for one in site.locations] == [Match.PREFIX, Match.EXACT, Match.PREFIX, Match.PREFIX]


def test_an_empty_document_is_an_intent_without_sites():
    assert decode.read({}).sites == ()


@pytest.mark.parametrize(
    "value", [*HOSTILE, *NOT_TEXT, "192.0.2.1", "*.192.0.2.1", "*.", "*", "**.x", "a.*.b", "[::1]"]
)
def test_what_is_no_domain_is_refused(value):
    assert ("bad_domain", "sites[0].domains[0]") in findings(one_site(domains=[value]))


@pytest.mark.parametrize(
    "value", [*HOSTILE, *NOT_TEXT, "127.1", "0x7f000001", "2130706433", "::1", "[::1", "[::ffff:1.2.3.4]"]
)
def test_what_is_no_upstream_host_is_refused(value):
    upstream = {"scheme": "http", "host": value, "port": 80}
    assert findings(one_site(upstream=upstream)) == [("bad_host", "sites[0].upstream.host")]


@pytest.mark.parametrize("value", [*HOSTILE, *(f"/srv/{one}" for one in HOSTILE), *NOT_TEXT, "srv", "/", "/srv/.git"])
def test_what_is_no_plain_path_of_a_file_is_refused(value):
    assert findings(one_site(root=value)) == [("bad_file", "sites[0].root")]
    assert ("bad_file", "sites[0].tls.certificate") in findings(one_site(tls=nginxes.tls(certificate=value)))
    assert ("bad_file", "sites[0].tls.key") in findings(one_site(tls=nginxes.tls(key=value)))
    assert findings({"acme_webroot": value}) == [("bad_file", "acme_webroot")]


@pytest.mark.parametrize(
    "value",
    [*(f"/{one}" for one in HOSTILE if one not in GOOD_IN_PATHS), "", "x", "/%2e%2e/x", "/x/./y", "/x/.git", "/é"],
)
def test_what_is_no_path_of_a_location_is_refused(value):
    assert findings(one_site(locations=[{"path": value, "answer": 404}])) == [
        ("bad_path", "sites[0].locations[0].path")
    ]


@pytest.mark.parametrize(
    "value", [*HOSTILE, *NOT_TEXT, "ftp://x", "//x", "https://", "https://x?y", "https://x#y", "http://x:0"]
)
def test_what_is_no_target_of_a_redirect_is_refused(value):
    assert ("bad_target", "sites[0].redirect.to") in findings(one_site(redirect={"to": value}))


@pytest.mark.parametrize("value", [one for one in HOSTILE if set(one) & set(";{}$\"'\\# \t\n\r\0`|<>^")])
def test_a_hostile_word_gets_into_no_target_behind_a_good_beginning(value):
    assert findings(one_site(redirect={"to": f"https://x.example/{value}"})) == [("bad_target", "sites[0].redirect.to")]


@pytest.mark.parametrize("value", [*HOSTILE, *NOT_TEXT, "Office", "of-fice", "a" * 33])
def test_what_is_no_name_of_an_access_list_is_refused(value):
    assert ("bad_name", "sites[0].access") in findings(one_site(access=value))
    assert ("bad_name", "access[0].name") in findings({"access": [{"name": value, "allow": []}]})


@pytest.mark.parametrize("value", [*HOSTILE, *NOT_TEXT, "Shop", "shop.conf", "a" * 33])
def test_what_is_no_name_of_a_site_is_refused(value):
    assert ("bad_name", "sites[0].name") in findings(one_site(name=value, domains=["a.example"]))


@pytest.mark.parametrize("value", [0, -1, 65_536, 70_000, 2**70, 1.5, True, None, "80", [80]])
def test_what_is_no_port_is_refused(value):
    upstream = {"scheme": "http", "host": "10.0.0.5", "port": value}
    assert findings(one_site(upstream=upstream)) == [("bad_number", "sites[0].upstream.port")]
    assert findings({"listen": {"http": value}}) == [("bad_number", "listen.http")]


@pytest.mark.parametrize("value", [*HOSTILE, *NOT_TEXT, "10.0.0.1/8", "fe80::1%eth0", "::ffff:1.2.3.4", "1.2.3.4/33"])
def test_what_is_no_address_or_network_is_refused(value):
    assert findings({"access": [{"name": "a", "allow": [value]}]}) == [("bad_address", "access[0].allow[0]")]
    assert ("bad_address", "resolvers[0]") in findings({"resolvers": [value]})
    assert ("bad_address", "real_ip.from[0]") in findings({"real_ip": {"from": [value]}})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"answer": 200, "upstream": "http"}, "sites[0]"),
        ({"answer": 404, "root": "/srv/www"}, "sites[0]"),
    ],
)
def test_a_site_does_exactly_one_thing(changes, found):
    assert findings(one_site(**changes)) == [("bad_handler", found)]
    assert findings({"sites": [{"name": "a", "domains": ["a.example"]}]}) == [("bad_handler", "sites[0]")]


@pytest.mark.parametrize("key", ["snippet", "include", "raw", "proxy_pass", "hsts", "lua"])
def test_nothing_of_nginx_s_language_is_taken(key):
    assert findings(one_site(**{key: "return 200;"})) == [("unknown_key", f"sites[0].{key}")]


@pytest.mark.parametrize("value", ["10.0.0.0/24", "10.0.0.1/32"])
def test_a_resolver_is_one_address(value):
    assert findings({"resolvers": [value]}) == [("bad_address", "resolvers[0]")]


@pytest.mark.parametrize("plain", [None, [], "x", 1, {"sites": {}}, {"sites": [None]}, {"sites": [[]]}, {"sites": "x"}])
def test_another_shape_is_refused(plain):
    assert findings(plain)


def test_a_thousand_faults_are_a_hundred_findings():
    plain = nginxes.document(*(nginxes.site(f"s{index}", domains=["bad;"] * 5) for index in range(1_000)))
    assert len(findings(plain)) == 100


def test_reading_leaves_the_document_as_it_was():
    plain = one_site(tls=nginxes.tls(), locations=[{"path": "/x", "answer": 404}])
    before = copy.deepcopy(plain)
    decode.read(plain)
    assert plain == before

"""Which headers are forwarded between clients and services, and which origins may send a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from latticed.ingress import forwarding, same_origin
from latticed.model.errors import Problem

ORIGIN, PREFIX = "http://127.0.0.1:3000", "/acme.demo/"


def asked(*fields, **options):
    return forwarding.asked(CIMultiDict(fields), origin=ORIGIN, host="127.0.0.1:3000", **options)


def answered(*fields, private=False, refused=False):
    found = forwarding.answered(CIMultiDict(fields), origin=ORIGIN, prefix=PREFIX, private=private, refused=refused)
    found.pop("Server")
    return list(found.items())


def test_headers_listed_in_connection_are_not_forwarded():
    """There are several Connection fields, which list them in any case."""
    fields = [
        ("Connection", "close, DNT"),
        ("connection", "x-requested-WITH ,"),
        ("DNT", "1"),
        ("x-Requested-With", "2"),
        ("Accept", "3"),
    ]
    assert list(asked(*fields).items()) == [("Host", "127.0.0.1:3000"), ("Accept", "3")]
    assert answered(*fields) == [("Accept", "3")]


def test_host_and_origin_are_replaced_by_those_of_the_service():
    """An absent Origin stays absent."""
    assert list(asked(("Host", "sub.example.org"), ("Origin", "https://sub.example.org")).items()) == [
        ("Host", "127.0.0.1:3000"),
        ("Origin", ORIGIN),
    ]


def test_websocket_handshake_headers_are_not_forwarded():
    fields = [("Sec-WebSocket-Key", "k"), ("Sec-WebSocket-Extensions", "x"), ("Upgrade", "websocket"), ("Accept", "b")]
    assert list(asked(*fields).items()) == [("Host", "127.0.0.1:3000"), ("Accept", "b")]


@pytest.mark.parametrize(
    ("cookie", "passed"),
    [
        ("a=1; latticed-session=x; b=2", "a=1; b=2"),
        ("LATTICED-SESSION=x", ""),
        ("__Host-latticed-session=x;a", "a"),
        (" latticed-session =x; ;; a=latticed-session=x", "a=latticed-session=x"),
    ],
)
def test_session_cookie_is_not_forwarded(cookie, passed):
    assert asked(("Cookie", cookie)).get("Cookie", "") == passed
    assert forwarding.others_cookies(["x=0", cookie]) == "; ".join(filter(None, ["x=0", passed]))


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0b", "\x7f", "\udcff"])
def test_unsafe_header_values_are_not_forwarded(value):
    for name in ("Accept", "Cookie", "Location", "Set-Cookie"):
        assert value not in str(asked((name, value)))
        assert answered((name, value)) == []
    assert asked(("Accept", "tab\tstays")).get("Accept") == "tab\tstays"


@pytest.mark.parametrize("own", [[], [("WWW-Authenticate", 'Basic realm="x"'), ("www-authenticate", "Negotiate")]])
def test_challenge_of_a_401_asks_for_nothing_that_is_not_forwarded(own):
    """Browsers ask for a password on Basic, Digest, NTLM and Negotiate; services get no Authorization."""
    assert answered(*own, refused=True) == [("WWW-Authenticate", "Cookie")]
    assert answered(*own) == []


def test_events_and_nothing_else_are_kept_in_no_buffer_by_an_nginx_in_front():
    """All else it takes at once, and serves slow clients itself. What the service says of it does not count."""
    events = ("Content-Type", "text/event-stream; charset=utf-8")
    said = ("X-Accel-Buffering", "yes")
    assert answered(events, said) == [events, ("X-Accel-Buffering", "no")]
    assert answered(("Content-Type", "text/html"), ("X-Accel-Buffering", "no")) == [("Content-Type", "text/html")]


@pytest.mark.parametrize(
    "name", ["Service-Worker-Allowed", "Clear-Site-Data", "NEL", "Report-To", "Alt-Svc", "Accept-CH"]
)
def test_response_headers_for_the_whole_origin_are_not_forwarded(name):
    """All services share one origin: none may set headers that apply to the others."""
    assert answered((name, "/"), (name.lower(), "/"), ("Content-Type", "text/html")) == [("Content-Type", "text/html")]


@pytest.mark.parametrize(
    ("cookie", "passed"),
    [
        ("a=1", "a=1"),
        ("a=1; path=/x; Domain=example.org; Secure", "a=1; Path=/acme.demo/x; Secure"),
        ("a=1; PATH = /", "a=1; Path=/acme.demo/"),
        ("a=1; Path=x; domain", "a=1; Path=x"),
        ("__Host-a=1; Path=/; Secure", "__Host-a=1; Path=/; Secure"),
        ("latticed-session=1", None),
        (" __HOST-latticed-session =1; Path=/; Secure", None),
        ("=latticed-session=1", None),
        ("; Path=/", None),
    ],
)
def test_service_cookie_is_restricted_to_its_prefix_or_dropped(cookie, passed):
    assert answered(("Set-Cookie", cookie)) == ([] if passed is None else [("Set-Cookie", passed)])


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (None, "private"),
        ("public", "private"),
        ("max-age=1, S-MAXAGE=2", "max-age=1, private"),
        ("max-age=31536000, immutable", "max-age=31536000, immutable, private"),
        ("no-cache, private", "no-cache, private"),
        ('private="x-a, x-b", max-age=5', "max-age=5, private"),
        ("no-store", "no-store"),
        ("No-Store, max-age=5", "No-Store, max-age=5"),
    ],
)
def test_answer_to_logged_in_user_is_marked_private(said, kept):
    """No shared cache may store it."""
    fields = [("Cache-Control", said)] if said else []
    assert dict(answered(*fields, private=True)) == {"Vary": "Cookie", "Cache-Control": kept}
    assert answered(*fields) == fields


def test_answer_to_logged_in_user_has_no_orders_for_caches_of_their_own_kind():
    fields = [("CDN-Cache-Control", "max-age=60"), ("Example-Cache-Control", "public"), ("Surrogate-Control", "public")]
    assert dict(answered(*fields, private=True)) == {"Vary": "Cookie", "Cache-Control": "private"}
    assert answered(*fields) == fields


NAMES = st.sampled_from("Connection Cookie Authorization X-Forwarded-For Host Upgrade X-A TE Set-Cookie X_B".split())
VALUES = st.sampled_from(["a", "X-A", "latticed-session=s3cret", "a=b; latticed-session=s3cret", "close, te", "\u00fc"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_session_cookie_and_credentials_are_never_forwarded_for_any_headers(fields):
    found = asked(*fields)
    assert found.getall("Host") == ["127.0.0.1:3000"]
    assert not {"Authorization", "Upgrade", "TE", "Connection", "X-Forwarded-For", "X_B"} & set(found.keys())
    assert "s3cret" not in found.get("Cookie", "")
    cookies = [value for name, value in answered(*fields) if name == "Set-Cookie"]
    assert not [value for value in cookies if value.startswith("latticed-session")]


# Own and foreign origins.


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://127.0.0.1:8788", "127.0.0.1:8788", True),
        ("http://LOCALHOST:8788", "localhost:8788", True),
        ("http://localhost", "localhost", True),
        ("http://localhost:80", "localhost", True),
        ("https://a.example", "a.example", True),
        ("https://a.example", "a.example:443", True),
        ("https://a.example", "a.example:80", False),
        ("http://[::1]:8788", "[::1]:8788", True),
        ("http://a.example", "a.example:8788", False),
        ("http://a.example:8788", "a.example", False),
        ("http://b.example", "a.example", False),
        ("http://a.example.", "a.example", False),
        ("null", "a.example", False),
        ("", "a.example", False),
        ("http://", "a.example", False),
        ("//a.example", "a.example", False),
        ("javascript://a.example", "a.example", False),
        ("http://a.example/", "a.example", False),
        ("http://u@a.example", "a.example", False),
        ("HTTP://a.example", "a.example", False),
    ],
)
def test_own_origin_matches_scheme_host_and_port_only(origin, host, own):
    assert same_origin.is_own(origin, host) is own


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_origin_is_compared_without_an_exception(origin, host):
    same_origin.is_own(origin, host)


def test_only_reading_methods_are_allowed_without_origin():
    for method in ("GET", "HEAD", "OPTIONS"):
        same_origin.check(method, "a.example", {})
    for method in ("POST", "get", "WHATEVER"):
        with pytest.raises(Problem):
            same_origin.check(method, "a.example", {})

"""Parsing of request targets, and which are refused."""

from __future__ import annotations

import contextlib
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ingress import request_target
from latticed.model.errors import Problem


def refused(raw):
    with pytest.raises(Problem) as caught:
        request_target.parse(raw)
    return caught.value.code


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a%20b", "/a b"),
        ("/%c3%BC", "/ü"),
        ("/a%2Fb", "/a/b"),
        ("/a+b", "/a+b"),
        ("/%252e%252e/", "/%2e%2e/"),
        ("/%7B%7Bkv:a/b%7D%7D", "/{{kv:a/b}}"),
        ("//a//", "//a//"),
        ("/...", "/..."),
        ("/.a/..b/c..", "/.a/..b/c.."),
        ("/\udcc3\udcbc", "/ü"),
    ],
)
def test_path_is_decoded_exactly_once(raw, path):
    """So is raw UTF-8, which the parser returns as surrogates."""
    assert request_target.parse(raw).path == path


@pytest.mark.parametrize(
    "raw",
    [
        *("/..", "/.", "/a/../b", "/a/./b", "/a/..", "/a/.", "/../../etc/passwd"),
        *("/%2e%2e/", "/%2E./x", "/.%2e", "/a%2f..%2fb", "/a%2f..", "/%2e", "/a/%2e%2e%2f%2e%2e%2fb"),
        *("/..%5cb", "/a%5c..%5cb", "/a\\..\\b", "/a\\.."),
        *("/%00", "/a%00b", "/a\x00b"),
        *("/%ff", "/%c3", "/%c0%af", "/%ed%a0%80", "/%c0%ae%c0%ae/", "/\udcff", "/%f8%80%80%80%80"),
        *("/%", "/%2", "/%zz", "/%u0041", "/a%%41", "/% 41"),
        *("/a b", "/a#b", "/a\tb", "/a\nb", "/a\x7fb"),
        *(
            "",
            "*",
            "a",
            "a/b",
            "acme.demo/",
            "https://localhost/",
            "ftp://localhost/",
            "http:/a",
            "localhost:80",
            "?a=1",
        ),
        *("/?a=%ff", "/?%ff=a", "/?a=%", "/?a=%00", "/?a=b#c", "/?" + "a&" * 200),
    ],
)
def test_ambiguous_request_targets_are_refused(raw):
    """Dot segments in any encoding, NUL, invalid UTF-8, broken escapes, other forms of targets."""
    assert refused(raw) == "bad_request"


def test_too_long_request_targets_are_refused():
    """4,096 characters are accepted; one more is `uri_too_long`."""
    request_target.parse("/" + "a" * 4_095)
    assert refused("/" + "a" * 4_096) == "uri_too_long"


def test_query_fields_keep_their_order_and_repetitions():
    """Forms repeat fields."""
    found = request_target.parse("/p?a=1&b=%26+%2B&a=2&c&=d&&e=f=g&%C3%BC=%C3%A4").query
    assert found == (("a", "1"), ("b", "& +"), ("a", "2"), ("c", ""), ("", "d"), ("e", "f=g"), ("ü", "ä"))
    assert request_target.parse("/p?").query == ()


@pytest.mark.parametrize(
    ("raw", "authority", "path"),
    [
        ("http://localhost:8787/a%20b?x=1", "localhost:8787", "/a b"),
        ("HTTP://h/", "h", "/"),
        ("http://h", "h", "/"),
        ("http://h?x=1", "h", "/"),
        ("http:///a", "", "/a"),
        ("http://user@h/a", "user@h", "/a"),
    ],
)
def test_absolute_target_gives_its_host(raw, authority, path):
    """RFC 9112, section 3.2.2: it replaces the Host header."""
    found = request_target.parse(raw)
    assert (found.authority, found.path) == (authority, path)
    assert request_target.parse("/a").authority is None


@given(st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_quoted_path_parses_back_to_its_text(text):
    """A path with dot segments is refused instead."""
    quoted = "/" + urllib.parse.quote(text, safe="/", errors="strict")
    with contextlib.suppress(Problem):
        assert request_target.parse(quoted).path == "/" + text


@given(st.one_of(st.text(max_size=60), st.text(alphabet="/.%2eE5cC\\f0?&=+", max_size=30).map("/".__add__)))
def test_no_request_target_with_a_dot_segment_is_accepted(raw):
    """No exception but Problem is raised."""
    with contextlib.suppress(Problem):
        path = request_target.parse(raw).path
        assert not {".", ".."} & set(path.replace("\\", "/").split("/"))
        assert "\0" not in path

"""Hashes of a page's own styles, and the policy that is made of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.route import own_style, template
from latticed.host.route.own_style import MOST_STYLES, OwnStyle
from latticed.model.errors import Problem

HTML = "text/html; charset=utf-8"


def source(style: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


@pytest.mark.parametrize(
    ("page", "styles"),
    [
        ("<style>a</style>", ["a"]),
        ("<STYLE media='print'\n>a\nb</Style >x<style>c</style/>", ["a\nb", "c"]),
        ("<style>a</style><style>a</style>", ["a"]),
        ("<style>a\r\nb\rc</style>", ["a\nb\nc"]),
        ("<style>a</styles></style>", ["a</styles>"]),
        ("<style></style>", [""]),
        ("<style>ü€</style>", ["ü€"]),
        ("<!-- <style>a</style> --><style>b</style>", ["b"]),
        ("<!--><style>b</style>", ["b"]),
        ("<!-- <style>a</style>", []),
        ("<style>a", []),
        ("<style", []),
        ("<styles>a</styles>", []),
        ("<link rel=stylesheet href=a.css>", []),
        ("<IMG src=a.png>", []),
        ("<style>a\0b</style>", []),
    ],
)
def test_styles_of_a_page_have_the_hashes_that_a_browser_makes(page, styles):
    assert own_style.of_page(page.encode(), HTML) == OwnStyle(tuple(map(source, styles)))


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"<h1>hello</h1>", HTML),
        (b"", "text/html"),
        (b"<style>a</style>", "text/plain"),
        (b"<style>a</style>", "text/html; charset=utf-16"),
        (b"<style>a</style>", "text/html; charset=utf-7"),
        (b"<style>a</style>", "text/html; charset=utf-8; charset=utf-16"),
        (b"<style>a</style>", "application/xhtml+xml"),
    ],
)
def test_other_answers_have_no_style_of_their_own(page, kind):
    assert own_style.of_page(page, kind) is None


def test_style_that_is_no_utf_8_has_no_hash():
    assert own_style.of_page(b"<style>\xff</style>", HTML) == OwnStyle()
    assert own_style.of_page(b"<style>a</style>", "TEXT/HTML") == OwnStyle((source("a"),))


def test_too_many_styles_are_refused():
    some = b"<style>a</style>" * MOST_STYLES
    assert own_style.of_page(some, HTML)
    with pytest.raises(Problem, match="at most 16 <style> elements") as caught:
        own_style.of_page(some + b"<style>b</style>", HTML)
    assert caught.value.code == "plugin_error"
    with pytest.raises(Problem) as caught:
        own_style.of_template((some, b"<style>b</style>"), HTML)
    assert caught.value.code == "source_blocked"


def test_style_with_a_placeholder_of_a_template_has_no_hash():
    parsed = template.parse(b"<style>a</style>{{path}}<style>b{{query:x}}</style>")
    assert own_style.of_template(parsed.parts, HTML) == OwnStyle((source("a"),))


@pytest.mark.parametrize(
    "part", [b"<style>", b"<style ", b"<!--", b"<!-- --><style", b"<style></style", b"</style", b"<!--<style>-->"]
)
def test_pages_made_to_be_slow_are_read(part):
    """In one pass: a megabyte of these would take a scanner that begins anew at each of them longer than a test may."""
    with contextlib.suppress(Problem):
        own_style.of_page(part * ((1 << 20) // len(part)), HTML)


@pytest.mark.parametrize(("comments", "hashes"), [(100, (source("a"),)), (own_style.MOST_STEPS, ())])
def test_style_behind_very_many_comments_has_no_hash(comments, hashes):
    assert own_style.of_page(b"<!-- x -->" * comments + b"<style>a</style>", HTML) == OwnStyle(hashes)


PARTS = ["<style>", "</style>", "<!--", "-->", "a{}", "\n", "<img>", ">", "ü"]


@given(page=st.lists(st.sampled_from(PARTS), max_size=30))
def test_any_page_is_read(page):
    found = own_style.of_page("".join(page).encode(), HTML)
    assert found is None or len(found.hashes) <= MOST_STYLES


@pytest.mark.parametrize(
    ("host", "prefix", "place"),
    [
        ("127.0.0.1:8787", "/acme.page/", "127.0.0.1:8787/acme.page/"),
        ("Status.Example.org", "/acme.page/sub/", "status.example.org/acme.page/"),
        ("localhost:1", "/shop/", "localhost:1/shop/"),
        ("localhost:1", "/a;b, c/ü/", "localhost:1/a%3Bb%2C%20c/%C3%BC/"),
        ("[::1]:8787", "/acme.page/", ""),
        ("bad host", "/acme.page/", ""),
    ],
)
def test_place_of_a_plugin_is_its_prefix_on_the_host_that_was_asked(host, prefix, place):
    assert own_style.own_place(host, "acme.page", prefix) == place


def test_policy_has_hashes_and_the_plugins_place_and_never_a_script():
    start = "sandbox; default-src 'none'; base-uri 'none'; form-action 'none'"
    assert own_style.policy(OwnStyle(("'sha256-a'",)), "h/p/") == f"{start}; style-src 'sha256-a' h/p/; img-src h/p/"
    assert own_style.policy(OwnStyle(), "") == start
    assert own_style.policy(OwnStyle(("'sha256-a'",)), "") == f"{start}; style-src 'sha256-a'"

"""Which requests of a browser the console answers, where it listens, and what each answer carries."""

from __future__ import annotations

import pytest

from latticed.console import guard
from latticed.console.guard import ListenAt, PageOrigin
from latticed.model.errors import Problem

OWN = guard.origins(ListenAt(host="127.0.0.1", port=8790), [guard.origin("https://plugins.example.org")])
HERE = PageOrigin("http", "127.0.0.1:8790")


@pytest.mark.parametrize("host", ["127.0.0.1:8790", "localhost:8790", "LOCALHOST:8790", "plugins.example.org"])
def test_it_goes_by_its_own_names(host: str):
    assert guard.called_by(host, OWN).authority == host.lower()


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",  # a name that was pointed at 127.0.0.1 (DNS rebinding)
        "evil.example:8790",
        "127.0.0.1",
        "127.0.0.1:8791",
        "127.0.0.1:8790.evil.example",
        "localhost.evil.example:8790",
        "127.0.0.1:8790@evil.example",
        "0.0.0.0:8790",
        "2130706433:8790",
        "127.1:8790",
        "[::1]:8790",
        "plugins.example.org:80",
        "plugins.example.org.",
    ],
)
def test_it_goes_by_no_other_name(host: str):
    with pytest.raises(Problem) as refused:
        guard.called_by(host, OWN)
    assert refused.value.code == "foreign_host"


@pytest.mark.parametrize("site", ["", "none", "same-origin"])
@pytest.mark.parametrize(("method", "origin"), [("GET", None), ("GET", HERE.text), ("POST", HERE.text)])
def test_its_own_pages_are_answered(method: str, origin: str | None, site: str):
    guard.check_site(method, HERE, origin, site)


@pytest.mark.parametrize(
    ("method", "origin", "site"),
    [
        ("POST", None, ""),
        ("POST", "null", ""),  # a frame without an origin, or an old browser's form: they cannot be told apart
        ("POST", "null", "none"),
        ("POST", "null", "same-site"),
        ("POST", "null", "cross-site"),
        ("POST", "https://evil.example", ""),
        ("POST", "http://127.0.0.1:8787", "same-site"),  # a plugin's page on another port of this address
        ("POST", "https://127.0.0.1:8790", "same-origin"),
        ("POST", "http://localhost:8790", "same-origin"),  # another name of this console is another origin
        ("POST", HERE.text, "same-site"),
        ("POST", HERE.text, "cross-site"),
        ("GET", None, "same-site"),
        ("GET", None, "cross-site"),
        ("GET", "https://evil.example", ""),
        ("HEAD", "null", "none"),
        ("PUT", None, "none"),
    ],
)
def test_what_another_page_asks_for_is_refused(method: str, origin: str | None, site: str):
    with pytest.raises(Problem) as refused:
        guard.check_site(method, HERE, origin, site)
    assert refused.value.code == "foreign_origin"


def test_a_form_of_its_own_pages_is_answered():
    """Browsers send it with Origin "null", since the pages forbid referrers."""
    guard.check_site("POST", HERE, "null", "same-origin")


def test_no_page_of_it_can_be_framed_scripted_or_load_from_elsewhere():
    """Each directive is of the console alone, or of nobody; nothing is inline."""
    directives = dict(one.strip().split(" ", 1) for one in guard.HEADERS["Content-Security-Policy"].split(";"))
    assert set(directives.values()) == {"'none'", "'self'"}
    assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
    assert guard.HEADERS["X-Frame-Options"] == "DENY"
    assert guard.HEADERS["Referrer-Policy"] == "no-referrer"
    assert guard.HEADERS["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("127.0.0.1:0", ListenAt(host="127.0.0.1")),
        ("localhost:8790", ListenAt(host="127.0.0.1", port=8790)),
        ("[::1]:8790", ListenAt(host="::1", port=8790)),
        ("127.0.0.2:1", ListenAt(host="127.0.0.2", port=1)),
        ("/run/console/http.sock", ListenAt(path="/run/console/http.sock")),
    ],
)
def test_it_listens_on_loopback_or_a_unix_socket(given: str, wanted: ListenAt):
    assert guard.listen_at(given) == wanted


@pytest.mark.parametrize(
    "given",
    """0.0.0.0:80 [::]:80 192.0.2.1:80 [::ffff:192.0.2.1]:80 example.org:80 :80 127.0.0.1 80 127.0.0.1:65536
    127.0.0.1:-1 127.0.0.1:٣ ui.sock 127.0.0.1:80:81""".split(),
)
def test_it_listens_nowhere_else(given: str):
    with pytest.raises(Problem) as refused:
        guard.listen_at(given)
    assert refused.value.code == "usage"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("https://Plugins.Example.org/", "https://plugins.example.org"),
        ("https://plugins.example.org:443", "https://plugins.example.org"),
        ("https://plugins.example.org:8443", "https://plugins.example.org:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_an_origin_is_read_as_browsers_send_it(given: str, wanted: str):
    assert guard.origin(given).text == wanted


@pytest.mark.parametrize(
    "given",
    [
        *"""plugins.example.org http://plugins.example.org ftp://127.0.0.1 https:// https://a/b https://u@a https://a?b
        https://a#b https://a:99999 https://bücher.example https://[::1""".split(),
        "https://a\n",
    ],
)
def test_what_is_no_origin_is_refused(given: str):
    with pytest.raises(Problem) as refused:
        guard.origin(given)
    assert refused.value.code == "usage"


def test_a_cookie_is_kept_from_scripts_other_sites_and_other_paths():
    plain = guard.cookie("latticed_ui", "secret", "/path/", HERE)
    assert plain == "latticed_ui=secret; Path=/path/; HttpOnly; SameSite=Strict"
    assert guard.cookie("latticed_ui", "secret", "/path/", PageOrigin("https", "a")) == plain + "; Secure"

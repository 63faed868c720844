"""The console's addresses: what is in the table, and no trick to reach what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.console import addresses
from latticed.console.addresses import FoundPage

BASE = "Zm9v"


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/", FoundPage("overview", ())),
        ("GET", "/plugins/acme.demo", FoundPage("plugin", ("acme.demo",))),
        ("GET", "/plugins/acme%2Edemo/logs", FoundPage("logs", ("acme.demo",))),
        ("POST", "/plugins/acme.demo", FoundPage("act", ("acme.demo",))),
        ("GET", "/static/live.js", FoundPage("static", ("live.js",))),
    ],
)
def test_a_page_of_the_table_is_found(method: str, path: str, wanted: FoundPage):
    assert addresses.found(method, f"/{BASE}{path}", BASE) == wanted


@pytest.mark.parametrize(
    "path",
    [
        "/",
        f"/{BASE}",
        f"/{BASE}x/",
        f"//{BASE}/",
        f"http://127.0.0.1/{BASE}/",
        f"/{BASE}//",
        f"/{BASE}/plugins/",
        f"/{BASE}/plugins//logs",
        f"/{BASE}/plugins/../health",
        f"/{BASE}/plugins/%2e%2e/logs",
        f"/{BASE}/plugins/%2E%2E%2Fhealth",
        f"/{BASE}/plugins/a%2fb",
        f"/{BASE}/plugins/a%5cb",
        f"/{BASE}/plugins/a%252fb",
        f"/{BASE}/plugins/a%00",
        f"/{BASE}/plugins/a%0d%0ab",
        f"/{BASE}/plugins/%ff",
        f"/{BASE}/plugins/%e2%80%ae",
        f"/{BASE}/plugins/acme.demo/config",
        f"/{BASE}/static/../server.py",
        f"/{BASE}/static/a/b",
        f"/{BASE}/api/plugins",
        f"/{BASE}/" + "a" * 3000,
        f"/{BASE.lower()}/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_path_is_a_page(method: str, path: str):
    assert addresses.found(method, path, BASE) is None


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", ""])
def test_no_other_method_opens_a_page(method: str):
    """HEAD neither: what previews a link must not use it up."""
    assert addresses.found(method, f"/{BASE}/open/secret", BASE) is None
    assert addresses.found(method, f"/{BASE}/", BASE) is None


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_whatever_is_found_has_nothing_that_could_lead_elsewhere(tail: str):
    for method in ("GET", "POST"):
        found = addresses.found(method, f"/{BASE}/{tail}", BASE)
        for one in found.arguments if found else ():
            assert one not in {"", ".", ".."}
            assert not set(one) & set("/\\%\r\n\0")

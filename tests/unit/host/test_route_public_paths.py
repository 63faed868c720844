"""Public paths of a service: what each pattern matches, and that encoded paths match nothing else."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.route import public_paths


@pytest.mark.parametrize(
    ("pattern", "public", "private"),
    [
        ("/", ["/"], ["/x", "//"]),
        ("/feed", ["/feed", "/fe%65d"], ["/feed/", "/feeds", "/", "/Feed", "/x/feed"]),
        ("/feed/", ["/feed/"], ["/feed", "/feed/x", "/feed//"]),
        ("/d/*", ["/d/x", "/d/%C3%BC", "/d/a.b"], ["/d/", "/d", "/d/x/", "/d/x/y", "/d/a%2fb", "/d/..", "/d/."]),
        ("/d/*/x", ["/d/a/x"], ["/d//x", "/d/a/b/x", "/d/../x"]),
        ("/a/**", ["/a/", "/a/b", "/a/b/c", "/a/b/"], ["/a", "/ab", "/a/b//c", "/a/../c", "/a/%2e%2e/c", "/a/b;c"]),
        ("/**", ["/", "/x", "/x/y"], ["//", "/x//y", "/x%2fy", "/%5c", "/a%00b", "/%25"]),
        ("/a/*/**", ["/a/b/", "/a/b/c"], ["/a/b", "/a//c"]),
    ],
)
def test_public_path_pattern_matches_only_its_paths(pattern, public, private):
    assert public_paths.fault(pattern) is None
    assert [path for path in public if not public_paths.is_public((pattern,), path)] == []
    assert [path for path in private if public_paths.is_public((pattern,), path)] == []


@pytest.mark.parametrize(
    "pattern", ["", "x", "/a//b", "/**/a", "/a**", "/../a", "/.", "/a%2f", "/a?b", "/" + "x" * 255]
)
def test_malformed_public_path_pattern_is_refused(pattern):
    assert public_paths.fault(pattern)


PIECES = ["/", "a", "b", ".", "..", "%2e", "%2f", "%5c", "%", ";", "\\", "%25", "%252f", "\u00fc", "?", "#", "\n"]


@given(st.sampled_from(["/", "/a", "/a/"]), st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_public_path_stays_below_its_pattern(start, rest):
    """It may be decoded any number of times: it has no `.`, `..` or empty segment."""
    raw = start + rest
    if public_paths.is_public(("/a/**",), raw):
        assert raw.startswith("/a/") or unquote(raw).startswith("/a/")
        for _ in range(3):
            raw = unquote(raw)
            assert not {"..", "."} & set(raw.replace("\\", "/").split("/"))
            assert "//" not in raw


@given(st.text(max_size=30))
def test_any_text_is_matched_without_an_exception(text):
    public_paths.fault(text)
    public_paths.is_public(("/**", "/a/*"), "/" + text)

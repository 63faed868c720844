"""Ranges of versions, as npm and Cargo read them."""

from __future__ import annotations

import pytest

from latticed.model import semver_range


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("*", ["0.0.0", "1.2.3"], ["1.0.0-rc.1"]),
        ("1.2.3", ["1.2.3", "1.2.3+build"], ["1.2.4", "1.2.3-rc.1"]),
        ("=1.2.3", ["1.2.3"], ["1.2.2"]),
        ("1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.9"]),
        ("1.x", ["1.0.0", "1.99.0"], ["2.0.0", "0.9.0"]),
        (">=1.2.0", ["1.2.0", "2.0.0"], ["1.1.9", "2.0.0-rc.1"]),
        (">1.2", ["1.3.0"], ["1.2.9", "1.2.0"]),
        (">1.2.3", ["1.2.4"], ["1.2.3"]),
        ("<=1.2", ["1.2.9", "0.1.0"], ["1.3.0"]),
        ("<1.2", ["1.1.9"], ["1.2.0", "1.2.0-rc.1"]),
        ("<=1.2.3", ["1.2.3"], ["1.2.4"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["2.0.0", "1.2.2"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "1.0.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.0.1", "0.9.9"], ["1.0.0"]),
        ("^1.2", ["1.2.0", "1.9.9"], ["2.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        (">=1.0 <2.0", ["1.0.0", "1.9.9"], ["2.0.0"]),
        (">=1.0, <2.0", ["1.5.0"], ["2.0.0"]),
        (">= 1.0.0 , < 1.5.0", ["1.4.9"], ["1.5.0"]),
        ("^1.0 || ^3.0", ["1.1.0", "3.1.0"], ["2.0.0", "4.0.0"]),
        ("^1.2.3-beta.2", ["1.2.3-beta.2", "1.2.3-beta.10", "1.2.3", "1.3.0"], ["1.2.3-beta.1", "1.3.0-beta.2"]),
        (">*", [], ["0.0.0", "1.0.0"]),
        ("<*", [], ["0.0.0", "1.0.0"]),
        ("v1.2.3", ["1.2.3"], []),
    ],
)
def test_version_range_contains_the_expected_versions(text, inside, outside):
    """Partial versions, operators, alternatives and pre-releases as in node-semver."""
    assert [version for version in inside if not semver_range.contains(text, version)] == []
    assert [version for version in outside if semver_range.contains(text, version)] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "||",
        "1.0 ||",
        "latest",
        ">=",
        "1.2.3.4",
        "01.0.0",
        "1.0.0-01",
        "1.2-rc.1",
        "=>1.0",
        "1.0.0foo",
        "1.٣.0",
        "9" * 300,
    ],
)
def test_invalid_version_ranges_are_refused(text):
    """Text that is not understood completely is an error, never a match."""
    with pytest.raises(semver_range.InvalidRange):
        semver_range.check(text)


def test_versions_compare_only_when_both_are_semver():
    """Otherwise there is no order."""
    assert semver_range.compare("1.10.0", "1.9.0") == 1
    assert semver_range.compare("1.0.0-rc.1", "1.0.0") == -1
    assert semver_range.compare("1.0.0+a", "1.0.0+b") == 0
    assert semver_range.compare("1.0", "1.0.0") is None
    assert semver_range.compare("1.0.0", "") is None


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "1.0.٣", "1.0.0\n", "01.0.0", ""])
def test_non_semver_versions_are_in_no_range(text):
    """Only ASCII SemVer 2.0.0 counts; `*` does not contain others either."""
    assert not semver_range.is_version(text)
    assert not semver_range.contains("*", text)

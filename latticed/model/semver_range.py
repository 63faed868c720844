"""Ranges of SemVer versions, as npm and Cargo users write them (https://semver.org, node-semver's README).

A range is `||`-separated alternatives; each is comparators joined by white space or commas, all of which must hold.
A comparator is one of `> >= < <= = ^ ~` and a version that may be partial (`1.2`, `1.x`, `*`); without an operator a
full version means itself and a partial one everything it leaves open. A pre-release only matches when a comparator
of the same alternative names a pre-release of the same major.minor.patch, so that `>=1.0.0` never picks `2.0.0-rc.1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import semver

MAX_LENGTH: Final = 256
"""Characters of a range; a bound for input, far above what ranges need."""

_COMPARATOR: Final = re.compile(
    r"(?P<operator>>=|<=|>|<|=|\^|~)?\s*v?(?P<major>0|[1-9][0-9]*|[xX*])"
    r"(?:\.(?P<minor>0|[1-9][0-9]*|[xX*])(?:\.(?P<patch>0|[1-9][0-9]*|[xX*])"
    r"(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?)?)?",
    re.ASCII,
)
"""Numbers have no leading zero (SemVer 2.0.0, item 2).

Build metadata is read and ignored, as it has no order (item 10).
"""
_BETWEEN: Final = re.compile(r"[\s,]*", re.ASCII)
_WILD: Final = frozenset({None, "x", "X", "*"})
"""What leaves a number of the version open."""


class InvalidRange(ValueError):  # reads as the finding it is
    """The text is not a range of versions; the message has the part that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """`version` compared with the text's version by `operator`, one of `> >= < <= =`."""

    operator: str
    version: semver.Version

    def admits(self, version: semver.Version) -> bool:
        """Whether `version` is on this side of the bound; build metadata does not count (SemVer 2.0.0, item 10)."""
        order = version.compare(self.version)
        match self.operator:
            case ">":
                return order > 0
            case ">=":
                return order >= 0
            case "<":
                return order < 0
            case "<=":
                return order <= 0
            case _:
                return order == 0


def is_version(text: str) -> bool:
    """Whether `text` is a SemVer 2.0.0 version (ASCII, no leading `v`): `1.2.3`, `1.2.3-rc.1+build`."""
    return text.isascii() and semver.Version.is_valid(text)


def compare(one: str, other: str) -> int | None:
    """Negative, zero or positive as `one` precedes, equals or follows `other`; None unless both are SemVer."""
    if not (is_version(one) and is_version(other)):
        return None
    return semver.Version.parse(one).compare(semver.Version.parse(other))


def contains(range_text: str, version: str) -> bool:
    """Whether the SemVer `version` lies within `range_text`; InvalidRange when that is no range.

    `^1.2` has 1.2.0 and 1.9.3, not 2.0.0; `>=1 <1.5 || 2.x` has 1.4.9 and 2.7.0. A `version` that is not SemVer lies in
    no range.
    """
    alternatives = _parse(range_text)
    if not is_version(version):
        return False
    found = semver.Version.parse(version)
    return any(_all_hold(bounds, found) for bounds in alternatives)


def check(range_text: str) -> None:
    """Raise InvalidRange unless `range_text` is a range."""
    _parse(range_text)


def _all_hold(bounds: list[_Bound], version: semver.Version) -> bool:
    """Whether a version fulfils all bounds of one alternative, and may be a pre-release if it is one."""
    if version.prerelease and not any(_names_prerelease_of(bound, version) for bound in bounds):
        return False
    return all(bound.admits(version) for bound in bounds)


def _names_prerelease_of(bound: _Bound, version: semver.Version) -> bool:
    """Whether the bound names a pre-release of the same major.minor.patch as `version`."""
    named = bound.version
    return bool(named.prerelease) and named.finalize_version() == version.finalize_version()


def _parse(range_text: str) -> list[list[_Bound]]:
    """The bounds of each alternative: all bounds of one of them must hold."""
    if len(range_text) > MAX_LENGTH:
        raise InvalidRange(f"expected a range of at most {MAX_LENGTH} characters, found {len(range_text)}")
    return [_alternative(part) for part in range_text.split("||")]


def _alternative(text: str) -> list[_Bound]:
    """The bounds of one alternative; InvalidRange names the place where it stops being one."""
    bounds: list[_Bound] = []
    position = _skip(text, 0)
    if position == len(text):
        raise InvalidRange("expected a version or a comparator such as >=1.2.0, found nothing")
    while position < len(text):
        found = _COMPARATOR.match(text, position)
        end = found.end() if found else position
        # A comparator must be followed by white space, a comma or the end: `1.2.3foo` is none.
        if not found or (end < len(text) and _skip(text, end) == end):
            raise InvalidRange(f"expected comparators such as >=1.2.0, found {text[position : position + 40]!r}")
        bounds.extend(_bounds(found))
        position = _skip(text, end)
    return bounds


def _skip(text: str, position: int) -> int:
    """The position after white space and commas."""
    found = _BETWEEN.match(text, position)
    return found.end() if found else position


def _bounds(found: re.Match[str]) -> list[_Bound]:
    """One comparator as plain bounds: `^1.2.3` as `>=1.2.3` and `<2.0.0`, `~1.2` as `>=1.2.0` and `<1.3.0`."""
    # Fewer than three for a partial version.
    numbers = _numbers(found)
    if found["pre"] is not None and len(numbers) < 3:
        raise InvalidRange(f"expected a full version before a pre-release, found {found[0]!r}")
    if not numbers:
        return _any_or_nothing(found["operator"])
    lowest = _version(numbers, found["pre"])
    match found["operator"]:
        case "^":
            return [_Bound(operator=">=", version=lowest), _below(numbers, _caret_place(numbers))]
        case "~":
            return [_Bound(operator=">=", version=lowest), _below(numbers, min(1, len(numbers) - 1))]
        # `>1.2` begins after everything that 1.2 leaves open: `>=1.3.0`; so below for `<=1.2` and `1.2` alone.
        case ">" if len(numbers) < 3:
            return [_Bound(operator=">=", version=_version(_next(numbers, len(numbers) - 1), None))]
        case "<=" if len(numbers) < 3:
            return [_below(numbers, len(numbers) - 1)]
        case None | "=" if len(numbers) < 3:
            return [_Bound(operator=">=", version=lowest), _below(numbers, len(numbers) - 1)]
        case operator:
            return [_Bound(operator=operator or "=", version=lowest)]


def _numbers(found: re.Match[str]) -> list[int]:
    """The given numbers of a partial version: `1.x` gives [1], `*` none."""
    numbers: list[int] = []
    for name in ("major", "minor", "patch"):
        if found[name] in _WILD:
            break
        numbers.append(int(found[name]))
    return numbers


def _any_or_nothing(operator: str | None) -> list[_Bound]:
    """The bounds of `operator *`: `>*` and `<*` match nothing, the others everything."""
    return [_Bound(operator="<" if operator in {">", "<"} else ">=", version=semver.Version(0, 0, 0))]


def _caret_place(numbers: list[int]) -> int:
    """Index of the number that `^` fixes: the first that is not zero, or the last given."""
    return next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)


def _below(numbers: list[int], place: int) -> _Bound:
    """Less than the next version at `place`: of [1, 2, 3] and place 1, `<1.3.0`."""
    # `<2.0.0` alone would have 2.0.0-rc.1; `_all_hold` keeps that out.
    return _Bound(operator="<", version=_version(_next(numbers, place), None))


def _next(numbers: list[int], place: int) -> list[int]:
    """The numbers up to `place`, the last one increased: [1, 2, 3] and 1 give [1, 3]."""
    return [*numbers[:place], numbers[place] + 1]


def _version(numbers: list[int], prerelease: str | None) -> semver.Version:
    """The version of these numbers, 0 for those left out; InvalidRange when semver does not take it."""
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    version = semver.Version(major, minor, patch, prerelease)
    if not is_version(str(version)):
        raise InvalidRange(f"expected a SemVer version, found {str(version)!r}")
    return version

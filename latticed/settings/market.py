"""Settings of the marketplace: where its indexes come from, and under whose keys. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from latticed.settings.rules import setting

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_URL: Final = re.compile(r"(?:https://[^/?#@\s\\]+|file://)/[^?#\s\\]*", re.ASCII)


def url_fault(value: Any) -> str:
    """What the address of a source has to be, in words, when `value` is none; else empty."""
    return "" if _URL.fullmatch(value) else "https://HOST/PATH or file:///PATH, without user, query and fragment"


def names_fault(value: Any) -> str:
    """What the names of sources have to be, in words, when one of the table is none; else empty."""
    return "" if all(map(_NAME.fullmatch, value)) else "names of 1 to 32 of a-z 0-9 -"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One source. `url`: of its plugins.json (static), or of the directory with `metadata` and `targets` (tuf).

    `keys`: those of its index (static), none: it can only be looked at; `threshold`: how many of them have to have
    signed. `root`: the file with the pinned root (tuf). `origins`: private mirrors, as `https://HOST:PORT=ADDRESS`.
    """

    format: str = setting("static", one_of=("static", "tuf"))
    url: str = setting("", fault=url_fault)
    keys: tuple[str, ...] = setting(())
    threshold: int = setting(1, low=1, high=16)
    root: str = setting("")
    max_age_days: int = setting(30, low=1, high=3_650)
    origins: tuple[str, ...] = setting(())


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSettings:
    """The marketplace. `min_release_age_days`: how long a release has to have been known here before it is taken.

    `index_bytes`: largest index; `fetch_s`: longest time for one file.
    """

    sources: dict[str, SourceSettings] = setting({}, fault=names_fault)
    min_release_age_days: int = setting(0, low=0, high=365)
    index_bytes: int = setting(8 << 20, low=1 << 10, high=16 << 20)
    fetch_s: float = setting(300.0, low=0.1, high=3_600)

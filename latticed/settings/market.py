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


def directory_fault(value: Any) -> str:
    """What the path of a directory has to be, in words, when `value` is none; empty also for no directory."""
    return "" if not value or (value.startswith("/") and "\0" not in value) else "a path from / on, or nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One source of the marketplace, `[market.sources.NAME]`."""

    format: str = setting("static", one_of=("static", "tuf"))
    """What the source is: an index of latticed (`static`) or a TUF repository (`tuf`)."""
    url: str = setting("", fault=url_fault)
    """Address of its `plugins.json` (static), or of the directory with `metadata` and `targets` (tuf)."""
    keys: tuple[str, ...] = setting(())
    """Public keys that sign its index (static); none: it can only be looked at."""
    threshold: int = setting(1, low=1, high=16)
    """How many of `keys` have to have signed."""
    root: str = setting("")
    """File with the pinned root (tuf)."""
    max_age_days: int = setting(30, low=1, high=3_650)
    """Nothing is taken from an index that was signed longer ago."""
    origins: tuple[str, ...] = setting(())
    """Private mirrors, as `https://HOST:PORT=ADDRESS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSettings:
    """The marketplace."""

    sources: dict[str, SourceSettings] = setting({}, fault=names_fault)
    """Where indexes of plugins come from: a table for each source, by its name."""
    min_release_age_days: int = setting(0, low=0, high=365)
    """A release is taken when it has been known here for so long."""
    index_bytes: int = setting(8 << 20, low=1 << 10, high=16 << 20)
    """Largest index that is read."""
    fetch_s: float = setting(300.0, low=0.1, high=3_600)
    """Longest time for fetching one file."""
    import_dir: str = setting("", fault=directory_fault)
    """Directory from which `POST /api/market/import` takes bundles; none: it takes none."""

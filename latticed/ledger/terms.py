"""What was accepted of a plugin (`model.accepted`), as text in a row and in the floors file."""

from __future__ import annotations

import functools
import json

import msgspec

from latticed.model.accepted import LEVELS, Accepted


def encode(terms: Accepted | None) -> str:
    """One text for equal values, so that texts can be compared; empty for None."""
    return "" if terms is None else json.dumps(msgspec.to_builtins(terms, order="sorted"), sort_keys=True)


@functools.lru_cache(maxsize=1024)  # thousands of records hold a few values between them
def decode(text: str) -> Accepted | None:
    """The terms that `encode` wrote; None for an empty text, ValueError for any other. Cached."""
    if not text:
        return None
    try:
        found = msgspec.json.decode(text, type=Accepted)
    except msgspec.MsgspecError as error:
        raise ValueError(f"terms: {error}") from error
    # msgspec checks types only, and a level that is unknown could not be compared with others.
    if found.level not in {"", *LEVELS}:
        raise ValueError(f"terms: expected a level, found {found.level[:40]!r}")
    return found

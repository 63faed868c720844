"""What is kept of users besides the configuration and their bytes, by user, in the groups of `usage.group`. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """`off`: an operator disabled him. `token`: SHA-256 of the token of his subscription; empty: he has none.

    `told`: the end that was notified last, so that none is twice.
    """

    off: bool = False
    token: str = ""
    told: str = ""


def token_hash(token: str) -> str:
    """What is kept of a token: whoever reads the state cannot fetch anything with it."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def written(found: Mapping[str, Account]) -> str:
    """Without accounts that say nothing."""
    kept = {name: asdict(one) for name, one in found.items() if one != Account()}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))


def read(value: bytes | str | None) -> dict[str, Account]:
    """What `written` wrote; nobody where there is none. ValueError for what it never writes."""
    if value is None:
        return {}
    try:
        return {name: Account(**one) for name, one in json.loads(value).items()}
    except (TypeError, AttributeError) as error:
        raise ValueError("no accounts") from error

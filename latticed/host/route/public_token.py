"""The token that opens the public paths of a proxied upstream (route.put, `token`): a field of the query (pure)."""

from __future__ import annotations

import hmac
import re
from typing import Final
from urllib.parse import unquote_plus

FIELD: Final = "token"
"""Name of the query's field."""
# Unreserved characters (RFC 3986, section 2.3), so that nobody has to encode it; too many to guess.
_FORM: Final = re.compile(r"[A-Za-z0-9._~-]{20,128}", re.ASCII)


def fault(value: str) -> str | None:
    """Why a value cannot be a token, or None when it can. The text does not contain the value."""
    return None if _FORM.fullmatch(value) else "expected 20 to 128 of A-Z a-z 0-9 . _ ~ -"


def given(query: str) -> str | None:
    """The token in a query, which is encoded and is empty or begins with `?`; None without one.

    Of several tokens, which others could read differently, none counts.
    """
    fields = [one.partition("=") for one in query[1:].split("&")]
    found = [value for name, _, value in fields if unquote_plus(name) == FIELD]
    return unquote_plus(found[0]) if len(found) == 1 else None


def matches(value: str, said: str) -> bool:
    """Whether `said` is the token `value`; how long that takes does not tell how much of it was right."""
    return fault(value) is None and hmac.compare_digest(value.encode("ascii"), said.encode("utf-8", "replace"))

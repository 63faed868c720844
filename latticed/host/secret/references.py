"""References to secrets in texts: finding them, and putting them back where a value has got into a message."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIN_REDACTED: Final = 6
"""Characters of a value below which it is not looked for in other texts: it would be everywhere. None is taken that is
shorter (`Secrets.set`)."""
REFERENCE: Final = re.compile(r"\$\{secret:([^{}]*)\}")


def redacted(text: str, values: Iterable[tuple[str, str]], *, any_case: bool = False) -> str:
    """`text` with every one of `values` (name, value) replaced by its reference; upper and lower case alike if so said.

    One pass, longest first, so that a value within another one does not leave the rest of that standing. Redact before
    the text is cut or escaped: half a value, or one with an escape in it, is not found any more.
    """
    shown = {form: f"${{secret:{name}}}" for name, value in values for form in _forms(value)}
    if not shown:
        return text
    forms = sorted(shown, key=len, reverse=True)
    pattern = "|".join(f"({re.escape(form)})" for form in forms)
    references = [shown[form] for form in forms]
    flags = re.IGNORECASE if any_case else 0
    return re.sub(pattern, lambda found: references[(found.lastindex or 1) - 1], text, flags=flags)


def _forms(value: str) -> Iterator[str]:
    """How a value may appear in a message: as it is, and as URLs, JSON, `repr` and Basic credentials write it."""
    for one in {value, value.strip()}:
        if len(one) >= MIN_REDACTED:
            yield from (one, quote(one, safe=""), quote(one), quote_plus(one))
            yield from (json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1], repr(one)[1:-1])
            yield base64.b64encode(one.encode("utf-8")).decode("ascii")

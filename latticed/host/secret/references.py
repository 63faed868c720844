"""References to secrets in texts: `${secret:NAME}` replaced by its value, and values by their references.

    expand("Bearer ${secret:TOKEN}")   ->  "Bearer s3cret-value"
    redact("401 for s3cret-value")     ->  "401 for ${secret:TOKEN}"

Names are not checked here: `value_of` knows which there are.
"""

from __future__ import annotations

import base64
import heapq
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

from latticed.host.call import HostError
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MAX_EXPANDED_BYTES: Final = 1 << 20
"""The limit of one expanded text: a short text may refer to a long value many times."""
MIN_REDACTED: Final = 6
"""Values with fewer characters are not redacted: they would match unrelated text. `SecretKeeper.set` refuses them."""
REFERENCE: Final = re.compile(r"\$\{secret:([^{}]*)\}")
"""A reference; its only group is the name, of any characters but braces: a wrong name is an error, not text."""


class PluginSecrets:
    """The secrets of one plugin during one host call, or one try at a provider: drop it afterwards.

    `value_of(name)` returns the value of a secret that is bound to the plugin, or raises HostError. Values that were
    used are remembered, so that answers and errors can be redacted.
    """

    def __init__(self, value_of: Callable[[str], str]) -> None:
        self._value_of = value_of
        self._used: dict[str, str] = {}

    def expand(self, text: str, *, most: int = MAX_EXPANDED_BYTES) -> str:
        """`text` with each `${secret:NAME}` replaced by its value, in one pass: references in values stay. `most`: how
        much the values may be together.

        HostError: bad_params naming a NAME that is not bound to the plugin, too_large, service_unavailable.
        """
        # Most texts have none; the value of no secret is asked for then.
        if "${secret:" not in text:
            return text
        parts, size, end = [], 0, 0
        for found in REFERENCE.finditer(text):
            parts += [text[end : found.start()], self._value(found[1])]
            size += len(parts[-1])
            if size > most:
                raise HostError(Denial.TOO_LARGE, f"expected at most {most} bytes with secrets in place")
            end = found.end()
        return "".join([*parts, text[end:]])

    def redact(self, text: str, *, any_case: bool = False) -> str:
        """`text` with the values that were used so far replaced by their references (see `redacted`)."""
        return redacted(text, self._used.items(), any_case=any_case)

    def _value(self, name: str) -> str:
        """The value, read once per call: all places of one request get the same version."""
        if name not in self._used:
            self._used[name] = self._value_of(name)
        return self._used[name]


def redacted(text: str, values: Iterable[tuple[str, str]], *, any_case: bool = False) -> str:
    """`text` with each of `values` (name, value) replaced by its reference; `any_case`: upper and lower case alike.

    One pass, longest first, so that of a value which contains another one nothing is left. Redact before the text is
    cut or escaped: half a value, or one with an escape in it, is not found.
    """
    # Every form in which a value may be repeated, with the reference that replaces it. None is shorter than the value,
    # so of one that is longer than the text none is made: messages are short, and may be redacted on the event loop.
    fitting = [(name, value) for name, value in values if len(value.strip()) <= len(text)]
    shown = {form: f"${{secret:{name}}}" for name, value in fitting for form in _forms(value)}
    searched = _any_case(text) if any_case else text
    # Where each form comes next, the first and of those the longest before the others. An expression of all of them
    # would try each at each place: 60 secrets took 4 s of 256 KiB.
    ahead: list[tuple[int, int, str, str]] = []
    for form, reference in shown.items():
        wanted = _any_case(form) if any_case else form
        if (start := searched.find(wanted)) >= 0:
            ahead.append((start, -len(wanted), wanted, reference))
    heapq.heapify(ahead)
    parts, end = [], 0
    while ahead:
        start, _, wanted, reference = ahead[0]
        if start >= end:  # else it begins within what was replaced
            parts += [text[end:start], reference]
            end = start + len(wanted)
        if (start := searched.find(wanted, end)) >= 0:
            heapq.heapreplace(ahead, (start, -len(wanted), wanted, reference))
        else:
            heapq.heappop(ahead)
    return "".join([*parts, text[end:]])


def _any_case(text: str) -> str:
    """`text` so that upper and lower case compare equal; each character stays one, so that places are the same."""
    return "".join(folded if len(folded := one.casefold()) == 1 else one for one in text)


def _forms(value: str) -> Iterator[str]:
    """How a value may appear in a message: as it is, and as URLs, JSON, `repr` and Basic credentials write it."""
    # Without white space too: values from files end with a newline, which servers cut off before they repeat it.
    for one in {value, value.strip()}:
        if len(one) >= MIN_REDACTED:
            # With and without `/` kept, and with `+` for spaces, as forms write it.
            yield from (one, quote(one, safe=""), quote(one), quote_plus(one))
            yield from (json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1], repr(one)[1:-1])
            # A value `user:password` as Basic credentials carry it (RFC 7617).
            yield base64.b64encode(one.encode("utf-8")).decode("ascii")

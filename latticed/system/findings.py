"""What is wrong with an intent: one `Finding` for each fault, with its place, and the exception that carries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_FINDINGS: Final = 100
"""Told of one document; a hostile one of 256 KiB could have a hundred thousand."""
_SHOWN_CHARACTERS: Final = 60
"""Of a value in a message: names are at most 32, addresses at most 43 characters long."""
_TOLD: Final = 5
"""Findings in the one line that a Problem has; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault of an intent.

    `code` is stable and for programs. `path` is the place in the document, as `groups[0].rules[2].ports[1]`.
    `expected`, `found` and `hint` are for people; `found` holds nothing but printable ASCII. `overridable`: an operator
    may apply the intent in spite of this finding, which is then audited.
    """

    code: str
    path: str
    expected: str
    found: str
    hint: str = ""
    overridable: bool = False

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


class IntentRefused(Problem):
    """An intent with findings; `findings` holds all of them, the reason the first few. Its code is `bad_intent`."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        told = "; ".join(str(one) for one in findings[:_TOLD])
        rest = len(findings) - _TOLD
        hint = next((one.hint for one in findings if one.hint), "")
        super().__init__("bad_intent", f"{told}; and {rest} more" if rest > 0 else told, hint)
        self.findings = tuple(findings)


def twice(
    values: Sequence[object],
    code: str,
    path: str,
    suffix: str,
    expected: str,
    *,
    shown: Sequence[object] | None = None,
) -> Iterator[Finding]:
    """A finding for each value of a list that an earlier one is equal to. `shown`: what is told of each instead."""
    seen: set[object] = set()
    for index, value in enumerate(values):
        if value in seen:
            found = repr((shown or values)[index])
            yield Finding(code=code, path=f"{path}[{index}]{suffix}", expected=expected, found=found)
        seen.add(value)


def shown(value: Any) -> str:
    """A value as text for `found`: its type if it is no scalar, else clipped, printable ASCII."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            clipped = value[:_SHOWN_CHARACTERS]
            return ascii(clipped) + ("..." if len(value) > _SHOWN_CHARACTERS else "")
        case int():
            # str() of more than 4,300 digits raises ValueError (sys.set_int_max_str_digits).
            return str(value) if abs(value) < 1 << 64 else "an integer of more than 64 bits"
        case float():
            return "a fraction"
        case dict():
            return "an object"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"[:_SHOWN_CHARACTERS]

"""`Fault`, the form of every error and refusal as a value; the exceptions with one are in `errors`.

It is converted for the outside only: a plugin gets `code: reason` from the Gate, rpc writes a problem document (where
the reason is `detail`), latticectl prints it with its hint.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """A refusal or failure, for programs and for people.

    `code` is stable and for programs, `reason` tells a person what was expected and what was found, `hint` what to do
    about it (may be empty).
    """

    code: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"

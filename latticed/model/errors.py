"""`Fault`, the form of every error and refusal, and the exceptions that carry one.

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


class FaultError(Exception):
    """Base of the exceptions that carry a Fault; never raised itself. Catch Problem, BundleRefused, HostError."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.code, fault.reason, fault.hint)
        self.fault = fault

    @property
    def code(self) -> str:
        """The fault's stable code."""
        return self.fault.code

    @property
    def reason(self) -> str:
        """What was expected and what was found."""
        return self.fault.reason

    @property
    def hint(self) -> str:
        """What to do about it; may be empty."""
        return self.fault.hint

    def __str__(self) -> str:
        return str(self.fault)


class Problem(FaultError):
    """An operation that failed or was refused; what public functions raise for anything that a caller may meet."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        super().__init__(Fault(code, reason, hint))

    @staticmethod
    def of(fault: Fault) -> Problem:
        """The exception for a fault that was found, or that another exception carried."""
        return Problem(str(fault.code), fault.reason, fault.hint)

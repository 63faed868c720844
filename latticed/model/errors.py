"""The exceptions that carry a `Fault`: what public functions raise for anything that a caller may meet.

Imported by every run of latticectl, and therefore without `dataclasses`, which takes 8 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.model.fault import Fault


class FaultError(Exception):
    """Base of the exceptions that carry a Fault; never raised itself. Catch Problem, BundleRefused, HostError.

    `code`, `reason` and `hint` as in `Fault`.
    """

    def __init__(self, code: str, reason: str, hint: str) -> None:
        super().__init__(code, reason, hint)
        self.code = code
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class Problem(FaultError):
    """An operation that failed or was refused; what public functions raise for anything that a caller may meet."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        super().__init__(code, reason, hint)

    @property
    def fault(self) -> Fault:
        """The same as a value."""
        from latticed.model.fault import Fault

        return Fault(self.code, self.reason, self.hint)

    @staticmethod
    def of(fault: Fault) -> Problem:
        """The exception for a fault that was found, or that another exception carried."""
        return Problem(str(fault.code), fault.reason, fault.hint)

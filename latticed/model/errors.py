"""One exception for everything that is refused or fails with a reason."""

from __future__ import annotations


class Problem(Exception):
    """Something that was asked for and cannot be had.

    `code` is stable and for programs, `detail` tells a person what was expected and what was found,
    `hint` what to do about it (may be empty).
    """

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        super().__init__(code, detail, hint)
        self.code = code
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

"""Declares a setting: a field of a frozen dataclass with its default and bounds."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    one_of: tuple[str, ...] = (),
    fault: Callable[[Any], str] | None = None,
) -> Any:
    """A dataclass field with the rules that `settings.load` checks.

    `low` and `high` are inclusive, and given together. `one_of` are the only values (for a table, the only entries of
    its lists). `fault(value)` says in words what the value has to be, empty if it is valid.
    """
    rules = {"low": low, "high": high, "one_of": one_of, "fault": fault}
    # A dict is mutable, which a field's default must not be (dataclasses): each instance gets a copy.
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=rules)
    return field(default=default, metadata=rules)

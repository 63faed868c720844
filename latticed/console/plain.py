"""Typed getters for the daemon's answers: those of another version give empty values, no errors."""

from __future__ import annotations

from typing import Any


def text(row: Any, name: str) -> str:
    """The member as text; empty when it is absent, null or an object."""
    found = row.get(name) if isinstance(row, dict) else None
    return str(found) if isinstance(found, (str, int, float)) and not isinstance(found, bool) else ""


def flag(row: Any, name: str) -> bool:
    """Whether the member is true."""
    return isinstance(row, dict) and row.get(name) is True


def number(row: Any, name: str) -> int:
    """The member as an integer; 0 for all else."""
    found = row.get(name) if isinstance(row, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def mapping(row: Any, name: str) -> dict[str, Any]:
    """The member as an object; empty for all else."""
    found = row.get(name) if isinstance(row, dict) else None
    return found if isinstance(found, dict) else {}


def rows(row: Any, name: str = "") -> list[dict[str, Any]]:
    """The objects of the list that the member, or without a name the answer itself, is."""
    found = row.get(name) if name and isinstance(row, dict) else row
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def texts(row: Any, name: str) -> list[str]:
    """The texts of the list that the member is."""
    found = row.get(name) if isinstance(row, dict) else None
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def numbers(row: Any, name: str) -> list[float | None]:
    """The numbers of a list; None for what is none, as a step of a history that was not looked at."""
    found = row.get(name) if isinstance(row, dict) else None
    return [_finite(one) for one in found] if isinstance(found, list) else []


def _finite(one: Any) -> float | None:
    good = isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one < 1e18
    return float(one) if good else None

"""What an operator wants: the typed model."""

from __future__ import annotations

from msgspec import Struct


class Door(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A door, and who may enter by it."""

    name: str
    people: tuple[str, ...] = ()


class Intent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    doors: tuple[Door, ...] = ()

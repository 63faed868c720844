"""Frozen values with named fields whose types cost a start next to nothing.

`@dataclass(frozen=True, slots=True)` compiles six functions for each class and makes the class twice: 0.35 ms of CPU
and 15 KiB (Python 3.11; less from 3.13 on), which three hundred of them made a third of the daemon's start. A Struct of
msgspec takes 0.01 ms and 3 KiB, and its objects are made six times faster.

Dataclasses stay where msgspec is not loaded (latticectl, the SDK, children).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

from msgspec import Struct, field

__all__ = ["Changing", "Value", "field"]


class _Fields:
    """What the functions of `dataclasses` ask a class for, made when one of them first does."""

    def __get__(self, _: Any, kind: type[Struct]) -> dict[str, dataclasses.Field[Any]]:
        return _fields_of(kind)


class Value(Struct, frozen=True):
    """Base of values that nobody decodes; use: `class Peer(Value, frozen=True, kw_only=True)`.

    Their annotations may name what is imported for types only: `struct_types.prepare` leaves these types alone.
    `dataclasses.replace`, `fields` and `asdict` take them as they take dataclasses.
    """

    __dataclass_fields__: ClassVar = _Fields()


class Changing(Struct):
    """As Value, for the few that are not frozen, and nothing but their fields."""


@functools.cache
def _fields_of(kind: type[Struct]) -> dict[str, dataclasses.Field[Any]]:
    same = dataclasses.make_dataclass(kind.__name__, kind.__struct_fields__)
    return {one.name: one for one in dataclasses.fields(same)}

"""Whether a JSON value has the form that a type of `latticed.sdk.answers` says."""

from __future__ import annotations

import types
import typing
from typing import Any


def faults(value: Any, kind: Any, path: str = "") -> list[str]:
    """What of `value` is not as `kind` says, each as `path: found`; empty when all is."""
    if kind is Any:
        return []
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind):
        return _object_faults(value, kind, path)
    if origin in {typing.Union, types.UnionType}:
        return [] if any(not faults(value, one, path) for one in args) else [f"{path}: {value!r:.80} is none of {kind}"]
    if origin is typing.Literal:
        return [] if value in args else [f"{path}: {value!r:.80} is none of {args}"]
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: {value!r:.80} is no list"]
        return [found for number, one in enumerate(value) for found in faults(one, args[0], f"{path}[{number}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{path}: {value!r:.80} is no object"]
        return [found for name, one in value.items() for found in faults(one, args[1], f"{path}.{name}")]
    # JSON knows one kind of number; a bool is no number.
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if isinstance(value, bool) and kind is not bool:
        right = False
    return [] if right else [f"{path}: {value!r:.80} is no {getattr(kind, '__name__', kind)}"]


def _object_faults(value: Any, kind: Any, path: str) -> list[str]:
    """The faults of an object; a field that the type does not have is one, too."""
    if not isinstance(value, dict):
        return [f"{path}: {value!r:.80} is no object"]
    fields = typing.get_type_hints(kind)
    found = [f"{path}: without {name}" for name in sorted(kind.__required_keys__ - set(value))]
    found += [f"{path}: has {name}, which {kind.__name__} does not" for name in sorted(set(value) - set(fields))]
    for name in sorted(set(value) & set(fields)):
        found += faults(value[name], fields[name], f"{path}.{name}")
    return found

"""What a fault in a document means, in words: (what was expected, what was found, the same without a value)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# Bounds of one text about a fault: unknown keys and options of an enum that are listed, and characters of one value.
_LISTED: Final = 8
_OPTIONS: Final = 40
_CHARACTERS: Final = 120
_NAMES: Final = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_LIMITS: Final = {
    "maximum": "a number of at most {}",
    "minimum": "a number of at least {}",
    "exclusiveMaximum": "a number below {}",
    "exclusiveMinimum": "a number above {}",
    "maxItems": "at most {} items",
    "minItems": "at least {} items",
    "maxProperties": "at most {} keys",
    "minProperties": "at least {} keys",
    "maxLength": "at most {} characters",
    "minLength": "at least {} characters",
}
_EXPECTED: Final[dict[str, Callable[[Any], str]]] = {
    "additionalProperties": lambda _: "only known keys",
    "anyOf": lambda _: "what fits one of the schema's alternatives",
    "const": lambda kind: shown(kind.expected_value),
    "contains": lambda _: "an item of the kind that the schema asks for",
    "enum": lambda kind: f"one of {_listed(kind.options, _OPTIONS)}",
    "falseSchema": lambda _: "nothing here",
    "format": lambda kind: f"text in the format {str(kind.format)[:_CHARACTERS]}",
    "multipleOf": lambda kind: f"a multiple of {kind.multiple_of}",
    "not": lambda _: "something else than the schema excludes here",
    "oneOf": lambda _: "what fits exactly one of the schema's alternatives",
    "pattern": lambda kind: f"text that matches {shown(kind.pattern)}",
    "required": lambda kind: f"the key {shown(kind.property)}",
    "type": lambda kind: " or ".join(_NAMES.get(str(one), str(one)) for one in kind.types),
    "unevaluatedProperties": lambda _: "only known keys",
    "uniqueItems": lambda _: "each item once",
}
"""By the names that the library gives to the kinds of its errors, which are those of keywords."""


OTHERS: Final = ("only known keys", "others", "others")


def of(kind: Any, value: Any) -> tuple[str, str, str]:
    """(expected, found, kind) in words for one error; `value` is the part of the document that it is about.

    `found` quotes the value, `kind` does not.
    """
    name = str(kind.name)
    if name == "propertyNames":
        expected, found, _ = of(kind.error.kind, kind.error.instance)
        return f"keys that are {expected}", found, "another one"
    if name in _LIMITS:
        expected = _LIMITS[name].format(kind.limit)
    else:
        expected = _EXPECTED[name](kind) if name in _EXPECTED else f"what the schema says under {name}"
    return (expected, *_found(name, kind, value))


def _found(name: str, kind: Any, value: Any) -> tuple[str, str]:
    """(what was found, the same without its value) for the fault `name` of `value`; `kind` is its details."""
    if name == "required":
        return "none", "none"
    if name == "uniqueItems":
        return "one twice", "one twice"
    if name in {"additionalProperties", "unevaluatedProperties"}:
        return _listed(kind.unexpected, _LISTED), "unknown ones"
    if name in _LIMITS and isinstance(value, str | list | dict):
        return str(len(value)), str(len(value))
    if name in {"pattern", "format", "enum", "const", "multipleOf", *_LIMITS}:
        return shown(value), "another one"
    if name == "type" and isinstance(value, float) and [str(one) for one in kind.types] == ["integer"]:
        return shown(value), "a number with a fraction"
    return shown(value), _kind(value)


def shown(value: Any) -> str:
    """A value as JSON, cut; ASCII, so that nothing of it can act on a terminal."""
    if isinstance(value, dict | list):
        return _kind(value)
    # Cut before it is encoded: a text may have a quarter of a megabyte.
    text = json.dumps(value[: _CHARACTERS + 1] if isinstance(value, str) else value, default=str)
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 3] + "..."


def _listed(values: Any, most: int) -> str:
    more = ", ..." if len(values) > most else ""
    return ", ".join(shown(one) for one in values[:most]) + more


def _kind(value: Any) -> str:
    """The JSON type of a value, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case dict():
            return "an object"
        case list():
            return "an array"
        case str():
            return "a string"
        case _:
            return "a number"

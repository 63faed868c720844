"""Answers of the control API of which every text is the same: made of the API's own description.

    filled_answers.of("GET", "/api/plugins/rejected", "<b>")  →  [{"name": "<b>", "code": "<b>", …}]

Lists have one item; what has a fixed set of values keeps the first of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from latticed.rpc import openapi
from latticed.rpc.routes import ROUTES

_DEPTH = 8


def of(method: str, path: str, text: str) -> Any:
    """The answer of a route with `text` in every field."""
    document = openapi.document(ROUTES, "0")
    answers = document["paths"][path][method.lower()]["responses"]
    content = next(one["content"] for status, one in answers.items() if status.startswith("2") and "content" in one)
    return _filled(content["application/json"]["schema"], document["components"]["schemas"], text, _DEPTH)


def of_shape(kind: type, text: str) -> Any:
    """An answer of this shape (a msgspec Struct) with `text` in every field."""
    (schema,), shapes = msgspec.json.schema_components([kind])
    return _filled(schema, shapes, text, _DEPTH)


def _filled(schema: dict[str, Any], shapes: dict[str, Any], text: str, depth: int) -> Any:
    if depth == 0:
        return None
    if "$ref" in schema:
        return _filled(shapes[schema["$ref"].rsplit("/", 1)[1]], shapes, text, depth - 1)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            # The null last: what may be absent is there.
            wanted = sorted(schema[several], key=lambda one: one.get("type") == "null")
            return _filled(wanted[0], shapes, text, depth)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object" if "properties" in schema:
            return {name: _filled(one, shapes, text, depth - 1) for name, one in schema["properties"].items()}
        case "object":
            more = schema.get("additionalProperties")
            return {text: _filled(more, shapes, text, depth - 1) if isinstance(more, dict) and more else text}
        case "array":
            return [_filled(schema.get("items") or {}, shapes, text, depth - 1)]
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case "null":
            return None
    return text

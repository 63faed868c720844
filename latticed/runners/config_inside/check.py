"""Checks one document against one JSON Schema, and says in words what does not fit.

Reads `{"schema": …, "document": …, "pattern_bytes": N, "faults": N}` from descriptor INPUT. Writes a line with the
first fault, or that it fits, at once, and when there are faults a second line with all of them: listing all of a large
document may end at a limit, and the first is then still known.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final, NoReturn

import jsonschema_rs

from latticed.runners.config_inside import words

INPUT: Final = 3
_KEY_CHARACTERS: Final = 100
"""Of each key in a path: one may be a quarter of a megabyte long."""
_NEAREST: Final = 2
"""How deep into `anyOf` and `oneOf` the nearest alternative is explained."""


def main() -> NoReturn:
    """Check the document of the request at INPUT, write one or two lines of answer to stdout, and exit at once with 0.

    The first line has one fault: it is there even if looking for all of them takes too much time or memory.
    """
    with open(INPUT, "rb") as source:
        source.seek(0)  # its writer left it at the end
        asked = json.load(source)
    # `offline`: a `$ref` to a URL must not be fetched. `pattern_bytes` bounds the memory of compiled patterns.
    limit = asked["pattern_bytes"]
    validator = jsonschema_rs.Draft202012Validator(
        asked["schema"],
        offline=True,
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=limit, dfa_size_limit=limit),
    )
    try:
        validator.validate(asked["document"])
        _say({"fits": True, "faults": [], "all": True})
    except jsonschema_rs.ValidationError as error:
        _say({"fits": False, "faults": [_fault(error)], "all": False})
        found: list[dict[str, Any]] = []
        errors = validator.iter_errors(asked["document"])
        for another in errors:
            found.append(_fault(another))
            if len(found) == asked["faults"]:
                break
        _say({"fits": False, "faults": found, "all": next(errors, None) is None})
    os._exit(0)  # without freeing what may be millions of errors


def _say(answer: dict[str, Any]) -> None:
    """Write one line of JSON at once: what comes next may end at a limit."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _fault(error: jsonschema_rs.ValidationError) -> dict[str, Any]:
    """One error as JSON. `found` quotes the document; `kind` names what was found without its value."""
    deepest = _deepest(error, _NEAREST)
    closed = deepest.kind.name == "falseSchema" and str(deepest.schema_path[-1]) == "additionalProperties"
    # What the library says of `additionalProperties: false` where no properties are known: it names none.
    expected, found, kind = words.OTHERS if closed else words.of(deepest.kind, deepest.instance)
    path = [step[:_KEY_CHARACTERS] if isinstance(step, str) else step for step in deepest.instance_path]
    return {"path": path, "expected": expected, "found": found, "kind": kind}


def _deepest(error: jsonschema_rs.ValidationError, levels: int) -> jsonschema_rs.ValidationError:
    """The error to report: for `anyOf` and `oneOf` that of the alternative which got furthest into the document, as it
    was most likely the one that was meant.
    """
    context = getattr(error.kind, "context", None) if error.kind.name in {"anyOf", "oneOf"} else None
    if not context or not levels:
        return error
    # Only alternatives with one fault: where more is wrong, another alternative may have been meant.
    inner = [_deepest(alternative[0], levels - 1) for alternative in context if len(alternative) == 1]
    deeper = [one for one in inner if len(one.instance_path) > len(error.instance_path)]
    return max(deeper, key=lambda one: len(one.instance_path), default=error)

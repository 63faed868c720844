"""The JSON Schema of a manifest's `config`: judged before anything is checked against it (contracts §3).

JSON Schema 2020-12, self-contained: `{"type": "object", "properties": {"port": {"type": "integer"}}}`. A reference
leads to a place in the same schema (`#/$defs/port`), never to a URL or a file. Patterns are for an engine that matches
in linear time: no look-around, no back references. How long a document takes to check is bounded elsewhere
(`runners.config_checker`): a small schema may ask for more comparisons than can ever be made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

from latticed.bundle.rules import Broken
from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_SCHEMA_BYTES: Final = 64 << 10
MAX_PATTERNS: Final = 100
ALL_PATTERNS_BYTES: Final = 4 << 20
"""What all patterns of a schema may take once they are compiled, in equal shares: `^[\\p{L}-]{1,63}$` takes 3 MiB,
`^[a-z]{1,900}$` 40 KiB. Compiling that much takes 35 ms, of a manifest that nobody has signed yet.
"""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_ELSEWHERE: Final = frozenset(
    {"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"}
)
"""Keywords that give a part of the schema another address, or take one from somewhere else."""
_ONE: Final = frozenset(
    "additionalProperties contains contentSchema else if items not propertyNames then unevaluatedItems"
    " unevaluatedProperties".split()
)
_OF_EMPTY: Final = frozenset("$ref allOf anyOf const else enum if not oneOf then".split())
"""Keywords that may refuse an empty object, besides `type`, `required` and `minProperties`."""
_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def check(schema: dict[str, Any]) -> None:
    """Check that documents can be checked against the manifest's `schema`. Raises Broken, whose message names the
    place.
    """
    size = len(json.dumps(schema, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
    if size > MAX_SCHEMA_BYTES:
        raise Broken(f"expected `config` to be at most {MAX_SCHEMA_BYTES} bytes, found {size}")
    parts = list(_parts(schema, ()))
    _check_keywords(parts)
    _check_references(parts)
    _check_patterns(parts)
    _check_meaning(schema)


def takes_empty(schema: dict[str, Any]) -> bool:
    """Whether `{}` fits `schema` for sure, as can be seen without a check: most schemas say nothing that it breaks.

    False says nothing. Thousands of plugins that nobody configured would otherwise each take a child at a start.
    """
    kinds = schema.get("type", "object")
    if schema.keys() & _OF_EMPTY or schema.get("required") or schema.get("minProperties"):
        return False
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds)


def pattern_bytes(schema: dict[str, Any]) -> int:
    """The bytes that each pattern of `schema` may take once compiled: an equal share of ALL_PATTERNS_BYTES."""
    return ALL_PATTERNS_BYTES // max(_patterns(_parts(schema, ())), 1)


def _parts(schema: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(place, schema) of `schema` and of all schemas in it. What is below `enum` or `default` is data, not a schema."""
    if not isinstance(schema, dict):
        return
    yield at, schema
    for word, value in schema.items():
        if word in _ONE:
            yield from _parts(value, (*at, word))
        elif word in _LIST and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _parts(inner, (*at, word, str(number)))
        elif word in _MAP and isinstance(value, dict):
            for name, inner in value.items():
                yield from _parts(inner, (*at, word, name))


def _check_keywords(parts: list[tuple[tuple[str, ...], dict[str, Any]]]) -> None:
    """Refuse keywords of _ELSEWHERE, and any other dialect than DIALECT."""
    for at, schema in parts:
        for word in sorted(_ELSEWHERE & schema.keys()):
            raise Broken(f"expected `{place(at)}` to be a schema of its own, without addresses, found {word}")
        # The library would fetch a dialect that it does not know.
        if (dialect := schema.get("$schema", DIALECT)) != DIALECT or (at and "$schema" in schema):
            raise Broken(f"expected `{place((*at, '$schema'))}` to be {DIALECT} or absent, found {_shown(dialect)}")


def _check_references(parts: list[tuple[tuple[str, ...], dict[str, Any]]]) -> None:
    """Refuse a `$ref` that does not lead to one of `parts`."""
    # Only schemas in `parts`, which were checked: what is below an unknown keyword was not.
    known = {"#", *(_pointer(at) for at, _ in parts)}
    for at, schema in parts:
        if "$ref" in schema and schema["$ref"] not in known:
            found = _shown(schema["$ref"])
            raise Broken(
                f"expected `{place((*at, '$ref'))}` to lead to a schema here, such as #/$defs/a, found {found}"
            )


def _check_patterns(parts: list[tuple[tuple[str, ...], dict[str, Any]]]) -> None:
    """Refuse more than MAX_PATTERNS regular expressions."""
    if (found := _patterns(parts)) > MAX_PATTERNS:
        raise Broken(f"expected at most {MAX_PATTERNS} patterns in `config`, found {found}")


def _check_meaning(schema: dict[str, Any]) -> None:
    """Refuse what jsonschema_rs does not take: keywords with values that they cannot have, patterns that do not
    compile.
    """
    import jsonschema_rs  # imported when first needed: 7 MiB, and nothing that latticectl or most daemons need

    limit = pattern_bytes(schema)
    try:
        jsonschema_rs.Draft202012Validator(
            schema,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=limit, dfa_size_limit=limit),
        )
    except jsonschema_rs.ValidationError as error:
        at = tuple(str(step) for step in error.instance_path)
        if "pattern" in at[-1:] or "patternProperties" in at[-2:-1]:
            found = _shown(error.instance) if at[-1] == "pattern" else "that key"
            raise Broken(
                f"expected `{place(at)}` to be a regular expression without look-around and back references, of at most"
                f" {limit >> 10} KiB compiled, found {found}"
            ) from error
        _refuse(at, error.message)
    except ValueError as error:
        _refuse((), str(error))
    # A panic of the library is PyO3's PanicException: a BaseException, which is known by its name only.
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        _refuse((), "the schema cannot be read")


def _refuse(at: tuple[str, ...], what: str) -> NoReturn:
    """Raise Broken about the schema at the place `at`."""
    raise Broken(f"`{place(at)}` is no JSON Schema: {text.sanitise(what, 160)}")


def place(at: tuple[str, ...]) -> str:
    """Where something is in the manifest, such as `config.properties.port`; at most 120 characters."""
    return text.clip(".".join(("config", *at)), 120)


def _pointer(at: tuple[str, ...]) -> str:
    """The JSON pointer to a part of the schema as a URI fragment (RFC 6901, section 6): `#/$defs/a~1b`."""
    return "".join(("#", *(f"/{step.replace('~', '~0').replace('/', '~1')}" for step in at)))


def _patterns(parts: Iterable[tuple[tuple[str, ...], dict[str, Any]]]) -> int:
    """How many regular expressions these schemas have."""
    return sum(("pattern" in schema) + len(_mapping(schema, "patternProperties")) for _, schema in parts)


def _mapping(schema: dict[str, Any], word: str) -> dict[str, Any]:
    """The member `word` of the schema; empty when it is missing or no object."""
    found = schema.get(word)
    return found if isinstance(found, dict) else {}


def _shown(value: object) -> str:
    """A value as messages show it: a text quoted and cut to 80 characters, any other by its type."""
    return repr(text.clip(value, 80)) if isinstance(value, str) else f"{type(value).__name__}"

"""Types in words, and the fields of structs, TypedDicts and dataclasses as rows of a table."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from generate import source
from generate.markdown import or_dash, plain, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORDS: Final = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    bytes: "bytes",
    dict: "object",
    list: "list",
    type(None): "null",
    Any: "any JSON",
    object: "any JSON",
}


USUAL: Final = (
    ("_at", "when, RFC 3339 in UTC"),
    ("at", "when, RFC 3339 in UTC"),
    ("ts", "when, RFC 3339 in UTC"),
    ("_s", "seconds"),
    ("_bytes", "bytes"),
    ("_sha256", "SHA-256 in lowercase hex"),
    ("sha256", "SHA-256 in lowercase hex"),
    ("next", "the `after` of the following page, null on the last"),
)


class Field(NamedTuple):
    """One field. `inner`: the shapes that its type has within it."""

    name: str
    kind: str
    required: bool
    default: str
    meaning: str
    inner: tuple[type, ...]


def kind(hint: Any, link: Callable[[type], str] = lambda one: one.__name__) -> str:
    """A type in words: `list of text, at most 16`; shapes by `link`."""
    if dataclasses.is_dataclass(hint) or is_shape(hint):
        return link(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind(args[0], link) + "".join(f", {said}" for one in args[1:] for said in _rules(one))
    if origin in {typing.Required, typing.NotRequired}:
        return kind(args[0], link)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{one}`" for one in args)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(dict.fromkeys(kind(one, link) for one in args if one is not msgspec.UnsetType))
    if origin in {tuple, list} or getattr(origin, "__name__", "") in {"Sequence", "frozenset", "set"}:
        inner = [one for one in args if one is not Ellipsis]
        if origin is tuple and len(inner) > 1:
            return "list of " + ", ".join(kind(one, link) for one in inner)
        return f"list of {kind(inner[0], link)}" if inner else "list"
    if origin is dict or getattr(origin, "__name__", "") in {"Mapping", "MappingProxyType"}:
        return f"object: {kind(args[0], link)} to {kind(args[1], link)}" if args else "object"
    if isinstance(hint, typing.NewType):
        return kind(hint.__supertype__, link)
    if inspect.isclass(hint) and issubclass(hint, str) and hasattr(hint, "__members__"):
        return "one of " + ", ".join(f"`{one.value}`" for one in hint)  # type: ignore[attr-defined]
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _rules(meta: Any) -> Iterator[str]:
    """What `msgspec.Meta` bounds, in words."""
    low, high = getattr(meta, "ge", None), getattr(meta, "le", None)
    if getattr(meta, "gt", None) is not None:
        yield f"more than {meta.gt}"
    if low is not None and high is not None and high < 1 << 53:
        yield f"{low} to {high}"
    elif low is not None:
        yield f"{low} or more"
    elif high is not None:
        yield f"at most {high}"
    shortest, longest = getattr(meta, "min_length", None), getattr(meta, "max_length", None)
    if shortest is not None and longest is not None:
        yield f"{shortest} to {longest} long"
    elif longest is not None:
        yield f"at most {longest} long"
    elif shortest is not None:
        yield f"at least {shortest} long"
    if getattr(meta, "pattern", None):
        yield f"matching `{meta.pattern}`"


def is_shape(hint: Any) -> bool:
    """Whether it is a struct or TypedDict of ours."""
    if not inspect.isclass(hint):
        return False
    return issubclass(hint, msgspec.Struct) or typing.is_typeddict(hint) or dataclasses.is_dataclass(hint)


def within(hint: Any) -> tuple[type, ...]:
    """The shapes that a type has within it."""
    if is_shape(hint):
        return (hint,)
    return tuple(one for arg in typing.get_args(hint) for one in within(arg))


def fields(shape: type, link: Callable[[type], str] = lambda one: one.__name__) -> list[Field]:
    """The fields of a shape, in their order."""
    hints = typing.get_type_hints(shape, include_extras=True)
    said = _named(shape, list(hints)) | source.below(shape)
    found = []
    for name, required, default in _declared(shape):
        hint = hints[name]
        found.append(
            Field(name, kind(hint, link), required, default, sentence(said.get(name) or _usual(name)), within(hint))
        )
    return found


def _usual(name: str) -> str:
    """What a field of this name is everywhere, by its end."""
    return next((said for end, said in USUAL if name == end or (end[0] == "_" and name.endswith(end))), "")


def _named(shape: type, names: list[str]) -> dict[str, str]:
    """What the docstring of a shape says of single fields: "`state`: armed or stopped", "`name` is …"."""
    text, found = plain(shape.__doc__), {}
    one = "|".join(map(re.escape, names))
    for name in names:
        also = rf"(?:(?: and|,) `(?:{one})`)*"
        end = rf"(?=\.(?: |$)|[,;] (?:and )?`(?:{one})`|$)"
        said = re.search(rf"`{re.escape(name)}`{also}(?:: | is | are |,? which is )(.+?){end}", text)
        if said is None:
            said = re.search(rf"`{re.escape(name)}`,? (whether .+?|when .+?|as .+?){end}", text)
        if said is not None:
            found[name] = said[1]
    return found


def _declared(shape: type) -> Iterator[tuple[str, bool, str]]:
    """(name, whether it is required, its default as JSON)."""
    if issubclass(shape, msgspec.Struct):
        for one in msgspec.structs.fields(shape):
            value = one.default if one.default is not msgspec.NODEFAULT else None
            if one.default_factory is not msgspec.NODEFAULT:
                value = one.default_factory()
            yield one.encode_name, one.required, "" if one.required else _json(value)
    elif typing.is_typeddict(shape):
        hints = typing.get_type_hints(shape, include_extras=True)
        for name in shape.__annotations__ if not getattr(shape, "__orig_bases__", ()) else hints:
            # Written as text, `NotRequired` is not seen when the class is made.
            required = name in shape.__required_keys__ and typing.get_origin(hints[name]) is not typing.NotRequired
            yield name, required, ""
        # Inherited ones, in the order of their class.
    else:
        for one in dataclasses.fields(shape):
            required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
            yield one.name, required, "" if required else _json(getattr(one, "default", None))


def _json(value: Any) -> str:
    if value is None or value is dataclasses.MISSING or isinstance(value, msgspec.UnsetType):
        return ""
    if is_shape(type(value)):
        return ""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, msgspec.MsgspecError):
        return ""
    return "" if text in {'""', "[]", "{}", "null"} else text


def rows(shape: type, link: Callable[[type], str], *, given: bool) -> list[tuple[str, ...]]:
    """The table of a shape: (field, type, required or default, meaning) of what is given, or (field, type, when)."""
    found = []
    for one in fields(shape, link):
        if given:
            must = "required" if one.required else f"`{one.default}`" if one.default else "-"
            found.append((f"`{one.name}`", one.kind, must, or_dash(one.meaning)))
        else:
            found.append((f"`{one.name}`", one.kind, "" if one.required else "not always", or_dash(one.meaning)))
    return found


def about(shape: type) -> str:
    """What its docstring says, if it is its own."""
    return plain(shape.__doc__) if shape.__doc__ and not shape.__doc__.startswith(f"{shape.__name__}(") else ""

"""Reading settings: every error names the key, where it came from, what was expected and what was found.

Precedence: LATTICE* variables, the settings file, systemd's directories, defaults.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin, get_type_hints

from latticed.settings import places
from latticed.settings.renamed import modern
from latticed.settings.shapes import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from latticed.model.errors import Problem


def load(config: Path | None, environ: Mapping[str, str], euid: int, *, in_force: Settings | None = None) -> Settings:
    """The effective settings of a process with `environ` and `euid`; Problem("settings_invalid") when they are bad.

    `config` None means the default file, which need not exist; a file that was named must. Blocks: reads the file, and
    may ask the user database for a home directory. Names of users and groups are not resolved here (`rpc.access`).

    A reload gives the settings `in_force`: their file is read again, and one that is gone or empty now is bad.
    """
    file = places.settings_file(config or (in_force.config_file if in_force else None), environ, euid)
    seen = fingerprint(file)  # first: a change while it is read must not be taken for what was read
    had_some = in_force is not None and in_force.file_had_some
    table = places.read(file, named=config is not None, owners=frozenset({0, euid}), in_force=had_some)
    # From weakest to strongest: defaults, file, environment.
    values, renamed = _renamed(_flatten(table or {}, str(file)))
    values.update(
        {key: (environ[name], f"environment {name}") for key, name in places.ENVIRONMENT.items() if environ.get(name)}
    )
    found = _build(
        # The trust policy is expected beside the settings.
        {**places.defaults(environ, euid, file.parent), **values},
        config_file=file if table is not None else None,
    )
    return replace(found, renamed=renamed, file_seen=seen)


def fingerprint(file: Path) -> tuple[int, ...] | None:
    """Metadata that changes when the settings file does: device, inode, size, mtime and ctime in ns.

    None without a file, or when it cannot be looked at. Blocks.
    """
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def describe(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, origin) of every setting; origin is a file, a variable, or `default`."""
    for name in places.PATHS:
        yield name, str(getattr(settings, name)), settings.origins[name]
    for section in fields(settings):
        part = getattr(settings, section.name)
        if is_dataclass(part):
            for dotted, value in _leaves(section.name, part):
                yield dotted, value, settings.origins.get(dotted, "default")


def _leaves(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a section, and in the sections within it."""
    for key in fields(part):
        dotted, value = f"{name}.{key.name}", getattr(part, key.name)
        if is_dataclass(value):
            yield from _leaves(dotted, value)
        else:
            yield dotted, value


def _flatten(table: dict[str, Any], origin: str) -> dict[str, tuple[Any, str]]:
    """(value, origin) by dotted key: `{"log": {"level": "info"}}` becomes `{"log.level": ("info", origin)}`.

    One level only: a table within a section stays a value. An empty section is kept, for `_build` to check its name.
    """
    flat: dict[str, tuple[Any, str]] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            flat.update({f"{name}.{key}": (inner, origin) for key, inner in value.items()})
        else:
            flat[name] = (value, origin)
    return flat


def _renamed(values: dict[str, tuple[Any, str]]) -> tuple[dict[str, tuple[Any, str]], tuple[str, ...]]:
    """`values` under their present keys, and the old keys among them."""
    found: dict[str, tuple[Any, str]] = {}
    old: list[str] = []
    for key, (value, origin) in values.items():
        name, now = modern(key, value)
        if name != key:
            # Which of the two should count is for the operator to say.
            if name in values:
                raise places.invalid(f"{origin}: {key} is called {name} now, and both are set", f"remove {key}")
            old.append(key)
        found[name] = (now, origin if name == key else f"{origin} as {key}")
    return found, tuple(old)


def _build(values: dict[str, tuple[Any, str]], config_file: Path | None) -> Settings:
    """The Settings from (value, origin) by dotted key; Problem settings_invalid names the first that is wrong.

    Values are checked by the types and rules of the fields in `shapes`.
    """
    # Each key is looked up in the dataclasses of `shapes`; what is not there is unknown.
    hints = get_type_hints(Settings)
    parts: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for dotted, (value, origin) in values.items():
        section, _, key = dotted.partition(".")
        origins[dotted] = origin
        kind = hints.get(section)
        if value == {} and is_dataclass(kind):
            continue  # an empty section
        # A path at the top of the file; else a key of a section, which may be a table itself.
        if not key and section in places.PATHS:
            parts.setdefault("", {})[section] = places.absolute(dotted, value, origin)
        elif key and is_dataclass(kind) and key in (known := {f.name: f for f in fields(kind)}):
            wanted = get_type_hints(kind)[key]
            if is_dataclass(wanted):
                parts.setdefault(section, {})[key] = _section(dotted, value, origin, wanted, origins)
                continue
            typed = _value(dotted, value, origin, wanted, known[key].metadata)
            parts.setdefault(section, {})[key] = _sound(dotted, typed, origin, known[key].metadata)
        else:
            raise _unknown(dotted, origin)
    sections = {name: hints[name](**given) for name, given in parts.items() if name}
    return Settings(**parts[""], **sections, config_file=config_file, origins=origins)


def _section(name: str, value: Any, origin: str, kind: Any, origins: dict[str, str]) -> Any:
    """A section within a section (`audit.calls`); notes in `origins` where its keys come from."""
    if not isinstance(value, dict):
        raise places.bad(name, origin, "a table", value)
    known, hints = {field.name: field for field in fields(kind)}, get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, inner in value.items():
        dotted = f"{name}.{key}"
        if key not in known:
            raise _unknown(dotted, origin)
        origins[dotted] = origin
        rules = known[key].metadata
        given[key] = _sound(dotted, _value(dotted, inner, origin, hints[key], rules), origin, rules)
    return kind(**given)


def _sections(key: str, value: Any, origin: str, kind: Any) -> dict[str, Any]:
    """A table of names, each of which is a section of `kind`."""
    if not isinstance(value, dict):
        raise places.bad(key, origin, "a table of names, each a table", value)
    return {name: _section(f"{key}.{name}", inner, origin, kind, {}) for name, inner in value.items()}


def _value(key: str, value: Any, origin: str, wanted: Any, rules: Mapping[str, Any]) -> Any:
    """`value` as the type `wanted`, within the bounds of `rules`; Problem settings_invalid otherwise."""
    # Three kinds of tables: names and sections, names and paths, or names and their scopes.
    if get_origin(wanted) is dict:
        inner = get_args(wanted)[1]
        if is_dataclass(inner):
            return _sections(key, value, origin, inner)
        is_paths = inner is str
        return _path_table(key, value, origin) if is_paths else _grants(key, value, origin, rules["one_of"])
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise places.bad(key, origin, "a list of texts", value)
        return tuple(value)
    if wanted is float and type(value) is int:
        # TOML distinguishes 5 from 5.0; for an operator both are five seconds.
        value = _as_float(value)
    # Not isinstance: bool is a subclass of int, and `true` is no number.
    if type(value) is not wanted:
        raise places.bad(
            key, origin, {str: "text", int: "an integer", float: "a number", bool: "true or false"}[wanted], value
        )
    if rules["one_of"] and value not in rules["one_of"]:
        raise places.bad(key, origin, "one of " + ", ".join(rules["one_of"]), value)
    low, high = rules["low"], rules["high"]
    if low is not None and not low <= value <= high:
        raise places.bad(key, origin, f"{low} to {high}", value)
    return value


def _sound(key: str, value: Any, origin: str, rules: Mapping[str, Any]) -> Any:
    """`value`, if the setting's own check (`fault` in `rules`) accepts it; Problem settings_invalid otherwise."""
    if rules["fault"] is not None and (expected := rules["fault"](value)):
        raise places.bad(key, origin, expected, value)
    return value


def _as_float(value: int) -> float:
    """`value`, or infinity when it is too large for a float; that is out of all bounds."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _grants(key: str, value: Any, origin: str, scopes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """A table of names and lists of scopes, as tuples."""
    if not isinstance(value, dict):
        raise places.bad(key, origin, "a table of names and their scopes", value)
    for name, granted in value.items():
        if not isinstance(granted, list) or not all(scope in scopes for scope in granted):
            raise places.bad(f"{key}.{name}", origin, "a list of " + ", ".join(scopes), granted)
    return {name: tuple(granted) for name, granted in value.items()}


def _path_table(key: str, value: Any, origin: str) -> dict[str, str]:
    """A table of names and absolute paths."""
    if not isinstance(value, dict):
        raise places.bad(key, origin, "a table of names and absolute paths", value)
    return {name: str(places.absolute(f"{key}.{name}", path, origin)) for name, path in value.items()}


def _known_keys() -> list[str]:
    """Every dotted key there is, to suggest one for a key that is unknown."""
    keys = list(places.PATHS)
    for name, kind in get_type_hints(Settings).items():
        if is_dataclass(kind):
            keys.extend(dotted for dotted, _ in _leaves(name, cast("Any", kind)()))
    return keys


def _unknown(dotted: str, origin: str) -> Problem:
    """Problem settings_invalid for a key that does not exist, with the nearest one that does."""
    from difflib import get_close_matches

    near = get_close_matches(dotted, _known_keys(), n=1, cutoff=0.5)
    return places.invalid(
        f"{origin}: unknown key {dotted!r}", f"did you mean {near[0]!r}?" if near else "see the settings page"
    )

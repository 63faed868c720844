"""Reading settings: every error names the key, where it came from, what was expected and what was found.

Precedence: LATTICE* variables, the settings file, systemd's directories, defaults.
"""

from __future__ import annotations

import contextlib
import math
import os
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args, get_origin, get_type_hints

from latticed.kit import trusted_files
from latticed.model.errors import Problem
from latticed.settings.renamed import modern
from latticed.settings.shapes import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_FILE_BYTES: Final = 1 << 20
"""A larger settings file is refused."""
_PATHS: Final = ("plugin_dir", "state_dir", "runtime_dir", "trust")
# Variables that win over the file; the only settings that have one.
_ENVIRONMENT: Final = {
    "plugin_dir": "LATTICE_PLUGIN_DIR",
    "state_dir": "LATTICED_STATE_DIR",
    "runtime_dir": "LATTICED_RUNTIME_DIR",
    "trust": "LATTICED_TRUST",
    "log.level": "LATTICED_LOG_LEVEL",
}
# Set by StateDirectory= and RuntimeDirectory= of the unit (systemd.exec(5)); the file wins over them.
_SYSTEMD: Final = {"state_dir": "STATE_DIRECTORY", "runtime_dir": "RUNTIME_DIRECTORY"}


def load(config: Path | None, environ: Mapping[str, str], euid: int) -> Settings:
    """The effective settings of a process with `environ` and `euid`; Problem("settings_invalid") when they are bad.

    `config` None means the default file, which need not exist; a file that was named must. Blocks: reads the file, and
    may ask the user database for a home directory. Names of users and groups are not resolved here (`rpc.access`).
    """
    config_dir = _config_dir(environ, euid)
    # Absolute, since reloads read it again and messages name it.
    file = (config or config_dir / "latticed.toml").absolute()
    seen = fingerprint(file)  # first: a change while it is read must not be taken for what was read
    table = _read(file, named=config is not None, owners=frozenset({0, euid}))
    # The trust policy is expected beside the settings that were read.
    if table is not None:
        config_dir = file.parent
    # From weakest to strongest: defaults, file, environment.
    values, renamed = _renamed(_flatten(table or {}, str(file)))
    values.update(
        {key: (environ[name], f"environment {name}") for key, name in _ENVIRONMENT.items() if environ.get(name)}
    )
    found = _build({**_defaults(environ, euid, config_dir), **values}, config_file=file if table is not None else None)
    return replace(found, renamed=renamed, file_seen=seen)


def fingerprint(file: Path | None) -> tuple[int, ...] | None:
    """Metadata that changes when the settings file does: device, inode, size, mtime and ctime in ns.

    None without a file, or when it cannot be looked at. Blocks.
    """
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if found else None


def describe(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, origin) of every setting; origin is a file, a variable, or `default`."""
    for name in _PATHS:
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


def _config_dir(environ: Mapping[str, str], euid: int) -> Path:
    """Where `latticed.toml` is expected: systemd's directory, /etc/latticed, or the user's own."""
    if given := environ.get("CONFIGURATION_DIRECTORY"):
        # Several directories are joined by colons (systemd.exec(5)); the first is the unit's own.
        return Path(given.split(":")[0])
    if euid == 0:
        return Path("/etc/latticed")
    etc = Path("/etc/latticed")
    try:
        os.stat(etc / "latticed.toml")
    except (FileNotFoundError, NotADirectoryError):
        return _xdg(environ, euid, "XDG_CONFIG_HOME", ".config")
    except OSError:
        return etc  # reading it says why: a user's own settings never take the place of root's
    return etc


def _xdg(environ: Mapping[str, str], euid: int, name: str, fallback: str) -> Path:
    """A directory of the XDG Base Directory Specification for latticed; `fallback` below the home directory."""
    base = environ.get(name, "")
    return (Path(base) if _is_for(base, euid) else _home(environ, euid) / fallback) / "latticed"


def _home(environ: Mapping[str, str], euid: int) -> Path:
    """$HOME, unless it is another user's (as after `setpriv` or `su -m`); then the home of the user database."""
    import pwd

    given = environ.get("HOME", "/")
    if not _is_for(given, euid):
        with contextlib.suppress(KeyError):
            return Path(pwd.getpwuid(euid).pw_dir)
    return Path(given)


def _is_for(path: str, euid: int) -> bool:
    """Whether a directory named by the environment is our own, or does not exist yet."""
    try:
        return path.startswith("/") and os.stat(path).st_uid == euid
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _defaults(environ: Mapping[str, str], euid: int, config_dir: Path) -> dict[str, tuple[Any, str]]:
    """(value, origin) of the four paths where nothing else is set: root's, or the user's own; systemd's win."""
    if euid == 0:
        plain = {"plugin_dir": Path("/var/lib/latticed-plugins"), "state_dir": Path("/var/lib/latticed")}
        plain["runtime_dir"] = Path("/run/latticed")
    else:
        plain = {
            "plugin_dir": _xdg(environ, euid, "XDG_DATA_HOME", ".local/share") / "plugins",
            "state_dir": _xdg(environ, euid, "XDG_STATE_HOME", ".local/state"),
            "runtime_dir": _xdg(environ, euid, "XDG_RUNTIME_DIR", ".cache"),
        }
    plain["trust"] = config_dir / "trust.json"
    found: dict[str, tuple[Any, str]] = {key: (path, "default") for key, path in plain.items()}
    for key, name in _SYSTEMD.items():
        if given := environ.get(name):
            found[key] = (given.split(":")[0], f"environment {name}")
    if state := environ.get("STATE_DIRECTORY"):  # the packaged unit: a directory of root's beside the state
        found["plugin_dir"] = (state.split(":")[0] + "-plugins", "environment STATE_DIRECTORY")
    return found


def _read(file: Path, *, named: bool, owners: frozenset[int]) -> dict[str, Any] | None:
    """The TOML table of `file`; None when it is missing and was not `named`. Problem settings_invalid.

    A file that others than `owners` could change is refused: it decides who may do what.
    """
    try:
        data = trusted_files.read(file, MAX_FILE_BYTES, owners=owners)
    except FileNotFoundError:
        if named:
            raise _invalid(
                f"cannot read {file}: there is no such file", "name an existing file with --config"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise _invalid(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except trusted_files.ForeignFile as fault:
        hint = "only root or the daemon's user may be able to change it"
        raise _invalid(f"cannot trust {file}: {fault}", hint) from fault
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # tomllib raises int()'s ValueError too, and has no limit of nesting
        raise _invalid(f"{file}: expected TOML, found: {error}") from error


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
                raise _invalid(f"{origin}: {key} is called {name} now, and both are set", f"remove {key}")
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
        if not key and section in _PATHS:
            parts.setdefault("", {})[section] = _path(dotted, value, origin)
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
        raise _bad(name, origin, "a table", value)
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
        raise _bad(key, origin, "a table of names, each a table", value)
    return {name: _section(f"{key}.{name}", inner, origin, kind, {}) for name, inner in value.items()}


def _path(key: str, value: Any, origin: str) -> Path:
    """An absolute path, or Problem settings_invalid: the daemon's working directory means nothing."""
    if not isinstance(value, (str, Path)) or not os.path.isabs(value) or "\0" in str(value):
        raise _bad(key, origin, "an absolute path", value)
    return Path(value)


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
            raise _bad(key, origin, "a list of texts", value)
        return tuple(value)
    if wanted is float and type(value) is int:
        # TOML distinguishes 5 from 5.0; for an operator both are five seconds.
        value = _as_float(value)
    # Not isinstance: bool is a subclass of int, and `true` is no number.
    if type(value) is not wanted:
        raise _bad(
            key, origin, {str: "text", int: "an integer", float: "a number", bool: "true or false"}[wanted], value
        )
    if rules["one_of"] and value not in rules["one_of"]:
        raise _bad(key, origin, "one of " + ", ".join(rules["one_of"]), value)
    low, high = rules["low"], rules["high"]
    if low is not None and not low <= value <= high:
        raise _bad(key, origin, f"{low} to {high}", value)
    return value


def _sound(key: str, value: Any, origin: str, rules: Mapping[str, Any]) -> Any:
    """`value`, if the setting's own check (`fault` in `rules`) accepts it; Problem settings_invalid otherwise."""
    if rules["fault"] is not None and (expected := rules["fault"](value)):
        raise _bad(key, origin, expected, value)
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
        raise _bad(key, origin, "a table of names and their scopes", value)
    for name, granted in value.items():
        if not isinstance(granted, list) or not all(scope in scopes for scope in granted):
            raise _bad(f"{key}.{name}", origin, "a list of " + ", ".join(scopes), granted)
    return {name: tuple(granted) for name, granted in value.items()}


def _path_table(key: str, value: Any, origin: str) -> dict[str, str]:
    """A table of names and absolute paths."""
    if not isinstance(value, dict):
        raise _bad(key, origin, "a table of names and absolute paths", value)
    return {name: str(_path(f"{key}.{name}", path, origin)) for name, path in value.items()}


def _known_keys() -> list[str]:
    """Every dotted key there is, to suggest one for a key that is unknown."""
    keys = list(_PATHS)
    for name, kind in get_type_hints(Settings).items():
        if is_dataclass(kind):
            keys.extend(dotted for dotted, _ in _leaves(name, cast("Any", kind)()))
    return keys


def _unknown(dotted: str, origin: str) -> Problem:
    """Problem settings_invalid for a key that does not exist, with the nearest one that does."""
    from difflib import get_close_matches

    near = get_close_matches(dotted, _known_keys(), n=1, cutoff=0.5)
    return _invalid(
        f"{origin}: unknown key {dotted!r}", f"did you mean {near[0]!r}?" if near else "see the settings page"
    )


def _bad(key: str, origin: str, expected: str, found: Any) -> Problem:
    """Problem settings_invalid: origin, key, what was expected, what was found (80 characters at most)."""
    return _invalid(f"{origin}: {key}: expected {expected}, found {str(found)[:80]!r}")


def _invalid(detail: str, hint: str = "") -> Problem:
    """The Problem settings_invalid."""
    return Problem("settings_invalid", detail, hint)

"""Where latticed's files are: the settings file, and the four paths that need none of its other settings.

Apart from the whole settings (`reading`), whose shapes take 25 ms to load, because each run of latticectl asks for the
control socket.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import trusted_files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FILE_BYTES: Final = 1 << 20
"""A larger settings file is refused."""
PUT_BACK: Final = "put the file back; to go on without its settings, restart latticed"
"""The hint when the file of the settings in force is gone or empty."""
PATHS: Final = ("plugin_dir", "state_dir", "runtime_dir", "trust")
# Variables that win over the file; the only settings that have one.
ENVIRONMENT: Final = {
    "plugin_dir": "LATTICE_PLUGIN_DIR",
    "state_dir": "LATTICED_STATE_DIR",
    "runtime_dir": "LATTICED_RUNTIME_DIR",
    "trust": "LATTICED_TRUST",
    "log.level": "LATTICED_LOG_LEVEL",
}
# Set by StateDirectory= and RuntimeDirectory= of the unit (systemd.exec(5)); the file wins over them.
SYSTEMD: Final = {"state_dir": "STATE_DIRECTORY", "runtime_dir": "RUNTIME_DIRECTORY"}


def runtime_dir(config: Path | None, environ: Mapping[str, str], euid: int) -> tuple[Path, str]:
    """(directory of the control socket, its origin), as `settings.load` finds it; Problem settings_invalid.

    The other settings are not checked: a daemon goes on with those it has when the file is wrong.
    """
    origin = ENVIRONMENT["runtime_dir"]
    if given := environ.get(origin):
        return absolute("runtime_dir", given, f"environment {origin}"), f"environment {origin}"
    file = settings_file(config, environ, euid)
    table = read(file, named=config is not None, owners=frozenset({0, euid})) or {}
    if "runtime_dir" in table:
        return absolute("runtime_dir", table["runtime_dir"], str(file)), str(file)
    value, origin = defaults(environ, euid, file.parent)["runtime_dir"]
    return absolute("runtime_dir", value, origin), origin


def settings_file(config: Path | None, environ: Mapping[str, str], euid: int) -> Path:
    """The absolute path of the settings file: `config`, else where it is expected; it need not exist."""
    # Absolute, since reloads read it again and messages name it.
    return (config or config_dir(environ, euid) / "latticed.toml").absolute()


def config_dir(environ: Mapping[str, str], euid: int) -> Path:
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


def defaults(environ: Mapping[str, str], euid: int, config_dir: Path) -> dict[str, tuple[Any, str]]:
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
    for key, name in SYSTEMD.items():
        if given := environ.get(name):
            found[key] = (given.split(":")[0], f"environment {name}")
    if state := environ.get("STATE_DIRECTORY"):  # the packaged unit: a directory of root's beside the state
        found["plugin_dir"] = (state.split(":")[0] + "-plugins", "environment STATE_DIRECTORY")
    return found


def read(file: Path, *, named: bool, owners: frozenset[int], in_force: bool = False) -> dict[str, Any] | None:
    """The TOML table of `file`; None when it is missing and was not `named`. Problem settings_invalid.

    A file that others than `owners` could change is refused: it decides who may do what. `in_force`: settings that it
    had are in force, so that a missing or empty one is refused: somebody may be about to write it.
    """
    try:
        data = trusted_files.read(file, MAX_FILE_BYTES, owners=owners)
    except FileNotFoundError:
        if in_force:
            raise invalid(f"expected settings in {file}, found no such file", PUT_BACK) from None
        if named:
            raise invalid(f"cannot read {file}: there is no such file", "name an existing file with --config") from None
        return None
    except (OSError, ValueError) as error:
        raise invalid(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except trusted_files.ForeignFile as fault:
        hint = "only root or the daemon's user may be able to change it"
        raise invalid(f"cannot trust {file}: {fault}", hint) from fault
    if in_force and not data:
        raise invalid(f"expected settings in {file}, found an empty file", PUT_BACK)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # tomllib raises int()'s ValueError too, and has no limit of nesting
        raise invalid(f"{file}: expected TOML, found: {error}") from error


def absolute(key: str, value: Any, origin: str) -> Path:
    """An absolute path, or Problem settings_invalid: the daemon's working directory means nothing."""
    if not isinstance(value, (str, Path)) or not os.path.isabs(value) or "\0" in str(value):
        raise bad(key, origin, "an absolute path", value)
    return Path(value)


def bad(key: str, origin: str, expected: str, found: Any) -> Problem:
    """Problem settings_invalid: origin, key, what was expected, what was found (80 characters at most)."""
    return invalid(f"{origin}: {key}: expected {expected}, found {str(found)[:80]!r}")


def invalid(detail: str, hint: str = "") -> Problem:
    """The Problem settings_invalid."""
    return Problem("settings_invalid", detail, hint)

"""Whether a configuration can be meant. Pure; the schema in the manifest has bounded its form already."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.model import egress
from latticed.model.errors import Problem
from latticed.system.sub_store import render
from latticed.system.sub_store.intent import Intent

if TYPE_CHECKING:
    from collections.abc import Iterator

_REFERENCE: Final = re.compile(r"\$\{secret:[A-Z][A-Z0-9_]{0,63}\}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Unreserved characters (RFC 3986, section 2.3): nothing that a path could be read differently by.
_SEGMENTS: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){0,8}")
_FILE: Final = re.compile(r"(?:/[^/\x00-\x1f\x7f]+)+")
_VARIABLE: Final = re.compile(r"SUB_STORE_[A-Z0-9_]{1,64}")
MAX_VALUE: Final = 1_024


def read(plain: Any) -> Intent:
    """The intent in a configuration; Problem("bad_request") names each field that is wrong."""
    try:
        intent = msgspec.convert(plain, Intent)
    except msgspec.ValidationError as error:
        raise Problem("bad_request", f"the configuration: {error}", _HINT) from error
    if found := list(_faults(intent)):
        raise Problem("bad_request", "; ".join(found), _HINT)
    return intent


_HINT: Final = "latticectl config set latticed.sub-store -f FILE"


def _faults(intent: Intent) -> Iterator[str]:
    yield from _secret_faults(intent)
    if _NAME.fullmatch(intent.program) is None:
        yield f"program: expected a name of service.programs, found {_shown(intent.program)}"
    yield from _file_faults("bundle", intent.bundle)
    yield from _file_faults("frontend", intent.frontend) if intent.frontend else ()
    for name, value, low, high in (
        ("port", intent.port, 1_024, 65_535),
        ("data_bytes", intent.data_bytes, 1 << 20, 1 << 40),
        ("data_files", intent.data_files, 10, 100_000),
    ):
        if not low <= value <= high:
            yield f"{name}: expected {low} to {high}, found {value}"
    yield from _path_faults(intent)
    for place, host in enumerate(intent.hosts):
        if not egress.is_pattern(host):
            yield f"hosts[{place}]: expected host:port such as sub.example.org:443, found {_shown(host)}"
    yield from _environment_faults(intent)


def _secret_faults(intent: Intent) -> Iterator[str]:
    if not intent.login:
        yield "login: expected a reference such as ${secret:SUB_STORE_LOGIN}: its API is code execution"
    for name, value in (("login", intent.login), ("token", intent.token)):
        if value and _REFERENCE.fullmatch(value) is None:
            yield f"{name}: expected a reference such as ${{secret:SUB_STORE_LOGIN}}, found something else"
    # Whoever has the URL of a download would be able to log in.
    if intent.login and intent.login == intent.token:
        yield "token: expected another secret than that of login"


def _path_faults(intent: Intent) -> Iterator[str]:
    if not intent.path.endswith("/") or _SEGMENTS.fullmatch(intent.path[:-1]) is None:
        yield f"path: expected / or a path such as /sub/ of A-Z a-z 0-9 . _ ~ -, found {_shown(intent.path)}"
    if _SEGMENTS.fullmatch(intent.prefix) is None:
        yield f"prefix: expected nothing or a path such as /backend, found {_shown(intent.prefix)}"
    if intent.frontend and not intent.prefix:
        yield "frontend: expected a prefix too, which tells the backend's paths from those of the front end"


def _file_faults(name: str, path: str) -> Iterator[str]:
    parts = path.split("/")
    if _FILE.fullmatch(path) is None or len(path) > MAX_VALUE or {".", ".."} & set(parts):
        yield f"{name}: expected an absolute path without the segments . and .., found {_shown(path)}"


def _environment_faults(intent: Intent) -> Iterator[str]:
    ours = render.environment(intent)
    for name, value in intent.environment.items():
        if _VARIABLE.fullmatch(name) is None:
            yield f"environment: expected names that begin with SUB_STORE_, found {_shown(name)}"
        elif name in ours or name in render.NEVER:
            yield f"environment: expected variables that the plugin does not set itself, found {name}"
        # Everybody on the host may list a process's environment, and Sub-Store's API shows it.
        elif "${" in value or len(value) > MAX_VALUE or not value.isprintable():
            yield f"environment: expected a value of visible characters and no secret for {name}"


def _shown(value: str) -> str:
    return ascii(value[:80])

"""What an operator permits one plugin beyond its capabilities, by name: `kind=value` (contracts §8, caps grant)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from latticed.model import egress, ids

if TYPE_CHECKING:
    from collections.abc import Iterable

# Kinds of permits; `EXPECTED` describes each.
ORIGIN: Final = "origin"
PREFIX: Final = "prefix"
BUCKET: Final = "bucket"
FEATURE: Final = "feature"
SANDBOX: Final = "sandbox"
PUBLISH: Final = "publish"
ENV: Final = "env"
SHARE: Final = "share"

EXPECTED: Final = {
    ORIGIN: "origin=http://backend.lan:8080=10.0.0.5: a private target, pinned",
    PREFIX: "prefix=/shop/: a path of the HTTP listener besides the plugin's own",
    BUCKET: "bucket=plugin:acme.other: another plugin's values, to read; or a worker's bucket=shared, an operator's",
    FEATURE: "feature=processes (or threads, workdir)",
    SANDBOX: "sandbox=open: no confinement at all",
    PUBLISH: "publish=http://127.0.0.1:3000: a service that its routes may put on the web",
    ENV: "env=NODE_ENV: a variable that its services may set (none of the linker's, LD_…)",
    SHARE: "share=acme.site: a plugin whose published files it may read",
}
"""All kinds, each with an example for messages."""
AT_START: Final = frozenset({PREFIX, FEATURE, SANDBOX})
"""The kinds that a runner applies when it starts a plugin; the others are checked at each use."""

OF_A_PLUGIN: Final = "plugin:"
"""So begins the name of a bucket that a plugin has for its own values; its id follows."""

_PREFIX: Final = re.compile(r"/(?:(?:[A-Za-z0-9._~-]+/)*[A-Za-z0-9._~-]+/?)?", re.ASCII)
"""Segments of unreserved characters (RFC 3986, section 2.3): nothing that a client could encode in another way."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
"""The name of an environment variable, as shells can set it."""
_OF_THE_LINKER: Final = ("LD_", "GLIBC_")
"""Beginnings of variables that the dynamic linker obeys (ld.so(8))."""
_FEATURES: Final = frozenset({"threads", "processes", "workdir"})
"""Those that a manifest can ask for (`SandboxSpec`)."""


def fault(permit: str) -> str | None:
    """What is wrong with `kind=value`, with an example of what is expected; None when nothing is."""
    kind, _, value = permit.partition("=")
    if kind not in EXPECTED:
        return f"expected one of {', '.join(EXPECTED)}, found {permit[:80]!r}"
    if not _fits(kind, value):
        return f"expected {EXPECTED[kind]}; found {permit[:80]!r}"
    return None


def of_kind(permits: Iterable[str], kind: str) -> tuple[str, ...]:
    """The values of the permits of one kind."""
    start = f"{kind}="
    return tuple(permit.removeprefix(start) for permit in permits if permit.startswith(start))


def any_applied_at_start(permits: Iterable[str]) -> bool:
    """Whether one of `permits` is applied when the plugin starts, so that withdrawing it needs a restart."""
    return any(permit.partition("=")[0] in AT_START for permit in permits)


def _fits(kind: str, value: str) -> bool:
    """Whether the value is one that the kind takes."""
    match kind:
        case "origin":
            return _is_origin(value)
        case "publish":
            return _is_origin(value) and egress.origin(value).scheme == "http"
        case "env":
            return bool(VARIABLE.fullmatch(value)) and not value.startswith(_OF_THE_LINKER)
        case "prefix":
            return bool(_PREFIX.fullmatch(value)) and not _is_reserved(value)
        case "bucket":
            if value.startswith(OF_A_PLUGIN):
                return ids.is_valid(value.removeprefix(OF_A_PLUGIN))
            return bool(_BUCKET.fullmatch(value))
        case "feature":
            return value in _FEATURES
        case "share":
            return ids.is_valid(value)
        case _:
            # Only `sandbox` is left.
            return value == "open"


def _is_reserved(prefix: str) -> bool:
    """Whether no plugin may have this path."""
    parts = prefix.split("/")
    # `/.well-known/` is of the whole site, not of one plugin (RFC 8615); dot segments are removed by clients (RFC 3986,
    # 5.2.4).
    return ".." in parts or "." in parts or parts[1] == ".well-known"


def _is_origin(value: str) -> bool:
    """Whether `egress.origin` takes it."""
    try:
        egress.origin(value)
    except ValueError:
        return False
    return True

"""What an operator accepted of a manifest, and the effective manifest, which never exceeds that (contracts §13). Pure.

Capabilities and hosts have their own fields in a record (masked, hosts); everything else that an upgrade could widen
is here. Words such as `limit=memory_mib:512` are what an operator names to accept it (`model.consents`).
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from msgspec import structs

from latticed.model import ids, schedule
from latticed.model.manifest import ManifestLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.manifest import Manifest

ELF: Final = "ELF"
BUILTIN: Final = "builtin"
"""What stands for a protocol where there is none to speak: the methods of a built-in plugin are called."""
"""Stands for the interpreter of a program that the kernel runs by itself."""
LEVELS: Final = ("open", "filtered", "isolated", "dedicated")
"""Sandbox levels, the weakest first: `rank` compares their places."""
LIMITS: Final = ManifestLimits.__struct_fields__
"""Names of all limits that a manifest may have."""
DEFAULT: Final = "default"
"""What stands for a limit or level that is left to the settings."""
V1_FEATURES: Final = frozenset({"threads", "processes"})
"""Features of every v1 system plugin, whose manifest cannot declare any; `processes` only where the host has them."""
HEAD_BYTES: Final = 258
"""Bytes at the beginning of an artifact that `interpreter_of` needs: `#!` and the 256 that a first line may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What was accepted; also what a manifest asks for, which is accepted whole when a plugin is first installed.

    `interpreter` is ELF, or the words of the script's first line; empty where nothing of it is executed, or unknown.
    `level` empty and a limit of None leave it to the settings. `dependencies` are ids, `schedules` words
    (`model.schedule.word`).
    """

    type: str
    protocol: str = ""
    interpreter: str = ""
    args: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    level: str = ""
    limits: ManifestLimits = ManifestLimits()
    prefixes: frozenset[str] = frozenset()
    dependencies: frozenset[str] = frozenset()
    schedules: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """The settings' values for what a manifest leaves out; a limit of None is no limit."""

    level: str = "isolated"
    limits: ManifestLimits = ManifestLimits()


def interpreter_of(head: bytes) -> str:
    r"""What an artifact that begins with `head` is run by: ELF, the words of its `#!` line, or nothing.

    `#!/usr/bin/env  python3 -u` gives `/usr/bin/env python3 -u`. Bytes that are not printable ASCII come as `\xNN`.
    """
    if head.startswith(b"\x7fELF"):
        return ELF
    if not head.startswith(b"#!"):
        return ""
    words = head[2:].partition(b"\n")[0].replace(b"\t", b" ").split(b" ")
    line = b" ".join(word for word in words if word).decode("latin-1")
    # The words are shown to operators and named by them, so they must be one line of plain text.
    return "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in line)


def protocol_of(manifest: Manifest) -> str:
    """The protocol of a plugin; empty for a worker, which is a template."""
    if ids.is_reserved_plugin(manifest.id):
        return BUILTIN
    if manifest.type == "worker":
        return ""
    if manifest.type == "system" and not manifest.is_v2:
        return "stdio-json-v1"
    return manifest.runtime.protocol or "latticed-stdio-1"


def asked(manifest: Manifest, interpreter: str) -> Accepted:
    """Everything that a manifest, with an artifact run by `interpreter`, asks for.

    `interpreter` is what `interpreter_of` gives; it counts for system plugins only.
    """
    sandbox, is_program = manifest.runtime.sandbox, manifest.type == "system"
    return Accepted(
        type=manifest.type,
        protocol=protocol_of(manifest),
        interpreter=interpreter if is_program else "",
        args=manifest.runtime.args,
        features=V1_FEATURES if is_program and not manifest.is_v2 else frozenset(sandbox.features),
        level=sandbox.level or "",
        limits=manifest.runtime.limits,
        prefixes=frozenset(manifest.routes.prefixes),
        dependencies=frozenset(one.id for one in manifest.dependencies),
        schedules=frozenset(schedule.word(one) for one in manifest.schedules),
    )


def effective(manifest: Manifest, accepted: Accepted, usual: Usual) -> Manifest:
    """`manifest` without what is optional and was not accepted; what it cannot run without is judged by `needed`.

    Levels and limits become the stricter of the two; `usual` stands for those that are left out.
    """
    # Without the interpreter, which no part of a manifest depends on.
    runtime, wants = manifest.runtime, asked(manifest, "")
    sandbox = structs.replace(
        runtime.sandbox,
        level=_stricter(wants.level, accepted.level, usual.level) or None,
        features=tuple(one for one in runtime.sandbox.features if one in accepted.features),
    )
    limits = _lower(wants.limits, accepted.limits, usual.limits)
    return structs.replace(
        manifest,
        runtime=structs.replace(runtime, sandbox=sandbox, limits=limits),
        routes=structs.replace(
            manifest.routes, prefixes=tuple(one for one in manifest.routes.prefixes if one in accepted.prefixes)
        ),
        dependencies=tuple(one for one in manifest.dependencies if not one.optional or one.id in accepted.dependencies),
        schedules=tuple(one for one in manifest.schedules if schedule.word(one) in accepted.schedules),
    )


def withheld(manifest: Manifest, accepted: Accepted) -> frozenset[str]:
    """The sandbox features that the plugin would have, had they been accepted."""
    return asked(manifest, "").features - accepted.features


def needed(manifest: Manifest, interpreter: str, accepted: Accepted) -> tuple[str, ...]:
    """The terms that an operator must accept before the plugin can start, as it cannot run without them.

    As words: `interpreter=ELF`, `dependency=acme.base`. Empty when it can start with what was accepted.
    """
    required = {one.id for one in manifest.dependencies if not one.optional}
    wants = asked(manifest, interpreter)
    # Level, limits, prefixes, schedules and optional dependencies are left out: without them the plugin runs confined
    # more, is served less or called less often.
    less = replace(
        wants,
        dependencies=wants.dependencies & required,
        level="",
        limits=ManifestLimits(),
        prefixes=frozenset(),
        schedules=frozenset(),
    )
    # A v1 program runs with threads or not at all (`docs/adr/0006`). A v2 manifest lists features, and starts without
    # them.
    threads = wants.features & {"threads"} if wants.type == "system" and not manifest.is_v2 else frozenset[str]()
    # With the accepted level as the usual one, the empty level above is never a weaker one.
    return beyond(replace(less, features=threads), accepted, Usual(level=accepted.level or "open"), limits=False)


def beyond(wants: Accepted, accepted: Accepted, usual: Usual, *, limits: bool = True) -> tuple[str, ...]:
    """The terms in `wants` that exceed `accepted`, as the words that accept them.

    Such as `limit=memory_mib:512` and `feature=threads`. `usual` stands for a level or limit that is left to the
    settings. Without `limits` those are not compared.
    """
    return (
        *_identity(wants, accepted),
        *(f"dependency={one}" for one in sorted(wants.dependencies - accepted.dependencies)),
        *_level(wants.level, accepted.level, usual.level),
        *(f"feature={one}" for one in sorted(wants.features - accepted.features)),
        *(_limits(wants.limits, accepted.limits, usual.limits) if limits else ()),
        *(f"prefix={one}" for one in sorted(wants.prefixes - accepted.prefixes)),
        *(f"schedule={one}" for one in sorted(wants.schedules - accepted.schedules)),
    )


def meet(accepted: Accepted, other: Accepted, usual: Usual) -> Accepted:
    """The terms in both, so that the result never exceeds either; for single-valued ones the value of `accepted`.

    Single-valued are type, protocol, interpreter and arguments. `usual` stands for levels and limits that are left to
    the settings.
    """
    return replace(
        accepted,
        features=accepted.features & other.features,
        level=_stricter(accepted.level, other.level, usual.level),
        limits=_lower(accepted.limits, other.limits, usual.limits),
        prefixes=accepted.prefixes & other.prefixes,
        dependencies=accepted.dependencies & other.dependencies,
        schedules=accepted.schedules & other.schedules,
    )


def rank(level: str, usual: str) -> int:
    """How strict a level is, 0 for the weakest; `usual` stands for an empty one. ValueError for an unknown level."""
    return LEVELS.index(level or usual)


def bound(limits: ManifestLimits, name: str, usual: ManifestLimits) -> float:
    """The effective value of the limit `name`, with that of `usual` where it is None; infinity for none."""
    value = getattr(limits, name)
    found = value if value is not None else getattr(usual, name)
    return math.inf if found is None else float(found)


def _identity(wants: Accepted, accepted: Accepted) -> Iterable[str]:
    """The words that accept the single-valued terms (type, protocol, interpreter, arguments) that differ from the
    accepted ones; an empty value needs no acceptance.
    """
    for name in ("type", "protocol", "interpreter"):
        value = getattr(wants, name)
        if value and value != getattr(accepted, name):
            yield f"{name}={value}"
    if wants.args and wants.args != accepted.args:
        yield f"args={shlex.join(wants.args)}"


def _level(wants: str, accepted: str, usual: str) -> Iterable[str]:
    """The word that accepts the wanted level, if it is weaker than the accepted one."""
    if rank(wants, usual) < rank(accepted, usual):
        yield f"level={wants or DEFAULT}"


def _limits(wants: ManifestLimits, accepted: ManifestLimits, usual: ManifestLimits) -> Iterable[str]:
    """The words that accept the wanted limits, of those that are higher than the accepted ones."""
    for name in LIMITS:
        if bound(wants, name, usual) > bound(accepted, name, usual):
            value = getattr(wants, name)
            yield f"limit={name}:{DEFAULT if value is None else value}"


def _stricter(one: str, other: str, usual: str) -> str:
    """The stricter of two levels, `one` when they are equal; either may be empty, for the settings' own."""
    return one if rank(one, usual) >= rank(other, usual) else other


def _lower(one: ManifestLimits, other: ManifestLimits, usual: ManifestLimits) -> ManifestLimits:
    """For each limit the lower one of the two; a limit that is None counts as `usual`."""
    lower = {name: getattr(other, name) for name in LIMITS if bound(other, name, usual) < bound(one, name, usual)}
    return structs.replace(one, **lower)

"""Rules of a manifest that its shape cannot express (contracts §2 and §3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import text
from latticed.model import egress, ids, semver_range

if TYPE_CHECKING:
    from latticed.model.manifest import Dependency, Manifest

# Characters, not bytes (contracts §2).
MAX_NAME: Final = 80
MAX_VERSION: Final = 64
MAX_ENTRYPOINT: Final = 255

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")


class Broken(ValueError):  # reads as the finding it is
    """A manifest breaks a rule. The message says what was expected and what was found, quoting it safely."""


def check(raw: dict[str, Any], found: Manifest, *, builtin: bool = False) -> None:
    """Raise Broken unless `found`, decoded from `raw`, keeps every rule; those of a `builtin` have the reserved ids."""
    (_check_builtin_ids if builtin else _check_ids)(found)
    _check_name("name", found.name, limit=MAX_NAME)
    _check_line("version", found.version, limit=MAX_VERSION)
    _check_line("entrypoint", found.entrypoint, limit=MAX_ENTRYPOINT)
    if not found.capabilities:
        raise Broken("expected `capabilities` to name at least one, found an empty list")
    if found.digest_sha256 and not _DIGEST.fullmatch(found.digest_sha256):
        raise Broken(f"expected `digest_sha256` to be 64 hex digits, found {quote(found.digest_sha256)}")
    if found.is_v2:
        _check_v2(raw, found)


def json_kind(value: object) -> str:
    """What JSON calls a decoded value: "an object", "a number", "null", …"""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _check_ids(found: Manifest) -> None:
    """Broken unless id and publisher are well formed and not those of built-in plugins."""
    if not ids.is_valid(found.id):
        raise Broken(f"expected `id` to be {ids_are()}, found {quote(found.id)}")
    if ids.is_reserved_plugin(found.id):
        raise Broken(f"expected an `id` that is not reserved for built-in plugins, found {quote(found.id)}")
    if found.publisher and not ids.is_valid(found.publisher):
        raise Broken(f"expected `publisher` to be {ids_are()}, found {quote(found.publisher)}")
    if found.publisher == ids.RESERVED_PUBLISHER:
        raise Broken(f"expected a `publisher` that is not reserved for built-in plugins, found {found.publisher}")


def _check_builtin_ids(found: Manifest) -> None:
    if not (ids.is_valid(found.id) and ids.is_reserved_plugin(found.id)):
        raise Broken(f"expected `id` to be {ids.RESERVED_PREFIX}NAME of a-z 0-9 . -, found {quote(found.id)}")
    if found.publisher != ids.RESERVED_PUBLISHER:
        raise Broken(f"expected the publisher {ids.RESERVED_PUBLISHER}, found {quote(found.publisher)}")
    if found.type != "system" or not found.is_v2:
        raise Broken(f"expected a manifest of version 2 and type system, found type {found.type}")


def ids_are() -> str:
    """The rule for ids, in words."""
    return "3 to 128 of a-z 0-9 . - with a letter or digit at both ends and no .."


def _check_name(field: str, value: str, *, limit: int) -> None:
    """Broken for a blank value, and as `_check_line`."""
    if not value.strip():
        raise Broken(f"expected `{field}` to be 1 to {limit} visible characters, found {quote(value)}")
    _check_line(field, value, limit=limit)


def _check_line(field: str, value: str, *, limit: int) -> None:
    """Broken for more than `limit` characters, or a control character: one could forge its neighbour in the payload."""
    if len(value) > limit:
        raise Broken(f"expected `{field}` to be at most {limit} characters, found {len(value)}")
    _check_characters(field, value)


def _check_characters(field: str, value: str, *, allowed: str = "") -> None:
    """Broken for the first control or invisible character that is not in `allowed`."""
    # The usual case, fast: nearly all texts of a manifest are printable ASCII.
    if value.isascii() and value.isprintable():
        return
    for char in value:
        if text.is_control(char) and char not in allowed:
            raise Broken(f"expected `{field}` without control or invisible characters, found U+{ord(char):04X}")


def _check_v2(raw: dict[str, Any], found: Manifest) -> None:
    """Broken unless the rules hold that only v2 has; v1 stays as other lattice tools read it."""
    if not semver_range.is_version(found.version):
        raise Broken(f"expected `version` to be SemVer such as 1.2.3, found {quote(found.version)}")
    # Over the JSON object, not the struct: it is what is signed, `config` with it.
    for name, value in raw.items():
        if name != "schedules":
            check_strings(name, value, allowed="\n\t" if name == "config" else "", nulls=name == "config")
    for place, host in enumerate(found.egress.hosts):
        _check_host(f"egress.hosts[{place}]", host)
    for place, prefix in enumerate(found.routes.prefixes):
        if not prefix.startswith("/"):
            raise Broken(f"expected `routes.prefixes[{place}]` to start with /, found {quote(prefix)}")
    _check_dependencies(found.id, found.dependencies)
    if found.requires_host:
        _check_range("requires_host", found.requires_host)


def check_strings(field: str, value: object, *, allowed: str, nulls: bool) -> None:
    """Broken for a control or invisible character in any string or key within `value`, except those in `allowed`, and
    for null unless `nulls`.

    Null is valid only where the author's own JSON begins (`config`). `field` is the path, for the message.
    """
    match value:
        case str():
            _check_characters(field, value, allowed=allowed)
        case dict():
            for key, inner in value.items():
                _check_characters(field, key)
                check_strings(f"{field}.{key}", inner, allowed=allowed, nulls=nulls)
        case list():
            for place, inner in enumerate(value):
                check_strings(f"{field}[{place}]", inner, allowed=allowed, nulls=nulls)
        case None if not nulls:
            raise Broken(f"expected `{field}` to have a value or be absent, found null")


def _check_host(field: str, host: str) -> None:
    """Broken unless `host` is a pattern (`egress.is_pattern`)."""
    if not egress.is_pattern(host):
        raise Broken(f"expected `{field}` such as api.example.org:443 or *.example.org:443, found {quote(host)}")


def _check_dependencies(plugin_id: str, dependencies: tuple[Dependency, ...]) -> None:
    """Broken unless each names another plugin, once, with a valid range of versions."""
    # A plugin cannot depend on itself.
    seen = {plugin_id}
    for place, dependency in enumerate(dependencies):
        field = f"dependencies[{place}]"
        if not ids.is_valid(dependency.id):
            raise Broken(f"expected `{field}.id` to be {ids_are()}, found {quote(dependency.id)}")
        if dependency.id in seen:
            raise Broken(f"expected `{field}.id` to name each other plugin once, found {dependency.id} again")
        seen.add(dependency.id)
        _check_range(f"{field}.version", dependency.version)


def _check_range(field: str, value: str) -> None:
    """Broken unless `value` is a range of versions."""
    try:
        semver_range.check(value)
    except semver_range.InvalidRange as error:
        raise Broken(f"`{field}` is no range of versions: {error}") from error


def quote(value: str) -> str:
    """A value as messages quote it: at most 80 characters, escaped."""
    return repr(text.clip(value, 80))

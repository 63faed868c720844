"""Decodes the bytes of a manifest (contracts §2 and §3), or gives the verdict code of why they are refused.

First strict JSON, then the shape, then the rules that a shape cannot express, then the capabilities: the codes' order.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import msgspec

from latticed.bundle import config_schema, rules, schedule_rules
from latticed.bundle.refusal import BundleRefused
from latticed.kit import strict_json, text
from latticed.model import capability, manifest
from latticed.model.verdict import OTHER_SCHEMA, Code

# Most characters of a reason: it quotes the author's text.
_REASON_CHARS = 300
_FIELDS = tuple(field.encode_name for field in msgspec.structs.fields(manifest.Manifest))
# Fields whose values recur in many manifests.
_COMMON = ("type", "version", "publisher")
_ALWAYS_REQUIRED = ("id", "name", "type", "capabilities")
_V2_FIELDS = frozenset(_FIELDS) - {"entrypoint"}
_SIGNATURE = "signature_ed25519"


def decode(data: bytes, *, builtin: bool = False) -> tuple[dict[str, Any], manifest.Manifest]:
    """The JSON object and the manifest that `data` holds.

    The object is what a v2 signature covers; nothing else should look at it. That of a `builtin` plugin has a reserved
    id and no signature. Raises BundleRefused with one of manifest_invalid_json, manifest_invalid, unknown_capability,
    duplicate_capability.
    """
    try:
        # Integers within ±(2^53-1) only (contracts §2): RFC 8785, which v2 signs, writes numbers as doubles.
        raw = strict_json.loads(data, integers_only=True)
    except strict_json.InvalidJson as error:
        raise BundleRefused(
            Code.MANIFEST_INVALID_JSON, _shown(str(error)), "manifest.json must be one strict JSON object in UTF-8"
        ) from error
    if not isinstance(raw, dict):
        raise BundleRefused(
            Code.MANIFEST_INVALID_JSON,
            f"expected one JSON object, found {rules.json_kind(raw)}",
            "manifest.json must be one strict JSON object in UTF-8",
        )
    try:
        # Before the shape: an unknown or missing field is named with what was meant.
        _check_version_of_format(raw, builtin=builtin)
        found = msgspec.convert(_shared(raw), manifest.Manifest, strict=True)
        rules.check(raw, found, builtin=builtin)
        if found.schedules:
            schedule_rules.check(raw["schedules"], found)
        # Not of built-ins: a test has checked theirs (tests/architecture/test_system_packages.py), and the validator
        # takes 7 MiB of every daemon that loads it (P9).
        if found.config and not builtin:
            config_schema.check(found.config)
    except msgspec.ValidationError as error:
        _refuse(_worded(str(error)))
    except rules.Broken as error:
        _refuse(str(error))
    _check_capabilities(found)
    return raw, found


def _shared(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with one copy, for all manifests, of the texts that thousands of bundles have in common: saves memory."""
    common = {name: sys.intern(raw[name]) for name in _COMMON if isinstance(raw.get(name), str)}
    return {**raw, **common}


def _check_version_of_format(raw: dict[str, Any], *, builtin: bool) -> None:
    """Refuse fields that this version of the format does not know, and missing required ones.

    Without `schema` it is v1. Another schema than v2's is BundleRefused, as it may be of a newer latticed.
    """
    if "schema" not in raw:
        _check_known(raw, manifest.V1_FIELDS, "without a `schema` field")
        _check_present(raw, _ALWAYS_REQUIRED)
        return
    if raw["schema"] != manifest.SCHEMA_V2:
        found = raw["schema"] if isinstance(raw["schema"], str) and raw["schema"] else f"{raw['schema']!r}"
        # Not an error of the author: this manifest may be good, and this latticed too old for it.
        raise BundleRefused(
            Code.MANIFEST_INVALID,
            _shown(f"expected the schema {manifest.SCHEMA_V2}, or none (version 1), found {found}"),
            OTHER_SCHEMA,
        )
    unsigned = frozenset({_SIGNATURE}) if builtin else frozenset[str]()
    _check_known(raw, _V2_FIELDS - unsigned, f"of schema {manifest.SCHEMA_V2}")
    _check_present(raw, (*_ALWAYS_REQUIRED, *(name for name in manifest.V2_REQUIRED if name not in unsigned)))


def _check_present(raw: dict[str, Any], required: tuple[str, ...]) -> None:
    """Broken for the first of `required` that is missing."""
    for name in required:
        if name not in raw:
            raise rules.Broken(f"expected the field `{name}`, found none")


def _check_known(raw: dict[str, Any], known: frozenset[str], which: str) -> None:
    """rules.Broken for a field outside of `known`, with the nearest known name; `which` says of which format."""
    for name in raw:
        if name not in known:
            nearest = text.nearest(name.lower(), known)
            meant = f"; did you mean `{nearest}`?" if nearest else ""
            raise rules.Broken(f"expected only known fields in a manifest {which}, found {name[:80]!r}{meant}")


def _check_capabilities(found: manifest.Manifest) -> None:
    """BundleRefused for an unknown or repeated capability; `found` goes along, as the manifest is valid otherwise."""
    # Unknown ones before repeated ones: the order of codes (contracts §5).
    for name in found.capabilities:
        if name not in capability.RISKS:
            nearest = text.nearest(name.lower(), capability.RISKS)
            raise BundleRefused(
                Code.UNKNOWN_CAPABILITY,
                _shown(f"expected known capabilities, found {name[:80]!r}"),
                f"did you mean {nearest}?" if nearest else "latticectl caps lists what there is",
                manifest=found,
            )
    if len(set(found.capabilities)) != len(found.capabilities):
        twice = next(name for name in found.capabilities if found.capabilities.count(name) > 1)
        raise BundleRefused(
            Code.DUPLICATE_CAPABILITY,
            f"expected each capability once, found {twice} {found.capabilities.count(twice)} times",
            "remove the repetition and sign again",
            manifest=found,
        )


def _refuse(reason: str) -> NoReturn:
    """Raise BundleRefused with code manifest_invalid."""
    raise BundleRefused(Code.MANIFEST_INVALID, _shown(reason), "correct the manifest and sign it again")


def _worded(finding: str) -> str:
    """A finding of msgspec in the words of all other reasons: `expected X, found Y in a.b`."""
    finding, _, place = finding.partition(" - at ")
    where = f" in {place.replace('$.', '')}" if place else ""
    words = {"Expected": "expected", "Invalid enum value": "expected one of the documented values, found"}
    for theirs, ours in words.items():
        finding = finding.replace(theirs, ours, 1)
    return f"{finding.replace(', got', ', found')}{where}"


def _shown(reason: str) -> str:
    """Reasons quote untrusted text, so it is cut and escaped."""
    return text.sanitise(reason, _REASON_CHARS)

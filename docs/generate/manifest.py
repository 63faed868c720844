"""docs/reference/manifest.md, and the rows of latticed-manifest(5)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from generate import shapes
from generate.markdown import Page, anchored, code, or_dash, plain, slug
from latticed.model import capability, hostcall, manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE: dict[str, Any] = {
    "schema": manifest.SCHEMA_V2,
    "id": "acme.disk",
    "name": "Disk watch",
    "version": "1.0.0",
    "type": "system",
    "capabilities": ["kv:read", "kv:write", "notify:send"],
    "runtime": {"limits": {"memory_mib": 64}},
    "schedules": [{"name": "disk", "every_s": 60, "action": "check"}],
    "publisher": "acme",
}


class Row(NamedTuple):
    """One field. `versions`: of manifests that have it."""

    path: str
    kind: str
    required: str
    default: str
    versions: str
    meaning: str


def top() -> Iterator[Row]:
    """The fields of a manifest itself."""
    for one in shapes.fields(manifest.Manifest, _link):
        v1, v2 = one.name in manifest.V1_FIELDS, one.name != "entrypoint"
        required = "yes" if one.required else "in version 2" if one.name in manifest.V2_REQUIRED else "no"
        yield Row(one.name, one.kind, required, one.default, "1, 2" if v1 and v2 else "1" if v1 else "2", one.meaning)


def parts() -> Iterator[tuple[str, type, list[Row]]]:
    """(path, struct, fields) of all objects within a manifest."""
    yield from _within("", manifest.Manifest)


def _within(path: str, shape: type) -> Iterator[tuple[str, type, list[Row]]]:
    for field in msgspec.structs.fields(shape):
        for inner in shapes.within(field.type):
            listed = not (isinstance(field.type, type) and issubclass(field.type, msgspec.Struct))
            where = f"{path}.{field.encode_name}".lstrip(".") + ("[]" if listed else "")
            rows = [
                Row(f"{where}.{one.name}", one.kind, "yes" if one.required else "no", one.default, "2", one.meaning)
                for one in shapes.fields(inner, _link)
            ]
            yield where, inner, rows
            yield from _within(where, inner)


def _link(_: type) -> str:
    return "object"


def anchor(path: str) -> str:
    """Where a field stands on the page."""
    return slug("field", path.replace("[]", ""))


def page() -> str:
    """The page."""
    found = Page(
        "Manifest",
        "A bundle is a directory with two files: `artifact`, and `manifest.json`, which says what it is and what it"
        " asks for:",
    )
    found.block("json", json.dumps(EXAMPLE, indent=2))
    found.text(
        "`latticectl sign` adds `digest_sha256` and `signature_ed25519`. The file is one strict JSON object in"
        " UTF-8: no"
        " unknown fields, no duplicate keys, no byte order mark, at most 32 levels, whole numbers only. Without"
        " `schema`"
        " it is of version 1.",
    )
    found.heading("Fields", anchor="fields")
    found.table(
        ("field", "type", "required", "default", "version", "meaning"),
        [
            (
                anchored(anchor(row.path), code(row.path)),
                row.kind,
                row.required,
                or_dash(code(row.default)),
                row.versions,
                or_dash(row.meaning),
            )
            for row in top()
        ],
    )
    for path, shape, rows in parts():
        found.heading(path, level=3, anchor=slug("part", path.replace("[]", "")))
        found.text(plain(shape.__doc__))
        found.table(
            ("field", "type", "required", "default", "meaning"),
            [
                (
                    anchored(anchor(row.path), code(row.path.rpartition(".")[2])),
                    row.kind,
                    row.required,
                    or_dash(code(row.default)),
                    or_dash(row.meaning),
                )
                for row in rows
            ],
        )
    found.heading("Signing payload", anchor="signing-payload")
    found.text(
        "Of version 2: `LATTICED-MANIFEST-V2`, a newline, and the RFC 8785 form of the manifest without"
        " `signature_ed25519`. Of version 1: these lines, joined by newlines, absent ones empty:"
        " `lattice-plugin-manifest-v1`, id, name, type, version, entrypoint, publisher, digest as written, and the"
        " capabilities sorted and joined by NUL."
    )
    found.heading("Capabilities", anchor="capabilities")
    found.text(
        "A manifest *declares* them, an operator *grants* them; a plugin has those that are both. Installing grants"
        " those of"
        " read and write risk; those of host risk are granted only by name. What each call takes and answers is among"
        " the [host calls](host-calls.md)."
    )
    found.table(
        ("capability", "risk", "types that may have it", "opens"),
        [
            (
                anchored(slug("cap", name), code(name)),
                risk.word,
                ", ".join(capability.holders(name)),
                ", ".join(f"[`{one}`](host-calls.md#{slug('call', one)})" for one in hostcall.calls_of(name)),
            )
            for name, risk in capability.RISKS.items()
        ],
    )
    return str(found)

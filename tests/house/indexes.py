"""Indexes of a marketplace with real signatures, made from the format's description alone: no code of latticed.

source = bundles.author("latticenet")
raw = indexes.index(indexes.entry(bundle, "https://mirror.example/p/"), signers=[source])
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import rfc8785

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.house.bundles import Author, Bundle

DOMAIN = b"LATTICE-PLUGIN-INDEX-V1\n"


def moment(seconds: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def release(bundle: Bundle, base: str, **fields: Any) -> dict[str, Any]:
    """A release of `bundle`, whose two files are below the URL `base`."""
    plain = {
        "version": bundle.raw["version"],
        "channel": "stable",
        "capabilities": bundle.raw["capabilities"],
        "manifest_url": f"{base}manifest.json",
        "artifact_url": f"{base}artifact",
        "artifact_sha256": bundle.raw["digest_sha256"],
        "signature_ed25519": bundle.raw["signature_ed25519"],
    }
    return {**plain, **fields}


def entry(bundle: Bundle, base: str, *more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The plugin of `bundle` with its release and `more` ones; each channel has the first release of it."""
    releases = [release(bundle, base), *more]
    channels: dict[str, str] = {}
    for one in releases:
        channels.setdefault(one["channel"], one["version"])
    plain = {
        "id": bundle.raw["id"],
        "name": bundle.raw["name"],
        "publisher": bundle.raw["publisher"],
        "type": bundle.raw["type"],
        "summary": "A plugin",
        "channels": channels,
        "capabilities": bundle.raw["capabilities"],
        "releases": releases,
    }
    return {**plain, **fields}


def index(*entries: dict[str, Any], signers: Iterable[Author] = (), at: float | None = None, **fields: Any) -> Any:
    """An index of `entries`, generated at `at` (now), signed by `signers`."""
    plain = {
        "schema": "lattice.plugin.index.v1",
        "generated_at": moment(time.time() if at is None else at),
        "status": "official",
        "publishers": [],
        "plugins": list(entries),
    }
    return sign({**plain, **fields}, *signers)


def sign(raw: dict[str, Any], *signers: Author, domain: bytes = DOMAIN) -> dict[str, Any]:
    """`raw` with the signatures of `signers` and no others."""
    payload = domain + rfc8785.dumps({name: value for name, value in raw.items() if name != "signatures"})
    made = [{"publisher": one.publisher, "signature_ed25519": one.sign(payload)} for one in signers]
    return {**raw, "signatures": made}


def encoded(raw: Any) -> bytes:
    return json.dumps(raw, indent=2).encode()

"""Real bundles with real keys, for the whole suite.

Signing here is written from contracts §2 and §3 alone and imports nothing from latticed: what the suite signs is what
other tooling signs. `drop` is what most tests want:

    acme = bundles.author()
    trust_json.write_bytes(bundles.policy_bytes(acme))
    bundle = bundles.drop(plugin_dir, "demo", author=acme, id="acme.demo", capabilities=["kv:read"])
    bundles.tamper(bundle.artifact_path)
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

if TYPE_CHECKING:
    from pathlib import Path

ARTIFACT = b"""#!/bin/sh
while read -r line; do
    case $line in
    *jsonrpc*)
        id=${line#*'"id":'}
        echo '{"jsonrpc":"2.0","id":'"${id%%,*}"',"result":{"status":"healthy","ok":true}}'
        ;;
    *) echo '{"ok":true,"message":"","result":null,"error":null}' ;;
    esac
done
"""
"""The smallest program that runs under either protocol."""

_V1_ORDER = ("id", "name", "type", "version", "entrypoint", "publisher", "digest_sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """A publisher and its private key."""

    publisher: str
    key: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The public key as trust.json wants it."""
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    def sign(self, payload: bytes) -> str:
        return base64.b64encode(self.key.sign(payload)).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk and what was written into it."""

    path: Path
    raw: dict[str, Any]
    artifact: bytes

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def artifact_path(self) -> Path:
        return self.path / "artifact"


def author(publisher: str = "acme", *, seed: bytes | None = None) -> Author:
    """A publisher with a fresh key, or the key of a 32-byte `seed`."""
    key = Ed25519PrivateKey.generate() if seed is None else Ed25519PrivateKey.from_private_bytes(seed)
    return Author(publisher=publisher, key=key)


def policy(*authors: Author, **fields: Any) -> dict[str, Any]:
    """A trust policy (as JSON object) that trusts `authors`; `fields` are further members of trust.json."""
    return {"trusted_publishers": {one.publisher: one.public for one in authors}, **fields}


def policy_bytes(*authors: Author, **fields: Any) -> bytes:
    return json.dumps(policy(*authors, **fields)).encode()


def manifest_v1(**fields: Any) -> dict[str, Any]:
    """A v1 manifest without publisher, digest and signature; `fields` replace or add, None removes."""
    plain = {
        "id": "acme.demo",
        "name": "Demo",
        "type": "system",
        "version": "1.0.0",
        "entrypoint": "artifact",
        "capabilities": ["kv:read", "log:write"],
    }
    return _without_nones({**plain, **fields})


def manifest_v2(**fields: Any) -> dict[str, Any]:
    """A v2 manifest without publisher, digest and signature; `fields` replace or add, None removes."""
    plain = {
        "schema": "latticed.manifest.v2",
        "id": "acme.demo",
        "name": "Demo",
        "type": "system",
        "version": "1.0.0",
        "capabilities": ["kv:read", "log:write"],
    }
    return _without_nones({**plain, **fields})


def payload(raw: dict[str, Any]) -> bytes:
    """The bytes that a signature covers (contracts §2 for v1, §3 for v2)."""
    if "schema" in raw:
        unsigned = {key: value for key, value in raw.items() if key != "signature_ed25519"}
        return b"LATTICED-MANIFEST-V2\n" + rfc8785.dumps(unsigned)
    fields = [raw.get(name, "") for name in _V1_ORDER]
    return "\n".join(["lattice-plugin-manifest-v1", *fields, "\0".join(sorted(raw["capabilities"]))]).encode()


def with_digest(raw: dict[str, Any], artifact: bytes) -> dict[str, Any]:
    """`raw` with the digest of `artifact`, unless it already says one."""
    return {"digest_sha256": hashlib.sha256(artifact).hexdigest(), **raw}


def signed(raw: dict[str, Any], artifact: bytes, by: Author) -> dict[str, Any]:
    """`raw` with digest and publisher (unless it already says them) and a signature."""
    full = {"publisher": by.publisher, **with_digest(raw, artifact)}
    return {**full, "signature_ed25519": by.sign(payload(full))}


def write(path: Path, manifest: dict[str, Any] | bytes, artifact: bytes | None = ARTIFACT) -> Path:
    """Write the two files into `path` (made if missing); no artifact when it is None."""
    path.mkdir(parents=True, exist_ok=True)
    if artifact is not None:
        (path / "artifact").write_bytes(artifact)
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest, indent=2, ensure_ascii=False).encode()
    (path / "manifest.json").write_bytes(data)
    return path


def drop(
    parent: Path,
    name: str = "demo",
    *,
    author: Author | None,
    artifact: bytes = ARTIFACT,
    v2: bool = False,
    **fields: Any,
) -> Bundle:
    """Write a bundle beneath `parent` in one rename; unsigned when `author` is None. `fields` go into the manifest.

    An existing bundle of that name is replaced file by file, as an operator's `cp` would.
    """
    raw = (manifest_v2 if v2 else manifest_v1)(**fields)
    raw = with_digest(raw, artifact) if author is None else signed(raw, artifact, author)
    path = parent / name
    if path.exists():
        write(path, raw, artifact)
    else:
        write(parent / f".{name}.new", raw, artifact).rename(path)
    return Bundle(path=path, raw=raw, artifact=artifact)


def tamper(path: Path, *, offset: int = 0) -> bytes:
    """Flip one bit of a file in place; returns the bytes as they were, to put them back."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[offset] ^= 1
    path.write_bytes(changed)
    return before


def _without_nones(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}

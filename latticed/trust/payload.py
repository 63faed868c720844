"""The bytes that a signature covers (contracts §2 and §3)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest

# First in each payload, so that no signature made for something else holds for a manifest.
V1_DOMAIN: Final = "lattice-plugin-manifest-v1"
V2_DOMAIN: Final = b"LATTICED-MANIFEST-V2\n"


def signing_payload(raw: dict[str, Any], manifest: Manifest) -> bytes:
    """What the signature of `manifest` covers; `raw` is the JSON object it was decoded from.

    v1: its fields joined by newlines, capabilities sorted and joined by NUL; the digest as it is written. v2: RFC 8785
    (JCS) of the object without its signature. The decoder has made sure that no field of v1 holds a newline or NUL, so
    no field can pass for its neighbour.
    """
    if manifest.is_v2:
        import rfc8785  # only what is signed as v2 pays for it

        return V2_DOMAIN + rfc8785.dumps({name: value for name, value in raw.items() if name != "signature_ed25519"})
    fields = (
        V1_DOMAIN,
        manifest.id,
        manifest.name,
        manifest.type,
        manifest.version,
        manifest.entrypoint,
        manifest.publisher,
        manifest.digest_sha256,
        "\0".join(sorted(manifest.capabilities)),
    )
    return "\n".join(fields).encode()


def identity(payload: bytes) -> str:
    """The identity of a verified pair: SHA-256 of its signing payload, lowercase hex."""
    return hashlib.sha256(payload).hexdigest()

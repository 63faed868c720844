"""Signing a manifest, as an author does; what comes out is what `verify` takes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.bundle import decode, write
from latticed.bundle.refusal import BundleRefused
from latticed.model.errors import Problem
from latticed.trust import keys, verify
from latticed.trust.payload import signing_payload

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign(
    raw: dict[str, Any], artifact_sha256: str, key: Ed25519PrivateKey, *, publisher: str | None = None
) -> dict[str, Any]:
    """`raw` with the digest, a signature by `key` and, if given, the `publisher`.

    `raw` is the manifest's JSON object; it is not changed, and its old digest and signature are replaced in the copy.
    `artifact_sha256` is hex. Problem publisher_missing, or with the verdict's code (manifest_invalid,
    unknown_capability, ...) when the result would be refused for what it says.
    """
    full = {name: value for name, value in raw.items() if name != "signature_ed25519"}
    if publisher is not None:
        full["publisher"] = publisher
    full["digest_sha256"] = artifact_sha256
    if not full.get("publisher"):
        raise Problem("publisher_missing", "expected a publisher in the manifest, found none", "name one: --publisher")
    try:
        # Decoded as the host does, so that nothing is signed that every host refuses.
        unsigned, manifest = decode.decode(write.render({**full, "signature_ed25519": ""}))
        verify.type_may_hold(manifest)
    except BundleRefused as error:
        raise Problem.of(error.fault) from error
    signature = key.sign(signing_payload(unsigned, manifest))
    return {**full, "signature_ed25519": keys.encode_base64(signature)}

"""The verdict on one bundle: verified, or refused with the first code that applies (contracts §5)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from latticed.model.fault import Fault

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest


class Code(StrEnum):
    """Stable verdict codes, in the order in which they are judged: the first failure wins."""

    UNREADABLE = "unreadable"
    MANIFEST_MISSING = "manifest_missing"
    MANIFEST_NOT_REGULAR = "manifest_not_regular"
    MANIFEST_TOO_LARGE = "manifest_too_large"
    FOREIGN_OWNER = "foreign_owner"
    MANIFEST_INVALID_JSON = "manifest_invalid_json"
    MANIFEST_INVALID = "manifest_invalid"
    UNKNOWN_CAPABILITY = "unknown_capability"
    DUPLICATE_CAPABILITY = "duplicate_capability"
    CAPABILITY_NOT_ALLOWED = "capability_not_allowed"
    PUBLISHER_MISSING = "publisher_missing"
    PUBLISHER_UNTRUSTED = "publisher_untrusted"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_MALFORMED = "signature_malformed"
    DIGEST_MISSING = "digest_missing"
    KEY_REVOKED = "key_revoked"
    PLUGIN_REVOKED = "plugin_revoked"
    SIGNATURE_INVALID = "signature_invalid"
    ARTIFACT_MISSING = "artifact_missing"
    ARTIFACT_NOT_REGULAR = "artifact_not_regular"
    ARTIFACT_TOO_LARGE = "artifact_too_large"
    CHANGED_WHILE_READING = "changed_while_reading"
    DIGEST_MISMATCH = "digest_mismatch"
    DIGEST_REVOKED = "digest_revoked"
    HOST_INCOMPATIBLE = "host_incompatible"
    PUBLISHER_CHANGED = "publisher_changed"
    DUPLICATE_ID = "duplicate_id"


OTHER_SCHEMA: Final = "this version of latticed does not read manifests of that schema: get a bundle made for it"
"""The hint of a `manifest_invalid` that signing anew cannot mend."""


@dataclass(frozen=True, slots=True)
class Refused(Fault):
    """A bundle that may not run, and why. `manifest` is there when it could be decoded, `identity` too: what it claims
    to be, which a refused bundle proves nothing of.
    """

    code: Code
    manifest: Manifest | None = None
    identity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A bundle whose manifest, signature and artifact hold under the current policy.

    `identity` is the SHA-256 (hex) of the signing payload, `artifact_sha256` lowercase hex of the bytes read,
    `artifact_bytes` their number, `key` the base64 public key that verified the signature, empty for an unsigned
    bundle, `interpreter` what a system plugin's artifact is run by (`model.accepted.interpreter_of`).
    """

    manifest: Manifest
    identity: str
    artifact_sha256: str
    artifact_bytes: int
    key: str
    interpreter: str = ""


Verdict = Verified | Refused

"""Verified bundles, claims and records as values, for tests of pure rules."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from latticed.bundle import decode
from latticed.lifecycle import advance
from latticed.lifecycle.presence import Presence
from latticed.model import accepted
from latticed.model.fault import Fault
from latticed.model.lifecycle import Record, Status
from latticed.model.verdict import Verified
from latticed.trust import payload
from latticed.trust.claims import IdClaim
from tests.house import bundles

AUTHORS = {name: bundles.author(name, seed=name.encode().ljust(32, b"-")) for name in ("acme", "rival")}
GONE = Presence(fault=Fault("manifest_missing", "its bundle is gone"))


def verified(*, by: str | None = "acme", artifact: bytes = b"one", v2: bool = False, **fields: Any) -> Verified:
    """The verdict of a bundle with these fields; unsigned when `by` is None."""
    raw = bundles.manifest_v2(**fields) if v2 else bundles.manifest_v1(**fields)
    full = bundles.signed(raw, artifact, AUTHORS[by]) if by else bundles.with_digest(raw, artifact)
    plain, manifest = decode.decode(json.dumps(full).encode())
    return Verified(
        manifest=manifest,
        identity=payload.identity(payload.signing_payload(plain, manifest)),
        artifact_sha256=hashlib.sha256(artifact).hexdigest(),
        artifact_bytes=len(artifact),
        key=AUTHORS[by].public if by else "",
        interpreter=accepted.interpreter_of(artifact) if manifest.type == "system" else "",
    )


def claim(name: str = "plugins/demo", **fields: Any) -> IdClaim:
    return IdClaim(name=name, verdict=verified(**fields))


def at(found: IdClaim) -> Presence:
    """The presence of an id whose bundle verifies."""
    return Presence(winner=found)


def record(status: Status = Status.VERIFIED, found: IdClaim | None = None, *, now: int = 1_000) -> Record:
    """A record that reached `status` by allowed decisions, nothing accepted by name."""
    found = found or claim()
    made = advance.first_seen(found, now, None)
    for wanted in _WAY[status]:
        made = decided(made, wanted, at(found), now=now)
    return made


def decided(before: Record, wanted: Status, seen: Presence, *, now: int = 1_000, **consent: Any) -> Record:
    """The record after a decision that must be possible."""
    outcome = advance.transition(before, wanted, seen, advance.UpgradeConsent(**consent), now)
    assert isinstance(outcome, Record), outcome
    return outcome


_WAY = {
    Status.VERIFIED: (),
    Status.INSTALLED: (Status.INSTALLED,),
    Status.ACTIVE: (Status.INSTALLED, Status.ACTIVE),
    Status.DISABLED: (Status.INSTALLED, Status.DISABLED),
}

"""Opens and verifies local bundles for the offline verbs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import latticed
from latticed import wire
from latticed.bundle import read
from latticed.kit import strict_json
from latticed.model import capability, verdict
from latticed.model.errors import Problem
from latticed.trust import verify

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest
    from latticed.trust.policy import TrustPolicy


def owners(directory: str) -> frozenset[int]:
    """The uids that may own files of a bundle at `directory`: root, the caller, and the owner of its parent."""
    found = {0, os.geteuid()}
    with contextlib.suppress(OSError):  # without a parent there is no bundle, and opening it fails
        found.add(Path(os.path.abspath(directory)).parent.stat().st_uid)
    return frozenset(found)


def opened(directory: str, limits: read.ReadLimits) -> read.BundleDirectory:
    """Open the bundle at `directory`, or raise BundleRefused.

    A link in its place is refused, also with a slash at the end, which would otherwise have it followed.
    """
    return read.open_bundle(Path(directory), limits=limits, owners=owners(directory))


def manifest(directory: str) -> dict[str, Any]:
    """The manifest's JSON object of the bundle at `directory`, not judged; Problem with a verdict's code."""
    try:
        raw = strict_json.loads(manifest_bytes(directory), integers_only=True)
    except strict_json.InvalidJson as error:
        raise Problem("manifest_invalid_json", f"{directory}: manifest.json: {error}") from error
    if not isinstance(raw, dict):
        raise Problem("manifest_invalid_json", f"{directory}: expected manifest.json to hold one JSON object")
    return raw


def manifest_bytes(directory: str) -> bytes:
    """The bytes of the manifest of the bundle at `directory`; Problem with a verdict's code. An artifact that is
    missing is not noticed.
    """
    try:
        with opened(directory, read.ReadLimits()) as source:
            return source.manifest()
    except read.BundleRefused as refused:
        raise Problem(refused.code, f"{directory}: {refused.reason}", refused.hint) from refused


def judge(directory: str, policy: TrustPolicy, limits: read.ReadLimits) -> wire.VerdictView:
    """The verdict on the bundle at `directory` by itself; other bundles that claim its id are not considered."""
    try:
        with opened(directory, limits) as source:
            found = verify.verify(source, policy, host_version=latticed.__version__)
    except read.BundleRefused as refused:
        found = refused.fault
    return view(directory, found)


def view(directory: str, found: verdict.Verdict) -> wire.VerdictView:
    """A verdict in the shape of the API; `directory` is what the caller named."""
    manifest = found.manifest
    refused = found if isinstance(found, verdict.Refused) else None
    return wire.VerdictView(
        path=directory,
        ok=refused is None,
        code=refused.code.value if refused else None,
        reason=refused.reason if refused else None,
        hint=(refused.hint or None) if refused else None,
        id=manifest.id if manifest else None,
        version=(manifest.version or None) if manifest else None,
        digest_sha256=(manifest.digest_sha256.lower() or None) if manifest else None,
        capabilities=_capabilities(manifest),
    )


def _capabilities(manifest: Manifest | None) -> list[dict[str, str]]:
    """The declared capabilities with their risk; `unknown` for those that this version does not have."""
    names = manifest.capabilities if manifest else ()
    risks = capability.RISKS
    return [{"name": name, "risk": risks[name].word if name in risks else "unknown"} for name in names]

"""Judges one bundle by checks in the order of contracts §5; the first that fails is the verdict.

Manifest and signature are judged before a byte of the artifact is read. Nothing here decides who may claim an id:
that needs to see all bundles at once (`claims`).
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from latticed.bundle import decode
from latticed.bundle.refusal import BundleRefused
from latticed.model import capability, semver_range
from latticed.model.verdict import Code, Verdict, Verified
from latticed.trust import keys
from latticed.trust.payload import identity, signing_payload

if TYPE_CHECKING:
    from latticed.model.capability import Risk
    from latticed.model.manifest import Manifest
    from latticed.trust.policy import Publisher, TrustPolicy

_HINT_SIGN: Final = "sign it with `latticectl sign`"
_SHOWN_IDS: Final = 5
_HINT_TAMPERED: Final = "the bundle was changed after it was signed: put the original back, or have it signed again"


class Source(Protocol):
    """Where the two files of a bundle come from; both methods raise BundleRefused for what cannot be had.

    A bundle on disk (`bundle.read.BundleDirectory`), or one whose artifact was hashed before.
    """

    def manifest(self) -> bytes: ...

    def hash_artifact(self) -> tuple[str, int]:
        """SHA-256 (lowercase hex) and size in bytes."""
        ...

    @property
    def interpreter(self) -> str:
        """What the artifact is run by (`model.accepted.interpreter_of`), once it was hashed."""
        ...


def verify(source: Source, policy: TrustPolicy, *, host_version: str) -> Verdict:
    """The verdict on one bundle under `policy`, for a host of the SemVer `host_version`.

    Verified, or Refused with the code of the first check that fails; bad bundles never raise. Whether the bundle may
    claim its id is not part of it (`claims`).
    """
    try:
        raw, manifest = decode.decode(source.manifest())
    except BundleRefused as refused:
        return refused.fault
    try:
        return _climb(source, raw, manifest, policy, host_version)
    except BundleRefused as refused:
        # From here on it is known what the bundle claims to be: operators see that beside the refusal.
        return replace(refused.fault, manifest=manifest, identity=identity(signing_payload(raw, manifest)))


def verify_builtin(source: Source, policy: TrustPolicy, *, host_version: str) -> Verdict:
    """The verdict on a plugin that latticed brings itself, whose `manifest` and files are `source`.

    No publisher or signature is judged: whoever can change its files can change the daemon. Revocations stop it as any
    other, and it needs `requires_host`. Its `key` is empty.
    """
    try:
        raw, manifest = decode.decode(source.manifest(), builtin=True)
    except BundleRefused as refused:
        return refused.fault
    try:
        type_may_hold(manifest)
        _plugin_not_revoked(manifest, policy)
        sha256, size = source.hash_artifact()
        _digest_matches(manifest, sha256)
        _digest_not_revoked(sha256, policy)
        _host_compatible(manifest, host_version)
    except BundleRefused as refused:
        return replace(refused.fault, manifest=manifest)
    return Verified(
        manifest=manifest,
        identity=identity(signing_payload(raw, manifest)),
        artifact_sha256=sha256,
        artifact_bytes=size,
        key="",
    )


def _climb(source: Source, raw: dict[str, Any], manifest: Manifest, policy: TrustPolicy, host_version: str) -> Verified:
    """Run the checks in the order of contracts §5; BundleRefused at the first that fails."""
    _capabilities_allowed(manifest, policy)
    publisher = _publisher_trusted(manifest, policy)
    signature = _signature_written(manifest)
    _digest_written(manifest)
    payload = signing_payload(raw, manifest)
    holding = _holding_key(publisher, payload, signature)
    # Before `_signature_holds`: a bundle under a revoked key is reported as that, the order of contracts §5.
    _key_not_revoked(manifest, publisher, holding, policy)
    _plugin_not_revoked(manifest, policy)
    _signature_holds(manifest, publisher, holding)
    # The artifact is read only here (by default up to 64 MiB), for a manifest that is trusted already.
    artifact_sha256, artifact_bytes = source.hash_artifact()
    _digest_matches(manifest, artifact_sha256)
    _digest_not_revoked(artifact_sha256, policy)
    _host_compatible(manifest, host_version)
    return Verified(
        manifest=manifest,
        identity=identity(payload),
        # One text object for both where they are equal: there may be thousands of verdicts in memory.
        artifact_sha256=artifact_sha256 if manifest.digest_sha256 != artifact_sha256 else manifest.digest_sha256,
        artifact_bytes=artifact_bytes,
        key=holding,
        interpreter=source.interpreter if manifest.type == "system" else "",
    )


def _unsigned(manifest: Manifest) -> bool:
    """Whether it is a v1 bundle that claims no publisher and no signature; v2 always needs both."""
    return not (manifest.publisher or manifest.signature_ed25519 or manifest.is_v2)


def _capabilities_allowed(manifest: Manifest, policy: TrustPolicy) -> None:
    """Refuse capabilities that the plugin's type, a bundle without signature, or the publisher's `max_risk` does not
    allow.

    Judged by what the manifest claims, before its signature is verified, as the order of codes demands.
    """
    type_may_hold(manifest)
    # Both switches are needed: while signatures are required, an unsigned bundle is refused anyway.
    unsigned_host_risk = not policy.require_signature and policy.allow_unsigned_host_risk
    host_risk = ", ".join(sorted(capability.host_risk(manifest.capabilities)))
    # The one capability of host risk that wasm may have, http:egress, takes a signature (contracts §2).
    if host_risk and manifest.type == "wasm" and not (manifest.signed or unsigned_host_risk):
        raise BundleRefused(
            Code.CAPABILITY_NOT_ALLOWED,
            f"expected a signed wasm plugin to hold {host_risk}, found no signature",
            _HINT_SIGN,
        )
    # While signatures are required, `_publisher_trusted` refuses it with a code that says more.
    if host_risk and _unsigned(manifest) and not (policy.require_signature or unsigned_host_risk):
        raise BundleRefused(
            Code.CAPABILITY_NOT_ALLOWED,
            f"expected an unsigned plugin to hold read and write risk only, found {host_risk}",
            f"{_HINT_SIGN}, or set allow_unsigned_host_risk in the trust policy",
        )
    _within_publishers_risk(manifest, policy.publishers.get(manifest.publisher))


def type_may_hold(manifest: Manifest) -> None:
    """Refuse a capability that plugins of this type may not hold (contracts §2)."""
    for name in manifest.capabilities:
        holders = capability.holders(name)
        if manifest.type not in holders:
            raise BundleRefused(
                Code.CAPABILITY_NOT_ALLOWED,
                f"expected a plugin of type {' or '.join(holders)} to hold {name}, found type {manifest.type}",
                "drop the capability or change the type, and sign again",
            )


def _within_publishers_risk(manifest: Manifest, publisher: Publisher | None) -> None:
    """Refuse a capability above the publisher's `max_risk`.

    `publisher` is None where the policy does not name it, which a later check refuses.
    """
    if publisher is None or publisher.max_risk is None:
        return
    limit = publisher.max_risk
    for name in manifest.capabilities:
        if capability.RISKS[name] > limit:
            raise BundleRefused(
                Code.CAPABILITY_NOT_ALLOWED,
                f"expected publisher {manifest.publisher} to ask for {limit.word} risk at most, "
                f"found {name} ({capability.RISKS[name].word} risk)",
                f"if you trust it with that: {_trusting(publisher, manifest)} --max-risk {_risk(manifest).word}",
            )


def _risk(manifest: Manifest) -> Risk:
    """The highest risk of what it declares."""
    return max(capability.RISKS[name] for name in manifest.capabilities)


def _trusting(publisher: Publisher, manifest: Manifest) -> str:
    """The command that changes what a publisher may, whose keys stay; other ids take the place of those there are."""
    return f"latticectl trust add {manifest.publisher} {publisher.keys[0]}"


def _widened(publisher: Publisher, manifest: Manifest) -> str:
    if len(publisher.ids) > _SHOWN_IDS:
        return f"add the id to `ids` of {manifest.publisher} in the trust policy if it may sign this plugin"
    patterns = " ".join(f"--ids {shlex.quote(one)}" for one in (*publisher.ids, manifest.id))
    return f"if it may sign this plugin: {_trusting(publisher, manifest)} {patterns}"


def _publisher_trusted(manifest: Manifest, policy: TrustPolicy) -> Publisher | None:
    """The publisher as the policy has it; None for an unsigned bundle that may be unsigned.

    BundleRefused with publisher_missing, or with publisher_untrusted for one that the policy does not name or that may
    not sign this id.
    """
    if not manifest.publisher:
        if _unsigned(manifest) and not policy.require_signature:
            return None
        found = "a signature without one" if manifest.signed else "none"
        raise BundleRefused(Code.PUBLISHER_MISSING, f"expected a publisher, found {found}", _HINT_SIGN)
    publisher = policy.publishers.get(manifest.publisher)
    if publisher is None:
        # Five at most: a policy may name hundreds.
        trusted = ", ".join(sorted(policy.publishers)[:5]) or "nobody"
        raise BundleRefused(
            Code.PUBLISHER_UNTRUSTED,
            f"expected a publisher that the trust policy names ({trusted}), found {manifest.publisher}",
            f"if you trust it: latticectl trust add {manifest.publisher} KEY",
        )
    if not publisher.may_sign(manifest.id):
        raise BundleRefused(
            Code.PUBLISHER_UNTRUSTED,
            f"expected publisher {manifest.publisher} to sign {', '.join(publisher.ids)[:120]}, found {manifest.id}",
            _widened(publisher, manifest),
        )
    return publisher


def _signature_written(manifest: Manifest) -> bytes:
    """The 64 bytes of the signature, checked in form only; empty for an unsigned bundle. BundleRefused with
    signature_missing or signature_malformed.
    """
    if not manifest.signed:
        if _unsigned(manifest):
            return b""
        raise BundleRefused(
            Code.SIGNATURE_MISSING, f"expected a signature of publisher {manifest.publisher}, found none", _HINT_SIGN
        )
    try:
        return keys.decode_base64(manifest.signature_ed25519, size=keys.SIGNATURE_BYTES)
    except keys.BadText as error:
        raise BundleRefused(Code.SIGNATURE_MALFORMED, f"signature_ed25519: {error}", _HINT_SIGN) from error


def _digest_written(manifest: Manifest) -> None:
    """Refuse a manifest without the artifact's digest: nothing would bind the two files."""
    if not manifest.digest_sha256:
        raise BundleRefused(
            Code.DIGEST_MISSING, "expected digest_sha256, the artifact's SHA-256, found none", _HINT_SIGN
        )


def _holding_key(publisher: Publisher | None, payload: bytes, signature: bytes) -> str:
    """The publisher's key under which the signature holds; empty if none does.

    All its keys are tried, revoked ones as well, so that a bundle under a revoked key is reported as that.
    """
    if publisher is None:
        return ""
    holding = (key for key in publisher.keys if keys.verify_signature(keys.raw(key), payload, signature))
    return next(holding, "")


def _key_not_revoked(manifest: Manifest, publisher: Publisher | None, holding: str, policy: TrustPolicy) -> None:
    """Refuse a bundle whose key is revoked, and any bundle of a publisher whose keys are all revoked.

    `holding` is the key under which the signature holds, empty if none does.
    """
    if publisher is None:
        return
    if holding in policy.revoked.keys or policy.revoked.keys.issuperset(publisher.keys):
        raise BundleRefused(
            Code.KEY_REVOKED,
            f"expected a key of {manifest.publisher} that is not revoked, found {holding or 'all of them revoked'}",
            "ask the publisher for a bundle signed with its new key, and trust that key",
        )


def _plugin_not_revoked(manifest: Manifest, policy: TrustPolicy) -> None:
    """Refuse a plugin whose id and version a revocation names (`Revoked.plugin`)."""
    entry = policy.revoked.plugin(manifest.id, manifest.version)
    if entry is not None:
        raise BundleRefused(
            Code.PLUGIN_REVOKED,
            f"expected a version that is not revoked, found {entry} in the trust policy's revocations",
            "install another version; lifting a revocation is an act of its own",
        )


def _signature_holds(manifest: Manifest, publisher: Publisher | None, holding: str) -> None:
    """Refuse a manifest whose signature is of none of the publisher's keys. `publisher` is None only for an unsigned
    bundle that may be unsigned.
    """
    if publisher is not None and not holding:
        raise BundleRefused(
            Code.SIGNATURE_INVALID,
            f"expected a signature that holds under one of the {len(publisher.keys)} keys of {manifest.publisher}, "
            "found one that holds under none",
            _HINT_TAMPERED,
        )


def _digest_matches(manifest: Manifest, artifact_sha256: str) -> None:
    """Refuse an artifact with another digest than the manifest, which is signed, names; its hex may be of either case
    (contracts §2).
    """
    if manifest.digest_sha256.lower() != artifact_sha256:
        raise BundleRefused(
            Code.DIGEST_MISMATCH,
            f"expected the artifact's SHA-256 to be {manifest.digest_sha256.lower()}, found {artifact_sha256}",
            _HINT_TAMPERED,
        )


def _digest_not_revoked(artifact_sha256: str, policy: TrustPolicy) -> None:
    """Refuse an artifact that is revoked by its SHA-256; id and version do not matter."""
    if artifact_sha256 in policy.revoked.digests:
        raise BundleRefused(
            Code.DIGEST_REVOKED,
            f"expected an artifact that is not revoked, found {artifact_sha256}",
            "install another version; lifting a revocation is an act of its own",
        )


def _host_compatible(manifest: Manifest, host_version: str) -> None:
    """Refuse a v2 manifest whose range of host versions does not contain `host_version`."""
    if manifest.requires_host and not semver_range.contains(manifest.requires_host, host_version):
        raise BundleRefused(
            Code.HOST_INCOMPATIBLE,
            f"expected a host of version {manifest.requires_host}, found {host_version}",
            "update latticed, or install a version of the plugin made for this one",
        )

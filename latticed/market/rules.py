"""What may be taken of an index: which release, what it asks for, whether this host has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.model import capability, consents, egress, semver_range
from latticed.model.errors import Problem
from latticed.trust.index_revocations import SourceRevocation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.ledger.market import RevocationRow
    from latticed.ledger.versions import BadVersion
    from latticed.model.lifecycle import Record
    from latticed.model.manifest import Manifest
    from latticed.model.verdict import Verified
    from latticed.trust.index import Index, IndexEntry, Release

DAY_US: Final = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRelease:
    """What an operator asks for: a version, or a channel's (the stable one where neither is named), and what is
    accepted by name: capabilities and hosts (`accept`, as contracts §8 has it), the version that is taken before its
    age (`accept_age`) or while its plugin is held (`accept_held`), a version below the highest so far.
    """

    id: str
    source: str = ""
    version: str = ""
    channel: str = ""
    accept: tuple[str, ...] = ()
    accept_age: str = ""
    accept_held: bool = False
    allow_downgrade: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedImport:
    """A file that an operator names, and what is accepted by name (contracts §8).

    `sha256` of the whole file, and `identity`, `id`, `publisher` and `versions` (a range) of the bundle are compared
    where they are given.
    """

    name: str
    sha256: str = ""
    identity: str = ""
    id: str = ""
    publisher: str = ""
    versions: str = ""
    accept: tuple[str, ...] = ()
    accept_held: bool = False
    allow_downgrade: bool = False


def choose(index: Index, wanted: WantedRelease) -> tuple[IndexEntry, Release]:
    """The entry and the release that are meant; Problem not_found, or unsupported with the index's reason."""
    entry = index.entries.get(wanted.id)
    if entry is None:
        raise Problem(
            "not_found", f"expected {wanted.id[:128]} in the index, found no such plugin", "latticectl market search"
        )
    if entry.unsupported:
        raise Problem("unsupported", f"the index's entry of {entry.id} cannot be used: {entry.unsupported}")
    version = wanted.version or entry.channels.get(wanted.channel or "stable", "")
    release = entry.release(version) if version else None
    if release is None:
        offered = ", ".join(f"{name} {one}" for name, one in entry.channels.items()) or "no channel"
        asked = wanted.version or f"a release of the channel {wanted.channel or 'stable'}"
        raise Problem(
            "not_found", f"expected {asked[:64]} of {entry.id}, found {offered}", f"latticectl market show {entry.id}"
        )
    if release.unsupported:
        raise Problem("unsupported", f"{entry.id} {release.version} cannot be used here: {release.unsupported}")
    return entry, release


def needed(manifest: Manifest) -> tuple[str, ...]:
    """What has to be accepted by name before a bundle is taken: host-risk capabilities, and hosts as `host=…`."""
    caps = [name for name in manifest.capabilities if name in capability.host_risk(manifest.capabilities)]
    return (*caps, *(f"host={one}" for one in manifest.declared_hosts or ()))


def check_consent(manifest: Manifest, accept: Iterable[str]) -> None:
    """Problem needs_consent that lists what was not accepted by name; bad_request for what cannot be."""
    try:
        named = consents.parse(accept)
    except consents.BadConsent as error:
        raise Problem("bad_request", str(error)) from error
    declared = manifest.declared_hosts or ()
    covered = set(named.caps) | {f"host={one}" for one in egress.meet(named.hosts, declared)}
    missing = [one for one in needed(manifest) if one not in covered]
    if missing:
        options = " ".join(f"--accept {one}" for one in missing)
        raise Problem(
            "needs_consent", f"expected consent by name to {', '.join(missing)}, found none", f"add {options}"
        )


def check_record(record: Record | None, manifest: Manifest, wanted: WantedRelease | WantedImport) -> None:
    """Problem publisher_changed or version_downgrade against what this host has of the plugin."""
    if record is None:
        return
    if record.facts.publisher != manifest.publisher or not record.facts.signed:
        raise Problem(
            "publisher_changed",
            f"expected {record.id} from {record.facts.publisher or 'nobody'}, found publisher {manifest.publisher}",
            "if the plugin has changed hands, put its bundle into the plugin directory yourself: "
            f"latticectl upgrade {record.id} --accept-publisher {manifest.publisher}",
        )
    order = semver_range.compare(manifest.version, record.floor) if record.floor else 1
    if not wanted.allow_downgrade and manifest.version != record.floor and (order is None or order < 0):
        raise Problem(
            "version_downgrade",
            f"expected a version from {record.floor} on, found {manifest.version}",
            "--allow-downgrade takes a lower one; latticectl rollback goes back to one that was here",
        )


def check_bad(bad: Mapping[str, BadVersion], verified: Verified, *, named: bool, how: str) -> None:
    """Problem candidate_bad for a version that an upgrade gave up before, unless it is named; `bad` is by identity.

    To name it puts it there once more; that it runs still takes an upgrade with --retry. `how` to name it, with
    {version} in it.
    """
    found = bad.get(verified.identity)
    if found is None or named:
        return
    detail = f"version {found.version} was given up before: {found.code}: {found.reason}"
    raise Problem("candidate_bad", detail, f"wait for a fix, or add {how.format(version=found.version)}")


def check_revoked(release: Release, plugin_id: str, rows: Iterable[RevocationRow]) -> None:
    """Problem release_revoked for one that its source has taken back."""
    for kind, value, action, reason in rows:
        one = SourceRevocation(kind=kind, value=value, action=action, reason=reason)  # type: ignore[arg-type]
        if one.covers(plugin_id, release.version, release.artifact_sha256):
            detail = f"expected a release that its source has not taken back, found {value} ({action}): {reason}"
            raise Problem("release_revoked", detail, "install another version")


def check_age(wanted: WantedRelease, release: Release, *, seen_us: int, now_us: int, min_days: int) -> None:
    """Problem too_young for a release that this host has known for less than `min_days`, unless that is accepted by its
    version. A clock that went back makes a release younger, never older.
    """
    if now_us - seen_us >= min_days * DAY_US or wanted.accept_age == release.version:
        return
    raise Problem(
        "too_young",
        f"expected a release known here for {min_days} days, found {wanted.id} {release.version} "
        f"first seen {max(now_us - seen_us, 0) // 3_600_000_000} h ago",
        f"wait, or add --accept-age {release.version}",
    )

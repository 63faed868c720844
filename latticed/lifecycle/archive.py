"""Format of a backup: a tar whose first file, `manifest.json`, lists and hashes the others, signed by the host key.

    manifest.json  ledger.sqlite3  floors.json  host.key  store/<identity>/manifest.json  store/<identity>/artifact …
    services/<number>.json  services/<number>.data …

It contains the host's private key: anybody who can read it can sign as this host.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from latticed.kit import files, strict_json, tar
from latticed.ledger import floors, state
from latticed.lifecycle import service_archive
from latticed.model.chain import encode
from latticed.model.errors import Problem
from latticed.trust import audit_chain

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.bundle.read import ReadLimits

FORMAT: Final = "latticed.backup.v1"
DOMAIN: Final = b"LATTICED-BACKUP-V1\n"
"""Precedes what is signed, so that no other signature of the host key can pass for one of a backup."""
MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 64 << 20
"""Most bytes of `manifest.json`: it is held in memory before anything of it is verified."""
NEEDED: Final = (state.DATABASE, floors.FILE, state.HOST_KEY)
"""Files that every backup has; all others are those of pairs, and of what services keep."""
_PAIR: Final = re.compile(r"store/[0-9a-f]{64}/(manifest\.json|artifact)")
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry:
    """One file of the archive: `size` in bytes, `sha256` in lowercase hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveManifest:
    """What the archive contains, when and by which version it was made, and the ends of the audit chains then.

    `created_at` is RFC 3339; `ledger_version` counts migrations; `public_key` is the key that signs, in the form of
    `ledger.state.public_half`. Backups from before there was a separate chain of calls have 0 and empty for it.
    `entries` are in the order of the archive.
    """

    created_at: str
    version: str
    ledger_version: int
    public_key: str
    last_seq: int
    last_hash: str
    calls_seq: int = 0
    calls_hash: str = ""
    entries: tuple[ArchiveEntry, ...]
    settings: tuple[tuple[str, str], ...] = ()
    """(key, JSON) of settings of the host that was backed up; a restore only reports how the present ones differ."""


def encode_manifest(manifest: ArchiveManifest, key: Ed25519PrivateKey) -> bytes:
    """The bytes of `manifest.json`: one line of canonical JSON, signed by `key`."""
    plain = {
        "format": FORMAT,
        "created_at": manifest.created_at,
        "version": manifest.version,
        "ledger_version": manifest.ledger_version,
        "public_key": manifest.public_key,
        "last_seq": manifest.last_seq,
        "last_hash": manifest.last_hash,
        "calls_seq": manifest.calls_seq,
        "calls_hash": manifest.calls_hash,
        "settings": [list(row) for row in manifest.settings],
        "files": [[entry.name, entry.size, entry.sha256] for entry in manifest.entries],
    }
    # Over the canonical encoding (`model.chain.encode`) of everything but the signature itself.
    signature = base64.b64encode(key.sign(DOMAIN + encode(plain).encode("ascii"))).decode("ascii")
    return encode({**plain, "signature": signature}).encode("ascii") + b"\n"


def decode_manifest(data: bytes) -> ArchiveManifest:
    """The manifest, with signature, field types and file names checked; Problem backup_invalid.

    The signature is checked with the key that the manifest names: whether that key may be trusted is up to the caller.
    """
    try:
        plain = strict_json.loads(data)
        signature = base64.b64decode(plain.pop("signature"), validate=True)
        key = audit_chain.public_key(plain["public_key"])
        key.verify(signature, DOMAIN + encode(plain).encode("ascii"))
        found = _decode(plain)
    # Untrusted input: whatever it makes the parsers raise is backup_invalid.
    except InvalidSignature as error:
        raise invalid("its manifest is not signed by the key it names") from error
    except Problem as problem:
        raise invalid(f"its manifest names a bad key: {problem.reason}") from problem
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise invalid(f"its manifest: {error}") from error
    _check_names([entry.name for entry in found.entries])
    return found


def unpack(source: tar.TarSource, target: Path, limits: ReadLimits) -> ArchiveManifest:
    """Write the files of an archive into the empty directory `target`, checking name, size and hash of each.

    Problem backup_invalid, or OSError; the caller removes what was written by then.
    """
    reader = tar.TarReader(source)
    try:
        first = reader.next()
        if first is None or first.name != MANIFEST or first.size > MAX_MANIFEST_BYTES:
            raise invalid(f"expected {MANIFEST} first")
        manifest = decode_manifest(b"".join(reader.chunks()))
        # In the order of the manifest, so that name and size of each file are known before its bytes come.
        for entry in manifest.entries:
            member = reader.next()
            if member is None or (member.name, member.size) != (entry.name, entry.size):
                found = f"{member.name} of {member.size} bytes" if member else "the end"
                raise invalid(f"expected {entry.name} of {entry.size} bytes, found {found}")
            # Before anything is written.
            if entry.size > _limit(entry.name, limits):
                raise invalid(f"{entry.name} is larger than the settings allow: {entry.size} bytes")
            _write(reader, target / entry.name, entry)
        if reader.next() is not None:
            raise invalid("there is more in it than its manifest says")
    except tar.BadTar as error:
        raise invalid(str(error)) from error
    return manifest


def invalid(detail: str) -> Problem:
    """The Problem backup_invalid with this detail, to be raised."""
    return Problem("backup_invalid", f"this is not a backup that can be restored: {detail}")


def _write(reader: tar.TarReader, path: Path, entry: ArchiveEntry) -> None:
    """Write one file, created here (never through a link), fsynced; Problem backup_invalid for another hash."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # As the store and the ledger make them: a stored pair is never written again.
    mode = 0o400 if _PAIR.fullmatch(entry.name) else 0o600
    digest = hashlib.sha256()
    with files.closing(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)) as fd:
        for chunk in reader.chunks():
            digest.update(chunk)
            files.write_all(fd, chunk)
        os.fsync(fd)
    if digest.hexdigest() != entry.sha256:
        raise invalid(f"{entry.name}: expected SHA-256 {entry.sha256}, found {digest.hexdigest()}")


def _limit(name: str, limits: ReadLimits) -> int:
    """The most bytes that the file `name` of an archive may have."""
    if name == state.HOST_KEY:
        # A key has 32 bytes; a longer file is refused when it is loaded.
        return 64
    if name == floors.FILE:
        return floors.MAX_BYTES
    if name == state.DATABASE:
        return 1 << 62  # bounded by the disk only
    if service_archive.FILE.fullmatch(name):
        return service_archive.MAX_INDEX_BYTES if name.endswith(".json") else 1 << 62
    return limits.artifact_bytes if name.endswith("/artifact") else limits.manifest_bytes


def _decode(plain: dict[str, Any]) -> ArchiveManifest:
    """The manifest from parsed JSON; KeyError, TypeError or ValueError for other shapes and types."""
    if plain["format"] != FORMAT:
        raise ValueError(f"expected the format {FORMAT}, found {str(plain['format'])[:80]!r}")
    texts = {name: plain[name] for name in ("created_at", "version", "public_key", "last_hash")}
    numbers = {name: plain[name] for name in ("ledger_version", "last_seq")}
    # Missing in backups of older versions.
    texts["calls_hash"], numbers["calls_seq"] = plain.get("calls_hash", ""), plain.get("calls_seq", 0)
    rows: list[list[Any]] = plain["files"]
    settings: list[list[Any]] = plain.get("settings", [])
    _expect(all(isinstance(key, str) and isinstance(value, str) for key, value in settings))
    _expect(all(isinstance(text, str) for text in texts.values()))
    _expect(all(_natural(number) for number in numbers.values()))
    _expect(all(isinstance(name, str) and _natural(size) and _HEX.fullmatch(found) for name, size, found in rows))
    entries = tuple(ArchiveEntry(name=name, size=size, sha256=sha256) for name, size, sha256 in rows)
    return ArchiveManifest(**texts, **numbers, entries=entries, settings=tuple((key, value) for key, value in settings))


def _expect(holds: bool) -> None:  # noqa: FBT001 - a finding, not a switch
    """ValueError unless `holds`."""
    if not holds:
        raise ValueError("a field is of the wrong kind")


def _natural(value: Any) -> bool:
    """Whether a value from JSON is an integer from 0 on."""
    # bool is a subclass of int.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_names(names: list[str]) -> None:
    """Problem backup_invalid for a name that no backup has (it could lead out of the target), twice or missing."""
    for name in names:
        if name not in NEEDED and not _PAIR.fullmatch(name) and not service_archive.FILE.fullmatch(name):
            raise invalid(f"it names a file that no backup has: {name[:100]!r}")
    if len(set(names)) != len(names):
        raise invalid("it names a file twice")
    if missing := [name for name in NEEDED if name not in names]:
        raise invalid(f"{missing[0]} is missing")

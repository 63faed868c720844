"""The floors file, signed and outside SQLite, which must outlive the ledger: versions, masks, pins, revocations.

The ledger is no trust anchor: recovery and restore take the stricter of the ledger and this file (architecture,
decision 3). A missing file is empty floors; a file that this host did not sign is a Problem, never silently ignored.
"""

from __future__ import annotations

import base64
import binascii
import functools
from dataclasses import replace
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from latticed.kit import files, strict_json
from latticed.kit.value import Value, field
from latticed.ledger import terms as accepted
from latticed.ledger.revocations import KINDS, RevocationRows
from latticed.model.chain import encode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from latticed.model.accepted import Accepted
    from latticed.model.chain import Head, Name

FILE: Final = "floors.json"
DOMAIN: Final = b"LATTICED-FLOORS-V1\n"
"""What is signed begins with this, so that no other signature of the host key can pass for one of floors."""
MOST_REPLACED: Final = 400
"""Of how many heads `Floors.replaced` has the hashes; those of several replacements, where no start is between them."""
MAX_BYTES: Final = 64 << 20
"""Bounds what a start reads into memory."""
_HINT: Final = "keep a copy of it, then run: latticed --recover"


class Pin(Value, frozen=True, kw_only=True):
    """The owner of a plugin id: publisher, whether its bundle was signed, and the identity on record."""

    publisher: str
    signed: bool
    identity: str


class SeenIndex(Value, frozen=True, kw_only=True):
    """The newest index of a source: when it was generated (as written, and in seconds since 1970), the SHA-256 of what
    is signed of it, and the keys under which it held. The same of its revocations, if it has any.
    """

    generated_at: str
    generated_s: int
    sha256: str
    keys: tuple[str, ...]


class Floors(Value, frozen=True, kw_only=True):
    """By plugin id: the highest version ever accepted, what is not granted, what is accepted, and who owns the id.

    `heads`: seq and hash of an event of each chain that was on disk before this was written: a ledger without it is
    older. `accepted_at` (RFC 3339): when a ledger was last replaced, or an older one accepted by an operator; heads
    signed before that are no evidence of a rollback. `replaced`: hashes of the newest heads of what was replaced, as
    the clock may have been ahead; these, and what was signed before them, are none either. `sources`: the newest index
    of each source of the market.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    masked: Mapping[str, frozenset[str]] = field(default_factory=dict)
    terms: Mapping[str, Accepted] = field(default_factory=dict)
    pins: Mapping[str, Pin] = field(default_factory=dict)
    revoked: RevocationRows = field(default_factory=RevocationRows)
    heads: Mapping[Name, tuple[int, str]] = field(default_factory=dict)
    sources: Mapping[str, SeenIndex] = field(default_factory=dict)
    accepted_at: str = ""
    replaced: tuple[str, ...] = ()


def of_replaced(kept: Floors, head: Head | None, now: str, replaced: tuple[str, ...]) -> Floors:
    """`kept` for a ledger that takes the place of another at `now` (RFC 3339); `head` is the newest of its decisions.

    Heads of the replaced ledger are dropped, as the new one does not have their events; `replaced` are the hashes of
    its newest, and of those that it replaced.
    """
    heads = {head.chain: (head.seq, head.hash)} if head is not None else {}
    return replace(kept, heads=heads, accepted_at=now, replaced=replaced[:MOST_REPLACED])


def present(directory: Path) -> bool:
    """Whether there is a floors file at all: it is made with the host key, and never removed."""
    return (directory / FILE).exists()


def read(directory: Path, key: Ed25519PublicKey) -> Floors:
    """The floors kept in `directory`, empty ones without a file; Problem floors_invalid if `key` did not sign it."""
    try:
        data = files.read_at_most(directory / FILE, MAX_BYTES)
        # Strict, so that the signed bytes can be read in one way only.
        found = strict_json.loads(data)
        signature = base64.b64decode(found.pop("signature"), validate=True)
        # Verified over the encoding of what was parsed, before anything of it is used.
        key.verify(signature, _payload(found))
        return _decode(found)
    # Whether a missing file is acceptable is for callers to judge (`rollback.check_floors`, `rebuild.trusted_floors`).
    except FileNotFoundError:
        return Floors()
    except InvalidSignature as error:
        raise _invalid("expected the signature of this host's key, found another") from error
    # Bytes from outside until the signature is verified: any JSON value, of any depth, may be there.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        raise _invalid(f"expected what this host wrote, found: {error}") from error


def write(directory: Path, floors: Floors, key: Ed25519PrivateKey) -> None:
    """As `replace_file` with what `signed` gives; blocking."""
    replace_file(directory, signed(floors, key))


def signed(floors: Floors, key: Ed25519PrivateKey) -> bytes:
    """The content of the file. Of 10,000 plugins 50 ms of CPU: made on a thread that nobody waits for."""
    members = _members(floors)
    signature = key.sign(DOMAIN + _object(members).encode("ascii"))
    members["signature"] = _quoted(base64.b64encode(signature).decode("ascii"))
    return _object(members).encode("ascii") + b"\n"


def replace_file(directory: Path, content: bytes) -> None:
    """Replace the file, fsynced; blocking. Problem ledger_unavailable when the disk would not take it.

    The caller has to see to it that the events of its `Floors.heads` are on disk before.
    """
    try:
        files.replace(directory / FILE, content, mode=0o600)
    except OSError as error:
        detail = f"{FILE} cannot be written: {error.strerror or error}"
        raise Problem("ledger_unavailable", detail, f"free space on its disk (df {directory})") from error


def _payload(plain: dict[str, Any]) -> bytes:
    """The bytes that are signed: the domain and the canonical JSON without the signature."""
    return DOMAIN + encode(plain).encode("ascii")


def _members(floors: Floors) -> dict[str, str]:
    """The members of the file's object as JSON texts; sets are sorted lists, so that equal floors give equal bytes.

    What there is of each plugin is put together from texts that many share, five times as fast as by the encoder.
    """
    plain = {
        "revoked": {kind: sorted(getattr(floors.revoked, kind)) for kind in KINDS},
        "heads": {chain: list(head) for chain, head in floors.heads.items()},
        "accepted_at": floors.accepted_at,
        "replaced": list(floors.replaced),
        "sources": {
            name: [seen.generated_at, seen.generated_s, seen.sha256, *seen.keys]
            for name, seen in floors.sources.items()
        },
    }
    return {
        **{name: encode(value) for name, value in plain.items()},
        "versions": _object({plugin: _quoted(version) for plugin, version in floors.versions.items()}),
        "masked": _object({plugin: _masks(masked) for plugin, masked in floors.masked.items()}),
        "terms": _object({plugin: _terms(terms) for plugin, terms in floors.terms.items()}),
        "pins": _object({plugin: _pin(pin) for plugin, pin in floors.pins.items()}),
    }


def _object(members: Mapping[str, str]) -> str:
    """A JSON object of these members, whose values are JSON texts, as `model.chain.encode` would write it."""
    return "{" + ",".join([f"{_quoted(name)}:{members[name]}" for name in sorted(members)]) + "}"


def _pin(pin: Pin) -> str:
    return f"[{_quoted(pin.publisher)},{'true' if pin.signed else 'false'},{_quoted(pin.identity)}]"


@functools.lru_cache(maxsize=1024)  # thousands of plugins hold a few values between them
def _masks(masked: frozenset[str]) -> str:
    return encode(sorted(masked))


@functools.lru_cache(maxsize=1024)
def _terms(terms: Accepted) -> str:
    return encode(accepted.encode(terms))


def _decode(found: dict[str, Any]) -> Floors:
    """Decode a dictionary whose signature has been verified, so its shape is not checked."""
    return Floors(
        versions=dict(found["versions"]),
        masked={plugin: frozenset(masked) for plugin, masked in found["masked"].items()},
        terms={
            plugin: terms
            for plugin, text in found.get("terms", {}).items()  # missing in files of older versions
            if (terms := accepted.decode(text)) is not None
        },
        pins={
            plugin: Pin(publisher=publisher, signed=signed, identity=identity)
            for plugin, (publisher, signed, identity) in found["pins"].items()
        },
        revoked=RevocationRows(**{kind: frozenset(found["revoked"][kind]) for kind in KINDS}),
        heads={chain: (seq, kept) for chain, (seq, kept) in found.get("heads", {}).items()},  # likewise
        accepted_at=found.get("accepted_at", ""),
        replaced=tuple(found.get("replaced", ())),
        sources={
            name: SeenIndex(generated_at=at, generated_s=at_s, sha256=sha256, keys=tuple(keys))
            for name, (at, at_s, sha256, *keys) in found.get("sources", {}).items()
        },
    )


def _invalid(detail: str) -> Problem:
    """The Problem floors_invalid, with a hint at what an operator can do."""
    return Problem("floors_invalid", f"{FILE}: {detail}", _HINT)

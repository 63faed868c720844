"""Is this audit chain whole? Pure: lines in, a report out; works on the ledger and on an exported file alike.

The rules (contracts §11): `hash = SHA-256(prev ‖ canonical JSON without hash)`, where `prev` enters as its 32 raw
bytes, 32 zero bytes before the first event, and the canonical JSON holds the field `prev` as hex like every other.
A head is the host's signature over (seq, hash, ts). A chain begins with event 1, or with a checkpoint: the host's
signature, in other words, over what its retention removed. What follows a head may be cut off unnoticed by anybody who
can also cut the heads: so heads are repeated into the journal, and may be given here from there.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from latticed.model.chain import GENESIS, Checkpoint, Head, canonical, checkpoint_payload, head_payload, link
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FIELDS", "GENESIS", "ChainReport", "canonical", "decode_head", "link", "public_key", "verify"]

FIELDS: Final = frozenset(
    {"seq", "ts", "actor", "action", "target", "decision", "code", "reason", "detail", "prev", "hash"}
)
_HEX: Final = frozenset("0123456789abcdef")
_SHORT: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """`problem` is empty when all holds, else it says what is wrong at `bad_seq`, the first that is.

    `last_seq` is 0 without events, `removed_seq` the last event that retention removed, 0 for none. `signed_seq` is the
    last event under a head whose signature was checked (0: none, or no key given): what follows it could have been
    rewritten by somebody without the host key.
    """

    events: int
    heads: int
    last_seq: int
    last_hash: str
    signed_seq: int
    removed_seq: int = 0
    bad_seq: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


class _Broken(Exception):
    """The finding, on its way to the report."""

    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(seq, problem)
        self.seq = seq
        self.problem = problem


def verify(lines: Iterable[Any], *, heads: Iterable[Head] = (), key: Ed25519PublicKey | None = None) -> ChainReport:
    """Check decoded lines in the order of an export: events, and `{"head": {...}}` right after the event it signs.

    `heads` are further ones from elsewhere, such as the journal. Without `key` no signature is checked. A chain begins
    with event 1, or with `{"checkpoint": {...}}` and the event after it: a head is no licence to leave out what it
    signs. Never raises for bad lines.
    """
    walk = _Walk(key)
    try:
        for head in heads:
            walk.expect(head)
        for line in lines:
            walk.take(line)
        walk.finish()
    except _Broken as broken:
        return walk.report(broken)
    return walk.report(None)


def public_key(text: str) -> Ed25519PublicKey:
    """The host key's public half from base64 of 32 bytes; Problem bad_key otherwise."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.strip(), validate=True))
    except (ValueError, binascii.Error) as error:
        raise Problem("bad_key", f"expected base64 of a 32-byte Ed25519 public key, found {text[:80]!r}") from error


def decode_head(found: Any) -> Head | None:
    """A head from its JSON object, or None for anything else."""
    plain = _statement(found)
    return Head(**plain) if plain else None


def decode_checkpoint(found: Any) -> Checkpoint | None:
    """A checkpoint from its JSON object, or None for anything else."""
    plain = _statement(found)
    return Checkpoint(**plain) if plain else None


def _statement(found: Any) -> dict[str, Any] | None:
    match found:
        case {"seq": int(seq), "hash": str(found_hash), "ts": str(), "signature": str(), **others}:
            sound = not others and not isinstance(seq, bool) and seq > 0 and _is_hash(found_hash)
            return dict(found) if sound else None
        case _:
            return None


class _Walk:
    """Where the check is: the last event seen, and the heads that speak of events still to come."""

    def __init__(self, key: Ed25519PublicKey | None) -> None:
        self._key = key
        self._expected: dict[int, str] = {}
        self._events = 0
        self._heads = 0
        self._seq = 0
        self._hash = GENESIS
        self._signed = 0
        self._removed = 0
        self._begun = False

    def take(self, line: Any) -> None:
        begun, self._begun = self._begun, True
        if isinstance(line, dict) and line.keys() == {"checkpoint"}:
            if begun:
                raise _Broken(self._seq, f"the checkpoint after event {self._seq} is not at the beginning")
            self._begin(line["checkpoint"])
        elif isinstance(line, dict) and line.keys() == {"head"}:
            head = decode_head(line["head"])
            if head is None:
                raise _Broken(self._seq, f"the head after event {self._seq} is malformed")
            self.expect(head)
        else:
            self._event(line)

    def _begin(self, found: Any) -> None:
        """Begin after what retention removed. Heads from elsewhere may speak of events that are gone."""
        checkpoint = decode_checkpoint(found)
        if checkpoint is None:
            raise _Broken(1, "the checkpoint at the beginning is malformed")
        if self._key is not None and not _attested(checkpoint, self._key):
            raise _Broken(1, "the checkpoint at the beginning was not signed by this host's key")
        self._seq = self._removed = checkpoint.seq
        self._hash = checkpoint.hash
        signed = self._expected.get(checkpoint.seq, checkpoint.hash)
        self._compare(signed)

    def expect(self, head: Head) -> None:
        """Note what a head says of an event: the last one, or one that is to come."""
        self._heads += 1
        if self._key is not None and not _signed(head, self._key):
            raise _Broken(head.seq, f"the head of event {head.seq} was not signed by this host's key")
        if head.seq < self._seq:
            raise _Broken(head.seq, f"the head of event {head.seq} is out of order: it stands after event {self._seq}")
        if head.seq == self._seq:
            self._compare(head.hash)
            self._sealed()
        elif self._expected.setdefault(head.seq, head.hash) != head.hash:
            raise _Broken(head.seq, f"two heads of event {head.seq} disagree")

    def finish(self) -> None:
        if beyond := [seq for seq in self._expected if seq > self._seq]:
            raise _Broken(
                self._seq + 1,
                f"the tail was cut: event {max(beyond)} was signed, the last one found is {self._seq}",
            )

    def report(self, broken: _Broken | None) -> ChainReport:
        return ChainReport(
            events=self._events,
            heads=self._heads,
            last_seq=self._seq,
            last_hash=self._hash,
            signed_seq=self._signed,
            removed_seq=self._removed,
            bad_seq=None if broken is None else broken.seq,
            problem="" if broken is None else broken.problem,
        )

    def _event(self, line: Any) -> None:
        wanted = self._seq + 1
        if fault := _fault(line):
            raise _Broken(wanted, f"event {wanted} is malformed: {fault}")
        seq, prev = line["seq"], line["prev"]
        if seq != wanted:
            raise _Broken(wanted, f"expected event {wanted}, found event {seq}: deleted, inserted or reordered")
        if prev != self._hash:
            before = f"event {seq - 1}" if self._seq else "the beginning of the chain"
            raise _Broken(seq, f"event {seq} does not follow {before}: one of the two was replaced")
        self._check_hash(line)
        self._events += 1
        self._seq, self._hash = seq, line["hash"]
        if seq in self._expected:
            self._compare(self._expected.pop(seq))
            self._sealed()

    def _check_hash(self, line: Mapping[str, Any]) -> None:
        seq = line["seq"]
        try:
            expected = link(line["prev"], line)
        except (ValueError, TypeError, RecursionError) as error:
            raise _Broken(seq, f"event {seq} was changed: {error}") from error
        if line["hash"] != expected:
            raise _Broken(
                seq, f"event {seq} was changed: expected hash {expected[:_SHORT]}…, found {line['hash'][:_SHORT]}…"
            )

    def _compare(self, signed: str) -> None:
        if signed != self._hash:
            raise _Broken(
                self._seq,
                f"event {self._seq} is not the one that was signed: expected hash {signed[:_SHORT]}…, "
                f"found {self._hash[:_SHORT]}…",
            )

    def _sealed(self) -> None:
        if self._key is not None:
            self._signed = self._seq


def _fault(line: Any) -> str:
    """What keeps `line` from being an event at all, in words; empty when nothing does."""
    if not isinstance(line, dict):
        return f"expected an object, found {type(line).__name__}"
    if odd := FIELDS.symmetric_difference(line):
        return f"expected the fields of an event, missing or unknown: {', '.join(sorted(map(str, odd))[:4])[:80]}"
    if not isinstance(line["seq"], int) or isinstance(line["seq"], bool) or line["seq"] < 1:
        return "seq: expected a positive integer"
    return next((f"{name}: expected 64 hex digits" for name in ("prev", "hash") if not _is_hash(line[name])), "")


def _is_hash(found: Any) -> bool:
    return isinstance(found, str) and len(found) == len(GENESIS) and _HEX.issuperset(found)


def _signed(head: Head, key: Ed25519PublicKey) -> bool:
    return _holds(head.signature, head_payload(seq=head.seq, ts=head.ts, event_hash=head.hash), key)


def _attested(found: Checkpoint, key: Ed25519PublicKey) -> bool:
    return _holds(found.signature, checkpoint_payload(seq=found.seq, ts=found.ts, event_hash=found.hash), key)


def _holds(signature: str, payload: bytes, key: Ed25519PublicKey) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), payload)
    except (InvalidSignature, ValueError):
        return False
    return True

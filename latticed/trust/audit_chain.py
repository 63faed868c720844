"""Verifies audit chains. Pure: takes decoded lines, of the ledger or of an exported file, and returns a report.

The rules (contracts §11): `hash = SHA-256(prev ‖ canonical JSON without hash)`, where `prev` enters as its 32 raw
bytes, 32 zero bytes before the first event, and the canonical JSON holds the field `prev` as hex like every other.
A head is the host's signature over (seq, hash, ts). A chain begins with event 1, or with a checkpoint: the host's
signature over the seq and hash of the last event that retention removed. An attacker who removes the newest events
together with their heads leaves a chain that verifies: so heads are copied to the journal, and `verify` takes those.
There are two chains of this form. Lines of `calls` have `"chain": "calls"`, lines of `decisions` may leave `chain` out.
Each chain is verified separately; their lines may be interleaved in any order.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from latticed.kit.value import Value
from latticed.model.chain import (
    CALLS,
    DECISIONS,
    GENESIS,
    NAMES,
    Checkpoint,
    Head,
    Name,
    canonical,
    checkpoint_payload,
    head_payload,
    link,
)
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["FIELDS", "GENESIS", "ChainCheck", "Walk", "canonical", "decode_head", "link", "public_key", "verify"]

# All of them are hashed except `hash` itself; `chain` may come besides, and is not.
FIELDS: Final = frozenset(
    {"seq", "ts", "actor", "action", "target", "decision", "code", "reason", "detail", "prev", "hash"}
)
_HEX: Final = frozenset("0123456789abcdef")
# Hex digits of a hash that messages show.
_SHORT: Final = 12


class ChainCheck(Value, frozen=True, kw_only=True):
    """The report on one chain. `problem` is empty when it is intact, else it describes the first fault, at `bad_seq`.

    `events` and `heads` are numbers of lines. `last_seq` is 0 without events, `removed_seq` the last event that
    retention removed, 0 for none. `signed_seq` is the last event under a head whose signature was checked (0: none, or
    no key given): later events could have been rewritten without the host key. `calls` is the report on the other
    chain, when there were lines or heads of it.
    """

    events: int
    heads: int
    last_seq: int
    last_hash: str
    signed_seq: int
    removed_seq: int = 0
    bad_seq: int | None = None
    problem: str = ""
    calls: ChainCheck | None = None

    @property
    def ok(self) -> bool:
        """Whether this chain, and `calls` if present, is intact."""
        return not self.problem and (self.calls is None or self.calls.ok)


class _ChainBroken(Exception):
    """Raised at the first fault of a chain; `Walk` turns it into the report."""

    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(seq, problem)
        self.seq = seq
        self.problem = problem


def verify(lines: Iterable[Any], *, heads: Iterable[Head] = (), key: Ed25519PublicKey | None = None) -> ChainCheck:
    """Check decoded lines in the order of an export: events, and `{"head": {...}}` right after the event it signs.

    `heads` are further ones from elsewhere, such as the journal. Without `key` no signature is checked. A chain begins
    with event 1, or with `{"checkpoint": {...}}` and the event after it: a head does not allow a chain to begin later.
    Returns the report on decisions, with that on calls in `calls`. Never raises for bad lines.
    """
    walks = {name: Walk(key, name) for name in NAMES}
    seen: set[Name] = set()
    # Heads from elsewhere first: each is compared when its event comes.
    for head in heads:
        seen.add(head.chain)
        walks[head.chain].expect(head)
    for line in lines:
        name = _chain_of(line)
        seen.add(name)
        walks[name].take(line)
    for walk in walks.values():
        walk.finish()
    # No report on a chain that nothing is known of.
    calls = walks[CALLS].report() if CALLS in seen else None
    return replace(walks[DECISIONS].report(), calls=calls)


def _chain_of(line: Any) -> Name:
    """The chain of a line; one with an unknown `chain` is given to the walk of decisions, which rejects it."""
    return CALLS if isinstance(line, dict) and line.get("chain") == CALLS else DECISIONS


def public_key(text: str) -> Ed25519PublicKey:
    """The host key's public half from base64 of 32 bytes; Problem bad_key otherwise."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.strip(), validate=True))
    except (ValueError, binascii.Error) as error:
        raise Problem("bad_key", f"expected base64 of a 32-byte Ed25519 public key, found {text[:80]!r}") from error


def decode_head(found: Any) -> Head | None:
    """A head from its JSON object, or None for anything else; its signature is not checked here."""
    plain = _statement(found)
    return Head(**plain) if plain else None


def decode_checkpoint(found: Any) -> Checkpoint | None:
    """A checkpoint from its JSON object, or None for anything else; its signature is not checked here."""
    plain = _statement(found)
    return Checkpoint(**plain) if plain else None


def _statement(found: Any) -> dict[str, Any] | None:
    """The fields that heads and checkpoints share: seq, hash, ts, signature; None unless exactly these, well formed."""
    match found:
        case {"seq": int(seq), "hash": str(found_hash), "ts": str(), "signature": str(), **others}:
            sound = not others and not isinstance(seq, bool) and seq > 0 and _is_hash(found_hash)
            return dict(found) if sound else None
        case _:
            return None


class Walk:
    """Incremental verification of one chain: feed it lines with `take`, then `finish`, then ask for `report`.

    It keeps the last event's hash, and heads of events that have not come yet. After the first fault, further lines are
    ignored. `since`, the report of an earlier walk without a fault, resumes after its last event. Without `key` no
    signature is checked.
    """

    def __init__(
        self, key: Ed25519PublicKey | None, chain: Name = DECISIONS, *, since: ChainCheck | None = None
    ) -> None:
        self._key = key
        self._chain = chain
        # By seq, the hash that a head says, of events that have not come.
        self._expected: dict[int, str] = {}
        self._events = since.events if since else 0
        self._heads = since.heads if since else 0
        self._hash = since.last_hash if since else GENESIS
        self._signed = since.signed_seq if since else 0
        self._removed = since.removed_seq if since else 0
        self._begun = since is not None
        self._broken: _ChainBroken | None = None
        self.sealed: ChainCheck | None = since
        """The report as of the last verified head, for the `since` of a later walk."""
        self.seq = since.last_seq if since else 0
        """The last event that was taken, 0 before the first."""

    @property
    def broken(self) -> bool:
        """Whether a fault was found; further lines are then ignored."""
        return self._broken is not None

    def take(self, line: Any) -> None:
        """Check one decoded line: an event, a head or a checkpoint."""
        self._guarded(self._take, line)

    def expect(self, head: Head) -> None:
        """Check a head against the last event, or keep it until its event comes."""
        self._guarded(self._expect, head)

    def removed(self, found: Any) -> None:
        """Retention has removed events of this chain meanwhile: `found` is its new checkpoint, as JSON object."""
        self._guarded(self._remove, found)

    def finish(self) -> None:
        """End of input: a head of a later event means that the tail was cut."""
        self._guarded(self._finish)

    def _guarded(self, step: Callable[..., None], *given: Any) -> None:
        """Run `step` unless a fault was found before; keep the fault it raises."""
        if self._broken is None:
            try:
                step(*given)
            except _ChainBroken as broken:
                self._broken = broken

    def _take(self, line: Any) -> None:
        """As `take`, raising _ChainBroken."""
        begun, self._begun = self._begun, True
        kind = ""
        if isinstance(line, dict):
            if line.get("chain", self._chain) != self._chain:
                raise _ChainBroken(self.seq + 1, f"event {self.seq + 1} is malformed: its chain is none of ours")
            # Heads and checkpoints have one field besides `chain`; events have eleven.
            kind = _kind(line) if len(line) <= 2 else ""
        if kind == "checkpoint":
            if begun:
                raise _ChainBroken(self.seq, f"the checkpoint after event {self.seq} is not at the beginning")
            self._begin(line["checkpoint"])
        elif kind == "head":
            head = decode_head(line["head"])
            if head is None:
                raise _ChainBroken(self.seq, f"the head after event {self.seq} is malformed")
            self._expect(replace(head, chain=self._chain))
        else:
            self._event(line)

    def _genuine(self, found: Any) -> Checkpoint:
        """A checkpoint that is well formed and, with a key, signed by it; else the chain is broken."""
        checkpoint = decode_checkpoint(found)
        if checkpoint is None:
            raise _ChainBroken(1, "the checkpoint at the beginning is malformed")
        if self._key is not None and not _attested(checkpoint, self._key, self._chain):
            raise _ChainBroken(1, "the checkpoint at the beginning was not signed by this host's key")
        return checkpoint

    def _remove(self, found: Any) -> None:
        """Events up to the checkpoint are gone: they no longer count, the hash at which the walk is stays."""
        self._removed = self._genuine(found).seq
        self._events = self.seq - self._removed

    def _begin(self, found: Any) -> None:
        """Begin after the events that retention removed; heads from the journal may be of removed events."""
        checkpoint = self._genuine(found)
        self.seq = self._removed = checkpoint.seq
        self._hash = checkpoint.hash
        # A head from elsewhere may sign just that event: then it must have the same hash.
        signed = self._expected.get(checkpoint.seq, checkpoint.hash)
        self._compare(signed)

    def _expect(self, head: Head) -> None:
        """Check a head now if its event was the last one, keep it if the event is still to come."""
        self._heads += 1
        if self._key is not None and not _signed(head, self._key, self._chain):
            raise _ChainBroken(head.seq, f"the head of event {head.seq} was not signed by this host's key")
        if head.seq < self.seq:
            raise _ChainBroken(
                head.seq, f"the head of event {head.seq} is out of order: it stands after event {self.seq}"
            )
        if head.seq == self.seq:
            self._compare(head.hash)
            self._sealed()
        # Its event has not come: kept, and compared with another head of the same event.
        elif self._expected.setdefault(head.seq, head.hash) != head.hash:
            raise _ChainBroken(head.seq, f"two heads of event {head.seq} disagree")

    def _finish(self) -> None:
        """As `finish`, raising _ChainBroken."""
        if beyond := [seq for seq in self._expected if seq > self.seq]:
            raise _ChainBroken(
                self.seq + 1,
                f"the tail was cut: event {max(beyond)} was signed, the last one found is {self.seq}",
            )

    def report(self) -> ChainCheck:
        """The report on what was taken so far; a cut tail is in it only after `finish`."""
        broken = self._broken
        return ChainCheck(
            events=self._events,
            heads=self._heads,
            last_seq=self.seq,
            last_hash=self._hash,
            signed_seq=self._signed,
            removed_seq=self._removed,
            bad_seq=None if broken is None else broken.seq,
            problem="" if broken is None else broken.problem,
        )

    def _event(self, line: Any) -> None:
        """Check form, number, link, then hash of an event: the first fault names the likeliest cause."""
        wanted = self.seq + 1
        if fault := _fault(line):
            raise _ChainBroken(wanted, f"event {wanted} is malformed: {fault}")
        seq, prev = line["seq"], line["prev"]
        if seq != wanted:
            raise _ChainBroken(wanted, f"expected event {wanted}, found event {seq}: deleted, inserted or reordered")
        if prev != self._hash:
            before = f"event {seq - 1}" if self.seq else "the beginning of the chain"
            raise _ChainBroken(seq, f"event {seq} does not follow {before}: one of the two was replaced")
        self._check_hash(line)
        self._events += 1
        self.seq, self._hash = seq, line["hash"]
        # A head that came before its event, from the journal.
        if seq in self._expected:
            self._compare(self._expected.pop(seq))
            self._sealed()

    def _check_hash(self, line: Mapping[str, Any]) -> None:
        """The hash of an event must be that of its content; a value without a canonical form is a change, too."""
        seq = line["seq"]
        try:
            expected = link(line["prev"], line)
        except (ValueError, TypeError, RecursionError) as error:
            raise _ChainBroken(seq, f"event {seq} was changed: {error}") from error
        if line["hash"] != expected:
            raise _ChainBroken(
                seq, f"event {seq} was changed: expected hash {expected[:_SHORT]}…, found {line['hash'][:_SHORT]}…"
            )

    def _compare(self, signed: str) -> None:
        """Check that the last event has the hash `signed`, in hex; _ChainBroken otherwise."""
        if signed != self._hash:
            raise _ChainBroken(
                self.seq,
                f"event {self.seq} is not the one that was signed: expected hash {signed[:_SHORT]}…, "
                f"found {self._hash[:_SHORT]}…",
            )

    def _sealed(self) -> None:
        """Everything up to here is under a checked signature: remember the report, for a later walk to go on from."""
        if self._key is not None:
            self._signed = self.seq
            self.sealed = self.report()


def _kind(line: Mapping[str, Any]) -> str:
    """`checkpoint` or `head` for a line of that kind, else empty."""
    return next((one for one in ("checkpoint", "head") if line.keys() - {"chain"} == {one}), "")


def _fault(line: Any) -> str:
    """Why `line` does not have the form of an event; empty when it has."""
    if not isinstance(line, dict):
        return f"expected an object, found {type(line).__name__}"
    if odd := FIELDS.symmetric_difference(line).difference({"chain"}):
        return f"expected the fields of an event, missing or unknown: {', '.join(sorted(map(str, odd))[:4])[:80]}"
    if not isinstance(line["seq"], int) or isinstance(line["seq"], bool) or line["seq"] < 1:
        return "seq: expected a positive integer"
    return next((f"{name}: expected 64 hex digits" for name in ("prev", "hash") if not _is_hash(line[name])), "")


def _is_hash(found: Any) -> bool:
    """Whether it is 64 lower-case hex digits."""
    return isinstance(found, str) and len(found) == len(GENESIS) and _HEX.issuperset(found)


def _signed(head: Head, key: Ed25519PublicKey, chain: Name) -> bool:
    """Whether `key` signed this head of the chain; the chain's name is part of what is signed."""
    return _holds(head.signature, head_payload(seq=head.seq, ts=head.ts, event_hash=head.hash, chain=chain), key)


def _attested(found: Checkpoint, key: Ed25519PublicKey, chain: Name) -> bool:
    """Whether `key` signed this checkpoint of the chain."""
    payload = checkpoint_payload(seq=found.seq, ts=found.ts, event_hash=found.hash, chain=chain)
    return _holds(found.signature, payload, key)


def _holds(signature: str, payload: bytes, key: Ed25519PublicKey) -> bool:
    """Whether this base64 text is a signature of `payload` by `key`; False for any other text."""
    try:
        key.verify(base64.b64decode(signature, validate=True), payload)
    except (InvalidSignature, ValueError):
        return False
    return True

"""The bytes of the audit chains: what is hashed and what is signed (contracts §11).

There are two, `decisions` and `calls`, of one form. Shared by the ledger, which makes them, and by trust, which checks
them; the ledger may not import trust.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Name = Literal["decisions", "calls"]
DECISIONS: Final = "decisions"
"""Verdicts, lifecycle, runtime, trust, what operators do; and host calls that older versions recorded."""
CALLS: Final = "calls"
"""Each `host.call`, and the removals of such events by retention."""
NAMES: Final[tuple[Name, ...]] = (DECISIONS, CALLS)

REPLACING: Final = ("ledger.restored", "ledger.recovered", "ledger.rollback_accepted")
"""Actions of events that begin another record than the one that was there: its seqs may have been used before."""

GENESIS: Final = "0" * 64
"""The `prev` of the first event of a chain."""

OUTSIDE: Final = frozenset({"hash", "chain"})
"""Fields of an event that are not hashed: `chain` names the chain, and is absent for decisions."""

HEAD_DOMAIN: Final = b"LATTICED-AUDIT-HEAD-V1\n"
"""What is signed begins with this, so that a head's signature is valid for nothing else."""
CHECKPOINT_DOMAIN: Final = b"LATTICED-AUDIT-CHECKPOINT-V1\n"
"""The same for checkpoints: a head must not pass for one."""

encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""A JSON value as sorted, compact, ASCII-escaped text. Made once: json.dumps makes a new encoder at every call."""


def canonical(event: Mapping[str, Any]) -> bytes:
    """The event without its `hash` (and `chain`) as canonical JSON.

    Equal to RFC 8785 for every event the ledger writes, because those hold printable ASCII, integers and booleans
    only. Raises ValueError, TypeError or RecursionError for what is no JSON.
    """
    return encode({key: value for key, value in event.items() if key not in OUTSIDE}).encode("ascii")


def link(prev: str, event: Mapping[str, Any]) -> str:
    """The hash of `event` after the event whose hash is `prev`: SHA-256(32 bytes of `prev` ‖ canonical JSON), in hex.

    `prev` is 64 hex digits, `GENESIS` (32 zero bytes) before the first event. Raises like `canonical`.
    """
    return digest(prev, canonical(event))


def digest(prev: str, body: bytes) -> str:
    """The hash, in hex, of an event that is already canonical: SHA-256(32 bytes of `prev` ‖ `body`)."""
    return hashlib.sha256(bytes.fromhex(prev) + body).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A signed statement of the host: at `ts` (RFC 3339) event `seq` had `hash`. `signature` is base64 Ed25519."""

    seq: int
    hash: str
    ts: str
    signature: str
    chain: Name = DECISIONS


def head_payload(*, seq: int, ts: str, event_hash: str, chain: Name = DECISIONS) -> bytes:
    """The bytes that a head's signature is over: the domain and canonical JSON of seq, ts, hash (and chain)."""
    return HEAD_DOMAIN + _stated(seq, ts, event_hash, chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A signed statement of the host: at `ts` its retention removed the events up to `seq`, whose hash was `hash`.

    Only with this may a chain begin after event 1, not with a head, whose signature covers other bytes.
    """

    seq: int
    hash: str
    ts: str
    signature: str
    chain: Name = DECISIONS


def checkpoint_payload(*, seq: int, ts: str, event_hash: str, chain: Name = DECISIONS) -> bytes:
    """The bytes that a checkpoint's signature is over: as of a head, with another domain."""
    return CHECKPOINT_DOMAIN + _stated(seq, ts, event_hash, chain)


def _stated(seq: int, ts: str, event_hash: str, chain: Name) -> bytes:
    """What is signed, without the domain, as canonical JSON.

    Decisions leave `chain` out, as when there was one chain; with it no head of one chain can pass for one of the
    other.
    """
    named = {} if chain == DECISIONS else {"chain": chain}
    return encode({"seq": seq, "ts": ts, "hash": event_hash, **named}).encode("ascii")


_LOGGED: Final = {
    name: re.compile(rf"""{name}"?\s*[=:]\s*"?'?([^\s",']+)""") for name in ("seq", "hash", "signed_at", "signature")
}
"""The fields of a head in a log line: as JSON, as `key=value`, and quoted or not."""
_LOGGED_CALLS: Final = re.compile(r"""chain"?\s*[=:]\s*"?calls\b""")
HEAD_EVENT: Final = "audit_head_signed"
"""The event of the log entry that carries a new head."""
_HEAD_WORDS: Final = HEAD_EVENT.replace("_", " ")
"""What the journal shows of it: there the message is for people (`kit.journal_sender`)."""


def logged_head(line: str) -> Head | None:
    """The head in a line of latticed's log, in any of its forms; None for any other line.

    It may be forged: check its signature.
    """
    if HEAD_EVENT not in line and _HEAD_WORDS not in line:
        return None
    found = {name: match[1] for name, pattern in _LOGGED.items() if (match := pattern.search(line))}
    # A number of at most 16 digits: more would be no seq, and int() of a long text is slow.
    if len(found) < len(_LOGGED) or not found["seq"].isdecimal() or len(found["seq"]) > 16:
        return None
    name: Name = CALLS if _LOGGED_CALLS.search(line) else DECISIONS
    return Head(
        seq=int(found["seq"]), hash=found["hash"], ts=found["signed_at"], signature=found["signature"], chain=name
    )


class Position(NamedTuple):
    """A position in both chains: the seq of the last event seen of each, 0 before the first.

    As text, `<decisions>.<calls>`: a cursor, and the id of an event in a stream of both.
    """

    decisions: int = 0
    calls: int = 0

    def __str__(self) -> str:
        return f"{self.decisions}.{self.calls}"

    def of(self, chain: Name) -> int:
        """The seq of one chain."""
        return self.calls if chain == CALLS else self.decisions

    def at(self, chain: Name, seq: int) -> Position:
        """A copy of this position that has another `seq` in one chain."""
        return Position(self.decisions, seq) if chain == CALLS else Position(seq, self.calls)

    def past(self, events: Iterable[Mapping[str, Any]]) -> Position:
        """The position after `events`, which follow this one."""
        found = self
        for event in events:
            found = found.at(name_of(event), event["seq"])
        return found


BEGINNING: Final = Position()
"""The position before the first event of either chain."""
MAX_SEQ: Final = 2**53
"""Bound of a seq in a cursor: up to here every reader of JSON has integers exactly (RFC 7493, section 2.2)."""
CURSOR: Final = r"[0-9]{1,16}(\.[0-9]{1,16})?"
"""A cursor as a regular expression, for schemas; `cursor` also checks the bound."""


def cursor(text: str) -> Position | int | None:
    """A position from `<decisions>.<calls>`, a seq of the decisions alone from a bare number; None for neither."""
    first, dot, second = text.partition(".")
    numbers = [first, second] if dot else [first]
    # isascii, as isdecimal is true of digits of every script, and int() takes them.
    if any(not one.isascii() or not one.isdecimal() or len(one) > 16 or int(one) > MAX_SEQ for one in numbers):
        return None
    return Position(int(first), int(second)) if dot else int(first)


def name_of(event: Mapping[str, Any]) -> Name:
    """The chain of an event as answers and exports carry it."""
    return CALLS if event.get("chain") == CALLS else DECISIONS

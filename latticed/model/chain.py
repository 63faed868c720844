"""The bytes of the audit chain: what is hashed and what is signed (contracts §11).

Shared by the ledger, which makes the chain, and by trust, which checks it; the ledger may not import trust.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

GENESIS: Final = "0" * 64
"""The `prev` of the first event."""

HEAD_DOMAIN: Final = b"LATTICED-AUDIT-HEAD-V1\n"
CHECKPOINT_DOMAIN: Final = b"LATTICED-AUDIT-CHECKPOINT-V1\n"

encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""A JSON value as sorted, compact, ASCII-escaped text. Made once: json.dumps makes a new encoder at every call."""


def canonical(event: Mapping[str, Any]) -> bytes:
    """The event without its `hash` as canonical JSON.

    Equal to RFC 8785 for every event the ledger writes, because those hold printable ASCII, integers and booleans
    only. Raises ValueError, TypeError or RecursionError for what is no JSON.
    """
    return encode({key: value for key, value in event.items() if key != "hash"}).encode("ascii")


def link(prev: str, event: Mapping[str, Any]) -> str:
    """The hash of `event` after the event whose hash is `prev`: SHA-256(32 bytes of `prev` ‖ canonical JSON), in hex.

    `prev` is 64 hex digits, `GENESIS` (32 zero bytes) before the first event. Raises like `canonical`.
    """
    return digest(prev, canonical(event))


def digest(prev: str, body: bytes) -> str:
    """The hash of an event that is already canonical."""
    return hashlib.sha256(bytes.fromhex(prev) + body).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A signed statement of the host: at `ts` (RFC 3339) event `seq` had `hash`. `signature` is base64 Ed25519."""

    seq: int
    hash: str
    ts: str
    signature: str


def head_payload(*, seq: int, ts: str, event_hash: str) -> bytes:
    """The bytes that a head's signature is over."""
    return HEAD_DOMAIN + encode({"seq": seq, "ts": ts, "hash": event_hash}).encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A signed statement of the host: at `ts` its retention removed the events up to `seq`, whose hash was `hash`.

    Only this licenses a chain that begins after event 1; a head, whose signature is over other bytes, does not.
    """

    seq: int
    hash: str
    ts: str
    signature: str


def checkpoint_payload(*, seq: int, ts: str, event_hash: str) -> bytes:
    """The bytes that a checkpoint's signature is over."""
    return CHECKPOINT_DOMAIN + encode({"seq": seq, "ts": ts, "hash": event_hash}).encode("ascii")

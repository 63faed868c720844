"""Documents that a market source signs: which keys hold, and whether one may take the place of another.

    {"schema": …, "generated_at": "2026-06-15T00:00:00Z", …,
     "signatures": [{"publisher": "acme", "signature_ed25519": …}]}

A signature covers a domain line and RFC 8785 (JCS) of the document without `signatures`: spaces, order and escapes of
the file may differ, what it says may not. Fields that latticed does not know are signed like the others, and ignored.
"""

from __future__ import annotations

import calendar
import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import strict_json, text
from latticed.model.errors import Problem
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURES: Final = "signatures"
_VALUE: Final = "signature_ed25519"
MAX_SIGNATURES: Final = 64
"""Each is tried under every pinned key."""
SKEW_S: Final = 300
"""Seconds that a document may be ahead of this host's clock."""
# RFC 3339 in UTC, whole seconds: one spelling of each moment, no leap second, no lower case.
_MOMENT: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature as the document has it. `publisher` is a label; only the source's pinned keys are asked."""

    publisher: str
    signature_ed25519: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedDocument:
    """What all signed documents have. `generated_s` is in seconds since 1970, `sha256` (hex) of `payload`, which is
    what signatures cover.
    """

    generated_at: str
    generated_s: int
    payload: bytes
    sha256: str
    signatures: tuple[Signature, ...]

    def held_by(self, pinned: Iterable[str]) -> frozenset[str]:
        """Those of the `pinned` keys (canonical base64) under which one of the signatures holds, each counted once."""
        written = [raw for one in self.signatures if (raw := _bytes(one.signature_ed25519)) is not None]
        return frozenset(
            key for key in pinned if any(keys.verify_signature(keys.raw(key), self.payload, one) for one in written)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenDocument:
    """The newest document that was accepted of a source: `sha256` of its payload, `keys` under which it held."""

    generated_at: str
    generated_s: int
    sha256: str
    keys: frozenset[str]


def decode(data: bytes, *, schema: str, domain: bytes, code: str) -> tuple[dict[str, Any], SignedDocument]:
    """The JSON object in `data`, and what it has in common with other signed documents.

    Problem `code` when it is no strict JSON object of `schema`, or lacks a valid `generated_at`.
    """
    try:
        raw = strict_json.loads(data, integers_only=True)
    except strict_json.InvalidJson as error:
        raise Problem(code, text.sanitise(str(error), 200)) from error
    if not isinstance(raw, dict) or raw.get("schema") != schema:
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise Problem(code, f"expected a JSON object with the schema {schema}, found {shown(found)}")
    generated_at = raw.get("generated_at")
    generated_s = moment(generated_at)
    if generated_s is None:
        expected = "a moment in UTC such as 2026-06-15T00:00:00Z"
        raise Problem(code, f"generated_at: expected {expected}, found {shown(generated_at)}")
    payload = signing_payload(raw, domain)
    return raw, SignedDocument(
        generated_at=str(generated_at),
        generated_s=generated_s,
        payload=payload,
        sha256=hashlib.sha256(payload).hexdigest(),
        signatures=_signatures(raw.get(SIGNATURES, []), code),
    )


def signing_payload(raw: dict[str, Any], domain: bytes) -> bytes:
    """The bytes that each signature of a document covers."""
    import rfc8785  # only when a document is read or signed

    return domain + rfc8785.dumps({name: value for name, value in raw.items() if name != SIGNATURES})


def signed(raw: dict[str, Any], domain: bytes, *, publisher: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """`raw` with a signature by `key` added, in place of those of this key; `publisher` is its label, which replaces
    nothing: two keys may have the same one.
    """
    payload, public = signing_payload(raw, domain), key.public_key().public_bytes_raw()
    # What is no object is no signature: hosts pass over it, and it goes.
    written = [one for one in raw.get(SIGNATURES, []) if isinstance(one, dict)]
    others = [one for one in written if not keys.verify_signature(public, payload, _bytes(one.get(_VALUE)) or b"")]
    made = {"publisher": publisher, _VALUE: keys.encode_base64(key.sign(payload))}
    return {**raw, SIGNATURES: [*others, made]}


def moment(value: Any) -> int | None:
    """Seconds since 1970 of a moment in the one form that documents write; None for any other value."""
    found = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    numbers = tuple(int(one) for one in found.groups())
    try:
        seconds = calendar.timegm((*numbers, 0, 0, 0))
    except ValueError:
        return None
    # timegm takes the 31st of February, hour 24 and second 60 for the moment after.
    return seconds if time.gmtime(seconds)[:6] == numbers else None


def judge(
    document: SignedDocument, *, holding: frozenset[str], pinned: Iterable[str], seen: SeenDocument | None, now_s: int
) -> SeenDocument:
    """What is remembered of a signed document that may take the place of the last one (`seen`).

    `holding` from `held_by`. Problem index_from_future, index_rolled_back, or index_changed for another document of the
    same moment. `seen` does not count once none of the keys that it held under is pinned any more: whoever had such a
    key could have dated a document far ahead, and taking the key away is what mends that.
    """
    if document.generated_s > now_s + SKEW_S:
        raise Problem(
            "index_from_future",
            f"expected generated_at by now, at most {SKEW_S} s ahead, found {document.generated_at}",
            "check this host's clock; if it is right, the source's is wrong",
        )
    if seen is not None and seen.keys.intersection(pinned):
        if document.generated_s < seen.generated_s:
            raise Problem(
                "index_rolled_back",
                f"expected generated_at from {seen.generated_at} on, found {document.generated_at}",
                "somebody serves an old index; the newer one stays in use",
            )
        if document.generated_s == seen.generated_s and document.sha256 != seen.sha256:
            raise Problem(
                "index_changed",
                f"expected the index of {seen.generated_at} that was seen before, found another of the same moment",
                "the source has to give each index its own generated_at; the one seen first stays in use",
            )
    return SeenDocument(
        generated_at=document.generated_at,
        generated_s=document.generated_s,
        sha256=document.sha256,
        keys=holding,
    )


def shown(value: Any) -> str:
    """A value of somebody else's document, short and safe to print."""
    match value:
        case None:
            return "nothing"
        case str():
            return f'"{text.sanitise(value, 60)}"'
        case dict() | list():
            return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
        case _:
            return text.clip(str(value), 60)


def _signatures(value: Any, code: str) -> tuple[Signature, ...]:
    """The list `signatures`; one that is malformed is kept out, as one that does not hold would be."""
    if not isinstance(value, list) or len(value) > MAX_SIGNATURES:
        raise Problem(code, f"signatures: expected a list of at most {MAX_SIGNATURES}, found {shown(value)}")
    return tuple(
        Signature(publisher=str(one.get("publisher", "")), signature_ed25519=one[_VALUE])
        for one in value
        if isinstance(one, dict) and isinstance(one.get(_VALUE), str)
    )


def _bytes(signature: Any) -> bytes | None:
    """The 64 bytes of a signature, None for what is none."""
    if not isinstance(signature, str):
        return None
    try:
        return keys.decode_base64(signature, size=keys.SIGNATURE_BYTES)
    except keys.BadText:
        return None

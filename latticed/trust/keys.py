"""Ed25519 keys and signatures as text, and the only verification of signatures on bundles (RFC 8032)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

# Prime and curve constant of edwards25519 (RFC 8032 §5.1).
_PRIME: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _PRIME) % _PRIME
_SMALL_ORDER_8: Final = (
    # y of the four points of order 8 (two values, each with either sign of x); the tests derive them again
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
)
_SMALL_ORDER_Y: Final = frozenset({0, 1, _PRIME - 1, *_SMALL_ORDER_8})
"""y of the eight points of order 1, 2, 4 and 8: under such keys forged signatures verify."""

_MOST_HELD: Final = 32_768
_HELD: Final[set[bytes]] = set()
"""SHA-256 of key, signature and message of those that hold, 130 bytes of memory each: at a restart a bundle, its stored
pair and its start ask for the same one.
"""

_ALPHABET: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}")


class BadText(ValueError):  # reads as the finding it is
    """This text is not the key or signature it should be; the message says what was expected and found."""


def decode_base64(text: str, *, size: int) -> bytes:
    """`size` bytes from base64 of the standard alphabet, padded or not, or BadText.

    No white space, and unused bits must be zero: one value has one spelling, apart from its padding (RFC 4648 §3.5).
    """
    if not _ALPHABET.fullmatch(text):
        raise BadText("expected base64 of the standard alphabet without white space, found other characters")
    bare = text.rstrip("=")
    padding = "=" * (-len(bare) % 4)
    if text != bare and text != bare + padding:
        raise BadText(f"expected base64 with {len(padding)} padding characters or none, found {len(text) - len(bare)}")
    try:
        value = base64.b64decode(bare + padding, validate=True)
    except binascii.Error as error:
        raise BadText(f"expected base64, found {len(bare)} characters, which no number of bytes has") from error
    if len(value) != size:
        raise BadText(f"expected {size} bytes in base64, found {len(value)}")
    if base64.b64encode(value).decode() != bare + padding:
        raise BadText("expected canonical base64, found unused bits that are not zero")
    return value


def encode_base64(value: bytes) -> str:
    """Base64 of the standard alphabet, padded: the only form that latticed writes."""
    return base64.b64encode(value).decode()


def raw(canonical: str) -> bytes:
    """The bytes of what `encode_base64` wrote, without the checks of `decode_base64`."""
    return base64.b64decode(canonical)


def fingerprint(canonical: str) -> str:
    """A short form of a key for people to compare: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(raw(canonical)).hexdigest()[:16]


def decode_public(text: str) -> bytes:
    """The 32 bytes of a public key that passes `check_public`, or BadText; white space around it is allowed."""
    key = decode_base64(text.strip(), size=KEY_BYTES)
    check_public(key)
    return key


def check_public(key: bytes) -> None:
    """Raise BadText for keys of small order, with an unreduced y, or not on the curve.

    OpenSSL accepts all of these; under a key of small order anybody can make signatures that verify.
    """
    # Little-endian, and the top bit is the sign of x (RFC 8032 §5.1.2).
    y = int.from_bytes(key, "little") & ((1 << 255) - 1)
    if not any(key):
        raise BadText("expected a public key, found 32 zero bytes")
    if y >= _PRIME:
        raise BadText("expected a canonical public key, found one whose y is not below 2^255-19")
    if y in _SMALL_ORDER_Y:
        raise BadText("expected a public key of large order, found a small-order point that anybody can sign under")
    if not _on_curve(y):
        raise BadText("expected a public key, found 32 bytes that are no point of the curve: no signature can hold")


def _on_curve(y: int) -> bool:
    """Whether there is an x with -x² + y² = 1 + d·x²·y² (RFC 8032 §5.1.3): OpenSSL takes any 32 bytes."""
    x_squared_times_square = (y * y - 1) * (_D * y * y + 1)
    # Euler's criterion, for x² times the square of its denominator: that is a square exactly when x² is one.
    return pow(x_squared_times_square, (_PRIME - 1) // 2, _PRIME) != _PRIME - 1


def verify_signature(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is an Ed25519 signature of `message` under the 32-byte public `key` (RFC 8032 §5.1.7).

    `key` must have passed `check_public` before; nothing raises, a key or signature of another length is False.
    Signatures that hold are remembered for as long as the process lives: whether they hold depends on nothing else.
    """
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    # Both of fixed length, so that no other three can have the same bytes.
    asked = hashlib.sha256(key + signature)
    asked.update(message)
    if (known := asked.digest()) in _HELD:
        return True
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    hold([known])
    return True


def hold(known: Iterable[bytes]) -> None:
    """Remember signatures as holding, by what `take_held` of another process of latticed gave."""
    if len(_HELD) >= _MOST_HELD:
        _HELD.clear()
    _HELD.update(known)


def take_held() -> tuple[bytes, ...]:
    """The signatures that are remembered, which are forgotten here."""
    found = tuple(_HELD)
    _HELD.clear()
    return found

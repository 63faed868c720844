"""Keys of the message system's identities, and the tokens that they sign: text forms only, no I/O.

    U…  the public key of a user, SU… its seed; A… of an account, O… of an operator   (NATS ADR-14, package nkeys)

A key is Ed25519; its text is base32 of a prefix that says whose key it is, the 32 bytes, and a CRC-16. A token is a JWT
with the algorithm `ed25519-nkey`. Here with `cryptography`, which latticed has anyway, in place of nkeys and PyNaCl.
These keys let somebody connect. No node believes anything because of them: see `documents`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.kit import strict_json
from latticed.trust import keys

_SEED: Final = 18 << 3  # 'S' as the first letter of base32
_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_MOST_TOKEN: Final = 128 << 10
_CREDENTIALS: Final = re.compile(
    rb"-----BEGIN NATS USER JWT-----\s*(\S+)\s*-{3,}END NATS USER JWT-{3,}.*?"
    rb"-----BEGIN USER NKEY SEED-----\s*(\S+)\s*-{3,}END USER NKEY SEED-{3,}",
    re.DOTALL,
)


class KeyKind(IntEnum):
    """Whose key it is: the first byte of its text."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3


class BadKey(ValueError):
    """This text is no key, token or credentials file; the message says what was expected, and never shows a seed."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair of one kind."""

    kind: KeyKind
    private: Ed25519PrivateKey

    @staticmethod
    def generate(kind: KeyKind) -> Key:
        """A new one, from the system's source of random numbers."""
        return Key(kind, Ed25519PrivateKey.generate())

    @staticmethod
    def from_seed(text: str) -> Key:
        """The key whose seed is `text`; BadKey."""
        raw = _decoded(text, 34, "a seed")
        if raw[0] & 0xF8 != _SEED:
            raise BadKey("expected a seed, found another text in base32")
        kind = (raw[0] & 7) << 5 | (raw[1] & 0xF8) >> 3
        try:
            return Key(KeyKind(kind), Ed25519PrivateKey.from_private_bytes(raw[2:]))
        except ValueError as error:
            raise BadKey("expected the seed of an operator, account or user, found that of something else") from error

    @property
    def public(self) -> str:
        """The public key as text."""
        return _encoded(bytes([self.kind]) + self.private.public_key().public_bytes_raw())

    @property
    def seed(self) -> str:
        """The secret as text; whoever has it has the key."""
        head = bytes([_SEED | self.kind >> 5, (self.kind & 31) << 3])
        return _encoded(head + self.private.private_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCredentials:
    """What a client connects with: its key and a token that an account signed for it."""

    token: str
    key: Key
    name: str
    """Of the user, which is the node's name in the permissions of its account."""
    expires_s: int | None
    """Seconds since 1970 from which the server refuses them; None: never."""

    @staticmethod
    def parse(data: bytes) -> UserCredentials:
        """Those in a credentials file as nsc writes it; BadKey.

        The token's signature is not judged, which is the server's business: its key must be the one it was made for.
        """
        found = _CREDENTIALS.search(data)
        if found is None:
            raise BadKey("expected a credentials file with a user's JWT and its seed, found another text")
        token, key = found[1].decode(errors="replace"), Key.from_seed(found[2].decode(errors="replace"))
        claims = unverified(token)
        if claims.get("sub") != key.public:
            raise BadKey("expected a token for the key in the same file, found one for another key")
        expires = claims.get("exp")
        return UserCredentials(
            token=token,
            key=key,
            name=str(claims.get("name", "")),
            expires_s=expires if isinstance(expires, int) else None,
        )

    def text(self) -> bytes:
        """The credentials file."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.key.seed}\n------END USER NKEY SEED------\n"
        ).encode()


def check_public(text: str, kind: KeyKind) -> str:
    """`text` if it is a public key of this kind that signatures can be judged under; BadKey."""
    raw = _decoded(text, 33, "a public key")
    if raw[0] != kind:
        raise BadKey(f"expected the public key of an {kind.name.lower()}, found {text[:1]}…")
    try:
        keys.check_public(raw[1:])
    except keys.BadText as error:
        raise BadKey(str(error)) from error
    return text


def token(
    signer: Key, subject: str, name: str, claims: dict[str, Any], *, now_s: int, expires_s: int | None = None
) -> str:
    """A JWT in which `signer` says `claims` about the public key `subject`.

    The server takes an account's token in place of an older one by the moment in it (`iat`).
    """
    body: dict[str, Any] = {"iat": now_s, "iss": signer.public, "name": name, "sub": subject, "nats": claims}
    if expires_s is not None:
        body["exp"] = expires_s
    body["jti"] = base64.b32encode(hashlib.sha256(_json(body)).digest()).rstrip(b"=").decode()
    head = f"{_url_text(_json(_HEADER))}.{_url_text(_json(body))}"
    return f"{head}.{_url_text(signer.sign(head.encode()))}"


def verified(text: str, issuers: frozenset[str]) -> dict[str, Any]:
    """The claims of a JWT that one of `issuers` (public keys) has signed; BadKey."""
    claims = unverified(text)
    issuer = claims.get("iss")
    if issuer not in issuers:
        raise BadKey(f"expected a token signed by {' or '.join(sorted(issuers))}, found {str(issuer)[:80]!r}")
    head, _, signature = text.rpartition(".")
    if not keys.verify_signature(_decoded(str(issuer), 33, "a public key")[1:], head.encode(), _url_bytes(signature)):
        raise BadKey("expected a token whose signature holds, found one that was changed")
    return claims


def unverified(text: str) -> dict[str, Any]:
    """The claims of a JWT, whoever signed it; BadKey for what is none."""
    if len(text) > _MOST_TOKEN:
        raise BadKey(f"expected a token of at most {_MOST_TOKEN} characters, found {len(text)}")
    parts = text.split(".")
    if len(parts) != 3:
        raise BadKey(f"expected a token of three parts, found {len(parts)}")
    try:
        header, claims = (strict_json.loads(_url_bytes(part)) for part in parts[:2])
    except strict_json.InvalidJson as error:
        raise BadKey(f"expected a token of JSON: {error}") from error
    if header != _HEADER or not isinstance(claims, dict):
        raise BadKey("expected a token of the algorithm ed25519-nkey, found another")
    return claims


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _url_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _url_bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadKey("expected base64url, found other characters") from error


def _encoded(raw: bytes) -> str:
    return base64.b32encode(raw + _crc16(raw)).rstrip(b"=").decode()


def _decoded(text: str, size: int, what: str) -> bytes:
    """The `size` bytes before the checksum in `text`; BadKey, without the text: it may be a secret."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise BadKey(f"expected {what} in base32, found other characters") from error
    # One value has one spelling: unused bits at the end are zero.
    if len(raw) != size + 2 or _encoded(raw[:-2]) != text:
        raise BadKey(f"expected {what} of {size} bytes and its checksum, found {len(raw)} bytes that do not fit it")
    return raw[:-2]


def _crc16(data: bytes) -> bytes:
    """CRC-16/XMODEM, low byte first."""
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")

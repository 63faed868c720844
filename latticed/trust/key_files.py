"""An author's private key: PEM, PKCS #8 (RFC 8410, RFC 5958), encrypted or not, in a file or from a descriptor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

MAX_BYTES: Final = 16 << 10
"""Most bytes of a key file; an Ed25519 key in PEM has about 120."""

MIN_PASSPHRASE: Final = 12
"""Fewest bytes of a passphrase for a new key: PEM stretches it by 2,048 rounds of PBKDF2 only, so that one of eight
characters can be tried out.
"""
MAX_PASSPHRASE: Final = 1023
"""Most bytes of a passphrase: what OpenSSL takes."""

_HINT: Final = "latticectl key generate makes one; openssl genpkey -algorithm ed25519 does too"


def generate() -> Ed25519PrivateKey:
    """A new key pair, from the system's source of random numbers."""
    return Ed25519PrivateKey.generate()


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as trust.json wants it: base64 of 32 bytes."""
    return keys.encode_base64(key.public_key().public_bytes_raw())


def private_text(key: Ed25519PrivateKey, passphrase: bytes = b"") -> bytes:
    """The private key as PEM, PKCS #8; encrypted (PBES2, AES-256) unless the passphrase is empty."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def create(path: Path, key: Ed25519PrivateKey, passphrase: bytes = b"") -> None:
    """Write `key` to the new file `path`, mode 0600, and sync it; encrypted unless the passphrase is empty.

    Problem "exists" rather than replacing anything, "io_error", or "passphrase_short"; no file is left then.
    """
    if passphrase and len(passphrase) < MIN_PASSPHRASE:
        found = f"expected a passphrase of at least {MIN_PASSPHRASE} characters, found {len(passphrase)}"
        raise Problem("passphrase_short", found, "several words are easy to remember")
    try:
        # EXCL: a key in use must not be overwritten; it cannot be made again.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise exists(path) from error
    except OSError as error:
        raise Problem("io_error", f"cannot write {path}: {error.strerror}") from error
    with files.closing(fd):
        try:
            files.write_all(fd, private_text(key, passphrase))
            os.fsync(fd)
        # A part of a key is of no use, and would be in the way of the next attempt.
        except OSError as error:
            os.unlink(path)
            raise Problem("io_error", f"cannot write {path}: {error.strerror}") from error
    # The directory entry, too (fsync(2)): the author may hand out the public key at once.
    files.sync_directory(path.parent)


def exists(path: Path) -> Problem:
    """The Problem of a new key for whose file there is something already."""
    return Problem(
        "exists", f"expected no file at {path}, found one", "keys are never overwritten: choose another name"
    )


def read(path: Path, passphrase: Callable[[], bytes] | None = None) -> Ed25519PrivateKey:
    """The private key in the file `path`; Problem "not_found", "io_error", or as `parse`."""
    try:
        data = files.read_at_most(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected a private key at {path}, found no file", _HINT) from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise _invalid(str(path), str(error)) from error
    return parse(data, str(path), passphrase)


def parse(data: bytes, where: str, passphrase: Callable[[], bytes] | None = None) -> Ed25519PrivateKey:
    """The private key in PEM text; `where` names it in messages.

    `passphrase()` is asked only for an encrypted key. Problem "key_invalid", or "key_encrypted" for one without
    `passphrase`.
    """
    try:
        key = serialization.load_pem_private_key(data, password=None)
    # cryptography raises TypeError for an encrypted key without a password.
    except TypeError as error:
        if passphrase is None:
            hint = "give its passphrase on a descriptor: --passphrase-fd 3 3< FILE"
            raise Problem(
                "key_encrypted", f"expected the passphrase of the key in {where}, found none", hint
            ) from error
        key = _decrypted(data, where, passphrase())
    except ValueError as error:
        raise _invalid(where, "the text is no PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _invalid(where, f"the key is of another kind ({type(key).__name__})")
    return key


def _decrypted(data: bytes, where: str, passphrase: bytes) -> PrivateKeyTypes:
    """The key in the encrypted PEM text; Problem key_invalid, whether the passphrase is wrong or the text damaged."""
    try:
        return serialization.load_pem_private_key(data, password=passphrase)
    except (TypeError, ValueError) as error:
        raise _invalid(where, "the passphrase is another one, or the file is damaged") from error


def _invalid(where: str, found: str) -> Problem:
    return Problem("key_invalid", f"expected a private key in {where}, found none: {found}", _HINT)

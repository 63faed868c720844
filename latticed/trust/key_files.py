"""An author's private key as a file: PEM, PKCS #8 (RFC 8410), readable by its owner only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.trust import keys

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 16 << 10
"""Most bytes of a key file; an Ed25519 key in PEM has about 120."""

_HINT: Final = "latticectl key generate makes one; openssl genpkey -algorithm ed25519 does too"


def generate() -> Ed25519PrivateKey:
    """A new key pair, from the system's source of random numbers."""
    return Ed25519PrivateKey.generate()


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as trust.json wants it: base64 of 32 bytes."""
    return keys.encode_base64(key.public_key().public_bytes_raw())


def private_text(key: Ed25519PrivateKey) -> bytes:
    """The private key as PEM, PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def create(path: Path, key: Ed25519PrivateKey) -> None:
    """Write `key` to the new file `path`, mode 0600, and sync it.

    Problem "exists" rather than replacing anything, or "io_error".
    """
    try:
        # EXCL: a key in use must not be overwritten; it cannot be made again.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Problem(
            "exists", f"expected no file at {path}, found one", "keys are never overwritten: choose another name"
        ) from error
    except OSError as error:
        raise Problem("io_error", f"cannot write {path}: {error.strerror}") from error
    with files.closing(fd):
        files.write_all(fd, private_text(key))
        os.fsync(fd)
    # The directory entry, too (fsync(2)): the author may hand out the public key at once.
    files.sync_directory(path.parent)


def read(path: Path) -> Ed25519PrivateKey:
    """The private key in the file `path`; Problem "not_found", "io_error" or "key_invalid"."""
    try:
        return parse(files.read_at_most(path, MAX_BYTES))
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected a private key at {path}, found no file", _HINT) from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Problem("key_invalid", f"expected a private key in {path}, found none: {error}", _HINT) from error


def parse(data: bytes) -> Ed25519PrivateKey:
    """The private key in PEM text; ValueError when it is something else, which the message names."""
    try:
        key = serialization.load_pem_private_key(data, password=None)
    # cryptography raises TypeError for an encrypted key without a password.
    except TypeError as error:
        raise ValueError("the key is encrypted with a password") from error
    except ValueError as error:
        raise ValueError("the text is no PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"the key is of another kind ({type(key).__name__})")  # noqa: TRY004 - the file's fault
    return key

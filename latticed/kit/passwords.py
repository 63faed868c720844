"""Passwords as operators store them, in clear or hashed (scrypt, RFC 7914), and whether a given one matches.

The form of a hash is `$scrypt$ln=15,r=8,p=1$<salt>$<hash>`, both base64 without padding: cost 2^ln, block size r,
parallelism p.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import Final, NamedTuple

PREFIX: Final = "$scrypt$"
"""What tells a stored hash from a password in clear."""
MIN_CHARACTERS: Final = 8
MAX_BYTES: Final = 1_024
"""Bounds of a password in clear; MAX_BYTES in UTF-8, for one that is given as well."""
_HASH: Final = re.compile(
    r"\$scrypt\$ln=(?P<ln>[0-9]{1,2}),r=(?P<r>[0-9]{1,2}),p=(?P<p>[0-9])"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,88})\$(?P<hash>[A-Za-z0-9+/]{22,88})"
)
_MAX_MEMORY_BYTES: Final = 128 << 20
"""What checking one password may take of memory."""


class _Cost(NamedTuple):
    ln: int
    r: int
    p: int

    @property
    def memory_bytes(self) -> int:
        """What scrypt takes: 2^ln blocks of 128 r bytes, and p more (RFC 7914)."""
        return 128 * self.r * ((1 << self.ln) + self.p)


_DEFAULT_COST: Final = _Cost(ln=15, r=8, p=1)  # 32 MiB and about 50 ms


class _Hash(NamedTuple):
    cost: _Cost
    salt: bytes
    value: bytes


def fault(stored: str) -> str | None:
    """Why a stored value cannot serve as a password, or None when it can. The text does not contain the value."""
    if stored.startswith(PREFIX):
        known = _parsed(stored)
        return None if known else "expected $scrypt$ln=..,r=..,p=..$salt$hash that takes at most 128 MiB"
    if len(stored) < MIN_CHARACTERS or len(stored.encode("utf-8")) > MAX_BYTES:
        return f"expected a password of {MIN_CHARACTERS} characters to {MAX_BYTES} bytes"
    return None


def verify(stored: str, given: str) -> bool:
    """Whether `given` is the password `stored`, in clear or hashed. Takes about 50 ms on purpose, so call it off the
    loop.

    A stored password is hashed too, so that the time taken does not tell how much of it was right. False for a stored
    value that has a `fault`.
    """
    # One byte more than allowed is enough to see that it is too long, and keeps hashing it cheap.
    guess = given.encode("utf-8", "replace")[: MAX_BYTES + 1]
    known = _parsed(stored)
    usable = known is not None or fault(stored) is None
    if known is None:
        salt = os.urandom(16)
        known = _Hash(_DEFAULT_COST, salt, _scrypt(stored.encode("utf-8"), salt, _DEFAULT_COST, 32))
    # In every case, also for what cannot match: the time taken must not tell which it was.
    found = _scrypt(guess, known.salt, known.cost, len(known.value))
    return hmac.compare_digest(found, known.value) and usable and len(guess) <= MAX_BYTES


def make_hash(password: str, *, ln: int = _DEFAULT_COST.ln) -> str:
    """The hash of a password, to be stored in its place; each `ln` more doubles the time and memory of one guess."""
    salt, cost = os.urandom(16), _DEFAULT_COST._replace(ln=ln)
    value = _scrypt(password.encode("utf-8"), salt, cost, 32)
    coded = [base64.b64encode(part).decode("ascii").rstrip("=") for part in (salt, value)]
    return f"{PREFIX}ln={cost.ln},r={cost.r},p={cost.p}${coded[0]}${coded[1]}"


def _parsed(stored: str) -> _Hash | None:
    """The parts of a stored hash. None for what is no hash, or one that would cost too little to guess or too much to
    check.
    """
    found = _HASH.fullmatch(stored)
    if found is None:
        return None
    cost = _Cost(int(found["ln"]), int(found["r"]), int(found["p"]))
    # Less than 2^10 is guessed too quickly.
    if not (10 <= cost.ln <= 20 and cost.r and cost.p) or cost.memory_bytes > _MAX_MEMORY_BYTES:
        return None
    try:
        return _Hash(cost, _decoded(found["salt"]), _decoded(found["hash"]))
    except binascii.Error:
        return None


def _decoded(coded: str) -> bytes:
    """Base64 without its padding, as bytes; binascii.Error when it is none."""
    return base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)


def _scrypt(password: bytes, salt: bytes, cost: _Cost, size: int) -> bytes:
    """The hash of a password, `size` bytes. Takes tens of milliseconds and `cost.memory_bytes`."""
    enough = cost.memory_bytes + (1 << 20)  # OpenSSL refuses what its own estimate puts above this
    return hashlib.scrypt(password, salt=salt, n=1 << cost.ln, r=cost.r, p=cost.p, maxmem=enough, dklen=size)

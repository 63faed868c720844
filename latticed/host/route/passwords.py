"""Passwords of proxied services: what operators keep as a secret, and whether somebody said it (RFC 7914, scrypt).

The secret is the password itself, or its hash as `$scrypt$ln=15,r=8,p=1$<salt>$<hash>`, both base64 without padding.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import Final, NamedTuple

LEAST_CHARACTERS: Final = 8
MAX_BYTES: Final = 1_024
_HASH: Final = re.compile(
    r"\$scrypt\$ln=(?P<ln>[0-9]{1,2}),r=(?P<r>[0-9]{1,2}),p=(?P<p>[0-9])"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,88})\$(?P<hash>[A-Za-z0-9+/]{22,88})"
)
_LN, _R, _P = 15, 8, 1  # 32 MiB and about 50 ms
_MOST_BYTES: Final = 128 << 20
"""What checking one password may take of memory."""


class _Cost(NamedTuple):
    ln: int
    r: int
    p: int

    @property
    def memory(self) -> int:
        return 128 * self.r * ((1 << self.ln) + self.p)


class _Hash(NamedTuple):
    cost: _Cost
    salt: bytes
    value: bytes


def fault(kept: str) -> str | None:
    """Why the value of a secret cannot serve as a password, or None; never the value."""
    if kept.startswith("$scrypt$"):
        known = _parsed(kept)
        return None if known else "expected $scrypt$ln=..,r=..,p=..$salt$hash that takes at most 128 MiB"
    if len(kept) < LEAST_CHARACTERS or len(kept.encode("utf-8")) > MAX_BYTES:
        return f"expected a password of {LEAST_CHARACTERS} characters to {MAX_BYTES} bytes"
    return None


def verify(kept: str, given: str) -> bool:
    """Whether `given` is the password. Takes as long for a wrong one; slow on purpose, so not on the loop."""
    said = given.encode("utf-8", "replace")[: MAX_BYTES + 1]
    known = _parsed(kept)
    if known is None:
        salt = os.urandom(16)
        known = _Hash(_Cost(_LN, _R, _P), salt, _hashed(kept.encode("utf-8"), salt, _Cost(_LN, _R, _P), 32))
        usable = fault(kept) is None
    else:
        usable = True
    found = _hashed(said, known.salt, known.cost, len(known.value))
    return hmac.compare_digest(found, known.value) and usable and len(said) <= MAX_BYTES


def hashed(password: str, *, ln: int = _LN) -> str:
    """The form in which a password need not be kept itself; each `ln` more doubles what trying one costs."""
    salt = os.urandom(16)
    value = _hashed(password.encode("utf-8"), salt, _Cost(ln, _R, _P), 32)
    coded = [base64.b64encode(part).decode("ascii").rstrip("=") for part in (salt, value)]
    return f"$scrypt$ln={ln},r={_R},p={_P}${coded[0]}${coded[1]}"


def _parsed(kept: str) -> _Hash | None:
    found = _HASH.fullmatch(kept)
    if found is None:
        return None
    cost = _Cost(int(found["ln"]), int(found["r"]), int(found["p"]))
    if not (10 <= cost.ln <= 20 and cost.r and cost.p) or cost.memory > _MOST_BYTES:
        return None
    try:
        return _Hash(cost, _decoded(found["salt"]), _decoded(found["hash"]))
    except binascii.Error:
        return None


def _decoded(coded: str) -> bytes:
    return base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)


def _hashed(password: bytes, salt: bytes, cost: _Cost, size: int) -> bytes:
    room = cost.memory + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=1 << cost.ln, r=cost.r, p=cost.p, maxmem=room, dklen=size)

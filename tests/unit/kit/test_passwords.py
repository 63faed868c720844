"""Passwords of proxied services: in clear or hashed, judged before use."""

from __future__ import annotations

import base64
import hashlib

import pytest

from latticed.kit import passwords

CHEAP = passwords.make_hash("correct horse", ln=10)


def test_the_password_itself():
    assert passwords.fault("correct horse") is None
    assert passwords.verify("correct horse", "correct horse")
    assert not passwords.verify("correct horse", "Correct horse")
    assert not passwords.verify("correct horse", "")


def test_its_hash():
    """Salted: the same password never looks the same; the hash is no password."""
    assert passwords.fault(CHEAP) is None
    assert passwords.verify(CHEAP, "correct horse")
    assert not passwords.verify(CHEAP, CHEAP)
    assert passwords.make_hash("correct horse", ln=10) != CHEAP


def test_a_hash_of_another_program():
    """The form of the field: $scrypt$ln=..,r=..,p=..$salt$hash, as the standard library makes it."""
    salt = b"0123456789abcdef"
    value = hashlib.scrypt(b"caf\xc3\xa9 au lait", salt=salt, n=1 << 11, r=4, p=2, dklen=64)
    coded = [base64.b64encode(part).decode().rstrip("=") for part in (salt, value)]
    kept = f"$scrypt$ln=11,r=4,p=2${coded[0]}${coded[1]}"
    assert passwords.fault(kept) is None
    assert passwords.verify(kept, "caf\u00e9 au lait")


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "short",
        "x" * 1_025,
        "$scrypt$",
        CHEAP.replace("ln=10", "ln=9"),
        CHEAP.replace("ln=10", "ln=18"),
        CHEAP.replace("r=8", "r=0"),
        CHEAP.replace("p=1", "p=0"),
        CHEAP + "$",
        CHEAP + "\n",
        CHEAP[:-30],
    ],
)
def test_what_cannot_serve_as_a_password_opens_nothing(kept):
    """Too short, too long, or a hash that is none or would take too much; the value is not shown."""
    assert passwords.fault(kept)
    assert len(kept) < 9 or kept not in (passwords.fault(kept) or "")
    assert not passwords.verify(kept, kept)


def test_a_long_guess_is_cut_and_wrong():
    assert not passwords.verify("x" * 1_024, "x" * 1_025)
    assert passwords.verify("x" * 1_024, "x" * 1_024)

"""kit.passwords: passwords in clear and as scrypt hashes, and values that cannot be used."""

from __future__ import annotations

import base64
import hashlib

import pytest

from latticed.kit import passwords

CHEAP = passwords.make_hash("correct horse", ln=10)


def test_clear_password_matches_itself_only():
    assert passwords.fault("correct horse") is None
    assert passwords.verify("correct horse", "correct horse")
    assert not passwords.verify("correct horse", "Correct horse")
    assert not passwords.verify("correct horse", "")


def test_password_hash_matches_its_password():
    """Salted: two hashes of one password differ, and a hash is not accepted as the password."""
    assert passwords.fault(CHEAP) is None
    assert passwords.verify(CHEAP, "correct horse")
    assert not passwords.verify(CHEAP, CHEAP)
    assert passwords.make_hash("correct horse", ln=10) != CHEAP


def test_hash_made_by_hashlib_matches_its_password():
    """Its form is $scrypt$ln=..,r=..,p=..$salt$hash."""
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
def test_unusable_stored_password_never_matches(kept):
    """It is too short, too long, a malformed hash, or one that costs too much; the message does not show it."""
    assert passwords.fault(kept)
    assert len(kept) < 9 or kept not in (passwords.fault(kept) or "")
    assert not passwords.verify(kept, kept)


def test_overlong_password_guess_does_not_match():
    assert not passwords.verify("x" * 1_024, "x" * 1_025)
    assert passwords.verify("x" * 1_024, "x" * 1_024)

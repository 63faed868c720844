"""Keys and signatures as text have one spelling, and weak keys are refused."""

from __future__ import annotations

import base64
import contextlib

import pytest

from latticed.trust import keys
from tests.house import bundles

P = 2**255 - 19
D = (-121665 * pow(121666, -1, P)) % P
L = 2**252 + 27742317777372353535851937790883648493

Point = tuple[int, int]


def _add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def _times(scalar: int, point: Point) -> Point:
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total


def _x_of(y: int) -> int | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    return root if root * root % P == square else None


def _torsion() -> set[Point]:
    """The eight points of small order, from the curve's equation alone (RFC 8032 §5.1)."""
    for y in range(2, 100):
        x = _x_of(y)
        generator = _times(L, (x, y)) if x is not None else (0, 1)
        found = {_times(k, generator) for k in range(8)}
        if len(found) == 8:
            return found
    raise AssertionError("no generator of the torsion group among small y")


def _spellings(point: Point) -> list[bytes]:
    """Every 32 bytes that some decoder accepts for `point`: either sign bit, y not reduced too."""
    ys = [y for y in (point[1], point[1] + P) if y < 2**255]
    return [(y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1)]


def test_keys_of_small_order_are_refused_in_every_spelling():
    """Under such keys forged signatures verify; computed here from the curve equation, not from a list."""
    spellings = {spelling for point in _torsion() for spelling in _spellings(point)}
    assert len(spellings) >= 12
    for spelling in spellings:
        with pytest.raises(keys.BadText):
            keys.check_public(spelling)


@pytest.mark.parametrize("y", [P, P + 1, P + 2, P + 18, 2**255 - 1])
def test_keys_with_unreduced_y_are_refused(y):
    """Otherwise a revoked key could be used in its other spelling."""
    with pytest.raises(keys.BadText, match="canonical"):
        keys.check_public(y.to_bytes(32, "little"))


def test_keys_not_on_the_curve_are_refused():
    """About half of all values; checked here by solving for x (RFC 8032 section 5.1.3)."""
    told = [_is_taken(y) for y in range(3, 200)]
    assert told == [_x_of(y) is not None for y in range(3, 200)]
    assert 60 < sum(told) < 140
    for number in range(20):
        keys.check_public(base64.b64decode(bundles.author(f"author-{number}").public))


def _is_taken(y):
    with contextlib.suppress(keys.BadText):
        keys.check_public(y.to_bytes(32, "little"))
        return True
    return False


def test_all_zero_key_is_refused():
    """A placeholder that was never filled in."""
    with pytest.raises(keys.BadText, match="zero"):
        keys.decode_public("A" * 43 + "=")


def test_valid_keys_are_accepted_with_or_without_padding_and_white_space():
    """The result is canonical."""
    public = bundles.author().public
    raw = base64.b64decode(public)
    for written in (public, public.rstrip("="), f" {public}\n", f"\t{public.rstrip('=')} "):
        assert keys.decode_public(written) == raw
    assert keys.encode_base64(raw) == public
    assert keys.raw(public) == raw


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "found 0"),
        ("AAAA", "found 3"),
        ("A" * 86 + "==", "found 64"),
        ("A" * 41, "no number of bytes"),
        ("-" * 43, "other characters"),
        ("AAAA AAAA", "other characters"),
        ("AAAA\nAAAA", "other characters"),
        ("A" * 43 + "==", "padding"),
        ("A" * 42 + "=", "padding"),
        ("A" * 42 + "B", "canonical"),
        ("=" + "A" * 43, "other characters"),
        ("é" * 43, "other characters"),
    ],
)
def test_key_other_than_strict_base64_of_32_bytes_is_refused(written, said):
    """The message says what was expected and what was found."""
    with pytest.raises(keys.BadText, match=said):
        keys.decode_base64(written, size=32)


def test_signature_verifies_for_its_message_and_key_only():
    """Malformed keys and signatures give False, never an exception."""
    acme, other = bundles.author(), bundles.author()
    public, signature = base64.b64decode(acme.public), acme.key.sign(b"message")
    assert keys.verify_signature(public, b"message", signature)
    assert not keys.verify_signature(public, b"massage", signature)
    assert not keys.verify_signature(base64.b64decode(other.public), b"message", signature)
    assert not keys.verify_signature(public, b"message", signature[:-1])
    assert not keys.verify_signature(b"short", b"message", signature)
    for seed in range(8):  # about half of all byte strings are no point of the curve
        assert not keys.verify_signature(bytes([seed + 2]) * 32, b"message", signature)


def test_signature_that_holds_is_verified_once_and_no_other_is_taken_for_it(monkeypatch):
    """One bit elsewhere in key, message or signature is verified anew; what does not hold is not remembered."""
    monkeypatch.setattr(keys, "_HELD", set())
    asked, real = [], keys.Ed25519PublicKey

    class Counted:
        @staticmethod
        def from_public_bytes(raw):
            asked.append(raw)
            return real.from_public_bytes(raw)

    monkeypatch.setattr(keys, "Ed25519PublicKey", Counted)
    author = bundles.author()
    public, signature = base64.b64decode(author.public), author.key.sign(b"message")
    given = [public, b"message", signature]
    assert [keys.verify_signature(*given) for _ in range(3)] == [True] * 3
    assert len(asked) == 1
    for which in range(3):
        for bit in range(8 * len(given[which])):
            changed = list(given)
            flipped = int.from_bytes(given[which], "big") ^ (1 << bit)
            changed[which] = flipped.to_bytes(len(given[which]), "big")
            assert not keys.verify_signature(*changed)
    assert len(keys._HELD) == 1
    for moved in (
        (public + signature[:1], b"message", signature[1:]),
        (public, signature[-1:] + b"message", signature[:-1]),
        (public, b"", signature + b"message"),
    ):
        assert not keys.verify_signature(*moved)
    before = len(asked)
    assert keys.verify_signature(*given)
    assert len(asked) == before


def test_remembered_signatures_are_bounded(monkeypatch):
    monkeypatch.setattr(keys, "_HELD", set())
    monkeypatch.setattr(keys, "_MOST_HELD", 3)
    author = bundles.author()
    for number in range(10):
        message = b"%d" % number
        assert keys.verify_signature(base64.b64decode(author.public), message, author.key.sign(message))
        assert len(keys._HELD) <= 3

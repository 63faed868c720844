"""Keys, tokens and credentials files of the message system, in the forms that other tools write and read."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import nkeys

# Of NATS' documentation of nkeys.
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_published_seed_gives_published_public_key():
    key = nkeys.Key.from_seed(SEED)
    assert (key.kind, key.public, key.seed) == (nkeys.KeyKind.USER, PUBLIC, SEED)


@pytest.mark.parametrize("kind", list(nkeys.KeyKind))
def test_key_survives_its_text(kind):
    key = nkeys.Key.generate(kind)
    again = nkeys.Key.from_seed(key.seed)
    assert (again.kind, again.public) == (kind, key.public)
    assert key.public[0] == kind.name[0]
    assert nkeys.check_public(key.public, kind) == key.public


@pytest.mark.parametrize(
    "text",
    ["", "SU", PUBLIC, SEED[:-1], SEED.lower(), SEED[:-2] + "AA", SEED + "A", "S" + SEED, " " + SEED, SEED + "=", "é"],
)
def test_what_is_no_seed_is_refused_without_showing_it(text):
    with pytest.raises(nkeys.BadKey) as found:
        nkeys.Key.from_seed(text)
    assert not text or text not in str(found.value)


def test_public_key_of_another_kind_is_refused():
    with pytest.raises(nkeys.BadKey, match="public key of an account"):
        nkeys.check_public(PUBLIC, nkeys.KeyKind.ACCOUNT)


def test_public_key_under_which_anybody_can_sign_is_refused():
    weak = bytes([nkeys.KeyKind.USER]) + b"\x01" + bytes(31)
    with pytest.raises(nkeys.BadKey, match="small-order"):
        nkeys.check_public(nkeys._encoded(weak), nkeys.KeyKind.USER)


class TestTokens:
    signer = nkeys.Key.generate(nkeys.KeyKind.ACCOUNT)
    text = nkeys.token(signer, PUBLIC, "web-1", {"type": "user"}, now_s=1_000, expires_s=2_000)

    def test_claims_come_back(self):
        claims = nkeys.verified(self.text, frozenset({self.signer.public}))
        assert (claims["sub"], claims["name"], claims["iat"], claims["exp"]) == (PUBLIC, "web-1", 1_000, 2_000)
        assert claims["nats"] == {"type": "user"}

    def test_issuer_that_is_not_expected_is_refused(self):
        with pytest.raises(nkeys.BadKey, match="signed by"):
            nkeys.verified(self.text, frozenset({nkeys.Key.generate(nkeys.KeyKind.ACCOUNT).public}))

    @pytest.mark.parametrize("part", [1, 2])
    def test_token_that_was_changed_is_refused(self, part):
        parts = self.text.split(".")
        raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
        place = raw.index(b"web-1") if part == 1 else 0
        raw[place] ^= 1
        parts[part] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        with pytest.raises(nkeys.BadKey):
            nkeys.verified(".".join(parts), frozenset({self.signer.public}))

    def test_token_of_another_algorithm_is_refused(self):
        head = base64.urlsafe_b64encode(json.dumps({"typ": "JWT", "alg": "none"}).encode()).rstrip(b"=").decode()
        with pytest.raises(nkeys.BadKey, match="ed25519-nkey"):
            nkeys.unverified(".".join([head, *self.text.split(".")[1:]]))

    @given(st.text(max_size=200))
    def test_any_text_is_a_token_or_refused(self, text):
        with pytest.raises(nkeys.BadKey):
            nkeys.unverified(text)


class TestCredentials:
    signer = nkeys.Key.generate(nkeys.KeyKind.ACCOUNT)

    def made(self, key: nkeys.Key, subject: str) -> bytes:
        token = nkeys.token(self.signer, subject, "web-1", {}, now_s=1, expires_s=99)
        return nkeys.UserCredentials(token=token, key=key, name="", expires_s=None).text()

    def test_file_is_read_as_it_was_written(self):
        key = nkeys.Key.generate(nkeys.KeyKind.USER)
        found = nkeys.UserCredentials.parse(self.made(key, key.public))
        assert (found.key.seed, found.name, found.expires_s) == (key.seed, "web-1", 99)

    def test_token_for_another_key_is_refused(self):
        with pytest.raises(nkeys.BadKey, match="for another key"):
            nkeys.UserCredentials.parse(self.made(nkeys.Key.generate(nkeys.KeyKind.USER), PUBLIC))

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused(self, data):
        with pytest.raises(nkeys.BadKey):
            nkeys.UserCredentials.parse(data)

"""ledger.floors: the file has the bytes that the encoder would write of it, whatever names and values are in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.ledger import floors
from latticed.ledger.floors import Floors, Pin, SeenIndex
from latticed.ledger.revocations import RevocationRows
from latticed.model import chain
from latticed.model.accepted import Accepted
from latticed.model.errors import Problem

KEY = Ed25519PrivateKey.from_private_bytes(b"\7" * 32)
ODD = ("", "a", "Z", 'quo"te', "back\\slash", "\x00\x1f\x7f", "Łódź", "😀", "</script>", "a.b-c_d")
FULL = Floors(
    versions=dict.fromkeys(ODD, "1.0.0") | {"v": 'odd "\\ é\n'},
    masked={name: frozenset({name, "net:out", "kv:read"}) for name in ODD},
    terms={name: Accepted(type=name) for name in ODD},
    pins={name: Pin(publisher=name, signed=bool(name), identity="é" * 3) for name in ODD},
    revoked=RevocationRows(keys=frozenset({"b", "a"}), digests=frozenset(), plugins=frozenset(ODD)),
    heads={"decisions": (7, "ab"), "calls": (2, "cd")},
    sources={"s": SeenIndex(generated_at="t", generated_s=3, sha256="ef", keys=("k2", "k1"))},
    accepted_at="2026-01-01T00:00:00.000000Z",
    replaced=("ef" * 32, "ab" * 32),
)


@pytest.mark.parametrize("kept", [Floors(), FULL], ids=["empty", "full"])
def test_file_is_canonical_and_reads_back_as_it_was(tmp_path: Path, kept: Floors) -> None:
    floors.write(tmp_path, kept, KEY)
    written = (tmp_path / floors.FILE).read_bytes()
    assert written == chain.encode(json.loads(written)).encode() + b"\n"
    assert floors.read(tmp_path, KEY.public_key()) == kept


def test_changed_byte_of_any_member_is_refused(tmp_path: Path) -> None:
    floors.write(tmp_path, FULL, KEY)
    plain = json.loads((tmp_path / floors.FILE).read_bytes())
    for name in sorted(plain):
        other = {str: "2027", list: ["ab" * 32]}.get(type(plain[name])) or {**plain[name], "x": []}
        changed = {**plain, name: other}
        (tmp_path / floors.FILE).write_text(chain.encode(changed))
        with pytest.raises(Problem) as refused:
            floors.read(tmp_path, KEY.public_key())
        assert refused.value.code == "floors_invalid"

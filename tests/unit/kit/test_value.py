"""kit.value: what users of dataclasses rely on holds of values too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING

import pytest

from latticed.kit import struct_types
from latticed.kit.value import Value, field

if TYPE_CHECKING:
    from tests.house import NoSuchName


class Peer(Value, frozen=True, kw_only=True):
    name: str
    tags: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)
    later: NoSuchName | None = None

    def shout(self) -> str:
        return self.name.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Same:
    name: str


class Pair(Value, frozen=True):
    first: int
    second: int = 2


def test_functions_of_dataclasses_take_values():
    peer = Peer(name="a", tags=frozenset({"x"}))
    assert replace(peer, name="b") == Peer(name="b", tags=frozenset({"x"}))
    assert replace(Pair(1), second=3) == Pair(1, 3)
    assert [one.name for one in fields(Peer)] == ["name", "tags", "seen", "later"]
    assert asdict(peer) == {"name": "a", "tags": frozenset({"x"}), "seen": {}, "later": None}
    assert is_dataclass(Peer)
    with pytest.raises(TypeError, match="nobody"):
        replace(peer, nobody=1)


def test_value_is_frozen_compared_by_type_and_fields_and_hashed():
    peer = Peer(name="a")
    with pytest.raises(AttributeError):
        peer.name = "b"
    with pytest.raises(AttributeError):
        del peer.name
    with pytest.raises(AttributeError):
        peer.other = 1
    assert (peer, Pair(1)) == (Peer(name="a"), Pair(1, 2))
    assert peer != Peer(name="b")
    assert peer != Same(name="a")
    assert len({Pair(1), Pair(1), Pair(2)}) == 2
    assert Peer(name="a").seen is not peer.seen
    with pytest.raises(TypeError):
        Peer("a")


def test_annotations_may_name_what_is_imported_for_types_only():
    """`prepare` reads the annotations of every other Struct, and would fail of these."""
    struct_types.prepare()
    assert Peer(name="a").shout() == "A"

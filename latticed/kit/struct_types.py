"""Prepares the Struct types of msgspec before threads use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from latticed.kit.value import Changing, Value

if TYPE_CHECKING:
    from collections.abc import Iterator


def prepare() -> None:
    """Have msgspec read the annotations of every Struct that is decoded and defined by now (some 150: 15 ms).

    It otherwise does so when a type is first decoded, and crashes (SIGSEGV, seen with 0.22) when two threads do that at
    the same time: its reader is Python code, at which threads are switched. Call it before threads are started.
    """
    for kind in _below(msgspec.Struct):
        msgspec.json.Decoder(kind)  # fields that are Structs themselves are read with it


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        if one in {Value, Changing}:  # never decoded
            continue
        yield one
        yield from _below(one)

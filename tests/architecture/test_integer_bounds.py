"""Integers from outside are bounded where they are decoded: 2^63 must not reach SQLite or a clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec.inspect
import pytest

from latticed.rpc.routes import ROUTES
from tests.house import in_process

MOST = 2**53
"""Exact in JSON (RFC 8259, section 6), far within SQLite's 64 bits and Python's datetimes in microseconds."""


def unbounded(kind: msgspec.inspect.Type, where: str) -> Iterator[str]:
    """The fields below `kind` that take any integer."""
    match kind:
        case msgspec.inspect.IntType():
            low = kind.ge if kind.ge is not None else kind.gt
            high = kind.le if kind.le is not None else kind.lt
            if low is None or high is None or low < -MOST or high > MOST:
                yield where
        case msgspec.inspect.StructType():
            for field in kind.fields:
                yield from unbounded(field.type, f"{where}.{field.name}")
        case msgspec.inspect.UnionType():
            for one in kind.types:
                yield from unbounded(one, where)
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            yield from unbounded(kind.item_type, f"{where}[]")
        case msgspec.inspect.DictType():
            yield from unbounded(kind.value_type, f"{where}{{}}")
        case _:
            return


def found_in(kind: Any, where: str) -> list[str]:
    return list(unbounded(msgspec.inspect.type_info(kind), where))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_integer_fields_of_routes_have_bounds(route):
    kinds = [kind for kind in (route.form.query, route.form.body) if kind not in {None, bytes}]
    assert [where for kind in kinds for where in found_in(kind, kind.__name__)] == []


async def test_integer_fields_of_host_calls_have_bounds():
    async with in_process.opened() as home:
        served = home.app.broker.services
    assert [where for call in served.values() for where in found_in(call.params, call.method)] == []

"""ledger.routes: rows of routes, their quotas and removal."""

from __future__ import annotations

import pytest

from latticed.ledger import open_ledger
from latticed.ledger import routes as rows
from latticed.ledger.routes import RouteQuota, RouteRow
from latticed.model.errors import Problem

A, B = "acme.a", "acme.b"


@pytest.fixture
async def ledger(state_dir, clock):
    async with open_ledger(state_dir, clock=clock) as ledger:
        yield ledger


async def put(ledger, plugin_id=A, path="/acme.a/", spec="{}", *, now=5, **quota):
    return await ledger.write(lambda tx: rows.put(tx, plugin_id, path, spec, RouteQuota(**quota), now_us=now))


async def test_put_replaces_the_route_of_the_same_plugin_and_path(ledger):
    """`created_at` is kept; another plugin may have a row for the same path."""
    first = await put(ledger)
    assert first == RouteRow(plugin_id=A, path="/acme.a/", spec="{}", created_at=5, updated_at=5)
    again = await put(ledger, spec='{"a":1}', now=9)
    assert (again.created_at, again.updated_at, again.spec) == (5, 9, '{"a":1}')
    await put(ledger, B, now=3)
    assert [(row.plugin_id, row.created_at) for row in ledger.read(rows.load_all)] == [(B, 3), (A, 5)]


@pytest.mark.parametrize(
    ("quota", "word"),
    [
        ({"routes": 2}, r"at most 2 routes of acme\.a, found 3"),
        ({"total_bytes": 6}, r"at most 6 bytes in the routes of acme\.a, found 11"),
        ({"all_routes": 2}, "at most 2 routes, found 3"),
    ],
)
async def test_quotas_refuse_new_routes_and_count_replacements_once(ledger, quota, word):
    """A refused put changes nothing."""
    for path in ("/1/", "/2/"):
        await put(ledger, path=path, spec="{}", **quota)
    with pytest.raises(Problem, match=word) as caught:
        await put(ledger, path="/3/", spec="{1234\u00e9", **quota)
    assert caught.value.code == "quota_exceeded"
    await put(ledger, path="/2/", spec="{12}", **quota)
    assert [row.spec for row in ledger.read(rows.load_all)] == ["{}", "{12}"]


async def test_delete_and_clear_remove_routes_of_one_plugin_only(ledger):
    """`delete` one path, `clear` all of a plugin."""
    for plugin_id, path in ((A, "/1/"), (A, "/2/"), (A, "/3/"), (B, "/1/")):
        await put(ledger, plugin_id, path)
    assert await ledger.write(lambda tx: rows.delete(tx, A, "/1/"))
    assert not await ledger.write(lambda tx: rows.delete(tx, A, "/1/"))
    assert await ledger.write(lambda tx: rows.clear(tx, A)) == 2
    assert [(row.plugin_id, row.path) for row in ledger.read(rows.load_all)] == [(B, "/1/")]
    assert ledger.read(rows.count) == 1

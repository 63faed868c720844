"""The route table: lookup by longest prefix, claims and their refusal, the `changed` event."""

from __future__ import annotations

import asyncio

import pytest

from latticed.host.route import table
from latticed.host.route.table import RouteListener, RouteTable
from latticed.model.errors import Problem
from tests.house.ingresses import Echo

ECHO = Echo()


@pytest.fixture
def routes():
    return RouteTable()


def claim(routes, plugin_id, *prefixes, granted=()):
    return routes.claim(plugin_id, prefixes or [table.own_prefix(plugin_id)], ECHO, granted_prefixes=frozenset(granted))


def refused(routes, plugin_id, *prefixes, granted=()):
    with pytest.raises(Problem) as caught:
        claim(routes, plugin_id, *prefixes, granted=granted)
    assert caught.value.code == "route_taken"
    return caught.value.reason


def holder(routes, path):
    found = routes.find(path)
    return found and found.plugin_id


@pytest.mark.parametrize("path", ["/acme.demo/", "/acme.demo/x", "/acme.demo/x/y/", "/acme.demo", "/acme.demo//x"])
def test_route_prefix_matches_paths_below_it(routes, path):
    claim(routes, "acme.demo")
    assert holder(routes, path) == "acme.demo"


@pytest.mark.parametrize(
    "path", ["/", "/acme.demo2", "/acme.dem", "/acme.demos/", "//acme.demo/", "/x/acme.demo/", "", "*"]
)
def test_route_prefix_does_not_match_other_paths(routes, path):
    """It is matched by whole segments."""
    claim(routes, "acme.demo")
    assert holder(routes, path) is None


def test_longest_matching_route_prefix_is_found(routes):
    """The order of the claims does not matter; after a release the next shorter one matches."""
    deep = claim(routes, "acme.deep", "/app/admin/", granted=["/app/admin/"])
    claim(routes, "acme.wide", "/app/", granted=["/app/"])
    claim(routes, "acme.all", "/", granted=["/"])
    assert holder(routes, "/app/admin/x") == "acme.deep"
    assert holder(routes, "/app/administrator") == "acme.wide"
    assert holder(routes, "/other") == holder(routes, "/") == "acme.all"
    routes.release(deep)
    assert holder(routes, "/app/admin/x") == "acme.wide"


def test_route_prefix_of_another_plugin_is_refused(routes):
    """The refusal names the owner; a refused claim claims nothing."""
    first = claim(routes, "acme.one", "/app/", granted=["/app/"])
    detail = refused(routes, "acme.two", "/acme.two/", "/app/", granted=["/app/"])
    assert "acme.one" in detail
    assert "/app/" in detail
    assert holder(routes, "/acme.two/") is None
    routes.release(first)
    claim(routes, "acme.two", "/acme.two/", "/app/", granted=["/app/"])
    assert holder(routes, "/app/") == "acme.two"


def test_own_prefix_of_armed_plugin_is_reserved(routes):
    """A claim below it is refused; if there was one before, the plugin's own claim is refused and names the owner."""
    claim(routes, "acme.one")
    assert "acme.one" in refused(routes, "acme.two", "/acme.one/sub/", granted=["/acme.one/sub/"])
    claim(routes, "acme.two", "/acme.late/sub/", granted=["/acme.late/sub/"])
    assert "acme.two" in refused(routes, "acme.late")


def test_route_prefix_that_is_not_granted_is_refused(routes):
    """Below its own prefix a plugin needs no grant."""
    assert "granted" in refused(routes, "acme.demo", "/app/")
    assert "granted" in refused(routes, "acme.demo", "/")
    claim(routes, "acme.demo", "/acme.demo/", "/acme.demo/sub/")


def test_declared_route_prefix_needs_a_grant():
    """A plugin's own prefix does not; a grant may lack the last slash."""
    assert table.claimable("acme.demo", ["/app", "/more/"], frozenset()) == ("/acme.demo/",)
    assert table.claimable("acme.demo", ["/app", "/more/", "/app/"], frozenset({"/app"})) == ("/acme.demo/", "/app/")
    assert table.claimable("acme.demo", [], frozenset({"/app"})) == ("/acme.demo/",)


@pytest.mark.parametrize(
    "prefix",
    [
        "/.well-known/",
        "/.well-known/acme-challenge/",
        "app/",
        "/app",
        "",
        "//",
        "/a//b/",
        "/../",
        "/a/./",
        "/a/../b/",
        "/a%2f/",
        "/a?/",
        "/a#/",
        "/a\\b/",
        "/a b/",
        "/a\n/",
        "/a\u202e/",
        "/" + "a/" * 9,
        "/" + "a" * 300 + "/",
    ],
)
def test_reserved_and_malformed_route_prefixes_are_refused(routes, prefix):
    """A grant does not change that."""
    assert refused(routes, "acme.demo", prefix, granted=[prefix])


def test_well_known_path_matches_no_prefix(routes):
    """A granted `/` does not include it."""
    claim(routes, "acme.all", "/", granted=["/"])
    assert holder(routes, "/.well-known/acme-challenge/x") is None
    assert holder(routes, "/.well-known") is None
    assert holder(routes, "/.well-knownx") == "acme.all"


def test_too_many_route_prefixes_are_refused(routes):
    many = [f"/acme.demo/{number}/" for number in range(table.MAX_PREFIXES + 1)]
    assert "at most 16" in refused(routes, "acme.demo", *many)


def test_new_route_claim_replaces_old_one_of_same_plugin(routes):
    """A late release of the old one does not release the new one."""
    old = claim(routes, "acme.demo")
    new = claim(routes, "acme.demo")
    routes.release(old)
    assert routes.find("/acme.demo/") is new
    routes.release(new)
    routes.release(new)
    assert routes.find("/acme.demo/") is None
    assert not routes.in_use


def test_replaced_route_claim_leaves_no_prefix_behind(routes):
    claim(routes, "acme.demo", "/acme.demo/", "/app/", granted=["/app/"])
    again = claim(routes, "acme.demo", "/acme.demo/", "/app/", granted=["/app/"])
    routes.release(again)
    assert not routes.in_use
    claim(routes, "acme.other", "/app/", granted=["/app/"])


def test_route_lookup_depth_is_bounded(routes):
    """The depth of prefixes bounds it, whatever that of the path is."""
    claim(routes, "acme.demo")
    looked: list[str] = []

    class Watched(dict):
        def get(self, key, default=None):
            looked.append(key)
            return super().get(key, default)

    routes._claims = Watched(routes._claims)
    assert routes.find("/acme.demo" + "/" * 4_000) is not None
    assert len(looked) <= 3


async def test_route_claim_and_release_set_the_changed_event(routes):
    """A refused claim does not set it."""
    for act in (lambda: claim(routes, "acme.demo"), lambda: routes.release(routes.find("/acme.demo/"))):
        routes.changed.clear()
        act()
        assert routes.changed.is_set()
    routes.changed.clear()
    refused(routes, "acme.demo", "/app/")
    assert not routes.changed.is_set()


async def test_wait_for_listener_returns_when_it_listens_or_times_out(routes):
    """It returns at once if there is a fault, with its text."""
    assert (await routes.wait_for_listener(60)).fault
    routes.set_listener(RouteListener())
    waiting = asyncio.create_task(routes.wait_for_listener(60))
    await asyncio.sleep(0)
    routes.set_listener(RouteListener(url="http://127.0.0.1:1"))
    assert (await waiting).url == "http://127.0.0.1:1"
    routes.set_listener(RouteListener())
    assert await routes.wait_for_listener(0.01) == RouteListener()

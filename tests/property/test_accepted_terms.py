"""For any two manifests: what runs after an upgrade is within both what was accepted and what is declared."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.model import accepted, egress
from latticed.model.manifest import (
    Dependency,
    Egress,
    Manifest,
    ManifestLimits,
    RouteDeclaration,
    RuntimeSpec,
    SandboxSpec,
    Schedule,
)

_FEATURES = st.lists(st.sampled_from(["processes", "threads", "workdir"]), unique=True).map(tuple)
_LIMITS = st.builds(ManifestLimits, **{name: st.none() | st.integers(1, 2_000) for name in accepted.LIMITS})
_SANDBOX = st.builds(
    SandboxSpec, level=st.sampled_from([None, "filtered", "isolated", "dedicated"]), features=_FEATURES
)
_ARGS = st.lists(st.sampled_from(["-a", "b c", ""]), max_size=2).map(tuple)
_HOSTS = st.sampled_from(
    ["a.example.org:443", "b.example.org:80", "*.example.org:443", "*.b.example.org:443", "a.example.org:25"]
)
_MANIFESTS = st.builds(
    Manifest,
    schema=st.sampled_from(["latticed.manifest.v2", None]),
    id=st.just("acme.demo"),
    name=st.just("Demo"),
    type=st.sampled_from(["system", "wasm", "worker"]),
    capabilities=st.just(("kv:read",)),
    runtime=st.builds(
        RuntimeSpec,
        protocol=st.sampled_from([None, "latticed-stdio-1", "stdio-json-v1"]),
        args=_ARGS,
        limits=_LIMITS,
        sandbox=_SANDBOX,
    ),
    egress=st.builds(Egress, hosts=st.lists(_HOSTS, unique=True).map(tuple)),
    routes=st.builds(RouteDeclaration, prefixes=st.lists(st.sampled_from(["/a/", "/b/"]), unique=True).map(tuple)),
    dependencies=st.lists(
        st.builds(Dependency, id=st.sampled_from(["acme.a", "acme.b"]), optional=st.booleans()),
        unique_by=lambda one: one.id,
        max_size=2,
    ).map(tuple),
    schedules=st.lists(
        st.builds(
            Schedule,
            name=st.sampled_from(["a", "b"]),
            every_s=st.sampled_from([10, 60]),
            action=st.sampled_from(["x", "y"]),
            payload=st.sampled_from([None, {"z": 1}]),
        ),
        unique_by=lambda one: one.name,
        max_size=2,
    ).map(tuple),
).map(lambda one: one if one.is_v2 else structs.replace(one, runtime=RuntimeSpec(), egress=Egress()))
_INTERPRETERS = st.sampled_from(["", accepted.ELF, "/bin/sh", "/usr/bin/env python3"])
_USUAL = st.sampled_from([DEFAULTS, accepted.Usual(level="filtered"), accepted.Usual(level="dedicated")])


@given(_MANIFESTS, _INTERPRETERS, _MANIFESTS, _INTERPRETERS, _USUAL)
def test_effective_manifest_is_within_accepted_and_declared(old, by, new, by_now, usual):
    """Anything else must be named before the plugin starts."""
    terms = accepted.meet(accepted.asked(old, by), accepted.asked(new, by_now), usual)
    found = accepted.effective(new, terms, usual)
    needed = set(accepted.needed(new, by_now, terms))
    more = set(accepted.beyond(_running(found, by_now, new, terms), terms, usual))
    assert more <= needed
    assert accepted.beyond(accepted.asked(found, by_now), accepted.asked(new, by_now), usual) == ()
    assert needed <= set(accepted.beyond(accepted.asked(new, by_now), terms, usual))


@given(_MANIFESTS, _INTERPRETERS, _USUAL)
def test_manifest_accepted_completely_is_effective_unchanged(manifest, by, usual):
    """A first install accepts a manifest completely."""
    terms = accepted.asked(manifest, by)
    assert accepted.effective(manifest, terms, usual) == manifest
    assert accepted.needed(manifest, by, terms) == ()
    assert accepted.withheld(manifest, terms) == frozenset()


@given(_MANIFESTS, _MANIFESTS, _INTERPRETERS, _USUAL)
def test_meet_of_terms_is_within_both(one, other, by, usual):
    """All terms that have an order are compared."""
    first, second = accepted.asked(one, by), accepted.asked(other, by)
    both = accepted.meet(first, second, usual)
    assert accepted.beyond(both, first, usual) == ()
    ordered = [word for word in accepted.beyond(both, second, usual) if word.partition("=")[0] not in _KINDS]
    assert ordered == []


_KINDS = {"type", "protocol", "interpreter", "args"}


@given(st.lists(_HOSTS | st.just("*")).map(tuple), st.lists(_HOSTS).map(tuple), _HOSTS)
def test_meet_of_terms_covers_the_hosts_that_both_cover(granted, declared, one):
    """It covers no more and no fewer; `*` covers ports 80 and 443."""
    host, _, number = one.removeprefix("*.").rpartition(":")
    for name in (host, f"x.{host}"):
        port = int(number)
        starred = "*" in granted and port in egress.STAR_PORTS
        meant = starred or any(egress.covers(pattern, name, port) for pattern in granted)
        expected = meant and any(egress.covers(pattern, name, port) for pattern in declared)
        assert any(egress.covers(p, name, port) for p in egress.meet(granted, declared)) is expected


def _running(found: Manifest, by: str, new: Manifest, terms: accepted.Accepted) -> Any:
    """What a plugin has that runs as `found`: a v1 one is given features without asking."""
    from dataclasses import replace

    wants = accepted.asked(found, by)
    return replace(wants, features=wants.features - accepted.withheld(new, terms) | _threads(new))


def _threads(manifest: Manifest) -> frozenset[str]:
    return frozenset({"threads"}) if manifest.type == "system" and not manifest.is_v2 else frozenset()

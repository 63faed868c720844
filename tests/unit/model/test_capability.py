"""Capabilities, their risks and holders, as in contracts §2."""

from __future__ import annotations

import pytest

from latticed.model import capability
from latticed.model.capability import Risk

# Copied from contracts §2: a change of either is a change of the contract.
READ = "audit:read kv:read monitor:read node:read static:read task:read".split()
WRITE = "kv:write log:write notify:send worker:route".split()
HOST = (
    "http:egress network:plan network:apply monitor:admin node:admin static:write task:run tunnel:admin ddns:admin"
).split()
RISKS = {**dict.fromkeys(READ, "read"), **dict.fromkeys(WRITE, "write"), **dict.fromkeys(HOST, "host")}


def test_capability_risks_equal_the_contract():
    """There are 19 capabilities."""
    assert {name: risk.word for name, risk in capability.RISKS.items()} == RISKS
    assert len(RISKS) == 19


def test_capability_risks_are_immutable():
    """No capability can be added at run time."""
    with pytest.raises(TypeError):
        capability.RISKS["kv:all"] = Risk.READ  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(RISKS))
def test_plugin_types_of_each_capability_equal_the_contract(name):
    """Host risk needs type system, except http:egress in wasm; a worker may hold three."""
    expected = {"system"}
    if name not in HOST or name == "http:egress":
        expected.add("wasm")
    if name in {"worker:route", "kv:read", "static:read"}:
        expected.add("worker")
    assert set(capability.holders(name)) == expected


def test_host_risk_selects_capabilities_of_host_risk():
    assert capability.host_risk(tuple(RISKS)) == set(HOST)

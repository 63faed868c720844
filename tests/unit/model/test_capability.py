"""The capabilities, their risks and who may hold them, as contracts §2 prints them."""

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


def test_the_table_is_the_contract():
    """19 capabilities, each with its risk."""
    assert {name: risk.word for name, risk in capability.RISKS.items()} == RISKS
    assert len(RISKS) == 19


def test_the_table_cannot_be_changed():
    """Nobody adds a capability at run time."""
    with pytest.raises(TypeError):
        capability.RISKS["kv:all"] = Risk.READ  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(RISKS))
def test_who_may_hold_it(name):
    """Host risk needs type system, but for http:egress in wasm; a worker may hold three."""
    expected = {"system"}
    if name not in HOST or name == "http:egress":
        expected.add("wasm")
    if name in {"worker:route", "kv:read", "static:read"}:
        expected.add("worker")
    assert set(capability.holders(name)) == expected


def test_host_risk_is_what_stays_masked():
    """Exactly the host-risk ones are picked."""
    assert capability.host_risk(tuple(RISKS)) == set(HOST)

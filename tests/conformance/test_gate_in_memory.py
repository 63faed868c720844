"""The SDK's in-memory Gate answers like the real one, so that a plugin's tests show its real behaviour."""

from __future__ import annotations

import base64

import pytest

from latticed.host.call import HostError
from latticed.sdk import answers, gate
from latticed.sdk import calls as sdk
from latticed.sdk.gate import Gate
from tests.house import answered, in_process

REFUSED = ("kv:read", "kv:write", "log:write", "audit:read")
QUOTAS = {"kv_value_bytes": 64, "kv_keys": 3, "kv_total_bytes": 100}
RAW = base64.b64encode(b"\xff\x00").decode()
ASKED = [
    ("kv.get", {"key": "a"}),
    ("kv.put", {"key": "a", "value": "grüße\n"}),
    ("kv.get", {"key": "a"}),
    ("kv.put", {"key": "b2", "value_base64": RAW}),
    ("kv.get", {"key": "b2"}),
    ("kv.put", {"key": "b1", "value": ""}),
    ("kv.list", {}),
    ("kv.list", {"prefix": "b"}),
    ("kv.list", {"prefix": "b", "after": "b1"}),
    ("kv.list", {"after": "zzz"}),
    ("kv.put", {"key": "c", "value": ""}),  # one key too many
    ("kv.put", {"key": "a", "value": "x" * 65}),  # a value too long
    ("kv.put", {"key": "a", "value": "x" * 64}),
    ("kv.put", {"key": "b1", "value": "x" * 40}),  # too much in all
    ("kv.put", {"key": "b1", "value": "x" * 20}),
    ("kv.put", {"key": "a", "value": "x"}),
    ("kv.delete", {"key": "a"}),
    ("kv.delete", {"key": "a"}),
    ("kv.put", {"key": "b1", "value": "x" * 60}),
    # By version: of what was never there, of what was deleted, of what somebody else changed.
    ("kv.put", {"key": "a", "value": "1", "if_version": 1}),
    ("kv.put", {"key": "a", "value": "1", "if_version": 0}),
    ("kv.put", {"key": "a", "value": "2", "if_version": 0}),
    ("kv.get", {"key": "a"}),
    ("kv.put", {"key": "a", "value": "2", "if_version": None}),
    ("kv.get", {"key": "a"}),
    ("kv.put", {"key": "a", "value": "x" * 65, "if_version": 0}),
    ("kv.put", {"key": "a", "value": "3", "if_version": 12}),
    ("kv.put", {"key": "a", "value": "3", "if_version": 13}),
    ("kv.put", {"key": "a", "value": "3", "if_version": -1}),
    ("kv.put", {"key": "a", "value": "3", "if_version": "1"}),
    ("kv.put", {"key": "a", "value": "3", "if_version": True}),
    ("kv.delete", {"key": "a"}),
    ("kv.put", {"key": "a", "value": "4", "if_version": 14}),
    ("kv.put", {"key": "a", "value": "4", "if_version": 0}),
    ("kv.get", {"key": "a"}),
    ("kv.delete", {"key": "a"}),
    ("log.write", {"message": "hello"}),
    ("log.write", {"message": "hello", "level": "odd", "fields": {"a": 1}}),
    ("log.write", {"message": "hello", "level": "WARN"}),
    # Wrong.
    ("kv.get", {}),
    ("kv.get", {"key": 1}),
    ("kv.get", {"key": None}),
    ("kv.get", {"key": "a", "bucket": None}),
    ("kv.get", {"key": "a", "bucket": "other"}),
    ("kv.get", {"key": "a", "bucket": 1}),
    ("kv.list", {"bucket": None}),
    ("kv.list", {"bucket": "plugin:acme.other"}),
    ("kv.put", {"key": "a"}),
    ("kv.put", {"key": "a", "value": None, "value_base64": None}),
    ("kv.put", {"key": "a", "value": "1", "value_base64": "MQ=="}),
    ("kv.put", {"key": "a", "value": 1}),
    ("kv.put", {"key": "a", "value_base64": "not base64!"}),
    ("kv.put", {"key": "a", "value_base64": "MQ=\n="}),
    ("kv.list", {"prefix": ["a"]}),
    ("kv.list", {"prefix": None}),
    ("log.write", {}),
    ("log.write", {"message": 1}),
    ("log.write", {"message": "a", "fields": []}),
    ("log.write", {"message": "a", "level": None}),
    ("audit.query", {"decision": "denied"}),
    ("audit.query", {"limit": 0}),
    ("audit.query", {"limit": 501}),
    ("audit.query", {"limit": True}),
    ("audit.query", {"after": -1}),
    ("audit.query", {"after": "1"}),
    ("audit.query", {"after": "1.x"}),
    ("audit.query", {"after": 2**63}),
    ("audit.query", {"after": [1]}),
    ("audit.query", {"actor": "plugin:other"}),
    *(
        ("kv.get", {"key": key})
        for key in ("", ".", "..", "a/b", "a\\b", "a\nb", "\u202e", "\u3164", "k" * 257, "k" * 256)
    ),
    # Not allowed, not there, too much.
    ("http.do", {}),
    ("node.facts", {"key": "a"}),
    ("kv.steal", {}),
    ("", {}),
    ("kv.put", {"key": "a", "value": "x" * gate.REQUEST_BYTES}),
    ("http.do", {"body": "x" * gate.REQUEST_BYTES}),
    ("kv.get", {"key": "\ud800"}),
]


@pytest.fixture
async def both():
    """(ask the real Gate, ask the one in memory), both with the same grants and quotas."""
    toml = "[host_calls]\n" + "".join(f"{name} = {value}\n" for name, value in QUOTAS.items())
    async with in_process.opened(toml=toml) as home:
        home.drop("demo", id="acme.demo", capabilities=[*REFUSED, "node:admin"])
        instance = await home.armed("acme.demo")
        memory = Gate([*REFUSED, "node:admin"], granted=REFUSED)
        for name, value in QUOTAS.items():
            setattr(memory, name, value)
        yield instance.gate.call, memory.call


async def test_in_memory_gate_answers_like_the_real_one(both):
    """It gives the same result or the same code for each step of a sequence of calls."""
    real, memory = both
    for method, params in [*ASKED, ("node.set_labels", {"labels": {}})]:
        try:
            expected = await real(method, params)
        except HostError as error:
            expected = error.code.value
        try:
            found = memory(method, params)
        except sdk.HostError as error:
            found = error.code
        assert found == expected, (method, params)


async def test_in_memory_gate_answers_audit_query_like_the_real_one(both):
    """Filters and pages work; its events have the same fields, but no time, sizes and hashes."""
    real, memory = both
    for call in (real, memory):
        for method, params in (("kv.get", {"key": "a"}), ("http.do", {}), ("kv.get", {"key": "b"})):
            try:
                found = call(method, params)
                _ = await found if call is real else found
            except (HostError, sdk.HostError):
                continue
    for query in ({"action": "host.call", "decision": "deny"}, {"action": "nothing"}, {"decision": "deny", "limit": 1}):
        expected, found = await real("audit.query", query), memory("audit.query", query)
        theirs, ours = (
            [[event[name] for name in ("action", "target", "decision", "code", "chain")] for event in one["events"]]
            for one in (expected, found)
        )
        assert ours == theirs
        assert (
            answered.faults(found, answers.AuditQueryAnswer)
            == answered.faults(expected, answers.AuditQueryAnswer)
            == []
        )
        assert (found["next"] is None) == (expected["next"] is None)

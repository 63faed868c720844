"""The in-memory Gate follows the host's rules; tests/conformance/test_gate_in_memory.py compares the two."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latticed.host import kv, log
from latticed.model import capability, hostcall
from latticed.sdk import gate, session
from latticed.sdk.calls import HostError
from latticed.sdk.gate import Gate
from latticed.settings import HostCallSettings


def _code(host, method, **params):
    with pytest.raises(HostError) as caught:
        host.call(method, params)
    return caught.value.code


def test_table_of_host_calls_equals_that_of_the_host():
    assert dict(hostcall.CAPABILITY_OF) == gate.CAPABILITY_OF
    assert set(capability.RISKS) == set(gate.CAPABILITY_OF.values())


def test_limits_equal_the_hosts_defaults():
    defaults = HostCallSettings()
    assert defaults.request_bytes == gate.REQUEST_BYTES
    assert (defaults.kv_value_bytes, defaults.kv_keys) == (Gate.kv_value_bytes, Gate.kv_keys)
    assert defaults.kv_total_bytes == Gate.kv_total_bytes
    assert (kv.MAX_KEY_CHARACTERS, kv.PAGE) == (gate.MAX_KEY_CHARACTERS, gate.PAGE)
    assert set(gate._LEVELS) == log.LEVELS


def test_line_limit_equals_that_of_the_host():
    from latticed.runners import jsonrpc

    assert session.MAX_LINE_BYTES == jsonrpc.MAX_LINE_BYTES


@given(st.text(max_size=6) | st.text(min_size=255, max_size=258))
@example("..")
@example("a\u3164")
def test_kv_keys_are_validated_as_by_the_host(key):
    assert gate.key_fault(key) == kv.key_fault(key)


@pytest.mark.parametrize("method", sorted(gate.CAPABILITY_OF))
def test_in_memory_gate_refuses_undeclared_and_ungranted_calls(method):
    """An answer that the test defines for them does not count."""
    needed = gate.CAPABILITY_OF[method]
    others = sorted(set(capability.RISKS) - {needed})
    assert _code(Gate(others, answers={method: 1}), method) == "capability_denied"
    assert _code(Gate([needed], granted=[], answers={method: 1}), method) == "capability_not_granted"
    assert Gate([needed], answers={method: {"a": 1}}).call(method, {}) == {"a": 1}


def test_in_memory_gate_with_unknown_names_raises_value_error():
    for wrong in ({"capabilities": ["kv:steal"]}, {"granted": ["kv"]}, {"answers": {"kv.steal": 1}}):
        with pytest.raises(ValueError, match=r"^expected (known|answers to known) "):
            Gate(**wrong)


def test_defined_answer_is_a_value_or_a_function():
    """A function may refuse; an answer that JSON cannot represent raises in the test."""

    def refuse(params):
        raise HostError("egress_blocked", f"not to {params['url']}")

    host = Gate(["http:egress", "node:read"], answers={"http.do": refuse, "node.facts": {"a": {1}}})
    assert _code(host, "http.do", url="u") == "egress_blocked"
    assert _code(host, "mail.send") == "service_unavailable"
    with pytest.raises(TypeError, match="set"):
        host.call("node.facts", {})


def test_in_memory_gate_remembers_every_call_with_its_outcome():
    host = Gate(["kv:read"])
    host.kv["a"] = b"\xff"
    assert host.call("kv.get", {"key": "a"}) == {"ok": True, "value": None, "value_base64": "/w==", "version": 1}
    assert _code(host, "kv.put", key="a", value="1") == "capability_denied"
    assert [(one.method, one.params, one.denied) for one in host.calls] == [
        ("kv.get", {"key": "a"}, ""),
        ("kv.put", {"key": "a", "value": "1"}, "capability_denied"),
    ]
    assert repr(host.calls[0]) == "Called('kv.get', {'key': 'a'}, '')"


def test_in_memory_gate_records_logged_lines():
    host = Gate(["log:write"])
    for params in ({"message": "a"}, {"message": "b", "level": "error"}, {"message": "c", "level": "odd"}):
        host.call("log.write", params)
    assert host.lines == [("info", "a"), ("error", "b"), ("info", "c")]


def test_in_memory_gate_refuses_a_decision_that_there_is_not():
    """As the host does."""
    host = Gate(["audit:read"])
    assert _code(host, "audit.query", decision="denied") == "bad_params"
    assert [one["decision"] for one in host.call("audit.query", {"decision": "deny"})["events"]] == ["deny"]


@pytest.mark.parametrize("odd", [{1, 2}, float("nan"), "\ud800", object()])
def test_in_memory_gate_refuses_parameters_that_are_no_json(odd):
    assert _code(Gate(["kv:read"]), "kv.get", key=odd) == "bad_params"

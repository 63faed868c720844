"""The services kv, log and audit as a plugin calls them."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest

from latticed.sdk import gate
from tests.house import hostcalls, in_process
from tests.house.hostcalls import caller

ID = "acme.demo"


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


@pytest.fixture
async def plugin(home):
    """A plugin that declares everything and was granted everything."""
    return await caller(home, *hostcalls.EVERYTHING, accept=hostcalls.HOST_RISK)


async def test_kv_returns_text_and_base64_of_stored_values(plugin):
    """Bytes that are not UTF-8 as base64 only; a missing key is no error."""
    assert await plugin.call("kv.get", key="a") == {"ok": False}
    assert await plugin.call("kv.put", key="a", value="grüße\n") == {"ok": True}
    raw = b"\xff\x00\n"
    assert await plugin.call("kv.put", key="b", value_base64=base64.b64encode(raw).decode()) == {"ok": True}
    text = "grüße\n".encode()
    assert await plugin.call("kv.get", key="a") == {
        "ok": True,
        "value": "grüße\n",
        "value_base64": base64.b64encode(text).decode(),
        "version": 1,
    }
    assert await plugin.call("kv.get", key="b") == {
        "ok": True,
        "value": None,
        "value_base64": base64.b64encode(raw).decode(),
        "version": 2,
    }
    assert plugin.recorded() == [(method, "allow", "") for method in ("kv.get", "kv.put", "kv.put", "kv.get", "kv.get")]


async def test_kv_value_over_64_kib_is_returned_as_base64_only():
    """This holds under any protocol, and for the SDK's Gate."""
    in_memory = gate.Gate(capabilities=("kv:read", "kv:write"))
    in_memory.kv_value_bytes = 1 << 20
    async with in_process.opened(toml="[host_calls]\nkv_value_bytes = 1048576") as home:
        plugin = await caller(home, "kv:read", "kv:write")
        for size, as_text in ((65_536, True), (65_537, False)):
            put = {"key": "long", "value": "x" * size}
            assert in_memory.call("kv.put", put) == await plugin.call("kv.put", **put) == {"ok": True}
            found = await plugin.call("kv.get", key="long")
            assert (found["ok"], "value" in found) == (True, as_text)
            assert base64.b64decode(found["value_base64"]) == b"x" * size
            assert in_memory.call("kv.get", {"key": "long"}) == found


async def test_kv_list_and_delete_show_what_is_stored(plugin):
    """Keys are listed by prefix and cursor; the answer says when the key to delete was missing."""
    for key in ("b2", "a", "b1"):
        await plugin.call("kv.put", key=key, value="")
    assert await plugin.call("kv.list") == {"keys": ["a", "b1", "b2"], "next": None}
    assert await plugin.call("kv.list", prefix="b", after="b1") == {"keys": ["b2"], "next": None}
    assert await plugin.call("kv.delete", key="a") == {"ok": True}
    assert await plugin.call("kv.delete", key="a") == {"ok": False}


async def test_kv_list_is_paged(home, plugin, monkeypatch):
    """`next` is the cursor of the next page."""
    monkeypatch.setattr("latticed.host.kv.PAGE", 2)
    for key in "abc":
        await plugin.call("kv.put", key=key, value="")
    assert await plugin.call("kv.list") == {"keys": ["a", "b"], "next": "b"}
    assert await plugin.call("kv.list", after="b") == {"keys": ["c"], "next": None}


@pytest.mark.parametrize(
    "key", ["", ".", "..", "a/b", "a\\b", "a\nb", "a\x00b", "\x1b[0m", "a\u202eb", "a\u2028b", "k" * 257]
)
async def test_invalid_kv_keys_are_bad_params(plugin, key):
    """They have slashes, control characters, or more than 256 characters."""
    for method, more in (("kv.get", {}), ("kv.put", {"value": ""}), ("kv.delete", {})):
        assert await plugin.denied(method, key=key, **more) == "bad_params"
    await plugin.call("kv.put", key="k" * 256, value="fits")


async def test_kv_put_over_quota_is_refused(home):
    """There are quotas of a value, of keys and of all bytes; a smaller replacement always fits. The call is recorded as
    allowed, then as failed.
    """
    toml = "[host_calls]\nkv_value_bytes = 8\nkv_keys = 2\nkv_total_bytes = 20\n"
    async with in_process.opened(toml=toml) as small:
        plugin = await caller(small, "kv:read", "kv:write")
        assert await plugin.denied("kv.put", key="a", value="123456789") == "quota_exceeded"
        assert plugin.recorded() == [("kv.put", "allow", ""), ("kv.put", "deny", "quota_exceeded")]
        await plugin.call("kv.put", key="a", value="12345678")
        await plugin.call("kv.put", key="b", value="12345678")
        assert await plugin.denied("kv.put", key="c", value="") == "quota_exceeded"
        assert await plugin.call("kv.delete", key="b") == {"ok": True}
        assert await plugin.denied("kv.put", key="b" * 12, value="") == "quota_exceeded"
        await plugin.call("kv.put", key="a", value="1")


async def test_audit_query_shows_a_plugin_its_own_events_only(home, plugin):
    """No filter shows others; the event of the query itself is already among them."""
    other = await caller(home, "kv:read", plugin_id="acme.other", name="other")
    await other.call("kv.get", key="secret")
    await plugin.call("kv.get", key="a")
    answer = await plugin.call("audit.query")
    assert {event["actor"] for event in answer["events"]} == {f"plugin:{ID}"}
    assert [event["target"] for event in answer["events"]] == ["kv.get", "audit.query"]
    assert answer["next"] is None
    assert {event["chain"] for event in answer["events"]} == {"calls"}
    one = await plugin.call("audit.query", limit=1, after=f"0.{answer['events'][0]['seq']}")
    assert [event["target"] for event in one["events"]] == ["audit.query"]
    assert one["next"] == f"0.{one['events'][0]['seq']}"
    assert (await plugin.call("audit.query", after=0))["events"] == []  # a bare number: the decisions alone
    assert await plugin.denied("audit.query", actor="plugin:acme.other") == "bad_params"


async def test_log_write_escapes_line_breaks_and_control_sequences(home, monkeypatch):
    """ANSI and bidi too, under the plugin's own id; long lines are cut."""
    lines = []
    levels = {level: _taker(lines, level) for level in ("debug", "info", "warning", "error")}
    monkeypatch.setattr("latticed.app.log", SimpleNamespace(**levels))
    plugin = await caller(home, "log:write")
    forged = "ok\nplugin_armed plugin_id=acme.evil\r\x1b[31m\u202e\u2028end"
    await plugin.call("log.write", level="warning", message=forged, fields={"a\nb": "c\x1b[0m", "n": 1})
    await plugin.call("log.write", level="emerg", message="x" * 100_000, fields={str(n): n for n in range(100)})
    (first, second) = [line for line in lines if line[1] == "plugin_said"]
    level, _, fields = first
    assert (level, fields["plugin_id"]) == ("warning", ID)
    for text in (fields["message"], *fields["fields"], *fields["fields"].values()):
        assert text.isprintable(), text
    assert fields["message"].startswith("ok\\x0aplugin_armed")
    level, _, fields = second
    assert level == "info"
    assert len(fields["message"]) <= 8_192
    assert len(fields["fields"]) <= 32


@pytest.mark.parametrize(
    ("said", "level"),
    [("warn", "warning"), ("WARN", "warning"), ("Warning", "warning"), ("ERROR", "error"), ("Debug", "debug")],
)
async def test_log_levels_of_other_hosts_are_accepted(home, monkeypatch, said, level):
    lines = []
    levels = {level: _taker(lines, level) for level in ("debug", "info", "warning", "error")}
    monkeypatch.setattr("latticed.app.log", SimpleNamespace(**levels))
    plugin = await caller(home, "log:write")
    await plugin.call("log.write", level=said, message="hello")
    assert [found for found, event, _ in lines if event == "plugin_said"] == [level]


def _taker(lines, level):
    def take(event, **fields):
        lines.append((level, event, fields))

    return take

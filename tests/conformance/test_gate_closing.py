"""A plugin's Gate when the plugin is stopped, tampered with or changes publisher; and separation of plugins."""

from __future__ import annotations

import pytest

from tests.house import bundles, in_process
from tests.house.hostcalls import caller

ID = "acme.demo"


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


async def test_gate_of_a_disabled_plugin_refuses_calls(home):
    plugin = await caller(home, "kv:read")
    assert (await home.decide(ID, "disabled")).status == 200
    assert await plugin.denied("kv.get", key="a") == "service_unavailable"


async def test_gate_of_a_tampered_plugin_is_closed(home):
    """Once the bundle is restored, the plugin is armed with a new Gate."""
    plugin = await caller(home, "kv:read", "kv:write")
    await plugin.call("kv.put", key="a", value="kept")
    before = bundles.tamper(home.dropped["demo"].artifact_path)
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert view["runtime"]["last_error"]["code"] == "digest_mismatch"
    assert (view["status"], view["available"]) == ("active", False)
    assert await plugin.denied("kv.get", key="a") == "service_unavailable"
    home.dropped["demo"].artifact_path.write_bytes(before)
    await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
    assert (await home.driven.only(ID).call("kv.get", key="a"))["value"] == "kept"


async def test_plugins_with_the_same_key_have_separate_values(home):
    one = await caller(home, "kv:read", "kv:write")
    two = await caller(home, "kv:read", "kv:write", plugin_id="acme.other", name="other")
    await one.call("kv.put", key="k", value="one")
    assert await two.call("kv.get", key="k") == {"ok": False}
    await two.call("kv.put", key="k", value="two")
    assert (await one.call("kv.get", key="k"))["value"] == "one"
    assert (await two.call("kv.list"))["keys"] == ["k"]
    assert (await home.ask("GET", f"/api/kv/plugin:{ID}/k"))["raw"] == b"one"


async def test_other_publisher_of_an_id_cannot_read_the_old_bucket():
    """Once accepted by name, it starts with an empty bucket; if the first publisher returns, its values are back."""
    acme, rival = bundles.author("acme"), bundles.author("rival")
    async with in_process.opened(author=acme, policy=bundles.policy_bytes(acme, rival)) as home:
        plugin = await caller(home, "kv:read", "kv:write")
        await plugin.call("kv.put", key="k", value="acme's")
        home.drop("theirs", author=rival, id=ID, version="1.1.0", capabilities=["kv:read", "kv:write"])
        await in_process.until(lambda: "plugins/theirs" in home.app.api.lifecycle.rejected())
        taken = await home.ask(
            "POST",
            f"/api/plugins/by-id/{ID}/upgrade",
            {"accept_publisher": "rival", "accept": ["kv:read", "kv:write"]},
        )
        assert (taken.status, taken["publisher"], taken["runtime"]["state"]) == (200, "rival", "armed")
        theirs = home.driven.only(ID)
        assert await theirs.call("kv.list") == {"keys": [], "next": None}
        await theirs.call("kv.put", key="k", value="rival's")
        assert "plugins/demo" in home.app.api.lifecycle.rejected()
        back = await home.ask(
            "POST",
            f"/api/plugins/by-id/{ID}/upgrade",
            {"accept_publisher": "acme", "accept": ["kv:read"], "allow_downgrade": True},
        )
        assert (back.status, back["publisher"], back["granted"]) == (200, "acme", ["kv:read"])
        assert (await home.driven.only(ID).call("kv.get", key="k"))["value"] == "acme's"

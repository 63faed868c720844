"""Setting a configuration takes as long as its check; deciding about the plugin meanwhile does not."""

from __future__ import annotations

import asyncio

from tests.house import in_process

ID = "acme.demo"
URL = f"/api/plugins/by-id/{ID}/config"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


async def test_plugin_is_disabled_while_its_configuration_is_checked(monkeypatch):
    """The check takes seconds for a hostile schema; the document is set once it is done."""
    async with in_process.opened() as home:
        home.drop(id=ID, v2=True, config=SCHEMA, runtime={"protocol": "latticed-stdio-1"})
        await home.seen(ID)
        await home.decide(ID, "installed")
        assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"
        checker = home.app.api.lifecycle.decisions.configurations.checker
        checking, go_on = asyncio.Event(), asyncio.Event()

        async def check(*_):
            checking.set()
            await go_on.wait()

        monkeypatch.setattr(checker, "check", check)
        setting = asyncio.create_task(home.ask("PUT", URL, {"config": {"city": "Bern"}}))
        async with asyncio.timeout(20):
            await checking.wait()
            disabled = await home.decide(ID, "disabled")
        assert (disabled["status"], disabled["runtime"]["state"]) == ("disabled", "stopped")
        assert not setting.done()
        go_on.set()
        assert (await setting).status == 200
        assert (await home.ask("GET", URL))["config"] == {"city": "Bern"}

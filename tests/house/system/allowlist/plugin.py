"""The plugin: checks and renders intents, keeps the last one, and counts in the background."""

from __future__ import annotations

import asyncio
from typing import Any

from latticed.model.errors import Problem
from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.plugin import SystemPlugin
from tests.house.system.allowlist import check, render

TICK_MS = 50


class Allowlist(SystemPlugin):
    """`set` keeps an intent, `show` answers its rendering, `ticks` how often the background task came round."""

    ticks = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.config.get("tick_ms", TICK_MS) / 1_000)
            self.ticks += 1

    async def check(self) -> Health:
        try:
            await self.host.kv.get("rendered")
        except HostError as error:
            return Health("degraded", f"cannot read what was set: {error}")
        return Health("healthy", f"{len(await self._lines())} doors")

    async def do_set(self, payload: Any) -> Any:
        try:
            rendered = render.render(check.read(payload))
        except Problem as problem:
            raise PluginError(problem.reason) from problem
        await self.host.kv.put("rendered", rendered)
        return {"rendered": rendered}

    async def do_show(self, _payload: Any) -> Any:
        return await self._lines()

    async def do_ticks(self, _payload: Any) -> Any:
        return self.ticks

    async def do_state(self, payload: Any) -> Any:
        return await self.host.network.state(str(payload))

    async def do_config(self, _payload: Any) -> Any:
        return dict(self.config)

    async def do_raise(self, payload: Any) -> Any:
        raise RuntimeError(str(payload))

    async def do_hang(self, _payload: Any) -> Any:
        await asyncio.Event().wait()

    async def _lines(self) -> list[str]:
        return (await self.host.kv.get("rendered") or "").splitlines()

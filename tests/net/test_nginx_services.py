"""A plugin's service behind the real nginx: browsers log in at any port, and get events as they are sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.house import backends, nginxes, processes, routed

pytestmark = pytest.mark.root

HOST = "shop.example.org"


@contextlib.asynccontextmanager
async def browsing(tmp_path, backend) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser at the site of a service that is `backend`."""
    (tmp_path / "nginx").mkdir()
    async with routed.opened(tmp_path, hosts=(HOST,)) as world:
        await world.serve(backend)
        plain = nginxes.document(nginxes.site(domains=[HOST], upstream="services"))
        web = nginxes.running(tmp_path / "nginx", plain, services=world.port())
        nginx = await asyncio.to_thread(web.__enter__)
        try:
            fields = {"Host": f"{HOST}:{nginx.http}", "Origin": f"http://{HOST}:{nginx.http}"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{nginx.http}", headers=fields) as browser:
                yield browser
        finally:
            await asyncio.to_thread(web.__exit__, None, None, None)


async def test_a_browser_logs_in_at_a_port_that_is_not_the_default_and_gets_events_at_once(tmp_path):
    async with backends.running() as backend, browsing(tmp_path, backend) as browser:
        form = {"password": routed.PASSWORD, "to": f"/{routed.ID}/"}
        async with browser.post("/.latticed/login", data=form, allow_redirects=False) as answer:
            assert answer.status == 303, await answer.text()
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
        # More than a buffer of nginx, which would keep the rest of a chunk until more comes.
        place = f"/{routed.ID}/sse?more=10000"
        async with (
            asyncio.timeout(processes.PATIENCE_S),
            browser.get(place, headers={"Cookie": cookie}) as events,
        ):
            event = await events.content.readuntil(b"\n\n")
            assert event.removeprefix(b"data: first").strip(b".") == b"\n\n"
            assert backend.held == 1, "it has not ended, and will send more"

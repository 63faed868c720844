"""What an operator takes away is gone when the request is answered, also what is fixed at a start. Real daemon."""

from __future__ import annotations

import aiohttp
import pytest

from latticed.model import permits
from tests.house import in_process

ID = "acme.demo"
GRANTS = f"/api/plugins/by-id/{ID}/grants"
ANY_PORT = '[http]\nlisten = "127.0.0.1:0"\n'
READER = b"""#!/usr/bin/env python3
from latticed.sdk import Plugin

class Reader(Plugin):
    def do_read(self, payload):
        with open(payload) as file:
            return file.read()

Reader().run()
"""
SPEAKING = {"protocol": "latticed-stdio-1"}


async def permit(home, *names):
    answer = await home.ask("PUT", GRANTS, {"permits": list(names)})
    assert (answer.status, answer.get("permits")) == (200, list(names)), answer


async def up(home, *names, **fields):
    """acme.demo, armed with these permits."""
    home.drop(id=ID, v2=True, **fields)
    await home.seen(ID)
    assert (await home.decide(ID, "installed")).status == 200
    await permit(home, *names)
    assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"


@pytest.mark.parametrize(
    ("kept", "lost", "starts"),
    [
        ((), "feature=threads", 2),
        ((), "sandbox=open", 2),
        (("bucket=shared",), "prefix=/shop/", 2),
        ((), "bucket=shared", 1),
        ((), "origin=http://backend.lan:8080=10.0.0.5", 1),
    ],
)
async def test_trim_of_permit_fixed_at_start_restarts_instance(kept, lost, starts):
    """It is restarted before the request is answered; permits that are looked up at each use need no restart."""
    async with in_process.opened() as home:
        await up(home, *kept, lost)
        await permit(home, *kept)
        assert len(home.driven.of(ID)) == starts
        assert home.driven.only(ID) is home.driven.of(ID)[-1]
        await permit(home, *kept, lost)
        assert len(home.driven.of(ID)) == starts, "what is granted counts from the next start on"


async def test_trim_does_not_start_disabled_plugin():
    async with in_process.opened() as home:
        await up(home, "sandbox=open")
        assert (await home.decide(ID, "disabled")).status == 200
        await permit(home)
        assert (len(home.driven.of(ID)), home.driven.running[ID]) == (1, 0)


async def test_trimmed_prefix_is_no_longer_served():
    """404 where it was; the plugin's own prefix still answers."""
    async with in_process.opened(real=True, toml=ANY_PORT) as home, aiohttp.ClientSession() as client:
        routes = {"prefixes": ["/shop/"], "content_type": "text/plain"}
        await up(
            home,
            "prefix=/shop/",
            type="worker",
            capabilities=["worker:route"],
            artifact=b"hello {{path}}",
            routes=routes,
        )

        async def status(path):
            listener = home.app.api.runners["worker"]._routes.listener
            async with client.get(listener.url + path) as answer:
                return answer.status

        assert (await status("/shop/x"), await status(f"/{ID}/x")) == (200, 200)
        await permit(home)
        assert (await status("/shop/x"), await status(f"/{ID}/x")) == (404, 200)


@pytest.mark.parametrize(("granted", "trimmed"), [("/shop", "/shop/"), ("/shop/", "/shop")])
async def test_prefix_is_trimmed_in_either_spelling(granted, trimmed):
    """`/shop` and `/shop/` are the same prefix."""
    async with in_process.opened() as home:
        await up(home, f"prefix={granted}")
        answer = await home.ask("PUT", GRANTS, {"trim": [f"prefix={trimmed}"]})
        assert (answer.status, answer["permits"]) == (200, [])


async def test_trimmed_open_sandbox_confines_process():
    """The next invocation runs in a confined process."""
    async with in_process.opened(real=True) as home:
        await up(home, "sandbox=open", capabilities=["kv:read"], artifact=READER, runtime=SPEAKING)
        secret = home.root / "secret"
        secret.write_text("for nobody")
        home.root.chmod(0o755)
        wanted = {"action": "read", "payload": str(secret)}
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/invoke", wanted))["result"] == "for nobody"
        await permit(home)
        assert (await home.plugin(ID))["runtime"]["sandbox"].partition("+")[0] in {"filtered", "isolated", "dedicated"}
        refused = await home.ask("POST", f"/api/plugins/by-id/{ID}/invoke", wanted)
        assert (refused.status, refused["ok"], refused["result"]) == (200, False, None)


def test_each_permit_kind_is_looked_up_or_fixed_at_start():
    """The test fails for a new kind until it is in one of the two sets."""
    assert {kind for kind in permits.EXPECTED if permits.any_applied_at_start([f"{kind}=x"])} == permits.AT_START
    assert permits.EXPECTED.keys() - permits.AT_START == {
        permits.ORIGIN,
        permits.BUCKET,
        permits.PUBLISH,
        permits.ENV,
        permits.SHARE,
    }

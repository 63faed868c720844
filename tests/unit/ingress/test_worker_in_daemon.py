"""A worker plugin in a real daemon: activated, requested, upgraded, trimmed, tampered with, disabled."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import aiohttp
import pytest

from latticed.host.route.table import RouteTable
from latticed.ingress.ingress import Ingress
from latticed.kit.clock import SystemClock
from latticed.runners.noop import NoopRunner
from latticed.runners.worker import WorkerRunner
from latticed.settings import HttpSettings
from tests.house import bundles, in_process, ingresses

ID = "acme.hello"
HELLO = b"hello {{path}} {{kv:default/message}}"
GRANTS = f"/api/plugins/by-id/{ID}/grants"


@dataclass(slots=True)
class Place:
    """A daemon, its routes, and an HTTP client."""

    home: in_process.Home
    routes: RouteTable
    session: aiohttp.ClientSession

    def drop(self, template, **fields):
        wanted = {"id": ID, "type": "worker", "capabilities": ["worker:route", "kv:read"], "v2": True}
        return self.home.drop(fields.pop("name", "hello"), artifact=template, **{**wanted, **fields})

    async def activate(self, plugin_id=ID):
        await self.home.seen(plugin_id)
        assert (await self.home.decide(plugin_id, "installed")).status == 200
        return await self.home.decide(plugin_id, "active")

    async def get(self, path):
        """(status, body), or the reason why the connection failed."""
        url = self.routes.listener.url
        if not url:
            return "nobody listens"
        try:
            async with self.session.get(f"{url}{path}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError:
            return "nobody listens"


@pytest.fixture
async def place():
    routes = RouteTable()
    granted = frozenset({"/app/"})
    runners = {
        "worker": WorkerRunner(routes, granted_prefixes=lambda _: granted),
        "system": NoopRunner("x"),
        "wasm": NoopRunner("x"),
    }
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Ingress(routes, HttpSettings(listen="127.0.0.1:0"), clock=SystemClock()))
        home = await stack.enter_async_context(in_process.opened(runners=runners))
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Place(home, routes, session)


async def test_worker_route_is_served_while_active(place):
    """The answer has the operator's value, each read is audited; after disable the listener is closed."""
    place.drop(HELLO)
    answer = await place.activate()
    assert (answer.status, answer["runtime"]["state"]) == (200, "armed")
    assert answer["runtime"]["message"] == f"serves /{ID}/ at {place.routes.listener.url}"
    await place.home.ask("PUT", "/api/kv/default/message", b"world")
    assert await place.get(f"/{ID}/a%20b") == (200, f"hello /{ID}/a b world")
    (call,) = place.home.events(action="host.call")
    assert (call["actor"], call["target"], call["decision"]) == (f"plugin:{ID}", "kv.get", "allow")
    assert (await place.home.decide(ID, "disabled")).status == 200
    await ingresses.until(lambda: not place.routes.listener.url, "no listener")
    assert await place.get(f"/{ID}/") == "nobody listens"


@pytest.mark.parametrize(
    ("template", "word"), [(b"x\nfetch('/')", "`fetch(` in line 2"), (b"{{path", "not closed in line 1")]
)
async def test_worker_with_invalid_template_cannot_be_activated(place, template, word):
    """409 with the reason; the status is unchanged, and nothing is served."""
    place.drop(template)
    answer = await place.activate()
    assert (answer.status, answer.code) == (409, "source_blocked")
    assert word in answer["detail"]
    assert (await place.home.plugin(ID))["status"] == "installed"
    assert not place.routes.in_use


async def test_second_worker_of_a_taken_route_cannot_be_activated(place):
    """409 that names the holder; once that is disabled, the second can be activated."""
    routes = {"routes": {"prefixes": ["/app/"]}}
    place.drop(b"first", id="acme.first", name="first", **routes)
    place.drop(b"second", id="acme.second", name="second", **routes)
    assert (await place.activate("acme.first")).status == 200
    answer = await place.activate("acme.second")
    assert (answer.status, answer.code, "acme.first" in answer["detail"]) == (409, "route_taken", True)
    assert await place.get("/app/x") == (200, "first")
    await place.home.decide("acme.first", "disabled")
    assert (await place.home.decide("acme.second", "active")).status == 200
    assert await place.get("/app/x") == (200, "second")


async def test_upgrade_replaces_the_served_template(place):
    """The old one is served until then; a refused upgrade changes nothing."""
    place.drop(b"one")
    await place.activate()
    place.drop(b"exec(two)", version="1.1.0")
    await place.home.until_plugin(ID, lambda plugin: plugin.get("candidate"))
    answer = await place.home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {})
    assert (answer.status, answer.code) == (409, "source_blocked")
    assert await place.get(f"/{ID}/") == (200, "one")
    place.drop(b"two", version="1.2.0")
    await place.home.until_plugin(ID, lambda plugin: (plugin.get("candidate") or {}).get("version") == "1.2.0")
    assert (await place.home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {})).status == 200
    assert await place.get(f"/{ID}/") == (200, "two")


async def test_worker_that_stood_by_serves_its_routes_again(place):
    """The new one had claimed them; the old one, which goes on without a start, claims them back."""
    place.drop(b"one")
    await place.activate()
    place.drop(b"two", version="1.1.0")
    await place.home.until_plugin(ID, lambda plugin: plugin.get("candidate"))
    assert (await place.home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {}))["upgrade"]["state"] == "gating"
    assert await place.get(f"/{ID}/") == (200, "two")
    assert (await place.home.ask("POST", f"/api/plugins/by-id/{ID}/rollback", {}))["version"] == "1.0.0"
    assert await place.get(f"/{ID}/") == (200, "one")


async def test_trimmed_capabilities_show_in_the_next_answer(place):
    """Without kv:read the value is empty and the denial audited; without worker:route there is no route."""
    place.drop(HELLO)
    await place.activate()
    await place.home.ask("PUT", "/api/kv/default/message", b"world")
    await place.home.ask("PUT", GRANTS, {"trim": ["kv:read"]})
    assert await place.get(f"/{ID}/x") == (200, f"hello /{ID}/x ")
    (call,) = place.home.events(action="host.call")
    assert (call["decision"], call["code"]) == ("deny", "capability_not_granted")
    await place.home.ask("PUT", GRANTS, {"trim": ["worker:route"]})
    assert (await place.get(f"/{ID}/x"))[0] == 404
    await place.home.ask("PUT", GRANTS, {"grant": ["worker:route", "kv:read"]})
    assert await place.get(f"/{ID}/x") == (200, f"hello /{ID}/x world")


async def test_tampered_template_is_not_served(place):
    """It is refused at once, and served again after the file is restored."""
    bundle = place.drop(b"genuine")
    await place.activate()
    before = bundles.tamper(bundle.artifact_path)
    await place.home.until_plugin(ID, lambda plugin: plugin["runtime"]["state"] == "failed")
    assert await place.get(f"/{ID}/") == "nobody listens"
    bundle.artifact_path.write_bytes(before)
    await place.home.until_plugin(ID, lambda plugin: plugin["runtime"]["state"] == "armed")
    assert await place.get(f"/{ID}/") == (200, "genuine")


async def test_invoke_renders_the_template(place):
    """The control API renders it, without the listener."""
    place.drop(HELLO)
    await place.activate()
    await place.home.ask("PUT", "/api/kv/default/message", b"world")
    asked = {"action": "render", "payload": {"path": "/x"}}
    answer = await place.home.ask("POST", f"/api/plugins/by-id/{ID}/invoke", asked)
    assert (answer.status, answer["ok"], answer["result"]["body"]) == (200, True, "hello /x world")
    asked["action"] = "deliver"
    assert (await place.home.ask("POST", f"/api/plugins/by-id/{ID}/invoke", asked)).status == 400

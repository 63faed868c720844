"""The proxy and http.do reach a service in a network of its own, and nobody else's loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib

import aiohttp
import msgspec
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.egress.client import EgressClient
from latticed.host.egress.guard import Guard
from latticed.host.http.calls import HttpCalls
from latticed.host.permissions import PermissionRefused
from latticed.host.program import spec as specs
from latticed.host.program.data import ServiceData
from latticed.host.program.keeper import ProgramKeeper, ProgramRights
from latticed.host.route import spec as route_spec
from latticed.kit.clock import SystemClock
from latticed.model import egress
from latticed.model.egress import EgressRights
from latticed.model.restart import RestartPolicy
from latticed.settings.programs import ServiceSettings
from tests.house import confinements, plugin_secrets, routed
from tests.house.in_process import until
from tests.house.origins import answer, serving
from tests.house.outside import call
from tests.house.routed import ID

QUICK = RestartPolicy(base_s=0.01, ceiling_s=0.02, jitter=0.0, breaker_failures=100)
PORT = 3000
# Answers what it got; /ws is a websocket that echoes one message, /events never ends, /die ends it.
WEB = """
import base64, hashlib, os, socket, threading, time
def answer(one):
    with one, one.makefile('rb') as lines:
        head = []
        while (line := lines.readline()) not in (b'\\r\\n', b''): head.append(line.decode('latin-1').strip())
        if not head: return
        method, path, _ = head[0].split(' ', 2)
        fields = dict(line.lower().split(': ', 1) for line in head[1:])
        if path == '/die': os._exit(3)
        if path == '/ws':
            key = [line for line in head if line.lower().startswith('sec-websocket-key')][0].split(': ')[1]
            accept = base64.b64encode(hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest())
            one.sendall(b'HTTP/1.1 101 S\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: '
                        + accept + b'\\r\\n\\r\\n')
            two = lines.read(2); size = two[1] & 127; mask = lines.read(4); data = lines.read(size)
            plain = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
            one.sendall(bytes([0x81, size]) + plain); lines.read(2); return
        if path == '/garbage': one.sendall(b'\\0\\1no http at all\\r\\n\\r\\n'); return
        if path == '/go':
            one.sendall(b'HTTP/1.1 302 F\\r\\nLocation: http://127.0.0.1:1/\\r\\nContent-Length: 0\\r\\n\\r\\n'); return
        if path == '/upload':
            lines.read(1000); os._exit(4)
        body = lines.read(int(fields.get('content-length', 0)))
        said = f'{method} {path} {fields["host"]} {len(body)}'.encode()
        one.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(said) + said)
listener = socket.create_server(('127.0.0.1', 3000), backlog=200)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""
SPEC = specs.ProgramSpec(program="python", args=("-c", WEB), environment={}, restart="always", network="own")
ROUTE = {
    "path": f"/{ID}/",
    "target": "service",
    "origin": f"http://127.0.0.1:{PORT}",
    "service": "web",
    "public": ["/**"],
}
OTHER = "acme.other"


@contextlib.asynccontextmanager
async def proxied(tmp_path, refused=None):
    """(world, programs): a route to the service `web` of ID, which runs in a network of its own. `refused`: by id, why
    a plugin may have no programs run.
    """
    plugins, refused = routed.SimulatedPlugins(), {} if refused is None else refused
    async with (
        routed.opened(tmp_path, plugins=plugins) as world,
        ProgramKeeper(
            world.ledger,
            clock=SystemClock(),
            spawner=confinements.Spawner(),
            settings=ServiceSettings(programs={"python": "/usr/bin/python3"}),
            rights=ProgramRights(refusal=refused.get),
            policy=QUICK,
            data=ServiceData(tmp_path / "services"),
        ) as programs,
    ):
        plugins.doors, plugins.reached = programs.inside, programs.visited
        plugins.networks = programs.has_network
        await programs.put(ID, "web", SPEC)
        await world.put(**ROUTE)
        yield world, programs


async def until_answers(world, path="/hello"):
    async with asyncio.timeout(30):
        while (found := await world.get(f"/{ID}{path}")).status != 200:
            assert found.status == 502, found
    return found


async def test_requests_reach_the_service_in_its_network(tmp_path):
    """No grant is needed for it, and it sees itself asked at its own address."""
    async with proxied(tmp_path) as (world, _):
        found = await until_answers(world)
        assert found.body == b"GET /hello 127.0.0.1:3000 0"
        many = await asyncio.gather(*(world.get(f"/{ID}/{number}") for number in range(60)))
        assert [one.body.split()[1] for one in many] == [f"/{number}".encode() for number in range(60)]


async def test_host_loopback_is_never_meant(tmp_path):
    """Something listens at the same port on the host, and is not asked: not while the service is down either."""
    async with serving(answer(b"the host")) as server, proxied(tmp_path) as (world, programs):
        await world.put(
            path=f"/{ID}/", target="service", origin=f"http://127.0.0.1:{server.port}", service="web", public=["/**"]
        )
        await until(lambda: programs.of(ID)[0].program.state == "running")
        assert (await world.get(f"/{ID}/x")).status == 502
        await programs.delete(ID, "web")
        assert (await world.get(f"/{ID}/x")).status == 502
        assert server.connections == 0


async def test_crash_is_502_until_it_is_back(tmp_path):
    """So is an answer that is no HTTP; never a hang."""
    async with proxied(tmp_path) as (world, programs):
        program = programs.of(ID)[0].program
        await until_answers(world)
        assert (await world.get(f"/{ID}/garbage")).status == 502
        for number, target in enumerate(("/die", "/die")):
            assert (await world.get(f"/{ID}{target}")).status == 502
            await until(lambda number=number: program.restarts == number + 1)
            await until_answers(world)


async def test_websockets_and_uploads_go_through_the_door(tmp_path):
    async with proxied(tmp_path) as (world, programs):
        await until_answers(world)
        await world.secrets.set("WEB", routed.KEPT)
        await world.secrets.bind("WEB", ID)
        await world.put(
            path=f"/{ID}/",
            target="service",
            origin=f"http://127.0.0.1:{PORT}",
            service="web",
            login="${secret:WEB}",
        )
        cookie = (await world.cookie()).removeprefix("Cookie: ")
        here = world.here.removeprefix("Origin: ")
        fields = {"Cookie": cookie, "Origin": here, "Host": here.removeprefix("http://")}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{world.port()}/{ID}/ws", headers=fields) as ws,
        ):
            await ws.send_str("hello")
            assert (await ws.receive_str(timeout=30)) == "hello"
        # It dies in an upload: an answer, no hang, and it is back.
        died = await world.ask("POST", f"/{ID}/upload", f"Cookie: {cookie}", world.here, body=bytes(1 << 20))
        assert died.status == 502
        await until(lambda: programs.of(ID)[0].program.restarts == 1)


async def test_listener_is_not_taken_for_a_service_that_is_not_there(tmp_path):
    """Not by its name alone, nor for one without a network of its own or of a plugin that may run none: who has a grant
    for an origin gets the listener.
    """
    refused = {}
    async with serving(answer(b"granted")) as server, proxied(tmp_path, refused) as (world, programs):
        await world.call(ID, "route.delete", path=ROUTE["path"])
        asked = {**ROUTE, "path": f"/{OTHER}/"}
        assert "found no web" in (await world.refused(OTHER, **asked)).reason
        await programs.put(OTHER, "web", msgspec.structs.replace(SPEC, network="none"))
        assert "found no web" in (await world.refused(OTHER, **asked)).reason
        await programs.put(OTHER, "web", SPEC)
        refused[OTHER] = PermissionRefused("capability_not_granted", "task:run is not granted")
        assert "found no web" in (await world.refused(OTHER, **asked)).reason
        world.plugins.origins[ID] = (f"http://127.0.0.1:{server.port}",)
        await world.put(path=f"/{ID}/", target="service", origin=f"http://127.0.0.1:{server.port}", public=["/**"])
        assert (await world.get(f"/{ID}/x")).body == b"granted"
        del refused[OTHER]
        assert f"{ID} has services there" in (await world.refused(OTHER, **asked)).reason


@pytest.mark.parametrize("lost", ["service", "network", "right"])
async def test_listener_is_free_once_the_service_is_gone(tmp_path, lost):
    """Its route rests from then on, and is served again when the service is back and nobody else has the listener."""
    refused = {}
    async with serving(answer(b"other")) as server, proxied(tmp_path, refused) as (world, programs):
        await until_answers(world)
        if lost == "right":
            refused[ID] = PermissionRefused("capability_not_granted", "task:run is not granted")
        elif lost == "network":
            await programs.put(ID, "web", msgspec.structs.replace(SPEC, network="none"))
        else:
            await programs.delete(ID, "web")
        world.pass_s(1.0)
        assert not world.services.in_use
        world.plugins.origins[OTHER] = (f"http://127.0.0.1:{server.port}",)
        here = f"/{OTHER}/"
        await world.put(OTHER, path=here, target="service", origin=f"http://127.0.0.1:{server.port}", public=["/**"])
        assert (await world.get(here)).body == b"other"
        await world.call(OTHER, "route.delete", path=here)
        refused.clear()
        await programs.put(ID, "web", SPEC)
        world.pass_s(1.0)
        assert (await world.services.wait_for_listener(10)).url
        assert (await until_answers(world)).body == b"GET /hello 127.0.0.1:3000 0"


async def test_route_is_put_back_for_a_service_that_is_not_there(tmp_path):
    """As any that may not be served at the moment: stored, and served once the service is."""
    async with proxied(tmp_path) as (world, programs):
        (kept,) = world.kept()
        await world.call(ID, "route.delete", path=ROUTE["path"])
        await programs.delete(ID, "web")
        await world.keeper.put_back(ID, route_spec.decoded(kept.spec))
        assert not world.services.in_use
        await programs.put(ID, "web", SPEC)
        world.pass_s(1.0)
        assert (await world.services.wait_for_listener(10)).url
        await until_answers(world)


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"origin": "http://10.0.0.1:3000"}, "127.0.0.1:port"),
        ({"origin": "http://localhost:3000=127.0.0.1"}, "127.0.0.1:port"),
        ({"origin": "http://127.0.0.2:3000"}, "127.0.0.1:port"),
        ({"origin": "http://127.0.0.1:3000", "service": "a/b"}, "name of a service"),
    ],
)
async def test_bad_origins_of_a_service_are_refused(tmp_path, params, word):
    async with proxied(tmp_path) as (world, _):
        wanted = {"path": f"/{ID}/", "target": "service", "service": "web", "public": ["/x"], **params}
        error = await world.refused(ID, **wanted)
        assert word in error.reason


async def test_http_do_reaches_an_own_service(tmp_path):
    """By name, at loopback alone; redirects are answers; without the service there is no connection at all."""
    async with serving(answer(b"the host")) as server, proxied(tmp_path) as (world, programs):
        await until_answers(world)
        async with EgressClient(Guard()) as client:
            http = HttpCalls(
                client,
                rights_of=lambda _: EgressRights(),
                secrets_of=plugin_secrets.no_secrets,
                inside=programs.inside,
            )
            asked = {"url": f"http://127.0.0.1:{PORT}/api?x=1", "service": "web"}
            mine = Caller(plugin_id=ID)
            found = await call(http, caller=mine, **asked, method="POST", body="abc")
            assert base64.b64decode(found["body_base64"]) == b"POST /api?x=1 127.0.0.1:3000 3"
            found = await call(http, caller=mine, url=f"http://127.0.0.1:{PORT}/go", service="web")
            assert (found["status_code"], found["header"]["Location"]) == (302, "http://127.0.0.1:1/")
            for bad, word in (
                ({"url": f"http://10.0.0.1:{PORT}/"}, "bad_params"),
                ({"url": f"https://127.0.0.1:{PORT}/"}, "bad_params"),
                ({"url": f"http://localhost:{PORT}/"}, "bad_params"),
                ({"service": "other"}, "service_unavailable"),
                ({"url": f"http://127.0.0.1:{server.port}/"}, "service_unavailable"),
                ({"url": f"http://127.0.0.1:{PORT}/garbage"}, "service_unavailable"),
                ({"service": ""}, "egress_blocked"),
            ):
                with pytest.raises(HostError, match=word):
                    await call(http, caller=mine, **{**asked, **bad})
            # Not even where the operator let secrets go to the same address on the host.
            bound = EgressRights(origins=(egress.origin(f"http://127.0.0.1:{PORT}"),))
            sly = HttpCalls(
                client,
                rights_of=lambda _: bound,
                secrets_of=plugin_secrets.secrets_of({ID: {"TOKEN": "t0psecret"}}),
                inside=programs.inside,
            )
            with pytest.raises(HostError, match="egress_blocked: scheme not allowed"):
                await call(sly, caller=mine, **asked, method="POST", body="${secret:TOKEN}")
            with pytest.raises(HostError, match="service_unavailable"):
                await call(http, caller=Caller(plugin_id="acme.other"), **asked)
            assert server.connections == 0

"""Requests that crash a service behind the proxy: it is restarted each time; only other crashes count."""

from __future__ import annotations

import os
import signal

import aiohttp

from latticed.host.program import spec as specs
from latticed.host.program.data import ServiceData
from latticed.host.program.keeper import ProgramKeeper, ProgramRights
from latticed.kit.clock import SystemClock
from latticed.model.restart import VISITED, RestartPolicy
from latticed.settings.programs import ServiceSettings as Settings
from tests.house import backends, confinements, ports, routed
from tests.house.in_process import until
from tests.house.routed import ID

SETTINGS = Settings(programs={"python": "/usr/bin/python3"}, host_network=("python",))
QUICK = RestartPolicy(base_s=0.01, ceiling_s=0.02, jitter=0.0, breaker_failures=2)
WEB = """
import os, socket
listener = socket.create_server(('127.0.0.1', PORT))
while True:
    one = listener.accept()[0]
    if b' /die' in one.recv(4096): os._exit(3)
    one.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello')
    one.close()
"""


async def test_crashes_by_outside_requests_do_not_open_the_breaker(tmp_path):
    """Real program, real proxy, five requests that crash it, each noted; then two crashes of its own."""
    port, plugins = ports.free(), routed.SimulatedPlugins()
    plugins.origins[ID] = (f"http://127.0.0.1:{port}",)
    script = WEB.replace("PORT", str(port))
    spec = specs.ProgramSpec(program="python", args=("-c", script), environment={}, restart="always", network="host")
    async with (
        routed.opened(tmp_path, plugins=plugins) as world,
        ProgramKeeper(
            world.ledger,
            clock=SystemClock(),
            spawner=confinements.Spawner(),
            settings=SETTINGS,
            rights=ProgramRights(refusal=lambda _: None),
            policy=QUICK,
            data=ServiceData(tmp_path / "services"),
        ) as programs,
    ):
        plugins.reached = programs.visited
        await world.put(path=f"/{ID}/", target="service", origin=plugins.origins[ID][0], public=["/*"])
        supervised = (await programs.put(ID, "web", spec)).program

        async def answers():
            """Wait until it listens: refused connections are not visits."""
            while (await world.get(f"/{ID}/hello")).status != 200:
                assert supervised.state != "failed", supervised.view()

        for times in range(1, 6):
            await answers()
            assert (await world.get(f"/{ID}/die")).status == 502
            await until(lambda times=times: supervised.restarts == times)
            assert supervised.view()["last_error"]["message"].endswith(VISITED)
        for _ in range(2):
            await until(lambda: supervised.state == "running")
            pid = supervised.pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: supervised.pid != pid)
        await until(lambda: supervised.state == "failed")
        assert supervised.view()["last_error"]["code"] == "crash_loop"


async def test_request_that_reaches_the_service_is_noted_and_refused_one_is_not(tmp_path):
    """Plain requests, logged in ones, websockets; not requests that the proxy refuses, or while the service is down."""
    plugins, visits = routed.SimulatedPlugins(), []
    plugins.reached = visits.append
    async with routed.opened(tmp_path, plugins=plugins) as world:
        async with backends.running() as backend:
            await world.serve(backend, public=["/feed"])
            assert (await world.get(f"/{ID}/private")).status == 401
            assert visits == []
            assert (await world.get(f"/{ID}/feed")).status == 200
            cookie = await world.cookie()
            assert (await world.get(f"/{ID}/private", cookie)).status == 200
            headers = dict(line.split(": ", 1) for line in (world.here, cookie))
            async with aiohttp.ClientSession(f"http://{routed.HOST}:{world.port()}", headers=headers) as client:
                await (await client.ws_connect(f"/{ID}/ws")).close()
            assert visits == [ID] * 3
        assert (await world.get(f"/{ID}/feed")).status == 502
        assert visits == [ID] * 3

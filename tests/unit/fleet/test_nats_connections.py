"""One node's credentials, and as many connections as they get: against a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from latticed.fleet import deployment, nats_connection, nkeys, subjects
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_engine import NatsEngine
from tests.house import nats_servers

WAIT_S = 90
SIZES = deployment.Sizes(nodes=4, bundles_bytes=1 << 20)
HOSTILE = "hostile"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with nats_servers.running(tmp_path_factory.mktemp("nats"), sizes=SIZES) as running:
        yield running


async def connected(stack, fleet, name):
    """One more connection of this node, as nats-py makes it; None when there are no more."""
    try:
        client, _ = await stack.enter_async_context(nats_connection.probing(fleet.endpoint(fleet.node(name), name)))
        await client.flush(WAIT_S)
    except (EngineUnavailable, OSError):
        return None
    return client


async def test_connections_of_one_node_keep_no_controller_out_and_end_when_it_is_revoked(fleet):
    async with asyncio.timeout(WAIT_S), contextlib.AsyncExitStack() as stack:
        mine = []
        while (client := await connected(stack, fleet, HOSTILE)) is not None:
            mine.append(client)
            assert len(mine) <= SIZES.connections
        assert len(mine) == SIZES.connections
        assert await connected(stack, fleet, "other") is None
        # Whoever can do something about it comes in.
        async with fleet.connected("controller") as controller, fleet.connected("system") as system:
            await fleet.provide(controller)
            now_s = int(time.time())
            key = nkeys.UserCredentials.parse(fleet.node(HOSTILE).read_bytes()).key.public
            tokens = deployment.account_tokens(fleet.identities, now_s=now_s + 1, revoked={key: now_s}, sizes=SIZES)
            account = tokens[fleet.identities.nodes.public]
            await system.request("$SYS.REQ.CLAIMS.UPDATE", account.encode())
            await nats_servers.until(lambda: _all_closed(mine))
            async with fleet.connected("other") as other:
                assert await NatsEngine(other, "other").desired() is None
            assert await connected(stack, fleet, HOSTILE) is None


async def _all_closed(clients):
    return not any(one.is_connected for one in clients)


async def test_one_connection_listens_to_so_many_subjects_and_sends_so_much_at_once(fleet):
    async with asyncio.timeout(WAIT_S), fleet.connected("controller") as controller:
        await fleet.provide(controller)
        endpoint = fleet.endpoint(fleet.node("greedy"), "greedy")
        with contextlib.suppress(EngineUnavailable):
            async with nats_connection.probing(endpoint) as (client, _):
                for number in range(100):
                    await client.subscribe(f"_INBOX_greedy.{number}")
                await nats_servers.until(lambda: _all_closed([client]))
                assert "maximum subscriptions exceeded" in str(client.last_error)
        async with nats_connection.probing(endpoint) as (client, _):
            await client.publish(subjects.by_node("greedy", "status"), bytes(128 << 10))
            with contextlib.suppress(Exception):
                await client.flush(WAIT_S)
            await nats_servers.until(lambda: _all_closed([client]))

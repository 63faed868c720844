"""Connections are lost and come back: a server that dies, a network that is cut, credentials that end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time

import nats.errors
import pytest

from latticed.fleet import deployment, nats_client, nkeys
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_connection import PAUSES, NatsConnection
from latticed.fleet.nats_engine import NatsEngine
from tests.house import cut_wires, nats_servers
from tests.house.nats_servers import until

WAIT_S = 60


@pytest.fixture
def fleet(tmp_path):
    """Servers of this test's own: they are killed."""
    with nats_servers.running(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def controller(fleet):
    async with fleet.connected("controller") as connection:
        yield await fleet.provide(connection)


async def put(controller, node, data):
    """Put a document whatever there is, as often as it takes; a timeout may have done it."""
    while True:
        with contextlib.suppress(EngineUnavailable):
            found = await controller.desired(node)
            if found is not None and found.data == data:
                return
            await controller.put_desired(node, data, 0 if found is None else found.revision)
            return
        await asyncio.sleep(0.05)


async def _has(engine, document):
    """Whether this document is what a node is to have; not while there is no connection."""
    try:
        return await engine.desired() == document
    except EngineUnavailable:
        return False


class TestServerIsKilled:
    async def test_documents_survive_and_what_changed_meanwhile_is_looked_up(self, fleet, controller, node):
        async with asyncio.timeout(WAIT_S), fleet.connected(node) as connection:
            engine = NatsEngine(connection, node)
            pushed = engine.watch_desired()
            following = asyncio.ensure_future(anext(pushed))
            await engine.desired()  # a round trip: the subscription was sent before it
            await controller.put_desired(node, b"before", 0)
            assert await following == b"before"

            fleet.servers[0].kill()
            await until(lambda: _is(not connection.up))
            with pytest.raises(EngineUnavailable):
                await engine.desired()
            with pytest.raises(EngineUnavailable):
                await engine.beat(b"")
            fleet.servers[0].start()
            await connection.wait_up()
            assert await engine.desired() == b"before"
            # The same subscription, on the new connection.
            following = asyncio.ensure_future(anext(pushed))
            await engine.desired()
            await put(controller, node, b"after")
            assert await following == b"after"
            await pushed.aclose()

    async def test_event_published_again_after_an_unheard_answer_is_stored_once(self, fleet, controller, node):
        async with (
            asyncio.timeout(WAIT_S),
            cut_wires.forwarding(fleet.servers[0].port) as wire,
            fleet.connected(node, urls=(f"tls://127.0.0.1:{wire.port}",)) as connection,
        ):
            engine = NatsEngine(connection, node)
            wire.hole()
            lost = asyncio.ensure_future(engine.publish_event(b"event", f"lost-{node}"))
            await asyncio.sleep(0)
            wire.cut()
            with pytest.raises(EngineUnavailable):
                await lost
            wire.heal()
            await until(lambda: _published(engine, f"lost-{node}"))
            await until(lambda: _published(engine, f"lost-{node}"))
            found = []
            async with contextlib.aclosing(controller.events()) as batches:
                async for batch in batches:
                    found += [one.data for one in batch if one.subject == f"ev.{node}.audit"]
                    break
            assert found.count(b"event") == 1


async def _is(value):
    return value


async def _published(engine, message_id):
    try:
        await engine.publish_event(b"event", message_id)
    except EngineUnavailable:
        return False
    return True


class TestNetworkIsCut:
    async def test_reset_connection_comes_back_by_itself(self, fleet, controller, node):
        heard = []
        async with asyncio.timeout(WAIT_S), cut_wires.forwarding(fleet.servers[0].port) as wire:
            endpoint = fleet.endpoint(fleet.node(node), node, (f"tls://127.0.0.1:{wire.port}",))
            async with NatsConnection(
                endpoint, pauses=nats_servers.QUICK, on_change=lambda up, reason: heard.append((up, bool(reason)))
            ) as connection:
                await connection.wait_up()
                engine = NatsEngine(connection, node)
                await controller.put_desired(node, b"one", 0)
                wire.cut()
                await until(lambda: _is(not connection.up))
                await put(controller, node, b"two")
                wire.heal()
                await connection.wait_up()
                assert await engine.desired() == b"two"
                assert connection.connections == 2
        assert heard[0] == (True, False)
        assert heard[1] == (False, True)
        assert heard[-1] == (True, False)

    async def test_silent_network_is_an_error_of_the_question_and_not_of_the_next(self, fleet, controller, node):
        """No packet says that it is gone: a question ends by its own time."""
        async with (
            asyncio.timeout(WAIT_S),
            cut_wires.forwarding(fleet.servers[0].port) as wire,
            fleet.connected(node, urls=(f"tls://127.0.0.1:{wire.port}",)) as connection,
        ):
            wire.hole()
            with pytest.raises(EngineUnavailable, match="timeout"):
                await connection.request(f"n.{node}.status", b"", timeout_s=0.2)
            wire.heal()
            await controller.put_desired(node, b"one", 0)
            assert await NatsEngine(connection, node).desired() == b"one"

    async def test_client_that_ends_by_no_cancellation_keeps_nobody_from_the_next_one(self):
        """As nats-py's own, which takes it for the end of a flush: under load some nodes never came back."""
        ended = asyncio.Event()

        class Client:
            async def close(self):
                with contextlib.suppress(asyncio.CancelledError):
                    await ended.wait()
                await ended.wait()

        async with asyncio.timeout(WAIT_S):
            await nats_client.closed(Client())
        ended.set()


class TestCredentialsEnd:
    async def test_expired_ones_close_the_client_and_renewed_ones_connect_again(
        self, fleet, controller, node, tmp_path
    ):
        path = tmp_path / "creds"
        now_s = int(time.time())
        path.write_bytes(fleet.node_credentials(node, now_s=now_s, expires_s=now_s + 2).text())
        await controller.put_desired(node, b"document", 0)
        async with asyncio.timeout(WAIT_S), fleet.connected(node, credentials=path) as connection:
            await until(lambda: _is(not connection.up))
            await until(lambda: _is("the credentials ended" in connection.reason))
            path.write_bytes(fleet.node_credentials(node, now_s=now_s).text())
            # Within the second in which they end, a server lets those of before in once more and hangs up.
            await until(lambda: _has(NatsEngine(connection, node), b"document"))

    async def test_revoked_node_is_cut_off_at_once_and_stays_out_over_a_restart(self, fleet, controller, node):
        other = f"{node}-other"
        async with (
            asyncio.timeout(WAIT_S),
            fleet.connected("system") as system,
            fleet.connected(other) as undisturbed,
            fleet.connected(node) as revoked,
        ):
            public = nkeys.UserCredentials.parse(fleet.node(node).read_bytes()).key.public
            # A moment ahead: what was signed within this very second is revoked too.
            now_s = int(time.time()) + 1
            tokens = deployment.account_tokens(fleet.identities, now_s=now_s, revoked={public: now_s})
            answer = await system.request("$SYS.REQ.CLAIMS.UPDATE", tokens[fleet.identities.nodes.public].encode())
            assert b'"code":200' in answer.data, answer.data
            await until(lambda: _is(not revoked.up))
            await until(lambda: _is("uthorization" in revoked.reason))
            assert undisturbed.up
            assert undisturbed.connections == 1

            # The configuration file has the older token of the account; the newer one counts.
            fleet.servers[0].stop()
            fleet.servers[0].start()
            await until(lambda: _is(undisturbed.connections == 2 and undisturbed.up))
            assert revoked.connections == 1
            assert not revoked.up

    async def test_file_that_is_broken_is_named_and_read_again(self, fleet, controller, node, tmp_path):
        path = tmp_path / "creds"
        path.write_bytes(b"half a file")
        async with (
            asyncio.timeout(WAIT_S),
            NatsConnection(fleet.endpoint(path, node), pauses=nats_servers.QUICK) as connection,
        ):
            await until(lambda: _is("credentials file" in connection.reason))
            path.write_bytes(fleet.node(node).read_bytes())
            await connection.wait_up()


class TestServerIsAnother:
    async def test_certificate_of_another_authority_gets_no_token(self, fleet, node, tmp_path):
        stranger = nats_servers.configured(tmp_path / "stranger")
        stranger.servers[0].start()
        try:
            endpoint = fleet.endpoint(fleet.node(node), node, stranger.urls)
            async with asyncio.timeout(WAIT_S), NatsConnection(endpoint, pauses=nats_servers.QUICK) as connection:
                await until(lambda: _is("ertificate" in connection.reason))
                assert connection.connections == 0
        finally:
            stranger.servers[0].stop()

    async def test_server_that_says_tls_is_not_wanted_gets_no_token(self, fleet, node):
        """A server in plain text, which asks for credentials in its first line."""
        received = bytearray()

        async def pretend(reader, writer):
            writer.write(b'INFO {"auth_required":true,"nonce":"abc","headers":true,"tls_required":false}\r\n')
            received.extend(await reader.read(1 << 16))
            writer.close()

        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        endpoint = fleet.endpoint(fleet.node(node), node, (url,))
        async with asyncio.timeout(WAIT_S), NatsConnection(endpoint, pauses=nats_servers.QUICK) as connection:
            await until(lambda: _is(bool(received) and "not connected yet" not in connection.reason))
            assert connection.connections == 0
        server.close()
        assert received[0] == 22  # a TLS handshake (RFC 8446 §5.1), and nothing of NATS
        assert b"CONNECT" not in received

    @pytest.mark.parametrize(
        "greeting",
        [b"INFO []\r\n", b"INFO 1\r\n", b'INFO {"connect_urls":5}\r\n', b'INFO {"auth_required":true,"nonce":5}\r\n'],
    )
    async def test_server_that_greets_with_nonsense_is_one_that_is_lost(self, fleet, node, greeting):
        """It has the right certificate; whoever holds the engine could keep nodes away for good with one line."""
        greeted = 0

        async def greet(reader, writer):
            nonlocal greeted
            greeted += 1
            writer.write(greeting)
            await reader.read()
            writer.close()

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(fleet.place / "server.pem", fleet.place / "server.key")
        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
        url = f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        endpoint = fleet.endpoint(fleet.node(node), node, (url,))
        async with asyncio.timeout(WAIT_S), NatsConnection(endpoint, pauses=nats_servers.QUICK) as connection:
            await until(lambda: _is(greeted > 2))
            assert not connection.up
            assert connection.reason
        server.close()


class TestClientThatFailsInItsOwnWay:
    """nats-py and Python 3.11 lose cancellations and callbacks where many connections end at once."""

    async def test_cancellation_that_nobody_asked_for_does_not_end_the_trying(self, fleet, node, monkeypatch):
        real, tries = nats_client.BoundedClient.connect, []

        async def connect(client, *servers, **options):
            tries.append(client)
            if len(tries) < 3:
                raise asyncio.CancelledError
            await real(client, *servers, **options)

        monkeypatch.setattr(nats_client.BoundedClient, "connect", connect)
        async with asyncio.timeout(WAIT_S), fleet.connected(node) as connection:
            await connection.wait_up()
            assert len(tries) >= 3

    async def test_client_that_does_not_say_that_it_is_closed_is_replaced(self, fleet, node, monkeypatch):
        real = nats_client.BoundedClient.connect
        monkeypatch.setattr(nats_client, "_LOOK_S", 0.1)
        monkeypatch.setattr(
            nats_client.BoundedClient,
            "connect",
            lambda client, *servers, **options: real(client, *servers, **{**options, "closed_cb": None}),
        )
        async with asyncio.timeout(WAIT_S), fleet.connected(node) as connection:
            await connection.wait_up()
            first = connection.connections
            fleet.servers[0].kill()
            await until(lambda: _is(not connection.up))
            fleet.servers[0].start()
            await connection.wait_for_another(first)


def test_pauses_spread_over_all_of_their_length():
    """Ten thousand that lose a server at once come back over seconds, and over half a minute when it stays away."""
    assert [PAUSES.delay_s(1, roll) for roll in (0, 0.5)] == [0, 5]
    assert PAUSES.delay_s(1, 1) == 10
    assert (PAUSES.delay_s(20, 0), PAUSES.delay_s(20, 1)) == (0, 30)


async def test_connection_that_breaks_with_something_left_to_send_leaves_nothing_behind(fleet, node, monkeypatch):
    """nats-py's own tasks fail or stay then: asyncio would say so as errors, each time that a network is cut."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    monkeypatch.setattr(nats_client, "_LOOK_S", 0.1)
    async with asyncio.timeout(WAIT_S), cut_wires.forwarding(fleet.servers[0].port) as wire:
        urls = (f"tls://127.0.0.1:{wire.port}",)
        async with fleet.connected(node, urls=urls) as connection:
            following = asyncio.ensure_future(anext(connection.messages(f"dn.{node}")))
            await asyncio.sleep(0)
            before = asyncio.all_tasks()
            wire.hole()
            client = connection._client()

            async def publish():
                with contextlib.suppress(nats.errors.Error, OSError):
                    while True:
                        await client.publish(f"n.{node}.status", b"x" * 60_000)
                        await asyncio.sleep(0)

            publishing = asyncio.ensure_future(publish())
            # More than TCP takes for a peer that does not read: what waits now is never sent.
            await until(lambda: _is(client._pending_data_size > 1 << 20))
            wire.cut()
            await until(lambda: _is(not connection.up))
            wire.heal()
            await connection.wait_up()
            for task in (following, publishing):
                task.cancel()
            await asyncio.wait({following, publishing})
        left = {one for one in before & asyncio.all_tasks() if "nats" in str(one.get_coro())}
    gc.collect()
    await asyncio.sleep(0)
    assert (told, left) == ([], set())

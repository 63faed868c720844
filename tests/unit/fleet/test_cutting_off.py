"""A node that was revoked is cut off at the message system's servers at once, and stays out; others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import time

import pytest

from latticed.fleet import deployment, enrolment, nats_connection, nkeys
from latticed.fleet.controller import views
from latticed.fleet.controller.cutting_off import CuttingOff
from latticed.fleet.controller.settings import EnrolmentSettings
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.signers import Signers
from latticed.model.errors import Problem
from latticed.trust import key_files
from tests.house import fleet_controllers as house
from tests.house import nats_servers
from tests.house.fleet_controllers import until
from tests.house.fleet_joining import Host

WAIT_S = 60
_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"cutting-{next(_numbers)}")


@contextlib.asynccontextmanager
async def started(servers, place, operator, **fields):
    """A controller that leads, and lets hosts join."""
    signer = place / "node-signer"
    signer.write_text(servers.identities.node_signer.seed + "\n")
    enrolment_ = EnrolmentSettings(node_signer=str(signer), account=servers.identities.nodes.public)
    fields = {"cuts_off": True, **fields}
    async with house.running(servers, place, operator=operator, enrolment=enrolment_, **fields) as controlled:
        await controlled.leads()
        yield controlled


async def refused(servers, host):
    """Whether the servers let the host in no more."""
    path = host.place / f"{host.name}.creds"
    try:
        async with nats_connection.probing(servers.endpoint(path, host.name)) as (client, _):
            await client.flush(5)
    except (EngineUnavailable, OSError):
        return True
    return False


async def revoked(controlled, servers, *hosts):
    """Have the controller take what the operator signs of these hosts."""
    await controlled.give(controlled.operator.revocations(*(one.public for one in hosts)))
    return await controlled.give(controlled.operator.users(servers, *(one.user.public for one in hosts)))


@contextlib.asynccontextmanager
async def joined(servers, operator, name, place):
    """A host that has joined, and its connection."""
    host = Host(servers, operator, name, place)
    granted = await host.ask(host.invited())
    async with host.connected(granted) as engine:
        yield host, engine._connection


async def test_node_is_cut_off_at_once_and_cannot_come_back(fleet, operator, tmp_path):
    async with (
        asyncio.timeout(WAIT_S),
        started(fleet, tmp_path, operator) as controlled,
        joined(fleet, operator, "good-1", tmp_path) as (_, undisturbed),
        joined(fleet, operator, "bad-1", tmp_path) as (bad, connection),
    ):
        # It keeps its connection, whatever the controller stops giving it.
        await controlled.give(operator.revocations(bad.public))
        assert [(one.code, one.node) for one in still(controlled)] == [("node_not_cut_off", "bad-1")]
        assert bad.user.public in still(controlled)[0].hint
        assert connection.up
        sha256 = await controlled.give(operator.users(fleet, bad.user.public))
        await until(lambda: not connection.up)
        assert await refused(fleet, bad)
        await until(lambda: controlled.running.cutting_off.held == sha256)
        assert still(controlled) == []
        assert (undisturbed.up, undisturbed.connections) == (True, 1)
        # Nor by credentials that somebody signs for it later.
        later = int(time.time()) + 30
        token = deployment.node_token(
            fleet.identities.node_signer, fleet.identities.nodes.public, bad.user.public, "bad-1", now_s=later
        )
        own = nkeys.UserCredentials(token=token, key=bad.user, name="bad-1", expires_s=None)
        (tmp_path / "bad-1.creds").write_bytes(own.text())
        assert await refused(fleet, bad)


def still(controlled):
    """Alarms about nodes that are connected still."""
    return [one for one in views.alarms(controlled.core, controlled.running.facts()) if one.code == "node_not_cut_off"]


async def test_servers_of_a_cluster_cut_it_off_each_and_one_that_was_set_up_anew_too(operator, tmp_path):
    with nats_servers.running(tmp_path / "nats", 3) as servers:
        async with asyncio.timeout(3 * WAIT_S), started(servers, tmp_path, operator) as controlled:
            async with contextlib.AsyncExitStack() as stack:
                host, _ = await stack.enter_async_context(joined(servers, operator, "bad-1", tmp_path))
                path = tmp_path / "bad-1.creds"
                everywhere = [
                    await stack.enter_async_context(servers.connected("bad-1", urls=(one.url,), credentials=path))
                    for one in servers.servers
                ]
                await revoked(controlled, servers, host)
                await until(lambda: not any(one.up for one in everywhere))
            held = controlled.running.cutting_off
            await until(lambda: held.held, lambda: held.trouble)
            # One is gone for good, and comes as a new one with nothing but its configuration.
            first = servers.servers[0]
            first.stop()
            shutil.rmtree(first.directory / "jwt")
            first.start()
            await until(lambda: claims_of(first, servers) == controlled.core.shelf.users.document.account)
            assert await refused(servers, host)


def claims_of(server, servers):
    """The token of NODES that a server has on disk."""
    for path in (server.directory / "jwt").glob(f"**/{servers.identities.nodes.public}.jwt"):
        return path.read_text()
    return ""


@pytest.mark.parametrize("lost", ["restarted", "rebuilt"])
async def test_it_stays_out_when_all_servers_come_back(operator, tmp_path, lost):
    with nats_servers.running(tmp_path / "nats") as servers:
        async with asyncio.timeout(WAIT_S), started(servers, tmp_path, operator) as controlled:
            async with joined(servers, operator, "bad-1", tmp_path) as (host, connection):
                await revoked(controlled, servers, host)
                await until(lambda: not connection.up)
            (server,) = servers.servers
            server.stop()
            if lost == "rebuilt":
                shutil.rmtree(server.directory / "jwt")
                shutil.rmtree(server.directory / "jetstream")
            server.start()
            await until(lambda: claims_of(server, servers) == controlled.core.shelf.users.document.account)
            assert await refused(servers, host)


async def test_another_controller_with_an_empty_database_goes_on_with_it(operator, tmp_path):
    """Somebody hands the servers an older token: whoever leads then has them take the newest one again."""
    with nats_servers.running(tmp_path / "nats") as servers:
        async with asyncio.timeout(WAIT_S), started(servers, tmp_path, operator) as controlled:
            async with joined(servers, operator, "bad-1", tmp_path) as (host, _):
                await revoked(controlled, servers, host)
            name = "doc-users"
            await until(lambda: controlled.leader._shared.get(name))
        async with servers.connected("system") as system:
            older = deployment.account_tokens(servers.identities, now_s=1, sizes=servers.sizes)
            await system.request(deployment.UPDATE_CLAIMS, older[servers.identities.nodes.public].encode())
        assert not await refused(servers, host)
        async with asyncio.timeout(WAIT_S), started(servers, tmp_path, operator, name="c2") as other:
            await until(lambda: other.running.cutting_off.held)
            assert await refused(servers, host)


async def test_controller_without_the_right_says_so_and_when_credentials_end(fleet, operator, tmp_path):
    async with (
        asyncio.timeout(WAIT_S),
        started(fleet, tmp_path, operator, cuts_off=False) as controlled,
        joined(fleet, operator, "bad-2", tmp_path) as (bad, connection),
    ):
        await controlled.give(operator.revocations(bad.public))
        (found,) = still(controlled)
        assert "its credentials end in 14 days" in found.hint
        assert not controlled.running.cutting_off.able
        assert connection.up
        controlled.core.clock = lambda: time.time() + 15 * 86_400
        assert still(controlled) == []


async def test_token_that_is_not_whole_or_of_another_account_is_handed_to_nobody(fleet, operator, tmp_path):
    other = nkeys.token(fleet.identities.operator, fleet.identities.control.public, "CTRL", {}, now_s=1)
    async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator) as controlled:
        body, _, signature = other.rpartition(".")
        broken = f"{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
        await controlled.give(operator.users(fleet, "U" + "A" * 55, account=broken))
        held = controlled.running.cutting_off
        await until(lambda: "signature" in held.trouble, lambda: held.trouble)
        await controlled.give(operator.users(fleet, "U" + "B" * 55, account=other))
        await until(lambda: "expected a token of the account" in held.trouble, lambda: held.trouble)
        codes = {one.code: one.reason for one in views.alarms(controlled.core, controlled.running.facts())}
        assert codes["users_not_revoked"] == held.trouble
        assert held.held == ""


async def test_servers_that_do_not_take_it_are_counted_and_tried_again(fleet, operator, tmp_path):
    """As by credentials of another account, which reach no server."""
    real = fleet.revoking().read_bytes()
    try:
        fleet.revoking().write_bytes(fleet.controller.read_bytes())
        async with asyncio.timeout(WAIT_S), started(fleet, tmp_path, operator) as controlled:
            await controlled.give(operator.users(fleet, "U" + "A" * 55))
            held = controlled.running.cutting_off
            await until(lambda: held.trouble == "expected 1 servers to take it, found 0 that did", lambda: held.trouble)
    finally:
        fleet.revoking().write_bytes(real)


async def test_credentials_for_it_can_do_nothing_else(fleet):
    """Nobody who steals them reaches a stream, other accounts or the servers."""
    nodes, control = fleet.identities.nodes.public, fleet.identities.control.public
    subjects = ("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.X.RELOAD", "$JS.API.INFO", "$KV.desired.web-1", "$SYS.X")
    subjects += ("$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.CLAIMS.DELETE", deployment.claims_of(control))
    heard = (">", "$SYS.>", "$SYS.ACCOUNT.*.CONNECT", "dn.*", "_INBOX.>")
    async with nats_connection.probing(fleet.endpoint(fleet.revoking(), "c1")) as (client, said):
        for one in subjects:
            await client.publish(one, b"")
        for one in heard:
            await client.subscribe(one)
        for _ in range(2):
            await client.flush(5)
        for one in (*subjects, *heard):
            assert any(f'"{one.lower()}"' in words for words in said), one
        answer = await client.request(deployment.claims_of(nodes), b"", timeout=5)
        assert nkeys.unverified(answer.data.decode())["sub"] == nodes


async def test_node_has_one_key_to_connect_with_for_each_invitation(fleet, operator, tmp_path):
    """By many keys it would have connections that nobody knows to cut off."""
    async with (
        started(fleet, tmp_path, operator) as controlled,
    ):
        host = Host(fleet, operator, "many-1", tmp_path)
        invited = host.invited()
        granted = await host.ask(invited)
        first, host.user = host.user, nkeys.Key.generate(nkeys.KeyKind.USER)
        with pytest.raises(Problem) as found:
            await host.ask(invited)
        assert found.value.code == "enrolment_used"
        second, host.user = host.user, first
        async with host.connected(granted) as engine:
            asked = enrolment.renewal(host.key, fleet=operator.fleet, node="many-1", user=second.public)
            with pytest.raises(Problem) as found:
                host.answered(await engine.renew(asked))
            assert found.value.code == "renewal_invalid"
            asked = enrolment.renewal(host.key, fleet=operator.fleet, node="many-1", user=first.public)
            host.answered(await engine.renew(asked))
        # Another invitation has another one count, beside it.
        host.user = second
        await host.ask(host.invited())
        assert controlled.core.users_of(host.public) == {first.public, second.public}


async def test_older_list_of_users_is_not_taken_and_what_one_lacks_is_said(fleet, operator, tmp_path):
    async with started(fleet, tmp_path, operator) as controlled:
        older = operator.users(fleet, "U" + "A" * 55)
        taken = await controlled.operations.take_document(operator.users(fleet, "U" + "A" * 55, "U" + "B" * 55))
        assert taken.notes == ()
        with pytest.raises(Problem) as found:
            await controlled.give(older)
        assert found.value.code == "document_old"
        taken = await controlled.operations.take_document(operator.users(fleet, "U" + "B" * 55))
        assert taken.notes == ("1 users of the list before are not in this one: sign one that has all",)
    async with started(fleet, tmp_path, operator) as controlled:  # and it is on disk, once
        assert controlled.core.shelf.cut_off == {"U" + "B" * 55}


def test_key_of_another_kind_names_no_account():
    with pytest.raises(Problem):
        Signers.generate(control=key_files.public_text(key_files.generate()), nodes="A")


async def test_servers_that_answer_without_end_are_not_listened_to_without_end():
    class Endless:
        async def replies(self, subject, data, *, timeout_s):
            while True:
                yield nats_connection.NatsReply(b"{}", {})

    cutting_off = CuttingOff(None, Endless(), account="", servers=1)
    async with asyncio.timeout(WAIT_S):
        assert 0 < len(await cutting_off._asked("who", b"")) <= 64

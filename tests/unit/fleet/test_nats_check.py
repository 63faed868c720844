"""Servers of somebody else: what they lack, and what they let pass that they must not, is found by trying."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time

import pytest

from latticed.fleet import deployment, nats_check, nkeys, subjects
from tests.house import nats_servers

WAIT_S = 60
NODE = "web-1"


def issued(fleet, signer, account, name):
    """A file with credentials for `name` that `signer` signed."""
    key = nkeys.Key.generate(nkeys.KeyKind.USER)
    token = deployment.node_token(signer, account, key.public, name, now_s=int(time.time()))
    path = fleet.place / f"{name}-of-{account[:8]}.creds"
    path.write_bytes(nkeys.UserCredentials(token=token, key=key, name=name, expires_s=None).text())
    return path


async def checked(fleet, *, node=None, system=None, revoking=None):
    """What is found, in words; without credentials of SYS, that these are missing is left out."""
    async with asyncio.timeout(WAIT_S):
        async with fleet.connected("controller") as connection:
            await fleet.provide(connection)
        found = await nats_check.check(
            fleet.endpoint(fleet.controller, "controller"),
            fleet.endpoint(node or fleet.node(NODE), NODE),
            fleet.endpoint(system, "system") if system else None,
            sizes=fleet.sizes,
            replicas=1,
            revoking=fleet.endpoint(revoking or fleet.revoking(), "c1"),
        )
    words = [str(one) for one in found]
    unseen = [one for one in words if "no credentials of the system account" in one]
    assert len(unseen) == (0 if system else 1)
    return [one for one in words if one not in unseen]


async def test_servers_that_latticed_configures_lack_nothing(fleet):
    assert await checked(fleet, system=fleet.system) == []


async def test_credentials_that_cut_nobody_off_or_do_more_are_named(fleet):
    found = await checked(fleet, system=fleet.system, revoking=fleet.system)
    assert "expected credentials to revoke with that do not reach $SYS.REQ.SERVER.PING, found that they do" in found
    assert not [one for one in found if "cut off at once" in one]  # they can do that too
    found = await checked(fleet, system=fleet.system, revoking=fleet.node("c1"))
    assert [one for one in found if "cut off at once, found some that do not" in one]
    (none,) = await nats_check._revoking(None, fleet.endpoint(fleet.node(NODE), NODE))
    assert not none.serious
    assert "stays connected until its user is revoked there" in none.found


async def test_streams_that_are_missing_or_changed_are_named(fleet, controller):
    wanted = {one["name"]: one for one in deployment.streams(fleet.sizes, replicas=1)}
    await controller.provide([{**wanted["EVENTS"], "max_msgs_per_subject": 7}])
    found = [str(one) for one in await nats_check._streams(controller, deployment.streams(fleet.sizes, replicas=1))]
    assert found == [f"expected the stream EVENTS with max_msgs_per_subject = {deployment.EVENTS_PER_NODE}, found 7"]


@pytest.fixture
def changed(tmp_path):
    """Servers whose configuration is another: `change(text)` gives what they get."""
    stops = []

    def start(change, identities=None):
        fleet = nats_servers.configured(tmp_path / "nats")
        (server,) = fleet.servers
        server.configuration.write_text(change(fleet, server.configuration.read_text()))
        server.start()
        stops.append(server.stop)
        return fleet

    yield start
    for stop in stops:
        stop()


async def test_server_that_syncs_later_is_named(changed):
    fleet = changed(lambda _, text: text.replace("sync_interval: always", "sync_interval: 2m"))
    (found,) = await checked(fleet, system=fleet.system)
    assert found == "expected jetstream { sync_interval: always } on each server, found another one on fleet-1"


async def test_credentials_of_another_account_do_not_pass_for_servers_that_sync(fleet):
    (found,) = await checked(fleet, system=fleet.controller)
    assert "no server that says so" in found


def open_to_all(_, text):
    """Without accounts and operator: whoever comes is let in."""
    return "\n".join(one for one in text.splitlines() if one.startswith(("server_name", "listen", "tls")))


async def test_server_that_lets_anybody_in_is_named_though_it_is_not_the_first_and_one_that_is_away(changed):
    fleet = changed(open_to_all)
    present = fleet.endpoint(fleet.controller, "controller")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"tls://127.0.0.1:{nobody.getsockname()[1]}"
        both = dataclasses.replace(present, servers=(away, *present.servers))
        async with asyncio.timeout(WAIT_S):
            found = [str(one) for one in await nats_check._anonymous(both)]
    assert len(found) == 2
    assert found[0].startswith(f"expected a server at {away} that lets controllers in, found ")
    assert found[1] == f"expected servers that want credentials, found {present.servers[0]} that lets anybody connect"


def one_account(fleet, text):
    """Nodes are users of the account that has the streams: it maps what they publish to, and lets them publish that."""
    keys = fleet.identities
    tokens = deployment.account_tokens(keys, now_s=int(time.time()))
    claims = {name: nkeys.unverified(token)["nats"] for name, token in tokens.items()}
    control = claims[keys.control.public]
    control["signing_keys"] += claims[keys.nodes.public]["signing_keys"]
    control["signing_keys"][-2]["template"]["pub"]["allow"].append("hb.{{name()}}")
    control["mappings"] = {"n.*.beat": [{"subject": "hb.$1", "weight": 100}]}
    token = nkeys.token(keys.operator, keys.control.public, "CTRL", control, now_s=int(time.time()))
    return text.replace(line(text, keys.control.public), f"  {keys.control.public}: {token}")


def line(text, start):
    (found,) = [one for one in text.splitlines() if one.strip().startswith(f"{start}:")]
    return found


async def test_nodes_in_the_account_of_the_streams_are_found_by_what_they_can_overwrite(changed):
    fleet = changed(one_account)
    keys = fleet.identities
    found = await checked(fleet, node=issued(fleet, keys.node_signer, keys.control.public, NODE))
    assert [one for one in found if "document of another" in one]


def wide(fleet, text):
    """Nodes may publish and listen to all that there is in their account."""
    keys = fleet.identities
    tokens = deployment.account_tokens(keys, now_s=int(time.time()))
    nodes = nkeys.unverified(tokens[keys.nodes.public])["nats"]
    nodes["signing_keys"][0]["template"] |= {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}}
    token = nkeys.token(keys.operator, keys.nodes.public, "NODES", nodes, now_s=int(time.time()))
    return text.replace(line(text, keys.nodes.public), f"  {keys.nodes.public}: {token}")


async def test_each_permission_too_many_is_named(changed):
    found = await checked(changed(wide))
    publish, listen = nats_check.forbidden(NODE, "other")
    assert len([one for one in found if "may not publish" in one]) == len(publish)
    assert len([one for one in found if "may not listen" in one]) == len(listen)
    assert f"expected a node that may not publish to {subjects.desired(NODE)}, found that it may" in found


async def test_node_that_cannot_read_its_document_is_named(changed):
    def narrow(fleet, text):
        keys = fleet.identities
        tokens = deployment.account_tokens(keys, now_s=int(time.time()))
        nodes = nkeys.unverified(tokens[keys.nodes.public])["nats"]
        nodes["imports"] = []
        token = nkeys.token(keys.operator, keys.nodes.public, "NODES", nodes, now_s=int(time.time()))
        return text.replace(line(text, keys.nodes.public), f"  {keys.nodes.public}: {token}")

    found = await checked(changed(narrow))
    assert [one for one in found if "can read its document" in one]

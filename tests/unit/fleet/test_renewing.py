"""Credentials that are renewed: whoever has a controller's stolen key puts none in their place that servers refuse."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import time

import pytest

from latticed.fleet import documents, enrolment, messages, nats_connection, nkeys, renewing
from latticed.fleet.nats_connection import NatsConnection
from latticed.trust import key_files
from tests.house import fleets, nats_servers

WAIT_S = 60
LIFE_S = 1_000


class Asked:
    """The engine, as far as renewing asks it: a controller's answers, in order, by `signer`."""

    def __init__(self, fleet, node, key, signers):
        self.fleet, self.node, self.key, self.signers = fleet, node, key, list(signers)
        self.answered = asyncio.Event()

    async def renew(self, data):
        asked = documents.read(json.dumps(json.loads(data)["request"]).encode(), documents.RenewalRequest)
        signer = self.signers.pop(0)
        self.answered.set()
        now_s = int(time.time())
        made = documents.ControllerCertificate(
            fleet="home",
            controller="c1",
            controller_key=fleets.public(fleets.CONTROLLER),
            epoch=1,
            expires=now_s + 3_600,
        )
        return enrolment.answer(
            enrolment.Renewed(node=self.node, node_key=asked.key, user=asked.document.user),
            fleet="home",
            signer=signer,
            account=self.fleet.identities.nodes.public,
            key=fleets.CONTROLLER,
            certificate=documents.sign(made, fleets.OPERATOR),
            now_s=now_s,
            life_s=10 * LIFE_S,
        )


def half_over(fleet, node, place):
    """Credentials that are to be renewed by now."""
    now_s = int(time.time())
    path = place / "nats.creds"
    path.write_bytes(fleet.node_credentials(node, now_s=now_s - LIFE_S, expires_s=now_s + LIFE_S // 2).text())
    return path


async def test_credentials_that_servers_refuse_are_not_kept_and_better_ones_are(fleet, node, tmp_path):
    path = half_over(fleet, node, tmp_path)
    good, key = path.read_bytes(), key_files.generate()
    stolen = nkeys.Key.generate(nkeys.KeyKind.ACCOUNT)
    token = fleets.Fleet(node=node).token()
    work = renewing.Renewing(token=token, credentials=path, look_s=0.05)

    def put(message):
        assert isinstance(message, messages.RenewalWanted)
        asked = enrolment.renewal(key, fleet="home", node=node, user=message.user)
        work.signed(messages.RenewalSigned(node_key=key_files.public_text(key), document=asked))
        return True

    async with asyncio.timeout(WAIT_S), NatsConnection(fleet.endpoint(path, node), pauses=nats_servers.QUICK) as up:
        await up.wait_up()
        asked = Asked(fleet, node, key, [stolen, stolen, fleet.identities.node_signer])
        working = asyncio.ensure_future(work.work(up, asked, put, lambda _: 0.02))
        while len(asked.signers) > 1 or not asked.answered.is_set():
            asked.answered.clear()
            await asked.answered.wait()
            if asked.signers:
                assert path.read_bytes() == good
        await nats_servers.until(lambda: _is(path.read_bytes() != good))
        working.cancel()
        await asyncio.wait({working})
        assert nats_connection.before(path).read_bytes() == good
        await up.lets_in(nkeys.UserCredentials.parse(path.read_bytes()))


async def test_credentials_are_renewed_while_the_first_of_the_servers_is_away(fleet, node, tmp_path):
    path = half_over(fleet, node, tmp_path)
    good, key = path.read_bytes(), key_files.generate()
    work = renewing.Renewing(token=fleets.Fleet(node=node).token(), credentials=path, look_s=0.05)

    def put(message):
        asked = enrolment.renewal(key, fleet="home", node=node, user=message.user)
        work.signed(messages.RenewalSigned(node_key=key_files.public_text(key), document=asked))
        return True

    present = fleet.endpoint(path, node)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"tls://127.0.0.1:{nobody.getsockname()[1]}"
        endpoint = dataclasses.replace(present, servers=(away, *present.servers))
        async with asyncio.timeout(WAIT_S), NatsConnection(endpoint, pauses=nats_servers.QUICK) as up:
            asked = Asked(fleet, node, key, [fleet.identities.node_signer])
            working = asyncio.ensure_future(work.work(up, asked, put, lambda _: 0.02))
            await nats_servers.until(lambda: _is(path.read_bytes() != good))
            working.cancel()
            await asyncio.wait({working})


@pytest.mark.parametrize("ahead_s", [13 * fleets.DAY, 15 * fleets.DAY, 400 * fleets.DAY])
async def test_clock_that_is_far_ahead_has_a_controller_asked_no_more_often(fleet, node, tmp_path, ahead_s):
    now_s, path, pauses = int(time.time()), tmp_path / "nats.creds", []
    path.write_bytes(fleet.node_credentials(node, now_s=now_s, expires_s=now_s + enrolment.CREDENTIALS_S).text())
    work = renewing.Renewing(
        token=fleets.Fleet(node=node).token(), credentials=path, now_s=lambda: time.time() + ahead_s
    )
    key = key_files.generate()

    def put(message):
        asked = enrolment.renewal(key, fleet="home", node=node, user=message.user)
        work.signed(messages.RenewalSigned(node_key=key_files.public_text(key), document=asked))
        return True

    def spread(pause_s):
        pauses.append(pause_s)
        return 0.01

    async with asyncio.timeout(WAIT_S), NatsConnection(fleet.endpoint(path, node), pauses=nats_servers.QUICK) as up:
        asked = Asked(fleet, node, key, [fleet.identities.node_signer] * 2)
        working = asyncio.ensure_future(work.work(up, asked, put, spread))
        await nats_servers.until(lambda: _is(len(pauses) == 2))
        working.cancel()
        await asyncio.wait({working})
    assert pauses == [renewing.LOOK_S] * 2


async def _is(value):
    return value


@pytest.mark.parametrize("there", ["good ones of before", "bad ones of before", "none of before"])
async def test_credentials_of_before_are_put_back_where_servers_refuse_the_present_ones(fleet, node, tmp_path, there):
    """Servers took them once, and do so no more: or somebody else's said that they do."""
    path = tmp_path / "nats.creds"
    good = fleet.node(node).read_bytes()
    bad = nkeys.UserCredentials.parse(good)
    stranger = nkeys.Key.generate(nkeys.KeyKind.ACCOUNT)
    claims = nkeys.unverified(bad.token)["nats"]
    forged = nkeys.token(stranger, bad.key.public, node, claims, now_s=int(time.time()))
    refused = nkeys.UserCredentials(token=forged, key=bad.key, name=node, expires_s=None).text()
    path.write_bytes(refused)
    if there != "none of before":
        nats_connection.before(path).write_bytes(good if there == "good ones of before" else refused)
    async with asyncio.timeout(WAIT_S), NatsConnection(fleet.endpoint(path, node), pauses=nats_servers.QUICK) as up:
        if there == "good ones of before":
            await up.wait_up()
            assert path.read_bytes() == good
            assert not nats_connection.before(path).exists()
            return
        await nats_servers.until(lambda: _is("uthorization" in up.reason))
        assert path.read_bytes() == refused
        # Mended, it goes on.
        path.write_bytes(good)
        await up.wait_up()

"""A hostile node with valid credentials: what it tries besides its own subjects comes to nothing.

It speaks with nats-py itself, no code of latticed between.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time

import nats.errors
import pytest
from nats.aio.client import Client

from latticed.fleet import deployment, nkeys
from latticed.fleet.nats_engine import NatsControllerEngine, NatsEngine
from tests.house import nats_servers

WAIT_S = 30
VICTIM, HOSTILE = "victim", "hostile"


class Attacker:
    """A client of nats-py with a node's credentials; what the server denies is in `denied`."""

    def __init__(self, client, denied):
        self.client, self.denied = client, denied

    async def settled(self):
        """The server has answered all that was sent: its refusals come before the answer to a ping."""
        for _ in range(2):  # nats-py's ping overtakes what it has not sent yet
            await self.client.flush(WAIT_S)

    async def refused(self, subject):
        """Whether the server said so, about this subject."""
        await self.settled()
        # nats-py writes what the server says in lower case.
        return any(f'"{subject.lower()}"' in one for one in self.denied)


@contextlib.asynccontextmanager
async def raw(fleet, name, credentials=None):
    """A connection of nats-py as `name`."""
    denied = []

    async def on_error(error):
        denied.append(str(error))

    mine = nkeys.UserCredentials.parse((credentials or fleet.node(name)).read_bytes())
    client = Client()
    try:
        await client.connect(
            list(fleet.urls),
            tls=fleet.endpoint(fleet.ca, name).tls,
            tls_handshake_first=True,
            signature_cb=lambda nonce: base64.b64encode(mine.key.sign(nonce.encode())),
            user_jwt_cb=mine.token.encode,
            inbox_prefix=f"_INBOX_{name}",
            error_cb=on_error,
            allow_reconnect=False,
        )
        yield Attacker(client, denied)
    finally:
        await client.close()


@pytest.fixture
async def attacker(fleet):
    async with asyncio.timeout(WAIT_S), raw(fleet, HOSTILE) as client:
        yield client


@pytest.fixture
async def seen_by_victim(fleet):
    """Whatever arrives at another node's own subjects, as bytes: sentinels tell when all has arrived."""
    seen = []

    async def take(message):
        seen.append(message.data)

    async with asyncio.timeout(WAIT_S), raw(fleet, VICTIM) as victim:
        for subject in (f"dn.{VICTIM}", f"rpc.{VICTIM}.invoke", f"_INBOX_{VICTIM}.>"):
            await victim.client.subscribe(subject, cb=take)
        await victim.settled()
        assert victim.denied == []
        yield seen


LISTENS = [
    f"dn.{VICTIM}",
    "dn.*",
    "dn.>",
    "$KV.desired.>",
    f"$KV.desired.{VICTIM}",
    f"$KV.desired.{HOSTILE}",
    ">",
    "*",
    "_INBOX.>",
    f"_INBOX_{VICTIM}.>",
    f"_INBOX_{HOSTILE}x.>",
    "ev.>",
    f"ev.{VICTIM}.audit",
    "st.*",
    "hb.*",
    "rpc.*.invoke",
    f"rpc.{VICTIM}.invoke",
    f"*.{VICTIM}",
    f"*.{HOSTILE}",
    f"rpc.{HOSTILE}.>",
    "bundle.>",
    "chunk.>",
    "n.>",
    f"n.{VICTIM}.*",
    f"n.{HOSTILE}.*",
    "$JS.>",
    "$JS.API.>",
    "$JS.EVENT.>",
    "$SYS.>",
    "_R_.>",
    "$KV.fleet.>",
]


async def test_subjects_that_are_not_its_own_cannot_be_listened_to(attacker, controller):
    heard = []

    async def take(message):
        heard.append((message.subject, message.data))

    for subject in LISTENS:
        await attacker.client.subscribe(subject, cb=take)
        # By queue group too: that is another permission in the server.
        await attacker.client.subscribe(subject, queue="group", cb=take)
    await attacker.settled()
    await controller.put_desired(f"{VICTIM}-heard", b"secret", 0)
    await attacker.settled()
    assert [one for one in LISTENS if not await attacker.refused(one)] == []
    assert heard == []


def consumer(name, deliver, subject=f"$KV.desired.{HOSTILE}"):
    config = {"name": name, "filter_subject": subject, "ack_policy": "none", "deliver_subject": deliver}
    return json.dumps({"stream_name": "KV_desired", "config": config}).encode()


def asked(**fields):
    return json.dumps(fields).encode()


PUBLISHES = [
    (f"$KV.desired.{VICTIM}", b"evil"),
    (f"$KV.desired.{HOSTILE}", b"evil"),
    ("$KV.fleet.lease", b"evil"),
    *((f"n.{VICTIM}.{what}", b"forged") for what in ("desired", "event", "status", "beat", "renewal")),
    *((f"n.{what}", b"forged") for what in ("*.event", f"{HOSTILE}", f"{HOSTILE}.x.y")),
    (f"ev.{VICTIM}.audit", b"forged"),
    (f"ev.{HOSTILE}.audit", b"forged"),
    *((f"{what}.{one}", b"forged") for what in ("hb", "st", "renew", "enrol") for one in (VICTIM, HOSTILE)),
    (f"dn.{VICTIM}", b"forged"),
    (f"dn.{HOSTILE}", b"forged"),
    (f"rpc.{VICTIM}.invoke", b"forged"),
    (f"rpc.{HOSTILE}.invoke", b"forged"),
    (f"_INBOX_{VICTIM}.x", b"forged"),
    (f"bundle.{'a' * 64}.0", b"forged"),
    *((f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.{one}", b"") for one in (VICTIM, HOSTILE)),
    (f"$JS.API.DIRECT.GET.BUNDLES.bundle.{'a' * 64}.0", b""),
    ("$JS.API.DIRECT.GET.KV_desired.$KV.desired.*", b""),
    ("$JS.API.DIRECT.GET.KV_desired.$KV.desired.>", b""),
    ("$JS.API.DIRECT.GET.KV_desired", asked(last_by_subj=f"$KV.desired.{VICTIM}")),
    ("$JS.API.DIRECT.GET.KV_desired", asked(multi_last=["$KV.desired.>"])),
    ("$JS.API.DIRECT.GET.KV_fleet.$KV.fleet.lease", b""),
    ("$JS.API.DIRECT.GET.EVENTS", asked(seq=1)),
    (f"$JS.API.DIRECT.GET.EVENTS.ev.{VICTIM}.audit", b""),
    (f"$JS.API.DIRECT.GET.STATUS.st.{VICTIM}", b""),
    ("$JS.API.DIRECT.GET.BUNDLES", asked(seq=1, batch=1_000)),
    ("$JS.API.STREAM.MSG.GET.KV_desired", asked(last_by_subj=f"$KV.desired.{VICTIM}")),
    ("$JS.API.STREAM.INFO.KV_desired", b""),
    ("$JS.API.STREAM.NAMES", b""),
    ("$JS.API.STREAM.LIST", b""),
    ("$JS.API.STREAM.PURGE.KV_desired", b""),
    ("$JS.API.STREAM.DELETE.KV_desired", b""),
    ("$JS.API.STREAM.UPDATE.KV_desired", asked(name="KV_desired", subjects=["x"])),
    ("$JS.API.STREAM.CREATE.MINE", asked(name="MINE", subjects=["ev.>"])),
    ("$JS.API.STREAM.MSG.DELETE.EVENTS", asked(seq=1)),
    ("$JS.API.CONSUMER.CREATE.KV_desired", consumer("c", f"_INBOX_{HOSTILE}.q")),
    (f"$JS.API.CONSUMER.CREATE.KV_desired.a.$KV.desired.{HOSTILE}", consumer("a", f"$KV.desired.{VICTIM}")),
    (f"$JS.API.CONSUMER.CREATE.KV_desired.b.$KV.desired.{HOSTILE}", consumer("b", f"dn.{VICTIM}")),
    (f"$JS.API.CONSUMER.CREATE.KV_desired.d.$KV.desired.{VICTIM}", consumer("d", f"_INBOX_{HOSTILE}.q")),
    ("$JS.API.CONSUMER.DURABLE.CREATE.KV_desired.e", consumer("e", f"_INBOX_{HOSTILE}.q")),
    ("$JS.API.CONSUMER.MSG.NEXT.KV_desired.c", b"1"),
    ("$JS.API.META.LEADER.STEPDOWN", b""),
    ("$JS.API.INFO", b""),
    ("$JS.ACK.KV_desired.c.1.1.1.1.0", b"+ACK"),
    ("$JS.FC.KV_desired.c.x", b""),
    ("$SYS.REQ.SERVER.PING", b""),
    ("$SYS.REQ.USER.INFO", b""),
    ("$SYS.REQ.CLAIMS.UPDATE", b"evil"),
    ("$SYS.REQ.ACCOUNT.PING.CONNZ", b""),
]


async def test_subjects_that_are_not_its_own_cannot_be_published_to(attacker, controller, seen_by_victim):
    if await controller.desired(VICTIM) is None:
        await controller.put_desired(VICTIM, b"good", 0)
    events = await stored_events(controller)
    answers = []

    async def take(message):
        answers.append((message.subject, message.data))

    await attacker.client.subscribe(f"_INBOX_{HOSTILE}.answer.*", cb=take)
    for number, (subject, data) in enumerate(PUBLISHES):
        await attacker.client.publish(subject, data, reply=f"_INBOX_{HOSTILE}.answer.{number}")
    await attacker.settled()
    assert [subject for subject, _ in PUBLISHES if not await attacker.refused(subject)] == []
    assert answers == []
    assert (await controller.desired(VICTIM)).data == b"good"
    assert await controller.desired(HOSTILE) is None
    assert await stored_events(controller) == events
    assert [one for one in seen_by_victim if one != b"good"] == []


async def stored_events(controller):
    info = await controller._api("STREAM.INFO.EVENTS", None)
    return info["state"]["messages"], info["state"]["last_seq"]


@pytest.mark.parametrize(
    "body",
    [
        asked(last_by_subj=f"$KV.desired.{VICTIM}"),
        asked(multi_last=["$KV.desired.>"]),
        asked(seq=1, next_by_subj="$KV.desired.>"),
        asked(seq=1, batch=100),
    ],
)
async def test_body_of_a_question_for_its_own_document_does_not_widen_it(attacker, controller, body):
    await self_and_victim(controller)
    answer = await attacker.client.request(f"n.{HOSTILE}.desired", body, timeout=WAIT_S)
    # The one that is asked for by subject, or a refusal: nobody else's.
    assert (answer.data, (answer.headers or {}).get("Nats-Subject")) in {
        (b"its own", f"$KV.desired.{HOSTILE}"),
        (b"", None),
    }


async def self_and_victim(controller):
    for name, document in ((HOSTILE, b"its own"), (VICTIM, b"good")):
        found = await controller.desired(name)
        if found is None or found.data != document:
            await controller.put_desired(name, document, 0 if found is None else found.revision)


@pytest.mark.parametrize(
    "reply",
    [
        f"$KV.desired.{VICTIM}",
        f"dn.{VICTIM}",
        f"rpc.{VICTIM}.invoke",
        f"ev.{VICTIM}.audit",
        f"st.{VICTIM}",
        f"_INBOX_{VICTIM}.guess",
        "$KV.fleet.lease",
    ],
)
async def test_answer_sent_to_another_nodes_subject_changes_nothing(fleet, attacker, controller, reply):
    """The server lets a question name any subject for its answer; the streams are in another account."""
    await self_and_victim(controller)
    events = await stored_events(controller)
    async with fleet.connected(VICTIM) as connection:
        engine = NatsEngine(connection, VICTIM)
        taken = []
        pushed, invoked = engine.watch_desired(), engine.invocations()
        waiting = [asyncio.ensure_future(anext(one)) for one in (pushed, invoked)]
        for one in waiting:
            one.add_done_callback(lambda done: taken.append(done) if not done.cancelled() else None)
        await engine.desired()  # the subscriptions were sent before it
        await attacker.client.publish(f"n.{HOSTILE}.desired", b"", reply=reply)
        await attacker.settled()
        # The victim still has its own documents, and takes nothing for one of its own that was sent to it.
        assert await engine.desired() == b"good"
        assert taken == []
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        for one in (pushed, invoked):
            await one.aclose()
    assert (await controller.desired(VICTIM)).data == b"good"
    assert await controller.get("lease") is None
    assert await stored_events(controller) == events


@pytest.mark.parametrize(
    "headers",
    [{"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}, {"Nats-Schedule": "@every 1s"}],
    ids=lambda one: next(iter(one)),
)
async def test_header_that_would_remove_or_repeat_events_is_refused(attacker, controller, headers):
    before = await stored_events(controller)
    answer = await attacker.client.request(f"n.{HOSTILE}.event", b"x", headers=headers, timeout=WAIT_S)
    assert "error" in json.loads(answer.data)
    assert await stored_events(controller) == before


@pytest.mark.parametrize("subject", [f"n.{HOSTILE}.status", f"n.{HOSTILE}.beat"])
async def test_ids_that_a_node_makes_up_are_not_kept_in_memory(attacker, subject):
    """Each may have kilobytes, and a node sends thousands a second."""
    taken = []
    while len(taken) < 2 or "duplicate" in taken[-1]:
        answer = await attacker.client.request(subject, b"x", headers={"Nats-Msg-Id": "id"}, timeout=WAIT_S)
        taken.append(json.loads(answer.data))
        assert len(taken) < 20
        await asyncio.sleep(0.1)


async def test_id_of_an_event_cannot_be_squatted_unless_it_is_known(fleet, attacker):
    """Ids are the stream's, not the node's: whoever knows one in advance can have it taken for a repetition."""
    async with fleet.connected(VICTIM) as connection:
        for guess in range(50):
            await attacker.client.request(
                f"n.{HOSTILE}.event", b"squat", headers={"Nats-Msg-Id": f"{VICTIM}-{guess}"}, timeout=WAIT_S
            )
        answer = await connection.request(
            f"n.{VICTIM}.event", b"mine", headers={"Nats-Msg-Id": "c7d1b0a4f6e94c3c8a54a6f2c1b0d9e8"}
        )
        assert "duplicate" not in json.loads(answer.data)


async def test_token_that_a_stranger_signed_is_refused(fleet, tmp_path):
    stranger, key = nkeys.Key.generate(nkeys.KeyKind.ACCOUNT), nkeys.Key.generate(nkeys.KeyKind.USER)
    claims = {"type": "user", "version": 2, "issuer_account": fleet.identities.nodes.public, "pub": {}, "sub": {}}
    token = nkeys.token(stranger, key.public, VICTIM, claims, now_s=1_700_000_000)
    path = tmp_path / "creds"
    path.write_bytes(nkeys.UserCredentials(token=token, key=key, name=VICTIM, expires_s=None).text())
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        async with asyncio.timeout(WAIT_S), raw(fleet, VICTIM, path):
            pass


async def test_controller_sees_nothing_of_the_servers_own_account(fleet):
    async with asyncio.timeout(WAIT_S), fleet.connected("controller") as connection:
        controller = NatsControllerEngine(connection)
        await controller.desired(VICTIM)
        heard = connection.messages("$SYS.>")
        following = asyncio.ensure_future(anext(heard))
        async with fleet.connected(f"{VICTIM}-new"):  # which the server announces to SYS
            await controller.desired(VICTIM)
        assert not following.done()
        following.cancel()
        await asyncio.wait({following})
        await heard.aclose()


INVITED = "ab" * 16
"""The nonce of an invitation."""


@pytest.fixture
def invited(fleet, tmp_path):
    now_s = int(time.time())
    made = deployment.invitation_credentials(
        fleet.identities.enrol_signer, fleet.identities.nodes.public, INVITED, now_s=now_s, expires_s=now_s + 600
    )
    path = tmp_path / "invited.creds"
    path.write_bytes(made.text())
    return path


INVITED_SENDS = [
    f"enrol.{'cd' * 16}",
    "enrol.web-1",
    f"renew.{INVITED}",
    f"renew.{VICTIM}",
    *(f"n.{INVITED}.{what}" for what in ("desired", "event", "status", "beat", "renewal")),
    f"chunk.{'0' * 64}.0",
    f"ev.{INVITED}.audit",
    f"st.{INVITED}",
    f"hb.{INVITED}",
    f"rpc.{VICTIM}.invoke",
    f"dn.{VICTIM}",
    f"$KV.desired.{VICTIM}",
    f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.{INVITED}",
    f"$JS.API.DIRECT.GET.BUNDLES.bundle.{'0' * 64}.0",
    "$JS.API.INFO",
    f"_INBOX_{VICTIM}.x",
]
INVITED_LISTENS = [f"enrol.{INVITED}", "enrol.>", f"dn.{INVITED}", f"rpc.{INVITED}.invoke", f"_INBOX_{VICTIM}.>", ">"]


async def test_who_is_invited_may_ask_to_join_and_nothing_else(fleet, invited):
    async with asyncio.timeout(WAIT_S), raw(fleet, INVITED, invited) as attacker:
        for subject in INVITED_SENDS:
            await attacker.client.publish(subject, b"x")
            assert await attacker.refused(subject), subject
        for subject in INVITED_LISTENS:
            attacker.denied.clear()
            with contextlib.suppress(nats.errors.Error):
                await attacker.client.subscribe(subject)
            assert await attacker.refused(subject), subject
        attacker.denied.clear()
        async with fleet.connected("controller") as controller:
            heard = asyncio.create_task(anext(controller.messages("enrol.*")))
            await asyncio.sleep(0)
            await nats_servers.until(lambda: _asked(attacker, heard))
            assert (await heard).data == b"let me in"
        assert attacker.denied == []


async def _asked(attacker, heard):
    await attacker.client.publish(f"enrol.{INVITED}", b"let me in", reply=f"_INBOX_{INVITED}.x")
    await attacker.settled()
    return heard.done()


@pytest.mark.parametrize("subject", [f"renew.{VICTIM}", "renew.*", f"enrol.{INVITED}", f"enrol.{HOSTILE}"])
async def test_node_asks_for_no_other_s_credentials(attacker, subject):
    with contextlib.suppress(nats.errors.Error):
        await attacker.client.publish(subject, b"x")
    assert await attacker.refused(subject)

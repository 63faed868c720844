"""Limits of sizes on a document's way: what is signed fits into all that carries it."""

from __future__ import annotations

import msgspec
import pytest

from latticed.fleet import deployment, documents, judging, messages
from latticed.fleet.engine import CHUNK_BYTES, DESIRED_BYTES, DOCUMENT_BYTES, EVENT_BYTES, STATUS_BYTES
from latticed.fleet.signers import Identities
from tests.house import fleets

FLEET = fleets.Fleet()
MOST = documents.MOST_BYTES
TOGETHER = {
    "assignment": documents.Assignment,
    "intent": documents.Intent,
    "controller": documents.ControllerCertificate,
    "revocations": documents.Revocations,
    "node": documents.NodeCertificate,
}


def envelope(size):
    """Something of that size that looks like an envelope."""
    empty = msgspec.json.encode({"payload": "", "signature": "", "key": ""})
    return msgspec.json.encode({"payload": "a" * (size - len(empty)), "signature": "", "key": ""})


def largest(make, key, kind):
    """The envelope of `make(n)` for the greatest n for which it is signed."""
    low, high = 0, 4_096
    while low < high:
        middle = (low + high + 1) // 2
        try:
            documents.sign(make(middle), key)
            low = middle
        except documents.Malformed:
            high = middle - 1
    made = documents.sign(make(low), key)
    # It is this limit that one more is beyond.
    assert MOST[kind] - 800 < len(made) <= MOST[kind]
    return made


def intent(count):
    return FLEET.intent(plugins=tuple(fleets.plugin(f"acme.p{number}") for number in range(count)))


def test_desired_document_of_the_largest_envelopes_is_one_that_the_engine_takes():
    assert set(TOGETHER) == set(documents.DesiredDocument.__struct_fields__)
    packed = documents.pack(
        documents.DesiredDocument(**{name: envelope(MOST[kind]) for name, kind in TOGETHER.items()})
    )
    assert DESIRED_BYTES - 1_024 <= len(packed) <= DESIRED_BYTES
    assert documents.unpack(packed).node is not None


def test_largest_intent_that_can_be_signed_is_taken_up_with_the_most_that_is_sent_beside_it():
    keys = [fleets.public(fleets.key(number)) for number in range(1, 1_000)]
    wanted = largest(intent, fleets.OPERATOR, documents.Intent)
    found = documents.read(wanted, documents.Intent).document
    revoked = largest(lambda count: FLEET.revocations(*keys[20 : 20 + count]), fleets.OPERATOR, documents.Revocations)
    sources = [documents.BundleSource(id=one.id, sha256="a" * 64, urls=()) for one in found.plugins]
    assigned = largest(
        lambda count: FLEET.assignment(found, bundles=tuple(sources[:count])),
        fleets.CONTROLLER,
        documents.Assignment,
    )
    desired = fleets.packed(
        assignment=assigned,
        intent=wanted,
        controller=documents.sign(FLEET.certificate(), fleets.OPERATOR),
        revocations=revoked,
        node=documents.sign(FLEET.node_certificate(), fleets.OPERATOR),
    )
    state, verdict = judging.judge(FLEET.state(), desired, now_s=fleets.NOW)
    assert isinstance(verdict, judging.TakenUp), verdict
    assert len(state.revoked) > 400
    decoder = messages.Decoder(messages.ToNode)
    assert decoder.feed(messages.encode(messages.NewDesired(document=desired))) == [
        messages.NewDesired(document=desired)
    ]


def test_certificates_with_the_longest_names_and_most_labels_can_be_signed():
    long = "a" * 63
    labels = {f"{number:02}{'l' * 61}": "v" * 63 for number in range(64)}
    fleet = fleets.Fleet(long, node=long)
    documents.sign(fleet.node_certificate(labels=labels, serial=2**53 - 1), fleets.OPERATOR)
    documents.sign(fleet.certificate(controller=long, epoch=2**53 - 1, expires=2**40), fleets.OPERATOR)


@pytest.mark.parametrize(
    "message",
    [
        messages.NewDesired(document=bytes(DESIRED_BYTES)),
        messages.InvocationAsked(number=2**53 - 1, document=bytes(messages.DOCUMENT_BYTES)),
        messages.NewStatus(document=bytes(messages.DOCUMENT_BYTES)),
        messages.NewEvent(number=2**53 - 1, message_id="a" * 128, document=bytes(messages.DOCUMENT_BYTES)),
        messages.InvocationDone(number=2**53 - 1, document=bytes(messages.DOCUMENT_BYTES)),
        messages.BundleNeeded(sha256="a" * 64, urls=("https://" + "a" * 492,) * 8, anew=True),
        messages.NothingNeeded(),
        messages.BundleMissing(sha256="a" * 64, reason="\x00" * 500),
    ],
    ids=lambda one: type(one).__name__,
)
def test_largest_message_of_each_kind_goes_over_the_socketpair(message):
    encoded = messages.encode(message)
    found = messages.Decoder(messages.ToNode | messages.ToLink).feed(encoded)
    assert found == [message]


def test_streams_and_credentials_take_the_largest_of_each_kind():
    identities = Identities.generate()
    streams = {one["name"]: one for one in deployment.streams(deployment.Sizes(), replicas=1)}
    room = {name: one["max_msg_size"] - deployment.HEADER_BYTES for name, one in streams.items()}
    assert room["KV_desired"] == DESIRED_BYTES
    assert room["BUNDLES"] == CHUNK_BYTES
    assert room["EVENTS"] == EVENT_BYTES == MOST[documents.NodeEvent]
    assert room["STATUS"] == STATUS_BYTES == MOST[documents.NodeStatus]
    for kind in (documents.Invocation, documents.InvocationResult, documents.NodeStatus, documents.NodeEvent):
        assert MOST[kind] <= DOCUMENT_BYTES
    assert max(MOST.values()) <= documents.MAX_BYTES
    assert room["KV_fleet"] >= documents.SHARED_BYTES
    # A server shows it to controllers as base64 in JSON, in a message of 1 MiB by default.
    assert documents.SHARED_BYTES * 4 // 3 + 4 * deployment.HEADER_BYTES < 1 << 20
    assert messages.DOCUMENT_BYTES >= DOCUMENT_BYTES
    (template,) = [
        key["template"]
        for key in deployment.account_claims(identities.signers)["NODES"]["signing_keys"]
        if key["role"] == "node"
    ]
    assert template["payload"] == DOCUMENT_BYTES + deployment.HEADER_BYTES


def test_largest_event_of_a_node_is_one_that_the_engine_takes():
    event = documents.NodeEvent(
        fleet="a" * 63,
        node="a" * 63,
        number=2**53 - 1,
        prev="a" * 64,
        at=2**40,
        seq=2**53 - 1,
        actor="\U0001f600" * 256,
        decision="allow",
        action="\x7f" * 64,
        target="\U0001f600" * 256,
        code="\U0001f600" * 64,
        reason="\U0001f600" * 500,
    )
    assert len(documents.sign(event, fleets.NODE)) <= EVENT_BYTES

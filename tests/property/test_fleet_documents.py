"""Documents of the fleet: what is signed comes back as it was, and nothing else does."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import documents, messages
from tests.house import fleets

FLEET = fleets.Fleet()
INTENT = FLEET.intent()
EXAMPLES = [
    (INTENT, fleets.OPERATOR),
    (FLEET.assignment(INTENT), fleets.CONTROLLER),
    (FLEET.certificate(), fleets.OPERATOR),
    (FLEET.node_certificate(), fleets.OPERATOR),
    (FLEET.revocations(fleets.public(fleets.CONTROLLER)), fleets.OPERATOR),
    (FLEET.token(), fleets.OPERATOR),
    (FLEET.invocation(), fleets.OPERATOR),
]
_WORDS = st.text("abcxyz019", min_size=1, max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_PLUGINS = st.builds(
    lambda number, status, config, secrets, ranged: fleets.plugin(
        f"acme.p{number}",
        status=status,
        config=config,
        secrets=tuple(secrets),
        **({"identity": None, "versions": ">=1.0", "publisher": "acme"} if ranged else {}),
    ),
    st.integers(0, 99),
    st.sampled_from(["installed", "active", "disabled"]),
    st.none() | st.dictionaries(st.text(max_size=5), _JSON, max_size=3),
    st.lists(_WORDS, max_size=2),
    st.booleans(),
)


@given(
    st.lists(_PLUGINS, max_size=4, unique_by=lambda one: one.id),
    st.dictionaries(_WORDS, _WORDS, max_size=3),
    st.integers(1, 2**53 - 1),
)
def test_what_is_signed_is_read_as_it_was(plugins, labels, generation):
    intent = FLEET.intent(generation, plugins=tuple(plugins), selector=documents.Selector(labels=labels, nodes=("n1",)))
    envelope = documents.sign(intent, fleets.OPERATOR)
    found = documents.read(envelope, documents.Intent)
    assert (found.document, found.key) == (intent, fleets.public(fleets.OPERATOR))
    assert found.sha256 == documents.name_of(intent)
    assert documents.sign(found.document, fleets.OPERATOR) == envelope


@pytest.mark.parametrize(("document", "key"), EXAMPLES, ids=lambda one: type(one).__name__)
def test_no_byte_of_an_envelope_can_be_another(document, key):
    """A bit of each: refused, or it says the very same."""
    envelope = documents.sign(document, key)
    said = documents.read(envelope, type(document))
    for at in range(len(envelope)):
        changed = bytearray(envelope)
        changed[at] ^= (1, 4, 32)[at % 3]
        try:
            found = documents.read(bytes(changed), type(document))
        except documents.Malformed:
            continue
        assert (found.document, found.key, found.sha256) == (said.document, said.key, said.sha256)


@pytest.mark.parametrize(("document", "key"), EXAMPLES, ids=lambda one: type(one).__name__)
def test_payload_has_one_spelling(document, key):
    """Signed by the right key, in the right domain, and not as it has to be spelled."""
    domain = documents.DOMAINS[type(document)]
    plain = fleets.opened(documents.sign(document, key))
    documents.read(fleets.forged(plain, domain, key), type(document))
    first = next(iter(plain))
    bad = [
        json.dumps(plain).encode(),
        json.dumps(plain, separators=(",", ":")).encode() + b"\n",
        json.dumps(dict(sorted(plain.items(), reverse=True)), separators=(",", ":")).encode(),
        {**plain, "more": 1},
        {name: value for name, value in plain.items() if name != first},
        {**plain, first: None},
        {**plain, first: [plain[first]]},
        {**plain, "fleet": "Home"},
        {**plain, "fleet": ""},
        [plain],
        b"",
        b"null",
        b"\xef\xbb\xbf" + json.dumps(plain).encode(),
        json.dumps(plain, separators=(",", ":")).encode()[:-1] + b',"fleet":"home"}',
    ]
    for one in bad:
        with pytest.raises(documents.Malformed):
            documents.read(fleets.forged(one, domain, key), type(document))


@pytest.mark.parametrize(("document", "key"), EXAMPLES, ids=lambda one: type(one).__name__)
def test_what_was_signed_as_one_kind_is_no_other(document, key):
    envelope = documents.sign(document, key)
    for kind in documents.DOMAINS:
        if kind is not type(document):
            with pytest.raises(documents.Malformed):
                documents.read(envelope, kind)


@given(st.binary(max_size=300), st.sampled_from(list(documents.DOMAINS)))
def test_noise_is_no_document(data, kind):
    with pytest.raises(documents.Malformed):
        documents.read(data, kind)
    with pytest.raises(documents.Malformed):
        documents.unpack(data, most=64 << 10)


@given(_JSON, st.sampled_from(list(documents.DOMAINS)))
def test_any_json_that_an_operator_signs_is_judged_not_crashed_on(value, kind):
    envelope = fleets.forged(
        value if isinstance(value, dict) else {"x": value}, documents.DOMAINS[kind], fleets.OPERATOR
    )
    with pytest.raises(documents.Malformed):
        documents.read(envelope, kind)


@pytest.mark.parametrize(
    "fields",
    [
        {"identity": None},
        {"versions": "^1"},
        {"publisher": "acme"},
        {"identity": None, "versions": "^1"},
        {"identity": None, "versions": "one", "publisher": "acme"},
        {"versions": "^1", "publisher": "acme"},
        {"accept": ("nothing=1",)},
        {"accept": ("host=",)},
        {"id": "acme..demo"},
        {"id": "ACME"},
        {"secrets": ("../x",)},
    ],
)
def test_intent_that_no_host_could_take_up_is_not_signed(fields):
    plugin = fleets.plugin(**fields)
    with pytest.raises(documents.Malformed):
        documents.sign(FLEET.intent(plugins=(plugin,)), fleets.OPERATOR)


def test_intent_names_each_plugin_once():
    with pytest.raises(documents.Malformed):
        documents.sign(FLEET.intent(plugins=(fleets.plugin(), fleets.plugin())), fleets.OPERATOR)


def test_keys_are_real_and_spelled_once():
    """Under a key of small order anybody could sign."""
    for bad in ("A" * 43 + "=", base64.b64encode(bytes([1]) + bytes(31)).decode(), "!" * 44):
        with pytest.raises(documents.Malformed):
            documents.sign(FLEET.certificate(controller_key=bad), fleets.OPERATOR)


_TO_NODE = [
    messages.NewDesired(document=b"{}"),
    messages.BundleHere(sha256="ab" * 32),
    messages.BundleMissing(sha256="ab" * 32, reason="gone"),
    messages.InvocationAsked(number=7, document=b"x" * 300),
    messages.EventTaken(number=1),
    messages.LinkState(up=False, reason="refused"),
]


@given(st.lists(st.sampled_from(_TO_NODE), max_size=5), st.data())
def test_messages_come_whole_however_the_stream_is_cut(sent, data):
    stream = b"".join(map(messages.encode, sent))
    decoder, found, at = messages.Decoder(messages.ToNode), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, max(1, len(stream) - at)))
        found += decoder.feed(stream[at : at + step])
        at += step
    assert (found, decoder.in_the_middle) == (sent, False)


@given(st.binary(min_size=4, max_size=200))
def test_noise_is_no_message(data):
    decoder = messages.Decoder(messages.ToNode)
    try:
        assert decoder.feed(data) == []
    except messages.BadMessage:
        return
    # Only what announces more than is there is waited for.
    assert int.from_bytes(data[:4], "big") > len(data) - 4


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"type":"need","sha256":"' + b"a" * 64 + b'"}',
        b'{"type":"bundle_here","sha256":"../../etc"}',
        b'{"type":"bundle_here","sha256":"' + b"a" * 64 + b'\\n"}',
        b'{"type":"bundle_here","sha256":"' + b"a" * 64 + b'","path":"/etc"}',
        b'{"type":"invoke","number":-1,"document":""}',
        b'{"type":"invoke","number":1.5,"document":""}',
        b'{"type":"desired","type":"desired","document":""}',
        b'{"type":"desired","document":"' + b"A" * (172 << 10) + b'"}',
        b"[" * 1000,
    ],
)
def test_message_that_is_none_ends_the_stream(body):
    with pytest.raises(messages.BadMessage):
        messages.Decoder(messages.ToNode).feed(len(body).to_bytes(4, "big") + body)


def test_message_cannot_be_endless():
    with pytest.raises(messages.BadMessage):
        messages.Decoder(messages.ToNode).feed((messages.MAX_BYTES + 1).to_bytes(4, "big"))

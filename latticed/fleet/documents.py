"""Every document that the fleet believes: its form, and the one signature that it carries.

    {"payload": base64url of RFC 8785 JSON, "signature": base64, "key": base64 of the public key}

The signature (Ed25519) covers a domain line, which is the kind's own, and the payload's bytes: what was signed as one
kind never passes for another. A payload has one spelling only (RFC 8785, all fields, none besides), so that its SHA-256
names it. `key` says whose signature it is meant to be; whether that key counts is for `judging`. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from latticed.fleet.engine import DESIRED_BYTES, EVENT_BYTES, STATUS_BYTES
from latticed.kit import strict_json
from latticed.model import consents, ids, semver_range
from latticed.model.errors import Problem
from latticed.trust import keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_BYTES: Final = 256 << 10
"""Largest envelope of any kind but one; those that go to a node or come from one have less each (`MOST_BYTES`)."""
SHARED_BYTES: Final = 640 << 10
"""Largest envelope of a `SharedRecord`, which goes from controllers to controllers. A server shows it in base64, which
is less than the 1 MiB of a message.
"""
MOST_LISTS: Final = 64
"""Lists of revocations that a node says it has learnt: what nodes take of all lists fits into fewer."""
_DEPTH: Final = 40
"""Of a payload: a plugin's configuration may have 32 levels, and lies below three."""
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)

Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")]
"""Of a fleet or a node: a label as in host names (RFC 1123)."""
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z")]
Key = Annotated[str, Meta(min_length=44, max_length=44)]
"""An Ed25519 public key, base64, padded: one spelling only (`_check_keys`)."""
UserKey = Annotated[str, Meta(pattern=r"^U[A-Z2-7]{55}\Z")]
"""The public key of a user of the message system, as `nkeys` writes it."""
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Number = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Moment = Annotated[int, Meta(ge=0, le=2**40)]
"""Whole seconds since 1970, UTC."""
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Text = Annotated[str, Meta(max_length=500)]
PluginId = Annotated[str, Meta(min_length=3, max_length=128)]
Labels = Annotated[dict[Label, Label], Meta(max_length=64)]


class Malformed(ValueError):
    """These bytes are not the document that was asked for; the message says what was expected and found."""


class _DocumentPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What documents are made of: every field has to be there, and no other."""


class FleetDocument(_DocumentPart, frozen=True, kw_only=True):
    """`fleet`: in which fleet it counts, as one operator may have several under one key."""

    fleet: Name


class Selector(_DocumentPart, frozen=True, kw_only=True):
    """Which nodes are meant: those that have all these labels; where nodes are named, these alone."""

    labels: Labels
    nodes: Annotated[tuple[Name, ...], Meta(max_length=1_000)]

    def selects(self, node: str, labels: dict[str, str]) -> bool:
        """Whether the node of this name and these certified labels is meant."""
        named = not self.nodes or node in self.nodes
        return named and all(labels.get(name) == value for name, value in self.labels.items())


class WantedPlugin(_DocumentPart, frozen=True, kw_only=True):
    """One plugin as it shall be. Which bundle: `identity`, or any version in `versions` by `publisher`.

    `accept`: what is consented to by name, as contracts §8 has it. `config`: its whole configuration, null to leave it
    alone. `secrets`: names of secrets, set on the host by hand, that it gets.
    """

    id: PluginId
    status: Literal["installed", "active", "disabled"]
    identity: Sha256 | None
    versions: Annotated[str, Meta(max_length=256)] | None
    publisher: Annotated[str, Meta(max_length=128)] | None
    accept: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=256)]
    config: dict[str, Any] | None
    secrets: Annotated[tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")], ...], Meta(max_length=64)]


class Intent(FleetDocument, frozen=True, kw_only=True):
    """What an operator wants of the selected nodes, signed by his key.

    `generation` grows with each intent. `back_to`: SHA-256 of older intents that a controller may go back to from this
    one. After `expires` no node takes it up any more; one that has goes on.
    """

    generation: Number
    selector: Selector
    plugins: Annotated[tuple[WantedPlugin, ...], Meta(max_length=500)]
    back_to: Annotated[tuple[Sha256, ...], Meta(max_length=32)]
    expires: Moment


class BundleSource(_DocumentPart, frozen=True, kw_only=True):
    """Where the bundle of a plugin is: the SHA-256 of its file, and https addresses of the same bytes."""

    id: PluginId
    sha256: Sha256
    urls: Annotated[tuple[Annotated[str, Meta(pattern=r"^https://[^\s\\]{1,480}\Z")], ...], Meta(max_length=4)]


class Assignment(FleetDocument, frozen=True, kw_only=True):
    """What a controller has one node do: take up an intent. Signed by the controller's key.

    `node_key` besides the name: a host that was set up anew is another node. `epoch` is that of the controller's
    certificate; within it `generation` grows with each assignment of a node. `bundles` only says where to look: what is
    taken is what the intent says, under its publisher's signature.
    """

    node: Name
    node_key: Key
    epoch: Number
    generation: Number
    intent: Sha256
    bundles: Annotated[tuple[BundleSource, ...], Meta(max_length=500)]
    expires: Moment


class ControllerCertificate(FleetDocument, frozen=True, kw_only=True):
    """An operator says that this key may assign, until it expires.

    Controllers of one fleet that work together have the same `epoch`. What one of a higher epoch assigns counts before
    everything of a lower one, whatever its generation: an operator raises it when a controller's key was stolen.
    """

    controller: Name
    controller_key: Key
    epoch: Number
    expires: Moment


class NodeCertificate(FleetDocument, frozen=True, kw_only=True):
    """An operator says that this key is of the node of this name, with these labels. The newest has the highest
    `serial`.
    """

    node: Name
    node_key: Key
    labels: Labels
    serial: Number


class Revocations(FleetDocument, frozen=True, kw_only=True):
    """Keys, of controllers, nodes or operators, and intents (SHA-256) that count no more, for good."""

    serial: Number
    keys: Annotated[tuple[Key, ...], Meta(max_length=1_000)]
    intents: Annotated[tuple[Sha256, ...], Meta(max_length=1_000)]


class UserRevocations(FleetDocument, frozen=True, kw_only=True):
    """Keys that nobody may connect to the message system with any more, for good. The newest has the highest `serial`.

    `account`: the token of the account NODES that has servers hold it, signed by the message system's own operator.
    """

    serial: Number
    users: Annotated[tuple[UserKey, ...], Meta(max_length=1_000)]
    account: Annotated[str, Meta(min_length=1, max_length=128 << 10)]


class EnrolmentToken(FleetDocument, frozen=True, kw_only=True):
    """What a host is given once to join: where to, what to trust there, and as whom.

    `certificates`: PEM of the CA of the engine's TLS. `operators`: the keys that count from then on.
    """

    token: Nonce
    addresses: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^tls://[A-Za-z0-9.\[\]:-]{3,260}\Z")], ...],
        Meta(min_length=1, max_length=8),
    ]
    certificates: Annotated[str, Meta(max_length=32 << 10)]
    operators: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=8)]
    node: Name
    labels: Labels
    expires: Moment


class EnrolmentRequest(FleetDocument, frozen=True, kw_only=True):
    """A host asks to be the node that a token names. Signed by the invitation's key, whose public half the token's
    nonce stands for: so nobody who only carries the request can put another key in.

    `node_key` signs the node's documents from then on; `user` is the public key that it connects with.
    """

    token: Nonce
    node: Name
    node_key: Key
    user: UserKey


class RenewalRequest(FleetDocument, frozen=True, kw_only=True):
    """A node asks for credentials that last longer. Signed by the node's key."""

    node: Name
    node_key: Key
    user: UserKey


class NodeCredentials(FleetDocument, frozen=True, kw_only=True):
    """What a node connects with: `jwt` is for the key `user`, and ends at `expires`. Signed by the controller's key."""

    node: Name
    node_key: Key
    user: UserKey
    jwt: Annotated[str, Meta(min_length=1, max_length=4 << 10)]
    expires: Moment


class Invocation(FleetDocument, frozen=True, kw_only=True):
    """One action of one plugin on one node, asked for by an operator; it counts once, and until it expires."""

    node: Name
    node_key: Key
    nonce: Nonce
    expires: Moment
    plugin: PluginId
    action: Annotated[str, Meta(min_length=1, max_length=128)]
    payload: dict[str, Any]


class InvocationResult(FleetDocument, frozen=True, kw_only=True):
    """What became of an invocation, signed by the node: the plugin's answer, or `code` and `reason` of what kept it."""

    node: Name
    nonce: Nonce
    code: Annotated[str, Meta(max_length=64)]
    reason: Text
    answer: dict[str, Any]


class NodeEvent(FleetDocument, frozen=True, kw_only=True):
    """One event of a node, signed by its key. `prev`: SHA-256 of the one before, 64 zeros at first.

    `seq`: of the event in the daemon's record whose `actor`, `action`, `target`, `decision`, `code` and `reason` it
    tells (contracts §11); 0 for one of the agent's own, whose actions begin with `fleet.`.
    """

    node: Name
    number: Number
    prev: Sha256
    at: Moment
    seq: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    actor: Annotated[str, Meta(max_length=256)]
    decision: Literal["allow", "deny", "-"]
    action: Annotated[str, Meta(max_length=64)]
    target: Annotated[str, Meta(max_length=256)]
    code: Annotated[str, Meta(max_length=64)]
    reason: Text


class PluginStatus(_DocumentPart, frozen=True, kw_only=True):
    """What a node has of one plugin. `code` and `reason`: why it is not as it was wanted, empty when it is."""

    id: PluginId
    version: Annotated[str, Meta(max_length=64)]
    identity: Annotated[str, Meta(max_length=64)]
    status: Annotated[str, Meta(max_length=16)]
    state: Annotated[str, Meta(max_length=16)]
    health: Annotated[str, Meta(max_length=16)]
    restarts: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    denied: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    code: Annotated[str, Meta(max_length=64)]
    reason: Text


class NodeStatus(FleetDocument, frozen=True, kw_only=True, omit_defaults=True):
    """What a node is and does, signed by its key: for people and controllers, never for other nodes.

    `epoch` and `generation`: of the last assignment that it took up, 0 before the first. `refused`: why the newest
    desired document does not count, empty when it does. `plans`: those that wait for approval on the host. `head`:
    SHA-256 of the newest event. `lists`: of revocations, those that it has learnt last; left out while there is none.
    """

    node: Name
    at: Moment
    epoch: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    generation: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    intent: Annotated[str, Meta(max_length=64)]
    settled: bool
    refused: Annotated[str, Meta(max_length=64)]
    reason: Text
    plugins: Annotated[tuple[PluginStatus, ...], Meta(max_length=500)]
    plans: Annotated[tuple[Sha256, ...], Meta(max_length=100)]
    events: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    head: Sha256
    lists: Annotated[tuple[Sha256, ...], Meta(max_length=MOST_LISTS)] = ()


class SharedRecord(FleetDocument, frozen=True, kw_only=True):
    """What one controller leaves for the others in the message system, signed by its key. `step` grows with each record
    of the same name; `packed` is for controllers alone (`controller.records`).
    """

    controller: Name
    name: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]
    step: Number
    at: Moment
    packed: Annotated[str, Meta(max_length=SHARED_BYTES * 3 // 4 - (2 << 10))]


DOMAINS: Final[dict[type[FleetDocument], bytes]] = {
    Intent: b"latticed.fleet.intent.v1\n",
    Assignment: b"latticed.fleet.assignment.v1\n",
    ControllerCertificate: b"latticed.fleet.controller.v1\n",
    NodeCertificate: b"latticed.fleet.node.v1\n",
    Revocations: b"latticed.fleet.revocations.v1\n",
    UserRevocations: b"latticed.fleet.users.v1\n",
    EnrolmentToken: b"latticed.fleet.enrolment.v1\n",
    EnrolmentRequest: b"latticed.fleet.enrolment-request.v1\n",
    RenewalRequest: b"latticed.fleet.renewal.v1\n",
    NodeCredentials: b"latticed.fleet.credentials.v1\n",
    Invocation: b"latticed.fleet.invocation.v1\n",
    InvocationResult: b"latticed.fleet.result.v1\n",
    NodeEvent: b"latticed.fleet.event.v1\n",
    NodeStatus: b"latticed.fleet.status.v1\n",
    SharedRecord: b"latticed.fleet.shared.v1\n",
}
"""What precedes the payload of each kind in what is signed."""
MOST_BYTES: Final[dict[type[FleetDocument], int]] = {
    Intent: 62 << 10,
    Assignment: 24 << 10,
    ControllerCertificate: 1 << 10,
    NodeCertificate: 12 << 10,
    Revocations: 28 << 10,
    EnrolmentToken: 64 << 10,
    Invocation: STATUS_BYTES,
    InvocationResult: STATUS_BYTES,
    NodeEvent: EVENT_BYTES,
    NodeStatus: STATUS_BYTES,
}
"""Largest envelope of these kinds. The first five are in one desired document together: their sum, and the names of its
fields, are at most `engine.DESIRED_BYTES`, so that nobody signs what no node could be sent.
"""
GENESIS: Final = "0" * 64
"""`prev` of a node's first event."""

D = TypeVar("D", bound=FleetDocument)


class _SignedEnvelope(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    payload: str
    signature: str
    key: str


class Signed(Struct, frozen=True, kw_only=True):
    """A document whose signature holds under `key` (canonical base64). `sha256` of what was signed names it."""

    document: Any
    key: str
    sha256: str
    envelope: bytes


def sign(document: FleetDocument, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a document, as JSON; Malformed for one that nobody would take."""
    payload = _payload(document)
    public = key.public_key().public_bytes_raw()
    envelope = _enveloped(payload, key.sign(DOMAINS[type(document)] + payload), public)
    read(envelope, type(document))
    return envelope


def fits(document: FleetDocument) -> bool:
    """Whether the envelope of a document is not too large for its kind."""
    envelope = _enveloped(_payload(document), bytes(keys.SIGNATURE_BYTES), bytes(keys.KEY_BYTES))
    return len(envelope) <= _most(type(document))


def read(envelope: bytes, kind: type[D]) -> Signed:
    """The document of this kind in an envelope, if the signature holds under the key that is named; Malformed.

    Whether that key may sign it is the caller's to judge.
    """
    most = _most(kind)
    if len(envelope) > most:
        raise Malformed(f"{_word(kind)}: expected an envelope of at most {most} bytes, found {len(envelope)}")
    try:
        found = msgspec.convert(strict_json.loads(envelope, max_depth=1), _SignedEnvelope)
        key = keys.decode_base64(found.key, size=keys.KEY_BYTES)
        signature = keys.decode_base64(found.signature, size=keys.SIGNATURE_BYTES)
        keys.check_public(key)
    except (ValueError, msgspec.ValidationError) as error:
        raise Malformed(_clipped(error)) from error
    if found.key != keys.encode_base64(key) or found.signature != keys.encode_base64(signature):
        raise Malformed("expected base64 with its padding, found it without")
    payload = _from_base64url(found.payload)
    signed = DOMAINS[kind] + payload
    # Before the payload is decoded: what nobody signed is not looked at.
    if not keys.verify_signature(key, signed, signature):
        raise Malformed(
            f"expected a signature of {_word(kind)} that holds under the key named, found one that does not"
        )
    return Signed(
        document=_document(payload, kind), key=found.key, sha256=hashlib.sha256(signed).hexdigest(), envelope=envelope
    )


def name_of(document: FleetDocument) -> str:
    """SHA-256 of what is signed of a document, as `Signed.sha256`."""
    return hashlib.sha256(DOMAINS[type(document)] + _payload(document)).hexdigest()


class DesiredDocument(Struct, frozen=True, kw_only=True):
    """A node's desired document: envelopes, each as JSON. `revocations` and `node` may be absent."""

    assignment: bytes
    intent: bytes
    controller: bytes
    revocations: bytes | None = None
    node: bytes | None = None


_DESIRED: Final = ("assignment", "intent", "controller", "revocations", "node")


def pack(desired: DesiredDocument) -> bytes:
    """A desired document as the engine carries it."""
    found = {name: value for name in _DESIRED if (value := getattr(desired, name)) is not None}
    return msgspec.json.encode({name: msgspec.Raw(value) for name, value in found.items()})


def unpack(data: bytes, *, most: int = DESIRED_BYTES) -> DesiredDocument:
    """The envelopes in a desired document of at most `most` bytes; Malformed. None of them is judged."""
    if len(data) > most:
        raise Malformed(f"expected at most {most} bytes, found {len(data)}")
    try:
        raw = strict_json.loads(data, max_depth=2)
    except strict_json.InvalidJson as error:
        raise Malformed(_clipped(error)) from error
    if not isinstance(raw, dict) or not set(_DESIRED[:3]) <= raw.keys() <= set(_DESIRED):
        raise Malformed(f"expected an object with {', '.join(_DESIRED)}, found another")
    if not all(isinstance(one, dict) for one in raw.values()):
        raise Malformed("expected envelopes, found something else")
    return DesiredDocument(**{name: msgspec.json.encode(value) for name, value in raw.items()})


def _enveloped(payload: bytes, signature: bytes, key: bytes) -> bytes:
    return msgspec.json.encode(
        _SignedEnvelope(
            payload=base64.urlsafe_b64encode(payload).rstrip(b"=").decode(),
            signature=keys.encode_base64(signature),
            key=keys.encode_base64(key),
        )
    )


def _most(kind: type[FleetDocument]) -> int:
    return SHARED_BYTES if kind is SharedRecord else MOST_BYTES.get(kind, MAX_BYTES)


def _payload(document: FleetDocument) -> bytes:
    import rfc8785

    try:
        return rfc8785.dumps(msgspec.to_builtins(document))
    except (rfc8785.CanonicalizationError, TypeError) as error:
        raise Malformed(f"expected a document of JSON values, found: {_clipped(error)}") from error


def _document(payload: bytes, kind: type[D]) -> D:
    """The document in a payload that was signed; Malformed unless it is spelled as it has to be."""
    try:
        document = msgspec.convert(strict_json.loads(payload, max_depth=_DEPTH), kind)
    except (strict_json.InvalidJson, msgspec.ValidationError) as error:
        raise Malformed(f"{_word(kind)}: {_clipped(error)}") from error
    if _payload(document) != payload:
        raise Malformed(f"{_word(kind)}: expected RFC 8785 JSON, found another spelling")
    _check_keys(document)
    if isinstance(document, Intent):
        _check_intent(document)
    return document


def _check_keys(document: FleetDocument) -> None:
    """Malformed unless every key in a document is one, in its one spelling."""
    single = (getattr(document, field, None) for field in ("node_key", "controller_key"))
    named = [one for one in single if one is not None]
    for field in ("keys", "operators"):
        named.extend(getattr(document, field, ()))
    for one in named:
        try:
            value = keys.decode_base64(one, size=keys.KEY_BYTES)
            keys.check_public(value)
        except keys.BadText as error:
            raise Malformed(str(error)) from error
        if keys.encode_base64(value) != one:
            raise Malformed("expected a key in base64 with its padding, found it without")


def _check_intent(intent: Intent) -> None:
    """Malformed for an intent that contradicts itself, or that no host could take up."""
    if len({one.id for one in intent.plugins}) != len(intent.plugins):
        raise Malformed("expected each plugin once, found one twice")
    for one in intent.plugins:
        if not ids.is_valid(one.id):
            raise Malformed(f"expected the id of a plugin, found {one.id[:80]!r}")
        ranged = one.versions is not None and one.publisher is not None
        builtin = ids.is_reserved_plugin(one.id)
        # Built-in plugins come with latticed, in its own version.
        if one.identity is None and not ranged and not builtin:
            raise Malformed(f"{one.id}: expected an identity, or versions and a publisher, found neither")
        if (one.versions is None) != (one.publisher is None) or (one.identity is not None and ranged):
            raise Malformed(f"{one.id}: expected an identity, or versions and a publisher, found a mixture")
        try:
            if one.versions is not None:
                semver_range.check(one.versions)
            consents.parse(one.accept)
        except (semver_range.InvalidRange, consents.BadConsent) as error:
            raise Malformed(f"{one.id}: {_clipped(error)}") from error


def _from_base64url(text: str) -> bytes:
    """The bytes of unpadded base64url (RFC 4648 §5), in their one spelling; Malformed."""
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise Malformed("payload: expected base64url without padding, found other characters")
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:  # pragma: no cover - the pattern has every text that fails
        raise Malformed("payload: expected base64url") from error
    if base64.urlsafe_b64encode(value).rstrip(b"=").decode() != text:
        raise Malformed("payload: expected canonical base64url, found unused bits that are not zero")
    return value


def _word(kind: type[FleetDocument]) -> str:
    return DOMAINS[kind].split(b".")[2].decode()


def _clipped(error: Exception) -> str:
    return str(error)[:200]


def problem(error: Malformed, code: str) -> Problem:
    """What latticectl says of it."""
    return Problem(code, str(error))

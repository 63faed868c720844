"""Rollouts and joined nodes as controllers keep them, and hand them to each other through the message system.

What is handed over is signed by the controller's key: an engine can hold it back, or show an older one, which is known
by its `step`. Pure.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import documents, enrolment, rollout
from latticed.fleet.documents import BundleSource, Malformed, SharedRecord
from latticed.fleet.judging import Refusal
from latticed.fleet.rollout import GatePolicy, Rollout, RolloutState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.controller.shelf import DocumentShelf

_MOST_BYTES: Final = 8 << 20
"""Of a record once it is unpacked: ten thousand nodes take some 400 KiB."""
MOST_NODES: Final = 20_000
BEGUN_BYTES: Final = documents.SHARED_BYTES - (128 << 10)
"""Largest envelope of a rollout that begins: it grows as nodes lose what they could go back to. Names of ten thousand
nodes that are made by chance, such as UUIDs, take some 400 KiB.
"""
_MOST_STEP: Final = 2**52
"""Of what another controller left: as many can follow it, by whoever had its key."""
_Number = Annotated[int, Meta(ge=0, le=2**53 - 1)]
ROLLOUT: Final = "rollout-"
JOINED: Final = "joined-"


class RolloutRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollout with what is not in `rollout.Rollout`. `closed`: nothing is decided of it any more.

    `nodes` are all that it is for; `befores` the places in it by what these had, where that is not `before`.
    """

    name: str
    release: str
    before: str
    nodes: Annotated[tuple[str, ...], Meta(max_length=MOST_NODES)]
    sizes: Annotated[tuple[Annotated[int, Meta(ge=1, le=1_000_000)], ...], Meta(min_length=1, max_length=64)]
    policy: GatePolicy
    state: RolloutState
    wave: _Number
    wave_began_s: float
    reason: str
    befores: dict[str, tuple[_Number, ...]]
    sources: tuple[BundleSource, ...]
    began: _Number
    changed: _Number
    closed: bool = False
    step: _Number = 1

    @property
    def over(self) -> bool:
        """Whether nothing follows from it by itself any more."""
        return self.closed or self.state in {RolloutState.DONE, RolloutState.RETURNED}

    def rollout(self) -> Rollout:
        """As `rollout.decide` takes it."""
        befores = {self.nodes[place]: before for before, places in self.befores.items() for place in places}
        return Rollout(
            name=self.name,
            release=self.release,
            before=self.before,
            waves=rollout.waves(self.name, self.nodes, self.sizes),
            policy=self.policy,
            state=self.state,
            wave=self.wave,
            wave_began_s=self.wave_began_s,
            reason=self.reason,
            befores=befores,
        )

    def having(self, now: Rollout, *, now_s: int) -> RolloutRecord:
        """The record of the rollout as it is now; the same one when nothing changed."""
        places = {node: place for place, node in enumerate(self.nodes)}
        befores: dict[str, list[int]] = {}
        for node, before in now.befores.items():
            if node in places:
                befores.setdefault(before, []).append(places[node])
        fresh = msgspec.structs.replace(
            self,
            state=now.state,
            wave=now.wave,
            wave_began_s=now.wave_began_s,
            reason=now.reason,
            befores={before: tuple(sorted(found)) for before, found in befores.items()},
        )
        return self if fresh == self else fresh.changing(now_s)

    def changing(self, now_s: int, **fields: Any) -> RolloutRecord:
        """With other fields, and one step further."""
        return msgspec.structs.replace(self, **fields, step=self.step + 1, changed=now_s)


class JoinedRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host that joined by a token: nobody else can use it any more. `labels` are those of the token; `request` is
    what it asked with, JSON: proof of its key under the operator's.
    """

    token: str
    node: str
    key: str
    labels: dict[str, str]
    expires: _Number
    request: str = ""
    step: _Number = 1


def begun(
    name: str,
    nodes: tuple[str, ...],
    *,
    release: str,
    has: dict[str, str],
    policy: GatePolicy,
    sizes: tuple[int, ...],
    sources: tuple[BundleSource, ...],
    now_s: int,
) -> RolloutRecord:
    """A rollout that begins now. `has`: what each node goes back to, empty for nothing."""
    counted: dict[str, int] = {}
    for node in nodes:
        counted[has.get(node, "")] = counted.get(has.get(node, ""), 0) + 1
    before = max(counted, key=lambda one: counted[one], default="")
    plain = rollout.begin(
        name,
        nodes,
        release=release,
        before=before,
        policy=policy,
        now_s=float(now_s),
        sizes=sizes,
        befores={node: has.get(node, "") for node in nodes if has.get(node, "") != before},
    )
    record = RolloutRecord(
        name=name,
        release=release,
        before=before,
        nodes=tuple(sorted(nodes)),
        sizes=sizes,
        policy=policy,
        state=plain.state,
        wave=0,
        wave_began_s=float(now_s),
        reason="",
        befores={},
        sources=sources,
        began=now_s,
        changed=now_s,
    )
    return msgspec.structs.replace(record.having(plain, now_s=now_s), step=1)


def encode(record: RolloutRecord | JoinedRecord) -> bytes:
    """As it is kept."""
    return msgspec.json.encode(record)


def decode(data: bytes) -> RolloutRecord:
    """A rollout as it was kept."""
    return msgspec.json.decode(data, type=RolloutRecord)


def name_of(record: RolloutRecord | JoinedRecord) -> str:
    """Under which the other controllers find it."""
    return f"{ROLLOUT}{record.name}" if isinstance(record, RolloutRecord) else f"{JOINED}{record.token}"


def shared(
    record: RolloutRecord | JoinedRecord, key: Ed25519PrivateKey, *, fleet: str, controller: str, now_s: int
) -> tuple[str, bytes]:
    """The name and the envelope under which the other controllers find a record."""
    name = name_of(record)
    packed = base64.b64encode(zlib.compress(encode(record), 9)).decode()
    document = SharedRecord(fleet=fleet, controller=controller, name=name, step=record.step, at=now_s, packed=packed)
    return name, documents.sign(document, key)


def found(data: bytes, shelf: DocumentShelf) -> RolloutRecord | JoinedRecord:
    """A record that a certified controller of this fleet left; Malformed."""
    signed = documents.read(data, SharedRecord)
    document: SharedRecord = signed.document
    if document.fleet != shelf.fleet or shelf.certificate(signed.key) is None:
        raise Malformed("expected a record by a controller that an operator certified, found another")
    shape: type[Any] = RolloutRecord if document.name.startswith(ROLLOUT) else JoinedRecord
    try:
        packed = base64.b64decode(document.packed, validate=True)
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(packed, _MOST_BYTES)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise Malformed(f"expected a record of at most {_MOST_BYTES} bytes, found more, or a part of one")
        record: RolloutRecord | JoinedRecord = msgspec.json.decode(plain, type=shape)
    except (binascii.Error, zlib.error, msgspec.ValidationError, msgspec.DecodeError) as error:
        raise Malformed(f"expected a record of a controller, found: {str(error)[:200]}") from error
    if (name_of(record), record.step) != (document.name, document.step):
        raise Malformed("expected the record that its name says, found another")
    if record.step > _MOST_STEP:
        raise Malformed(f"expected a step of at most {_MOST_STEP}, found {record.step}: none could follow it")
    if isinstance(record, RolloutRecord):
        _check_places(record)
    else:
        _check_joined(record, shelf)
    return record


def _check_places(record: RolloutRecord) -> None:
    """Malformed for a wave or a node that the rollout does not have: whoever signed it has not made it by `begun`."""
    waves = rollout.waves(record.name, record.nodes, record.sizes)
    places = max((place for found in record.befores.values() for place in found), default=-1)
    if record.wave >= max(1, len(waves)) or places >= len(record.nodes):
        raise Malformed(f"expected waves and nodes that the rollout {record.name} has, found others")


def _check_joined(record: JoinedRecord, shelf: DocumentShelf) -> None:
    """Malformed unless an operator invited this node and the invitation's key signed for its key: by a controller's
    stolen key nobody takes the place of a node.
    """
    asked = enrolment.read_request(record.request.encode())
    if isinstance(asked, Refusal):
        raise Malformed(f"expected the request by which {record.node} joined, found: {asked.found}")
    token = asked.document
    if asked.token.key not in shelf.operators or token.fleet != shelf.fleet:
        raise Malformed(f"expected {record.node} to have joined by an operator of this fleet, found {asked.token.key}")
    proven = (token.token, token.node, asked.request.node_key, token.labels, token.expires)
    if (record.token, record.node, record.key, record.labels, record.expires) != proven:
        raise Malformed(f"expected what {record.node} asked for when it joined, found something else")


def halted(record: RolloutRecord, reason: str, *, now_s: int) -> RolloutRecord:
    """A record of which nobody knows whether it is the newest: it goes on when an operator says so."""
    if record.over or record.state is not RolloutState.RUNNING:
        return record
    return record.changing(now_s, state=RolloutState.HALTED, reason=reason)


def overtaken_by(record: RolloutRecord, rollouts: Iterable[RolloutRecord], now_s: int) -> RolloutRecord | None:
    """Another rollout that began later and has some of its nodes.

    None that has lost them itself, as where clocks are apart, nor one that says it will begin: a stolen key can say so.
    """
    later = [one for one in rollouts if record.began < one.began <= now_s and not one.closed]
    nodes = set(record.nodes) if later else set()
    return next((one for one in later if not nodes.isdisjoint(one.nodes)), None)


def superseded(record: RolloutRecord, name: str, *, now_s: int) -> RolloutRecord:
    """Another rollout has its nodes from now on. One that is over stays as it ended, and when."""
    if record.over:
        return record.changing(record.changed, closed=True)
    state = RolloutState.HALTED if record.state is RolloutState.RUNNING else record.state
    return record.changing(now_s, closed=True, state=state, reason=f"the rollout {name} has its nodes now")

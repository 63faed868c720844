"""What a hostile engine, a hostile controller without the operator's key, another node and a stranger can send a node.

`history` brings a node to generation 5: intents 1 to 5, of which 5 may go back to 3. `attacks` then makes desired
documents, and `invocations` invocations, none of which may count. Made from genuine documents by rule, so that a new
field or kind is attacked without anybody thinking of it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from latticed.fleet import documents
from latticed.fleet.engine import DESIRED_BYTES
from tests.house import fleets

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = {
    "assignment": documents.Assignment,
    "intent": documents.Intent,
    "controller": documents.ControllerCertificate,
}
ADDED = {"revocations": documents.Revocations, "node": documents.NodeCertificate}
RIGHT = {
    "assignment": fleets.CONTROLLER,
    "intent": fleets.OPERATOR,
    "controller": fleets.OPERATOR,
    "revocations": fleets.OPERATOR,
    "node": fleets.OPERATOR,
}
ATTACKERS = {
    "controller": fleets.CONTROLLER,
    "another controller": fleets.OTHER_CONTROLLER,
    "this node": fleets.NODE,
    "another node": fleets.OTHER_NODE,
    "a stranger": fleets.STRANGER,
}


@dataclass
class History:
    """Genuine documents of a fleet: five intents, and what made the node take up each."""

    fleet: fleets.Fleet
    start: int = 1
    """The generation of the first."""
    intents: list[documents.Intent] = field(default_factory=list)
    desired: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(1, 6):
            generation = self.start + number - 1
            named = (documents.name_of(self.intents[2]),) if number == 5 else ()
            intent = self.fleet.intent(
                generation, plugins=(fleets.plugin(identity=f"{number}{'0' * 63}"),), back_to=named
            )
            self.intents.append(intent)
            self.desired.append(self.fleet.desired(generation, intent=intent))

    def next(self) -> dict[str, bytes]:
        """The envelopes of a genuine sixth."""
        intent = self.fleet.intent(self.start + 5)
        return {
            "assignment": documents.sign(self.fleet.assignment(intent, self.start + 5), fleets.CONTROLLER),
            "intent": documents.sign(intent, fleets.OPERATOR),
            "controller": documents.sign(self.fleet.certificate(), fleets.OPERATOR),
        }


def attacks(history: History) -> Iterator[tuple[str, bytes]]:
    """(what is tried, a desired document) for a node that `history` has brought to generation 5."""
    genuine = history.next()
    yield from _engine(history, genuine)
    yield from _forgers(history, genuine)
    yield from _controller(history, genuine)
    yield from _epochs(history, genuine)


def _engine(history: History, genuine: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Nothing can be signed: edits, replays, drops, mixtures, confusions."""
    for number, old in enumerate(history.desired[:4], 1):
        yield f"engine: replays generation {number}", old
    for slot in SLOTS:
        rest = {name: value for name, value in genuine.items() if name != slot}
        yield f"engine: drops {slot}", _raw(rest)
        for other, value in genuine.items():
            if other != slot:
                yield f"engine: {other} in place of {slot}", fleets.packed(**{**genuine, slot: value})
        for number, old in enumerate(history.desired, 1):
            # Of a certificate all are the same; the fifth assignment is the one that counts.
            if slot != "controller" and (slot, number) != ("assignment", 5):
                mixed = {**genuine, slot: json.dumps(json.loads(old)[slot]).encode()}
                yield f"engine: {slot} of generation {number} in the sixth", fleets.packed(**mixed)
        for what, envelope in _edited(genuine[slot]):
            yield f"engine: {slot}: {what}", fleets.packed(**{**genuine, slot: envelope})
    split = [json.loads(old) for old in history.desired]
    for a, first in enumerate(split[:4], 1):
        for b, second in enumerate(split, 1):
            if a != b:
                yield (
                    f"engine: assignment {a} with intent {b}",
                    json.dumps({**first, "intent": second["intent"]}).encode(),
                )
    yield from _strange(history, genuine)


def _strange(history: History, genuine: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """What is for somebody else, in the wrong place, or of no form."""
    others = {
        "another fleet": fleets.Fleet("other", now=history.fleet.now),
        "another node": fleets.Fleet(history.fleet.name, now=history.fleet.now, node="n2"),
    }
    for what, other in others.items():
        yield f"engine: what is for {what}", other.desired(history.start + 5)
    for slot, kind in ADDED.items():
        for name, value in genuine.items():
            yield f"engine: {name} as {slot}", fleets.packed(**genuine, **{slot: value})
        yield f"engine: {slot} of an empty object", _raw({**genuine, slot: b"{}"})
        assert kind in documents.DOMAINS
    whole = fleets.packed(**genuine)
    for what, data in {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "cut": whole[:-1],
        "twice": whole + whole,
        "a field too many": whole[:-1] + b',"more":{}}',
        "a field twice": whole[:-1] + b',"intent":' + genuine["intent"] + b"}",
        "a byte order mark": b"\xef\xbb\xbf" + whole,
        "too large": whole + b" " * DESIRED_BYTES,
        "deep": b"[" * 10_000,
        "texts for envelopes": json.dumps({name: value.decode() for name, value in genuine.items()}).encode(),
    }.items():
        yield f"engine: {what}", data


def _forgers(history: History, genuine: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Each who has a key but not the right one signs each slot, and says whose key it was in both ways."""
    for slot, kind in {**SLOTS, **ADDED}.items():
        plain = fleets.opened(genuine[slot]) if slot in genuine else msgspec.to_builtins(_added(history, slot))
        for who, private in ATTACKERS.items():
            if private is RIGHT[slot]:
                continue
            for named in (None, fleets.public(RIGHT[slot])):
                said = "as himself" if named is None else "in the name of who may"
                envelope = fleets.forged(plain, documents.DOMAINS[kind], private, named=named)
                yield f"{who}: signs {slot} {said}", fleets.packed(**{**genuine, slot: envelope})
    for who, private in ATTACKERS.items():
        plains = {slot: fleets.opened(genuine[slot]) for slot in SLOTS}
        plains["controller"]["controller_key"] = fleets.public(private)
        made = {slot: fleets.forged(plains[slot], documents.DOMAINS[SLOTS[slot]], private) for slot in SLOTS}
        yield f"{who}: signs all of it", fleets.packed(**made)
        kept = {**made, "intent": genuine["intent"]}
        yield f"{who}: certifies itself and assigns what an operator signed", fleets.packed(**kept)
    for slot, kind in {**SLOTS, **ADDED}.items():
        plain = fleets.opened(genuine[slot]) if slot in genuine else msgspec.to_builtins(_added(history, slot))
        # The right key, which signed this in another kind's domain.
        for other, domain in documents.DOMAINS.items():
            if other is not kind:
                envelope = fleets.forged(plain, domain, RIGHT[slot])
                yield f"{slot} signed as {other.__name__}", fleets.packed(**{**genuine, slot: envelope})


def _controller(history: History, genuine: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The controller's own key, and every document that an operator ever signed."""
    fleet, now = history.fleet, history.fleet.now
    own, sixth_generation = {**genuine}, history.start + 5

    def assigned(meant: documents.Intent, generation: int = sixth_generation, **fields: Any) -> bytes:
        return documents.sign(fleet.assignment(meant, generation, **fields), fleets.CONTROLLER)

    sixth = fleet.intent(sixth_generation)
    for number in (1, 2, 4):
        intent = history.intents[number - 1]
        envelopes = {"assignment": assigned(intent), "intent": documents.sign(intent, fleets.OPERATOR)}
        yield f"controller: back to intent {number}, which is not named", fleets.packed(**{**own, **envelopes})
    for generation in (history.start, history.start + 3, history.start + 4):
        yield (
            f"controller: generation {generation} again",
            fleets.packed(**{**own, "assignment": assigned(sixth, generation)}),
        )
    for what, fields in {
        "another fleet": {"fleet": "other"},
        "another node": {"node": "n2"},
        "another key of this name": {"node_key": fleets.public(fleets.OTHER_NODE)},
        "an intent that is not there": {"intent": "0" * 64},
        "what has expired": {"expires": now - 1},
        "what expires now": {"expires": now},
        "a bundle that nobody wants": {
            "bundles": (documents.BundleSource(id="acme.other", sha256="a" * 64, urls=()),),
        },
    }.items():
        yield f"controller: assigns {what}", fleets.packed(**{**own, "assignment": assigned(sixth, **fields)})
    # An intent of its own making, whole and in order, or with one thing altered.
    plain = fleets.opened(genuine["intent"])
    for name, value in {
        "generation": 2**53 - 1,
        "plugins": [msgspec.to_builtins(fleets.plugin("evil.plugin", accept=("task:run",)))],
        "expires": now + 10**8,
        "selector": {"labels": {}, "nodes": []},
        "back_to": [documents.name_of(one) for one in history.intents[:4]],
    }.items():
        for who, private in (("itself", fleets.CONTROLLER), ("a key it made", fleets.STRANGER)):
            altered = {**plain, name: value}
            domain = documents.DOMAINS[documents.Intent]
            intent = msgspec.convert(altered, documents.Intent)
            envelopes = {"assignment": assigned(intent), "intent": fleets.forged(altered, domain, private)}
            yield f"controller: an intent with its own {name}, by {who}", fleets.packed(**{**own, **envelopes})
    for what, certificate, by in (
        ("for itself, longer", fleet.certificate(expires=now + 10**8), fleets.CONTROLLER),
        ("for a helper", fleet.certificate(controller_key=fleets.public(fleets.OTHER_CONTROLLER)), fleets.CONTROLLER),
        ("of a stranger", fleet.certificate(), fleets.STRANGER),
    ):
        yield (
            f"controller: a certificate {what}",
            fleets.packed(**{**own, "controller": documents.sign(certificate, by)}),
        )
    for what, certificate in {
        "expired": fleet.certificate(expires=now),
        "of another fleet": fleet.certificate(fleet="other"),
        "of another controller": fleet.certificate(controller_key=fleets.public(fleets.OTHER_CONTROLLER)),
    }.items():
        envelope = documents.sign(certificate, fleets.OPERATOR)
        yield f"controller: a certificate {what}", fleets.packed(**{**own, "controller": envelope})
    for what, intent in {
        "for other labels": fleet.intent(sixth_generation, selector=_selector({"role": "db"})),
        "for other nodes": fleet.intent(sixth_generation, selector=_selector({}, "n2")),
        "that has expired": fleet.intent(sixth_generation, expires=now),
        "of another fleet": fleet.intent(sixth_generation, fleet="other"),
        "of the generation of another": fleet.intent(sixth_generation - 1, plugins=()),
    }.items():
        envelopes = {"assignment": assigned(intent), "intent": documents.sign(intent, fleets.OPERATOR)}
        yield f"controller: an intent {what}", fleets.packed(**{**own, **envelopes})
    for what, certificate in {
        "of another node": fleet.node_certificate(node="n2", serial=9),
        "of another key": fleet.node_certificate(node_key=fleets.public(fleets.OTHER_NODE), serial=9),
        "of another fleet": fleet.node_certificate(fleet="other", serial=9),
    }.items():
        envelope = documents.sign(certificate, fleets.OPERATOR)
        yield f"controller: labels {what}", fleets.packed(**own, node=envelope)
    labelled = documents.sign(fleet.node_certificate(labels={"role": "db"}, serial=9), fleets.CONTROLLER)
    yield "controller: labels of its own making", fleets.packed(**own, node=labelled)


def _epochs(history: History, genuine: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """A certificate of the next epoch, which an operator signed, and assignments that are not of it; or the reverse."""
    fleet, sixth = history.fleet, history.fleet.intent(history.start + 5)
    renewed = documents.sign(fleet.certificate(epoch=2), fleets.OPERATOR)
    for number, old in enumerate(history.desired[:4], 1):
        raised = {slot: json.dumps(json.loads(old)[slot]).encode() for slot in ("assignment", "intent")}
        yield f"engine: generation {number} under a later certificate", fleets.packed(**raised, controller=renewed)
    yield "engine: the sixth under a later certificate", fleets.packed(**{**genuine, "controller": renewed})
    for generation in (1, history.start + 5, 2**53 - 1):
        ahead = documents.sign(fleet.assignment(sixth, generation, epoch=2), fleets.CONTROLLER)
        what = f"controller: generation {generation} of an epoch that nobody certified"
        yield what, fleets.packed(**{**genuine, "assignment": ahead})


def invocations(history: History) -> Iterator[tuple[str, bytes]]:
    """(what is tried, an invocation): all but what an operator signed for this node, now."""
    fleet, now = history.fleet, history.fleet.now
    genuine = documents.sign(fleet.invocation(), fleets.OPERATOR)
    plain = fleets.opened(genuine)
    domain = documents.DOMAINS[documents.Invocation]
    for who, private in ATTACKERS.items():
        for named in (None, fleets.public(fleets.OPERATOR)):
            yield f"{who}: invokes", fleets.forged(plain, domain, private, named=named)
    for what, fields in {
        "another node": {"node": "n2"},
        "another key": {"node_key": fleets.public(fleets.OTHER_NODE)},
        "another fleet": {"fleet": "other"},
        "expired": {"expires": now},
        "for a year": {"expires": now + 10**7},
    }.items():
        yield f"operator: {what}", documents.sign(fleet.invocation(**fields), fleets.OPERATOR)
    for kind, other in documents.DOMAINS.items():
        if kind is not documents.Invocation:
            yield f"operator: signed as {kind.__name__}", fleets.forged(plain, other, fleets.OPERATOR)
    for what, envelope in _edited(genuine):
        yield f"engine: {what}", envelope


def _edited(envelope: bytes) -> Iterator[tuple[str, bytes]]:
    """A genuine envelope with each field of its payload altered, and each of its own, under its old signature."""
    plain, outer = fleets.opened(envelope), json.loads(envelope)
    for name, value in plain.items():
        altered = {**plain, name: _other(value)}
        text = base64.urlsafe_b64encode(json.dumps(altered, sort_keys=True, separators=(",", ":")).encode())
        yield f"edits {name}", json.dumps({**outer, "payload": text.rstrip(b"=").decode()}).encode()
    for name, value in {
        "payload": outer["payload"] + "A",
        "signature": base64.b64encode(bytes(64)).decode(),
        "key": fleets.public(fleets.STRANGER),
    }.items():
        yield f"replaces its {name}", json.dumps({**outer, name: value}).encode()
        yield f"leaves out its {name}", json.dumps({one: outer[one] for one in outer if one != name}).encode()
    yield "adds to it", json.dumps({**outer, "more": 1}).encode()


def _other(value: Any) -> Any:
    match value:
        case int():
            return value + 1
        case str():
            return value[:-1] + ("b" if value.endswith("a") else "a")
        case list():
            return [*value, "a" * 64]
        case _:
            return {**value, "more": "x"} if isinstance(value, dict) else "x"


def _added(history: History, slot: str) -> documents.FleetDocument:
    if slot == "revocations":
        return history.fleet.revocations(fleets.public(fleets.OPERATOR), serial=9)
    return history.fleet.node_certificate(labels={"role": "db"}, serial=9)


def _raw(envelopes: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in envelopes.items()) + b"}"


def _selector(labels: dict[str, str], *nodes: str) -> documents.Selector:
    return documents.Selector(labels=labels, nodes=nodes)

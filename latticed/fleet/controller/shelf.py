"""The documents that operators signed, as a controller keeps them: judged, found again, and what they revoke. Pure.

A shelf is a value: taking a document in gives another one. What is on it stays on it, but for lists of revocations
that another one by the same operator contains, and intents that have expired and that nobody has (`retention`). Whether
something counts now, with all that was revoked since, is what its questions answer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from latticed.fleet import documents
from latticed.fleet.documents import (
    ControllerCertificate,
    EnrolmentToken,
    Intent,
    Malformed,
    NodeCertificate,
    Revocations,
    Signed,
    UserRevocations,
)
from latticed.kit.value import Value, field
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

KINDS: Final[dict[str, type[documents.FleetDocument]]] = {
    "intent": Intent,
    "controller": ControllerCertificate,
    "node": NodeCertificate,
    "revocations": Revocations,
    "enrolment": EnrolmentToken,
    "users": UserRevocations,
}
"""What operators sign and a controller keeps, by the words of its API."""
MOST_INTENTS: Final = 2_000
MOST_LISTS: Final = 200
"""Lists of revocations."""


class KeptDocument(Value, frozen=True, kw_only=True):
    """One document on the shelf."""

    kind: str
    signed: Signed
    received: int = 0
    """When it came, in seconds since 1970; 0 for one that just came."""


class DocumentShelf(Value, frozen=True, kw_only=True):
    """`operators`: the keys that count, of the settings. The documents by SHA-256 of what was signed."""

    fleet: str
    operators: tuple[str, ...]
    intents: Mapping[str, Signed] = field(default_factory=dict)
    certificates: Mapping[str, Signed] = field(default_factory=dict)
    nodes: Mapping[str, Signed] = field(default_factory=dict)
    """Of each node's name the certificate of the highest serial."""
    lists: Mapping[str, Signed] = field(default_factory=dict)
    tokens: Mapping[str, Signed] = field(default_factory=dict)
    users: Signed | None = None
    """The list of the highest serial of those who may connect to the message system no more."""
    revoked: frozenset[str] = frozenset()
    """Every key and every document (SHA-256) that an operator revoked. A list counts by whoever was an operator when it
    came: what it says stays said.
    """
    told: tuple[Signed, ...] = ()
    """The lists that together say all that nodes can be told: each by an operator who was not revoked, none that
    another one contains. One is the rule; of several each node is given each in its turn, until it says it has it.
    """

    def has(self, kept: KeptDocument) -> bool:
        """Whether this very document is here; a list also where another one by its operator says all that it says."""
        found = {
            "intent": self.intents,
            "controller": self.certificates,
            "enrolment": self.tokens,
        }
        sha256 = kept.signed.sha256
        match kept.kind:
            case "node":
                return any(one.sha256 == sha256 for one in self.nodes.values())
            case "users":
                return self.users is not None and self.users.sha256 == sha256
            case "revocations":
                return any(_contains(one, kept.signed) for one in self.lists.values())
            case kind:
                return sha256 in found[kind]

    def taking(self, kept: KeptDocument) -> DocumentShelf:
        """The shelf with one document more."""
        signed = kept.signed
        match kept.kind:
            case "node":
                if self.serial(signed.document.node) >= signed.document.serial:
                    return self
                return dataclasses.replace(self, nodes={**self.nodes, signed.document.node: signed})
            case "users":
                if self.users_serial >= signed.document.serial:
                    return self
                return dataclasses.replace(self, users=signed)
            case "intent":
                return dataclasses.replace(self, intents={**self.intents, signed.sha256: signed})
            case "controller":
                return dataclasses.replace(self, certificates={**self.certificates, signed.sha256: signed})
            case "revocations":
                if self.has(kept):
                    return self
                said = _of(signed) if signed.key in self.operators else frozenset[str]()
                left = {name: one for name, one in self.lists.items() if not _contains(signed, one)}
                lists = {**left, signed.sha256: signed}
                taken = dataclasses.replace(self, lists=lists, revoked=self.revoked | said)
                return dataclasses.replace(taken, told=_spread(taken))
            case _:
                return dataclasses.replace(self, tokens={**self.tokens, signed.sha256: signed})

    def without(self, intents: Collection[str]) -> DocumentShelf:
        """The shelf without these intents."""
        return dataclasses.replace(
            self, intents={name: one for name, one in self.intents.items() if name not in intents}
        )

    def serial(self, node: str) -> int:
        """The serial that a certificate of this node has to be above; 0 where its operator was revoked since."""
        kept = self.nodes.get(node)
        return int(kept.document.serial) if kept is not None and self.operator(kept.key) else 0

    @property
    def users_serial(self) -> int:
        """As `serial`, of the lists of users."""
        return int(self.users.document.serial) if self.users is not None and self.operator(self.users.key) else 0

    @property
    def cut_off(self) -> frozenset[str]:
        """Public keys of users who may not connect to the message system any more."""
        return frozenset(self.users.document.users if self.users is not None else ())

    def operator(self, key: str) -> bool:
        """Whether a key is an operator's that counts."""
        return key in self.operators and key not in self.revoked

    def certificate(self, key: str, epoch: int | None = None) -> Signed | None:
        """The certificate of a controller's key for this epoch, or for the last one, that ends last, of those that were
        not revoked with who signed them; None as well for a key that is revoked. It may have expired.
        """
        if key in self.revoked:
            return None
        found = [
            one
            for one in self.certificates.values()
            if one.document.controller_key == key and epoch in {None, one.document.epoch} and self.operator(one.key)
        ]
        return max(found, key=lambda one: (one.document.epoch, one.document.expires), default=None)

    def counts(self, intent: str, *, now_s: int) -> str:
        """Why nodes would not take up this intent now; empty when they would."""
        signed = self.intents.get(intent)
        if signed is None:
            return "intent_unknown"
        if intent in self.revoked:
            return "intent_revoked"
        if not self.operator(signed.key):
            return "operator_revoked"
        return "intent_expired" if now_s >= signed.document.expires else ""

    def envelopes(self) -> Iterator[tuple[str, Signed]]:
        """Every document with its kind."""
        for kind, kept in (
            ("revocations", self.lists),
            ("controller", self.certificates),
            ("intent", self.intents),
            ("node", self.nodes),
            ("enrolment", self.tokens),
        ):
            for signed in kept.values():
                yield kind, signed
        if self.users is not None:
            yield "users", self.users


def untold(shelf: DocumentShelf) -> frozenset[str]:
    """What is revoked by operators alone who were revoked since: no node believes it, until another one says it."""
    return shelf.revoked - frozenset[str]().union(*(_of(one) for one in shelf.told))


def judged(shelf: DocumentShelf, envelope: bytes) -> KeptDocument:
    """A document that an operator of this fleet signed; Problem document_malformed, operator_unknown, operator_revoked,
    other_fleet, document_expired (of what is to count now this is for its user to say).
    """
    kept = _read(envelope)
    if kept.signed.key not in shelf.operators:
        expected = "expected the signature of an operator whom the controller's settings name"
        raise Problem("operator_unknown", f"{expected}, found one by {kept.signed.key}", "[operators] in the settings")
    if kept.signed.key in shelf.revoked:
        reason = f"expected an operator who is not revoked, found {kept.signed.key}"
        raise Problem("operator_revoked", reason, "latticectl fleet sign, with another operator's key")
    if kept.signed.document.fleet != shelf.fleet:
        found = kept.signed.document.fleet
        reason = f"expected a document of the fleet {shelf.fleet}, found one of {found}"
        raise Problem("other_fleet", reason, "latticectl fleet sign --fleet names another fleet's directory")
    if kept.kind == "intent" and len(shelf.intents) >= MOST_INTENTS and kept.signed.sha256 not in shelf.intents:
        reason = f"expected at most {MOST_INTENTS} intents, found one more"
        hint = "unused ones go when they have been expired for keep_s of the settings: lower it, or sign for fewer days"
        raise Problem("quota_exceeded", reason, hint)
    if kept.kind == "revocations" and len(shelf.taking(kept).lists) > MOST_LISTS:
        reason = f"expected at most {MOST_LISTS} lists of revocations, found one more"
        raise Problem("quota_exceeded", reason, "sign one that has all of several: these go then")
    return kept


def notes(shelf: DocumentShelf, kept: KeptDocument, before: DocumentShelf) -> tuple[str, ...]:
    """What an operator should know of a document that was taken in just now; `shelf` has it, `before` had not."""
    found = []
    if kept.kind == "users" and (left := before.cut_off - shelf.cut_off):
        found.append(f"{len(left)} users of the list before are not in this one: sign one that has all")
    if kept.kind == "revocations" and (left := shelf.revoked - _of(kept.signed)) and _fits_one_list(shelf):
        found.append(f"{len(left)} keys or documents of earlier lists are not in this one: sign one that has all")
    if kept.kind == "intent":
        newest = max((one.document.generation for one in shelf.intents.values()), default=0)
        if kept.signed.document.generation < newest:
            found.append(f"an intent of generation {newest} is here: nodes that have it do not take up this one")
        missing = [one for one in kept.signed.document.back_to if one not in shelf.intents]
        if missing:
            found.append(f"{len(missing)} intents of back_to are not here: nodes cannot be given them")
    return tuple(found)


def _read(envelope: bytes) -> KeptDocument:
    """The document in an envelope, of whichever kind its signature is of; Problem document_malformed."""
    last = ""
    for kind, shape in KINDS.items():
        try:
            return KeptDocument(kind=kind, signed=documents.read(envelope, shape))
        except Malformed as error:
            # That of the one kind whose signature holds says more than that of the others.
            if "signature of" not in str(error) or not last:
                last = str(error)
    hint = "latticectl fleet sign writes one"
    raise Problem("document_malformed", f"expected a document that an operator signed: {last}", hint)


def _spread(shelf: DocumentShelf) -> tuple[Signed, ...]:
    said = {one.sha256: _of(one) for one in shelf.lists.values() if shelf.operator(one.key)}
    found: list[str] = []
    for name in sorted(said, key=lambda one: (-len(said[one]), -_serial(shelf, one), one)):
        if not any(said[name] <= said[other] for other in found):
            found.append(name)
    # The newest first: what is told next is what nodes have not heard yet.
    return tuple(shelf.lists[name] for name in sorted(found, key=lambda one: (-_serial(shelf, one), one)))


def superseded(shelf: DocumentShelf, envelope: bytes, *, before_s: int) -> bool:
    """Whether a document that is not on the shelf need be nowhere: another one says all that it says, or it expired
    before `before_s`.
    """
    try:
        kept = _read(envelope)
    except Problem:
        return False
    if kept.kind == "revocations":
        return shelf.has(kept)
    return kept.kind == "intent" and int(kept.signed.document.expires) < before_s


def _fits_one_list(shelf: DocumentShelf) -> bool:
    """Whether one list has room for all that is revoked."""
    lists = [one.document for one in shelf.lists.values()]
    keys = {key for one in lists for key in one.keys}
    intents = {intent for one in lists for intent in one.intents}
    serial = max((one.serial for one in lists), default=1)
    return documents.fits(
        Revocations(fleet=shelf.fleet, serial=serial, keys=tuple(sorted(keys)), intents=tuple(sorted(intents)))
    )


def _serial(shelf: DocumentShelf, sha256: str) -> int:
    return int(shelf.lists[sha256].document.serial)


def _contains(one: Signed, other: Signed) -> bool:
    """Whether a list says all that another one says, by the same operator: so it is believed wherever that one is."""
    return one.key == other.key and _of(other) <= _of(one)


def _of(signed: Signed) -> frozenset[str]:
    return frozenset({*signed.document.keys, *signed.document.intents})

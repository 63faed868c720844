"""Which assignment each node gets, when it is given another one, and the document that carries it. Pure.

An assignment is made once, kept, and published again as it is for as long as it serves. A node that has taken it up
needs no other one, whatever expires: another one would undo what was altered on the host since.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from latticed.fleet import documents
from latticed.fleet.documents import Assignment, BundleSource, DesiredDocument
from latticed.kit.value import Value
from latticed.model import ids, semver_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.controller.shelf import DocumentShelf
    from latticed.fleet.documents import Intent, NodeStatus, Signed

_RENEW_SHARE: Final = 0.5
"""Of its life that is left when an assignment that was not taken up yet is replaced."""


Turn = tuple[int, int]
"""Epoch and generation: the order of assignments."""


class FleetNodeKey(Value, frozen=True, kw_only=True):
    """Who a node is: its key, and the labels that an operator certified."""

    name: str
    key: str
    labels: dict[str, str]
    serial: int
    since: int = 0


class AssigningKey(Value, frozen=True, kw_only=True):
    """A controller's key with its public half (base64), the epoch that it is certified for, and how long what it signs
    may be taken up, in seconds.
    """

    private: Ed25519PrivateKey
    public: str
    epoch: int
    life_s: int


class KeptAssignment(Value, frozen=True, kw_only=True):
    """The newest assignment of a node, as it was signed. `key` is the node's, `signer` the controller's."""

    node: str
    epoch: int
    generation: int
    intent: str
    key: str
    signer: str
    expires: int
    made: int
    envelope: bytes

    @property
    def turn(self) -> Turn:
        """Where it stands in the order of assignments."""
        return self.epoch, self.generation


class KeptBundle(Value, frozen=True, kw_only=True):
    """A bundle's file that the controller has. `sha256` of the file, `identity` of the bundle."""

    sha256: str
    plugin: str
    version: str
    identity: str
    publisher: str
    size: int
    received: int = 0


def why_another(
    kept: KeptAssignment | None,
    wanted: str,
    node: FleetNodeKey,
    status: NodeStatus | None,
    *,
    shelf: DocumentShelf,
    key: AssigningKey,
    now_s: int,
) -> str:
    """Why a node that is to have the intent `wanted` needs another assignment; empty when it does not."""
    if kept is None or kept.intent != wanted:
        return "another intent"
    if kept.key != node.key:
        return "another node of this name"
    if shelf.certificate(kept.signer, kept.epoch) is None:
        return "its controller was revoked"
    if kept.epoch < key.epoch:
        return "another epoch"
    turn = (status.epoch, status.generation) if status is not None else (0, 0)
    if status is not None and turn >= kept.turn:
        # Where it took up something else under this number, the engine lost it, or another controller gave it.
        return "the node is ahead" if status.intent != wanted else ""
    stale = kept.signer != key.public and _expired(shelf, kept, now_s)
    life = kept.expires - kept.made
    if stale or kept.expires - now_s < _RENEW_SHARE * life:
        return "it was not taken up, and expires"
    return ""


def made(
    shelf: DocumentShelf,
    node: FleetNodeKey,
    intent: str,
    *,
    generation: int,
    sources: Sequence[BundleSource],
    key: AssigningKey,
    now_s: int,
) -> KeptAssignment:
    """A signed assignment."""
    document = Assignment(
        fleet=shelf.fleet,
        node=node.name,
        node_key=node.key,
        epoch=key.epoch,
        generation=generation,
        intent=intent,
        bundles=tuple(sources),
        expires=now_s + key.life_s,
    )
    return KeptAssignment(
        node=node.name,
        epoch=key.epoch,
        generation=generation,
        intent=intent,
        key=node.key,
        signer=key.public,
        expires=document.expires,
        made=now_s,
        envelope=documents.sign(document, key.private),
    )


def desired(
    shelf: DocumentShelf, kept: KeptAssignment, *, status: NodeStatus | None = None, turn: int = 0
) -> bytes | None:
    """The desired document of a node; None while something that has to be in it is not here. `turn` picks one of
    several lists of revocations that it does not say it has learnt.
    """
    intent, certificate = shelf.intents.get(kept.intent), _certificate_of(shelf, kept)
    if intent is None or certificate is None:
        return None
    lists = unheard(shelf, status) or shelf.told[:1]
    own = shelf.nodes.get(kept.node)
    if own is not None and (own.document.node_key != kept.key or not shelf.operator(own.key)):
        own = None
    return documents.pack(
        DesiredDocument(
            assignment=kept.envelope,
            intent=intent.envelope,
            controller=certificate.envelope,
            revocations=lists[turn % len(lists)].envelope if lists else None,
            node=own.envelope if own is not None else None,
        )
    )


def unheard(shelf: DocumentShelf, status: NodeStatus | None) -> tuple[Signed, ...]:
    """Lists of revocations that a node has to be given, by what it says of itself: each in its turn."""
    learnt = status.lists if status is not None else ()
    return tuple(one for one in shelf.told if one.sha256 not in learnt)


def sources_of(
    intent: Intent, bundles: Iterable[KeptBundle], named: Iterable[BundleSource] = ()
) -> tuple[BundleSource, ...]:
    """Where the bundles of an intent's plugins are: what is named, and of those kept that fit the highest version."""
    found = {one.id: one for one in named}
    kept = list(bundles)
    for one in intent.plugins:
        if one.id in found or ids.is_reserved_plugin(one.id):
            continue
        fitting = [
            bundle
            for bundle in kept
            if bundle.plugin == one.id
            and (
                bundle.identity == one.identity
                if one.identity is not None
                else bundle.publisher == one.publisher and within(one.versions, bundle.version)
            )
        ]
        if fitting:
            best = max(fitting, key=functools.cmp_to_key(_newer))
            found[one.id] = BundleSource(id=one.id, sha256=best.sha256, urls=())
    wanted = {one.id for one in intent.plugins}
    return tuple(found[name] for name in sorted(found) if name in wanted)


def way_back(shelf: DocumentShelf, release: str, before: str, *, now_s: int) -> bool:
    """Whether nodes that have `release` take `before` again: the operator's word for it is in the release itself."""
    signed = shelf.intents.get(release)
    return signed is not None and before in signed.document.back_to and not shelf.counts(before, now_s=now_s)


def _newer(one: KeptBundle, other: KeptBundle) -> int:
    return semver_range.compare(one.version, other.version) or one.received - other.received


def within(versions: str | None, version: str) -> bool:
    """Whether a version is in a range; false for what is no version."""
    try:
        return versions is not None and semver_range.contains(versions, version)
    except semver_range.InvalidRange:
        return False


def _certificate_of(shelf: DocumentShelf, kept: KeptAssignment) -> Signed | None:
    """The certificate that goes with an assignment. Of a revoked controller too: the document carries the list that
    says so.
    """
    if (found := shelf.certificate(kept.signer, kept.epoch)) is not None:
        return found
    of_key = [
        one
        for one in shelf.certificates.values()
        if (one.document.controller_key, one.document.epoch) == (kept.signer, kept.epoch)
    ]
    return max(of_key, key=lambda one: int(one.document.expires), default=None)


def _expired(shelf: DocumentShelf, kept: KeptAssignment, now_s: int) -> bool:
    certificate = shelf.certificate(kept.signer, kept.epoch)
    return certificate is None or now_s >= certificate.document.expires

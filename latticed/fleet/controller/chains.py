"""The chains of nodes' events: what comes is held against the newest that was kept. Pure.

An engine can lose events, and a node's list of waiting ones has an end: that leaves a gap, which is counted. Two events
of one number under one key, or one that does not follow from the last, are a fork: the node, or who has its key, tells
two stories.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from latticed.fleet import documents
from latticed.fleet.controller.observing import NotBelieved
from latticed.fleet.documents import Malformed, NodeEvent
from latticed.kit.value import Value

if TYPE_CHECKING:
    from latticed.fleet.controller.assigning import FleetNodeKey


class ChainHead(Value, frozen=True, kw_only=True):
    """The newest event of a node's chain that was kept; `key` is the node's. `missed`: numbers that never came."""

    node: str
    key: str
    number: int = 0
    hash: str = documents.GENESIS
    missed: int = 0


class KeptEvent(Value, frozen=True, kw_only=True):
    """An event that a node signed; `hash` names it, `envelope` is what came."""

    event: NodeEvent
    key: str
    hash: str
    envelope: bytes
    received: int


class Linked(Value, frozen=True, kw_only=True):
    """An event that is to be kept, and the head then. `missed`: how many before it did not come; `forked`: why it does
    not follow from what is kept, empty when it does.
    """

    event: KeptEvent
    head: ChainHead
    missed: int = 0
    forked: str = ""


def read(data: bytes, node: FleetNodeKey, *, fleet: str, now_s: int) -> KeptEvent:
    """An event that this node signed; NotBelieved."""
    try:
        signed = documents.read(data, NodeEvent)
    except Malformed as error:
        raise NotBelieved("event_forged", f"expected an event signed by {node.name}, found: {error}") from error
    found: NodeEvent = signed.document
    if signed.key != node.key or found.node != node.name or found.fleet != fleet:
        reason = f"expected an event of {node.name} by its key, found one of {found.node}"
        raise NotBelieved("event_forged", reason, signed.key)
    return KeptEvent(event=found, key=signed.key, hash=signed.sha256, envelope=data, received=now_s)


def linked(head: ChainHead | None, came: KeptEvent, kept: str | None) -> Linked | None:
    """What an event is to the chain; None when it is kept already. `kept`: the hash of the event that is kept under its
    number, None for none.
    """
    event = came.event
    if head is None or head.key != came.key:
        # A new key begins a chain of its own.
        head = ChainHead(node=event.node, key=came.key)
    if kept == came.hash:
        return None
    if kept is not None:
        return Linked(event=came, head=head, forked=f"expected one event of number {event.number}, found two")
    if event.number <= head.number:
        # Of a gap, or too old to be kept: nothing says that it is wrong.
        return None
    after = ChainHead(node=event.node, key=came.key, number=event.number, hash=came.hash, missed=head.missed)
    if event.number == head.number + 1:
        follows = event.prev == head.hash
        why = "" if follows else f"expected event {event.number} to follow {head.hash[:16]}…, found {event.prev[:16]}…"
        return Linked(event=came, head=after, forked=why)
    gap = event.number - head.number - 1
    return Linked(event=came, head=dataclasses.replace(after, missed=min(head.missed + gap, 2**53 - 1)), missed=gap)

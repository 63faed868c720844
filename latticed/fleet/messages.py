"""What the agent's two processes tell each other over their socketpair: four bytes of length, then JSON.

The link has the connection and no scope, the node has the scopes and no network. So the node takes the link for a
stranger: what it sends is bounded and decoded strictly, and no message of it can ask for anything but to look at a
signed document.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import engine
from latticed.fleet.engine import DESIRED_BYTES
from latticed.kit import strict_json

DOCUMENT_BYTES: Final = 2 * engine.DOCUMENT_BYTES
"""Largest status, event, invocation or answer: more than the engine takes, which the link then says of it."""
MAX_BYTES: Final = 4 * max(DESIRED_BYTES, DOCUMENT_BYTES) // 3 + (4 << 10)
"""Largest message: a document as base64, and what is around it."""
MOST_KEPT: Final = 1_000
"""Bundles that the link is told to keep: twice as many as one assignment names."""
_LENGTH: Final = 4
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""Of the file that holds a bundle (`market.import_dir`), lowercase hex."""
_Number = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class BadMessage(ValueError):
    """The peer sent what is no message; the connection is of no use any more."""


class _Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """`type` says which it is."""


class NewDesired(_Message, frozen=True, kw_only=True, tag="desired"):
    """Link to node: this host's desired document, as the engine has it. Newer ones replace it, equal ones are fine."""

    document: Annotated[bytes, Meta(max_length=DESIRED_BYTES)]


class BundleHere(_Message, frozen=True, kw_only=True, tag="bundle_here"):
    """Link to node: what was needed is whole in the spool, under `spool_name(sha256)`."""

    sha256: Sha256


class BundleMissing(_Message, frozen=True, kw_only=True, tag="bundle_missing"):
    """Link to node: it could not be fetched. The node asks again when it next looks."""

    sha256: Sha256
    reason: Annotated[str, Meta(max_length=500)]


class InvocationAsked(_Message, frozen=True, kw_only=True, tag="invoke"):
    """Link to node: an invocation, signed by the operator. `number` is the link's own, for the answer."""

    number: _Number
    document: Annotated[bytes, Meta(max_length=DOCUMENT_BYTES)]


class EventTaken(_Message, frozen=True, kw_only=True, tag="event_taken"):
    """Link to node: the engine has acknowledged the event of this number; the node need not keep it any longer."""

    number: _Number


class LinkState(_Message, frozen=True, kw_only=True, tag="connection"):
    """Link to node: whether there is a connection; `reason` says why not."""

    up: bool
    reason: Annotated[str, Meta(max_length=500)] = ""


class RenewalWanted(_Message, frozen=True, kw_only=True, tag="renew"):
    """Link to node: the credentials for this public key end before long; sign a request for new ones."""

    user: Annotated[str, Meta(pattern=r"^U[A-Z2-7]{55}\Z")]


class BundleNeeded(_Message, frozen=True, kw_only=True, tag="need"):
    """Node to link: fetch this into the spool, from the engine or one of the `urls` (https). `anew`: what the spool has
    of it is of no use.
    """

    sha256: Sha256
    urls: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=8)] = ()
    anew: bool = False


class NothingNeeded(_Message, frozen=True, kw_only=True, tag="need_nothing"):
    """Node to link: something else was taken up, and no bundle of before is needed unless it is asked for again."""


class BundlesKept(_Message, frozen=True, kw_only=True, tag="keep"):
    """Node to link: these are still to be brought, or to be tried; of all others that came the spool may drop the file.
    Only the newest counts.
    """

    sha256s: Annotated[tuple[Sha256, ...], Meta(max_length=MOST_KEPT)]


class NewStatus(_Message, frozen=True, kw_only=True, tag="status"):
    """Node to link: what this host is and does, signed by its key. Only the newest counts."""

    document: Annotated[bytes, Meta(max_length=DOCUMENT_BYTES)]


class NewEvent(_Message, frozen=True, kw_only=True, tag="event"):
    """Node to link: one event of the host's chain, signed. It comes again until `EventTaken` names its number.

    `message_id` is the same each time, and nobody else can guess it: the engine takes each id once.
    """

    number: _Number
    message_id: Annotated[str, Meta(max_length=128)]
    document: Annotated[bytes, Meta(max_length=DOCUMENT_BYTES)]


class RenewalSigned(_Message, frozen=True, kw_only=True, tag="renewal"):
    """Node to link: the request for new credentials, signed by the node's key (`node_key`, base64)."""

    node_key: Annotated[str, Meta(min_length=44, max_length=44)]
    document: Annotated[bytes, Meta(max_length=DOCUMENT_BYTES)]


class InvocationDone(_Message, frozen=True, kw_only=True, tag="answer"):
    """Node to link: what became of the invocation `number`."""

    number: _Number
    document: Annotated[bytes, Meta(max_length=DOCUMENT_BYTES)]


ToNode = NewDesired | BundleHere | BundleMissing | InvocationAsked | EventTaken | LinkState | RenewalWanted
ToLink = BundleNeeded | NothingNeeded | BundlesKept | NewStatus | NewEvent | InvocationDone | RenewalSigned


def spool_name(sha256: str) -> str:
    """The plain name of a bundle's file in the spool, which is the daemon's `market.import_dir`."""
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"expected 64 hex digits, found {sha256[:80]!r}")
    return f"{sha256}.tar"


def encode(message: ToNode | ToLink) -> bytes:
    """The bytes of a message; ValueError for one that the peer would not take."""
    data = msgspec.json.encode(message)
    if len(data) > MAX_BYTES:
        raise ValueError(f"expected a message of at most {MAX_BYTES} bytes, found {len(data)}")
    return len(data).to_bytes(_LENGTH, "big") + data


class Decoder:
    """Messages out of a stream's bytes, for the side that takes `kind` (`ToNode` or `ToLink`).

    It holds one message's bytes at most, beside what was fed last.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are whole now; BadMessage for what is none, after which nothing more is fed."""
        self._held += data
        found = []
        while len(self._held) >= _LENGTH:
            size = int.from_bytes(self._held[:_LENGTH], "big")
            if not 0 < size <= MAX_BYTES:
                raise BadMessage(f"expected a message of 1 to {MAX_BYTES} bytes, found {size}")
            if len(self._held) < _LENGTH + size:
                break
            found.append(self._decoded(bytes(self._held[_LENGTH : _LENGTH + size])))
            del self._held[: _LENGTH + size]
        return found

    @property
    def in_the_middle(self) -> bool:
        """Whether the stream must not end here."""
        return bool(self._held)

    def _decoded(self, data: bytes) -> Any:
        try:
            # msgspec would take a key twice.
            return msgspec.convert(strict_json.loads(data, integers_only=True), self._kind)
        except (strict_json.InvalidJson, msgspec.ValidationError) as error:
            raise BadMessage(str(error)[:200]) from error

"""What the fleet needs of a message system: the one interface to it, for a node and for a controller.

Nothing that comes out of it is believed: documents are signed by the operator, the controller or a node, and judged by
whoever reads them. An engine may lose, repeat, reorder and invent; it must keep subjects of different nodes apart, and
acknowledge only what is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

DESIRED_BYTES: Final = 128 << 10
"""Largest desired document of a node: what its envelopes may come to is `documents.MOST_BYTES`."""
CHUNK_BYTES: Final = 128 << 10
"""Of a bundle: all chunks but the last have exactly so many."""
EVENT_BYTES: Final = 16 << 10
"""Largest event; a node's quota is counted in these."""
STATUS_BYTES: Final = 64 << 10
"""Largest status, and largest invocation or answer."""
DOCUMENT_BYTES: Final = max(EVENT_BYTES, STATUS_BYTES)
"""Largest of what a node sends."""
BEAT_BYTES: Final = 1 << 10


class EngineUnavailable(Exception):
    """The engine did not answer in time, or there is no connection. What was asked may have been done all the same."""


class QuotaExceeded(EngineUnavailable):
    """The engine keeps no more of this node's events: others are not affected, older ones are not thrown away."""


class Conflict(Exception):
    """Somebody else wrote meanwhile: what was compared with is not the newest any more."""


class PendingInvocation(Protocol):
    """A question to this node that waits for its answer."""

    @property
    def data(self) -> bytes: ...

    async def answer(self, data: bytes) -> None:
        """Once; an answer that comes too late goes nowhere. EngineUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A message as a stream keeps it; `revision` is its number in the stream, growing."""

    subject: str
    data: bytes
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPosition:
    """`created` is another one once the stream was made anew; `last`: its highest revision."""

    created: str
    last: int


class Engine(Protocol):
    """What a node's link uses. Each method raises EngineUnavailable when there is no connection, and ValueError for
    what is larger than its kind may be.
    """

    async def desired(self) -> bytes | None:
        """This node's desired document as it is kept now; None when there is none."""

    def watch_desired(self) -> AsyncIterator[bytes]:
        """Desired documents as they are published; what was published while there was no connection is not among
        them.
        """

    async def chunk(self, sha256: str, number: int) -> bytes:
        """Chunk `number` of a bundle, unchecked; KeyError when it is not there."""

    async def publish_event(self, data: bytes, message_id: str) -> None:
        """Returns once the event is on disk. Publishing it again under the same id, within minutes, stores it once.

        QuotaExceeded when this node has too many there.
        """

    async def publish_status(self, data: bytes) -> None:
        """Takes the place of the last one; returns once it is kept."""

    async def beat(self, data: bytes) -> None:
        """Says that this node is there; not acknowledged."""

    def invocations(self) -> AsyncIterator[PendingInvocation]:
        """Questions to this node as they come."""

    async def renew(self, data: bytes) -> bytes:
        """A controller's answer to this node's request for new credentials (`enrolment`)."""


class ControllerEngine(Protocol):
    """What a controller uses. Each method raises EngineUnavailable when there is no connection, and ValueError for what
    is larger than its kind may be.
    """

    async def provide(self, streams: Sequence[dict[str, Any]]) -> None:
        """Make the streams that are not there, and have the others as they should be."""

    async def position(self, stream: str) -> StreamPosition:
        """Which stream of this name it is, and how far it goes; KeyError when there is none."""

    async def desired(self, node: str) -> Stored | None:
        """The desired document of `node`; None when there never was one."""

    def all_desired(self) -> AsyncIterator[Sequence[Stored]]:
        """Every desired document that is kept now; of one node the newest comes last."""

    async def put_desired(self, node: str, data: bytes, expected: int) -> int:
        """Replace the document of that revision (0: there is none); the new revision. Conflict."""

    async def put_chunk(self, sha256: str, number: int, data: bytes) -> None:
        """Keep a chunk, once: what is there already stays as it is."""

    async def chunks_kept(self, sha256: str) -> int:
        """How many chunks of a bundle are kept."""

    async def forget_bundle(self, sha256: str) -> None:
        """Drop all chunks of a bundle."""

    async def status(self, node: str) -> Stored | None:
        """The newest status of `node`; None when there is none."""

    def events_of(self, node: str) -> AsyncIterator[Sequence[Stored]]:
        """Events of `node` that are kept now, and then an end."""

    def all_statuses(self) -> AsyncIterator[Sequence[Stored]]:
        """Nodes' statuses as they are now, and then an end."""

    def statuses(self, after: int = 0) -> AsyncIterator[Sequence[Stored]]:
        """What nodes' statuses are, then each that changes, with a revision above `after`; never ends."""

    def events(self, after: int = 0) -> AsyncIterator[Sequence[Stored]]:
        """Nodes' events with a revision above `after`, and those that come; never ends."""

    async def event_counts(self) -> dict[str, int]:
        """How many events of each node are kept."""

    async def thin_events(self, node: str, keep: int) -> None:
        """Drop a node's events but the newest `keep`, once all are kept elsewhere: this frees its quota."""

    async def present(self) -> Sequence[Stored]:
        """The newest beat of each node that gave one within the last minute."""

    async def invoke(self, node: str, data: bytes, timeout_s: float) -> bytes:
        """The node's answer; EngineUnavailable when it does not listen or answer in time."""

    async def get(self, key: str) -> Stored | None:
        """What the controllers share under `key`, as the leader has it."""

    def all_shared(self) -> AsyncIterator[Sequence[Stored]]:
        """All that controllers share now; the keys are the last tokens of the subjects. Empty data: nothing any
        more.
        """

    async def put(self, key: str, data: bytes, expected: int, *, ttl_s: int | None = None) -> int:
        """Replace what has that revision (0: nothing), for `ttl_s` seconds when given; the new revision. Conflict."""

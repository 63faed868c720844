"""The engine on NATS JetStream: what `engine` asks for, in requests that need no consumer.

A change is pushed by republication, and looked up by DIRECT.GET: of a thousand nodes each would need a consumer
otherwise, which a server limits, and which take seconds to come back after a restart. Streams are read in the same
way, in batches after the last number seen; a message that comes by subscription only says that it is time to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.fleet import subjects
from latticed.fleet.engine import (
    BEAT_BYTES,
    CHUNK_BYTES,
    DESIRED_BYTES,
    EVENT_BYTES,
    STATUS_BYTES,
    Conflict,
    EngineUnavailable,
    QuotaExceeded,
    Stored,
    StreamPosition,
)
from latticed.kit import strict_json, text
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nats.aio.msg import Msg

    from latticed.fleet.nats_connection import NatsConnection, NatsReply

_NOT_FOUND: Final = "404"
_LAST_OF_BATCH: Final = "204"
_WRONG_LAST_SEQUENCE: Final = {10071, 10164}
_TOO_MANY_OF_SUBJECT: Final = 10077
_NO_STREAM: Final = 10059
_NAME_IN_USE: Final = 10058
_BATCH: Final = 64
_BATCH_BYTES: Final = 1 << 20
_LOOK_S: Final = 15.0
"""How often a stream is read although nothing said that there is something new."""
_TTL_LOWEST_S: Final = 1


@dataclass(frozen=True, slots=True)
class _Question:
    """An invocation and where its answer goes."""

    data: bytes
    reply: str
    connection: NatsConnection

    async def answer(self, data: bytes) -> None:
        await self.connection.publish(self.reply, _own(data, STATUS_BYTES))


class NatsEngine:
    """`engine.Engine` of one node, over a connection whose credentials are that node's."""

    def __init__(self, connection: NatsConnection, node: str) -> None:
        self._connection = connection
        self._node = subjects.node_name(node)

    async def desired(self) -> bytes | None:
        found = await _newest(self._connection, self._mine("desired"), subjects.desired(self._node))
        return None if found is None else _at_most(found.data, DESIRED_BYTES)

    async def watch_desired(self) -> AsyncIterator[bytes]:
        mine = subjects.desired(self._node)
        async with contextlib.aclosing(
            self._connection.messages(subjects.desired_pushed(self._node), most=2)
        ) as messages:
            async for message in messages:
                # Another node can have its own document sent here, as the answer to a question of its own.
                if _header(message, "Nats-Subject") == mine and len(message.data) <= DESIRED_BYTES:
                    yield message.data

    async def chunk(self, sha256: str, number: int) -> bytes:
        found = await _newest(self._connection, subjects.chunk_asked(sha256, number), subjects.chunk(sha256, number))
        if found is None:
            raise KeyError(f"{sha256}.{number}")
        return _at_most(found.data, CHUNK_BYTES)

    async def publish_event(self, data: bytes, message_id: str) -> None:
        own = _own(data, EVENT_BYTES)
        await _stored(self._connection, self._mine("event"), own, {"Nats-Msg-Id": message_id})

    async def publish_status(self, data: bytes) -> None:
        await _stored(self._connection, self._mine("status"), _own(data, STATUS_BYTES), {})

    async def beat(self, data: bytes) -> None:
        await self._connection.publish(self._mine("beat"), _own(data, BEAT_BYTES))

    async def invocations(self) -> AsyncIterator[_Question]:
        async with contextlib.aclosing(self._connection.messages(subjects.invocation(self._node))) as messages:
            async for message in messages:
                # What another node has sent here, as above, has no place for an answer.
                if message.reply and len(message.data) <= STATUS_BYTES:
                    yield _Question(message.data, message.reply, self._connection)

    async def renew(self, data: bytes) -> bytes:
        answer = await self._connection.request(self._mine("renewal"), _own(data, STATUS_BYTES))
        return _at_most(answer.data, STATUS_BYTES)

    def _mine(self, what: str) -> str:
        return subjects.by_node(self._node, what)


class NatsControllerEngine:
    """`engine.ControllerEngine` over a connection with a controller's credentials."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._beats: dict[str, Stored] = {}
        self._beaten = 0

    async def provide(self, streams: Sequence[dict[str, Any]]) -> None:
        """Make the streams that are not there, and have the others as they should be. EngineUnavailable with what the
        server says of one that cannot be changed to it.
        """
        have = await self.streams([one["name"] for one in streams])
        for stream in streams:
            name, kept = stream["name"], have[stream["name"]]
            # Nothing is asked where nothing changes: a server would want room for the whole stream once more.
            if kept is not None and all(kept.get(field) == value for field, value in stream.items()):
                continue
            made = await self._api(f"STREAM.{'CREATE' if kept is None else 'UPDATE'}.{name}", stream)
            # Somebody else made it meanwhile.
            if _code(made) == _NAME_IN_USE:
                made = await self._api(f"STREAM.UPDATE.{name}", stream)
            if "error" in made:
                raise EngineUnavailable(f"{name}: {_description(made)}")

    async def streams(self, names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The configuration of each of these streams as the server has it; None for one that is not there."""
        found: dict[str, dict[str, Any] | None] = {}
        for name in names:
            answer = await self._api(f"STREAM.INFO.{name}", None)
            found[name] = None if _code(answer) == _NO_STREAM else answer.get("config")
        return found

    async def position(self, stream: str) -> StreamPosition:
        answer = await self._api(f"STREAM.INFO.{stream}", None)
        if _code(answer) == _NO_STREAM:
            raise KeyError(stream)
        state, created = answer.get("state"), answer.get("created")
        last = state.get("last_seq") if isinstance(state, dict) else None
        if not isinstance(last, int) or not isinstance(created, str):
            raise EngineUnavailable(_description(answer))
        return StreamPosition(created=created[:64], last=last)

    async def desired(self, node: str) -> Stored | None:
        return await self._leaders(subjects.DESIRED_STREAM, subjects.desired(node))

    def all_desired(self) -> AsyncIterator[Sequence[Stored]]:
        return self._kept(subjects.DESIRED_STREAM, "$KV.desired.*")

    async def put_desired(self, node: str, data: bytes, expected: int) -> int:
        return await self._replaced(subjects.desired(node), _own(data, DESIRED_BYTES), expected, {})

    async def put_chunk(self, sha256: str, number: int, data: bytes) -> None:
        subject = subjects.chunk(sha256, number)
        try:
            await _stored(self._connection, subject, _own(data, CHUNK_BYTES), {})
        except QuotaExceeded:
            kept = await self._leaders(subjects.BUNDLES_STREAM, subject)
            if kept is None:  # the stream is full, not the subject
                raise
            if kept.data != data:
                raise Conflict(f"expected chunk {number} of {sha256} as it is here, found another one kept") from None

    async def chunks_kept(self, sha256: str) -> int:
        return len(await self._subjects(subjects.BUNDLES_STREAM, f"bundle.{subjects.sha256(sha256)}.*"))

    async def forget_bundle(self, sha256: str) -> None:
        await self._purge(subjects.BUNDLES_STREAM, {"filter": f"bundle.{subjects.sha256(sha256)}.*"})

    async def status(self, node: str) -> Stored | None:
        return await self._leaders(subjects.STATUS_STREAM, subjects.status(node))

    def events_of(self, node: str) -> AsyncIterator[Sequence[Stored]]:
        return self._kept(subjects.EVENTS_STREAM, subjects.events(node))

    def all_statuses(self) -> AsyncIterator[Sequence[Stored]]:
        return self._kept(subjects.STATUS_STREAM, "st.*")

    def statuses(self, after: int = 0) -> AsyncIterator[Sequence[Stored]]:
        return self._read(subjects.STATUS_STREAM, "st.*", after)

    def events(self, after: int = 0) -> AsyncIterator[Sequence[Stored]]:
        return self._read(subjects.EVENTS_STREAM, "ev.*.audit", after)

    async def event_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name, count in (await self._subjects(subjects.EVENTS_STREAM, "ev.*.audit")).items():
            with contextlib.suppress(Problem):  # of no node: whoever holds a controller's credentials can write there
                counts[subjects.node_of(name)] = count
        return counts

    async def thin_events(self, node: str, keep: int) -> None:
        await self._purge(subjects.EVENTS_STREAM, {"filter": subjects.events(node), "keep": keep})

    async def _purge(self, stream: str, wanted: dict[str, Any]) -> None:
        done = await self._api(f"STREAM.PURGE.{stream}", wanted)
        if "error" in done:
            raise EngineUnavailable(_description(done))

    async def present(self) -> Sequence[Stored]:
        state = (await self._api(f"STREAM.INFO.{subjects.PRESENCE_STREAM}", None)).get("state")
        first, last = (state.get(name) if isinstance(state, dict) else None for name in ("first_seq", "last_seq"))
        if not isinstance(first, int) or not isinstance(last, int):
            raise EngineUnavailable("expected the state of the stream of beats, found another answer")
        if last < self._beaten:  # it is another stream: this one is in memory
            self._beats, self._beaten = {}, 0
        # Each beat is read once; those that the stream has dropped meanwhile are over.
        while batch := await self._batch(subjects.PRESENCE_STREAM, "hb.*", self._beaten):
            self._beats |= {one.subject: one for one in batch}
            self._beaten = batch[-1].revision
        self._beats = {subject: one for subject, one in self._beats.items() if one.revision >= first}
        return tuple(self._beats.values())

    async def invoke(self, node: str, data: bytes, timeout_s: float) -> bytes:
        answer = await self._connection.request(
            subjects.invocation(node), _own(data, STATUS_BYTES), timeout_s=timeout_s
        )
        return _at_most(answer.data, STATUS_BYTES)

    async def get(self, key: str) -> Stored | None:
        return await self._leaders(subjects.FLEET_STREAM, subjects.fleet(key))

    def all_shared(self) -> AsyncIterator[Sequence[Stored]]:
        return self._kept(subjects.FLEET_STREAM, "$KV.fleet.*")

    async def put(self, key: str, data: bytes, expected: int, *, ttl_s: int | None = None) -> int:
        headers = {} if ttl_s is None else {"Nats-TTL": f"{max(ttl_s, _TTL_LOWEST_S)}s"}
        return await self._replaced(subjects.fleet(key), data, expected, headers)

    async def _replaced(self, subject: str, data: bytes, expected: int, headers: dict[str, str]) -> int:
        """Compare and set. A timeout says nothing about whether it was done: what was compared with tells at the next
        try.
        """
        compared = {**headers, "Nats-Expected-Last-Subject-Sequence": str(expected)}
        return await _stored(self._connection, subject, data, compared)

    async def _leaders(self, stream: str, subject: str) -> Stored | None:
        """The newest message of `subject` as the stream's leader has it: DIRECT.GET may ask a replica that lags."""
        found = await self._api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        if _code(found) == 10037:  # no message found
            return None
        message = found.get("message")
        if "error" in found or not isinstance(message, dict):
            raise EngineUnavailable(_description(found))
        import base64

        data, revision = message.get("data", ""), message.get("seq", 0)
        try:
            return Stored(subject=subject, data=base64.b64decode(data), revision=int(revision))
        except (TypeError, ValueError) as error:
            raise EngineUnavailable("expected a message in base64 with its number, found another answer") from error

    async def _subjects(self, stream: str, matching: str) -> dict[str, int]:
        """How many messages a stream has of each subject; the server tells a hundred thousand at a time."""
        found: dict[str, int] = {}
        while True:
            wanted = {"subjects_filter": matching, "offset": len(found)}
            answer = await self._api(f"STREAM.INFO.{stream}", wanted)
            state = answer.get("state")
            if not isinstance(state, dict):
                raise EngineUnavailable(_description(answer))
            more = state.get("subjects") or {}
            found.update({str(name): int(count) for name, count in more.items()})
            if not more or len(found) >= int(answer.get("total", 0)):
                return found

    async def _kept(self, stream: str, subject: str) -> AsyncIterator[Sequence[Stored]]:
        """What is in a stream now, in order."""
        after = 0
        while batch := await self._batch(stream, subject, after):
            after = batch[-1].revision
            yield batch

    async def _read(self, stream: str, subject: str, after: int) -> AsyncIterator[Sequence[Stored]]:
        """What is in a stream after that number, in order, then what comes."""
        new = asyncio.Event()
        hints = asyncio.create_task(self._hints(subjects.news(stream), new), name=f"fleet {stream}")
        try:
            while True:
                new.clear()
                try:
                    while batch := await self._batch(stream, subject, after):
                        after = batch[-1].revision
                        yield batch
                except EngineUnavailable:
                    await self._connection.wait_up()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await new.wait()
        finally:
            hints.cancel()
            await asyncio.wait({hints})

    async def _hints(self, subject: str, new: asyncio.Event) -> None:
        async with contextlib.aclosing(self._connection.messages(subject, most=1)) as messages:
            async for _ in messages:
                new.set()

    async def _batch(self, stream: str, subject: str, after: int) -> list[Stored]:
        """The next messages of a stream after that number; empty when there is none."""
        wanted = {"seq": after + 1, "next_by_subj": subject, "batch": _BATCH, "max_bytes": _BATCH_BYTES}
        found: list[Stored] = []
        asked = self._connection.replies(f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode())
        async with contextlib.aclosing(asked) as replies:
            async for reply in replies:
                if reply.status in {_NOT_FOUND, _LAST_OF_BATCH}:
                    break
                found.append(_message(reply))
        return found

    async def _api(self, name: str, wanted: dict[str, Any] | None) -> dict[str, Any]:
        answer = await self._connection.request(
            f"$JS.API.{name}", b"" if wanted is None else json.dumps(wanted).encode(), timeout_s=10.0
        )
        return _object(answer.data)


async def _newest(connection: NatsConnection, asked: str, subject: str) -> Stored | None:
    """The newest message of `subject`, for which one asks at `asked`; None when there is none."""
    reply = await connection.request(asked, b"")
    if reply.status == _NOT_FOUND:
        return None
    found = _message(reply)
    if found.subject != subject:
        raise EngineUnavailable(f"expected a message of {subject}, found one of {found.subject[:80]!r}")
    return found


def _message(reply: NatsReply) -> Stored:
    sequence = reply.headers.get("Nats-Sequence", "")
    if reply.status or not sequence.isdecimal():
        described = reply.headers.get("Description", "no number of a message")
        raise EngineUnavailable(text.sanitise(f"{reply.status} {described}".strip(), 200))
    return Stored(subject=reply.headers.get("Nats-Subject", ""), data=reply.data, revision=int(sequence))


async def _stored(connection: NatsConnection, subject: str, data: bytes, headers: dict[str, str]) -> int:
    """Have a stream keep `data`, and wait until it says so; the number it gave. QuotaExceeded, Conflict."""
    answer = _object((await connection.request(subject, data, headers=headers or None)).data)
    if (code := _code(answer)) in _WRONG_LAST_SEQUENCE:
        raise Conflict(_description(answer))
    if code == _TOO_MANY_OF_SUBJECT or _description(answer).startswith("maximum "):
        raise QuotaExceeded(_description(answer))
    sequence = answer.get("seq")
    if "error" in answer or not isinstance(sequence, int):
        raise EngineUnavailable(_description(answer))
    return sequence


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object that the server answered; EngineUnavailable for anything else."""
    try:
        found = strict_json.loads(data)
    except strict_json.InvalidJson as error:
        raise EngineUnavailable(f"expected JSON: {text.sanitise(str(error), 200)}") from error
    if not isinstance(found, dict):
        raise EngineUnavailable("expected a JSON object, found something else")
    return found


def _code(answer: dict[str, Any]) -> int | None:
    error = answer.get("error")
    code = error.get("err_code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else None


def _description(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    described = error.get("description") if isinstance(error, dict) else "an answer of another form"
    return text.sanitise(str(described), 200)


def _own(data: bytes, most: int) -> bytes:
    """What is to be sent; ValueError when it is larger than the engine takes, for which a server may hang up."""
    if len(data) > most:
        raise ValueError(f"expected at most {most} bytes to send, found {len(data)}")
    return data


def _at_most(data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise EngineUnavailable(f"expected at most {most} bytes, found {len(data)}")
    return data


def _header(message: Msg, name: str) -> str:
    return (message.headers or {}).get(name, "")

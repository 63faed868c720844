"""Whether a message system is fit for a fleet, found out by trying: for servers that somebody else configured.

found = await check(controller, node, system, sizes=sizes, replicas=3)  # (): nothing is wrong

Beside what it must have, what it must not let a node do is tried with a node's credentials, at names that no node has.
A server's configuration may say the same in many ways; what counts is what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.fleet import deployment, nats_connection, nkeys, subjects
from latticed.fleet.engine import CHUNK_BYTES, DESIRED_BYTES, EngineUnavailable, QuotaExceeded
from latticed.fleet.nats_connection import NatsConnection
from latticed.fleet.nats_engine import NatsControllerEngine, NatsEngine
from latticed.kit import files, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from latticed.fleet.nats_connection import NatsEndpoint

_WAIT_S: Final = 15
_NONE: Final = "0" * 64
_CREDENTIALS_BYTES: Final = 64 << 10
_CUTS_OFF: Final = "credentials by which a controller has a revoked node cut off at once"
_NOT_TO_REVOKE: Final = ("$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.CLAIMS.LIST", "$JS.API.INFO")
_LOOKS: Final = 5
_LOOK_S: Final = 0.1
# May be larger where somebody has the room, and smaller where a cluster is.
_AS_THEY_LIKE: Final = frozenset({"num_replicas", "max_bytes", "max_consumers"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcoming:
    """One thing that is not as it must be; one that is not `serious` a fleet can do without."""

    expected: str
    found: str
    serious: bool = True

    def __str__(self) -> str:
        return f"expected {self.expected}, found {self.found}"


def forbidden(node: str, other: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Subjects that `node` must not publish to, and such that it must not listen to; `other` is another node."""
    desired = subjects.newest(subjects.DESIRED_STREAM, subjects.desired(other))
    publish = (
        *(subjects.desired(one) for one in (node, other)),
        *(subjects.desired_pushed(one) for one in (node, other)),
        *(subjects.invocation(one) for one in (node, other)),
        *(subjects.by_node(other, what) for what in ("desired", "event", "status", "beat", "renewal")),
        *(subjects.events(one) for one in (node, other)),
        *(subjects.status(one) for one in (node, other)),
        *(subjects.presence(one) for one in (node, other)),
        subjects.chunk(_NONE, 0),
        subjects.fleet(other),
        subjects.news(subjects.STATUS_STREAM),
        f"{subjects.inbox(other)}.x",
        desired,
        f"$JS.API.DIRECT.GET.{subjects.DESIRED_STREAM}",
        f"$JS.API.STREAM.MSG.GET.{subjects.DESIRED_STREAM}",
        f"$JS.API.CONSUMER.CREATE.{subjects.DESIRED_STREAM}",
        "$JS.API.STREAM.NAMES",
        "$SYS.REQ.SERVER.PING",
    )
    listen = (
        ">",
        "dn.*",
        "ev.*.audit",
        "st.*",
        "hb.*",
        "news.*",
        "rpc.*.invoke",
        "$KV.desired.*",
        "$KV.fleet.*",
        "_INBOX.>",
        f"{subjects.inbox(other)}.>",
        subjects.desired_pushed(other),
        subjects.invocation(other),
        "$JS.API.>",
        "$SYS.>",
    )
    return publish, listen


async def check(
    controller: NatsEndpoint,
    node: NatsEndpoint,
    system: NatsEndpoint | None,
    *,
    sizes: deployment.Sizes,
    replicas: int,
    revoking: NatsEndpoint | None = None,
    invited: NatsEndpoint | None = None,
) -> tuple[Shortcoming, ...]:
    """What is not as it must be. EngineUnavailable when one of them cannot connect within some time.

    `node.name` is the node whose credentials these are, `invited.name` the nonce of an invitation. Without `system`
    nobody can see whether servers sync what they acknowledge, and without `revoking` nobody cuts off a node that is
    revoked; both are said.
    """
    other = f"check-{secrets.token_hex(8)}"
    found: list[Shortcoming] = []
    async with _connected(controller) as connection:
        engine = NatsControllerEngine(connection)
        version, payload_bytes = connection.server
        if version < deployment.LOWEST_VERSION:
            found.append(Shortcoming(expected="nats-server 2.14 or newer", found=".".join(map(str, version))))
        if payload_bytes < (least := max(CHUNK_BYTES, DESIRED_BYTES) + deployment.HEADER_BYTES):
            expected = f"messages of {least} bytes at least (max_payload)"
            found.append(Shortcoming(expected=expected, found=str(payload_bytes)))
        lacking = await _streams(engine, deployment.streams(sizes, replicas=replicas))
        found += lacking
        if any(one.found.startswith("none") for one in lacking):
            return tuple(found)  # of nodes nothing can be said yet
        async with _connected(node) as of_node:
            found += await _own(NatsEngine(of_node, node.name))
            found += await _between(engine, connection, NatsEngine(of_node, node.name), of_node, node.name)
        found += await _node(engine, node, other)
    found += await _anonymous(controller)
    found += await _synced(system)
    found += await _invited(invited, other)
    found += await _revoking(revoking, node)
    return tuple(found)


async def _streams(engine: NatsControllerEngine, wanted: tuple[dict[str, Any], ...]) -> list[Shortcoming]:
    found = []
    have = await engine.streams([one["name"] for one in wanted])
    for one in wanted:
        configured = have[one["name"]]
        if configured is None:
            found.append(
                Shortcoming(expected=f"the stream {one['name']}", found="none: a controller makes it at its start")
            )
            continue
        for name, value in one.items():
            if name not in _AS_THEY_LIKE and configured.get(name) != value:
                shown = text.sanitise(json.dumps(configured.get(name)), 100)
                found.append(
                    Shortcoming(expected=f"the stream {one['name']} with {name} = {json.dumps(value)}", found=shown)
                )
    return found


async def _own(engine: NatsEngine) -> list[Shortcoming]:
    """What a node has to be able to do."""
    found = []
    try:
        await engine.desired()
        with contextlib.suppress(KeyError):
            await engine.chunk(_NONE, 0)
    except EngineUnavailable as error:
        found.append(Shortcoming(expected="a node that can read its document and bundles", found=str(error)))
    return found


async def _between(
    engine: NatsControllerEngine, connection: NatsConnection, of_node: NatsEngine, its: NatsConnection, node: str
) -> list[Shortcoming]:
    """What has to reach the controller from a node, and the other way: each way is tried once, by what nobody keeps."""
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "whose statuses are kept": lambda: of_node.publish_status(b"{}"),
        "whose events are kept": lambda: of_node.publish_event(b"{}", secrets.token_hex(16)),
        "that controllers see as present": lambda: _seen(engine, of_node, node),
        "whose requests for credentials reach controllers": lambda: _heard(
            connection, subjects.renewal(node), lambda: of_node.renew(b"{}")
        ),
        "that hears of a new document at once": lambda: _heard(
            its, subjects.desired_pushed(node), lambda: connection.publish(subjects.desired_pushed(node), b"{}")
        ),
        "that answers what operators ask": lambda: _answered(engine, of_node, node),
    }
    found = []
    for what, way in ways.items():
        try:
            async with asyncio.timeout(_WAIT_S / 3):
                await way()
        except QuotaExceeded:
            pass  # it was tried just before: that is kept
        except (EngineUnavailable, TimeoutError) as error:
            found.append(
                Shortcoming(expected=f"a node {what}", found=f"that it is not: {str(error) or 'nothing came'}")
            )
    with contextlib.suppress(EngineUnavailable):
        await engine.thin_events(node, 0)
    return found


async def _seen(engine: NatsControllerEngine, of_node: NatsEngine, node: str) -> None:
    while True:
        await of_node.beat(b"{}")
        if any(one.subject == subjects.presence(node) for one in await engine.present()):
            return
        await asyncio.sleep(_LOOK_S)


async def _heard(connection: NatsConnection, subject: str, say: Callable[[], Awaitable[object]]) -> None:
    """Return once `connection` has heard something at `subject`; it is said again until then."""

    async def saying() -> None:
        while True:
            with contextlib.suppress(EngineUnavailable):
                await say()
            await asyncio.sleep(_LOOK_S)

    async with contextlib.aclosing(connection.messages(subject)) as messages:
        said = asyncio.ensure_future(saying())
        try:
            await anext(messages)
        finally:
            said.cancel()
            await asyncio.wait({said})


async def _answered(engine: NatsControllerEngine, of_node: NatsEngine, node: str) -> None:
    async def answering() -> None:
        async for question in of_node.invocations():
            await question.answer(b"{}")

    answers = asyncio.ensure_future(answering())
    try:
        while True:
            with contextlib.suppress(EngineUnavailable):  # nobody listens yet
                await engine.invoke(node, b"{}", _WAIT_S / 5)
                return
            await asyncio.sleep(_LOOK_S)
    finally:
        answers.cancel()
        await asyncio.wait({answers})


async def _invited(invited: NatsEndpoint | None, other: str) -> list[Shortcoming]:
    """What somebody with an invitation can do, and must not; nothing is said where there is none."""
    if invited is None:
        return []
    _, listen = forbidden(other, other)
    publish = (subjects.enrolment(_NONE[:32]), subjects.renewal(other), subjects.status(other), subjects.desired(other))
    try:
        async with nats_connection.probing(invited) as (client, refused):
            for subject in (subjects.enrolment(invited.name), *publish):
                await client.publish(subject, b"")
            for subject in (f"{invited.inbox}.x", *listen):
                await client.subscribe(subject)
            for _ in range(2):
                await client.flush(_WAIT_S)
    except EngineUnavailable as error:
        return [Shortcoming(expected="an invited host that can connect, and do next to nothing", found=str(error))]
    found = [
        Shortcoming(expected=f"an invited host that may ask at {one}", found="that it may not")
        for one in (subjects.enrolment(invited.name), f"{invited.inbox}.x")
        if any(f'"{one.lower()}"' in words for words in refused)
    ]
    return found + [
        Shortcoming(expected=f"an invited host that does not reach {one}", found="that it does")
        for one in (*publish, *listen)
        if not any(f'"{one.lower()}"' in words for words in refused)
    ]


async def _node(engine: NatsControllerEngine, node: NatsEndpoint, other: str) -> list[Shortcoming]:
    """What a node must not be able to do."""
    found = []
    async with nats_connection.probing(node) as (client, refused):
        publish, listen = forbidden(node.name, other)
        for subject in publish:
            await client.publish(subject, b"")
        for subject in listen:
            await client.subscribe(subject)
        # Whoever asks chooses where the answer goes: in one account with the streams, into another's document.
        await client.publish(subjects.by_node(node.name, "beat"), b"{}", reply=subjects.desired(other))
        for _ in range(2):  # its ping overtakes what it has not sent yet
            await client.flush(_WAIT_S)
        for what, several in (("publish to", publish), ("listen to", listen)):
            found += [
                Shortcoming(expected=f"a node that may not {what} {one}", found="that it may")
                for one in several
                if not any(f'"{one.lower()}"' in words for words in refused)
            ]
    for _ in range(_LOOKS):  # the server answers when it has stored the beat, and stores the answer after that
        if await engine.desired(other) is not None:
            words = "a node that can have an answer stored as the document of another"
            return [*found, Shortcoming(expected="nodes in an account without the streams", found=words)]
        await asyncio.sleep(_LOOK_S)
    return found


async def _anonymous(endpoint: NatsEndpoint) -> list[Shortcoming]:
    """Nobody may connect to any of the servers without credentials."""
    found = []
    for server in endpoint.servers:
        try:
            async with nats_connection.probing(endpoint, servers=(server,)) as (client, _):
                await client.flush(_WAIT_S)
        except EngineUnavailable as error:  # whom it lets in cannot be seen
            found.append(Shortcoming(expected=f"a server at {server} that lets controllers in", found=str(error)))
            continue
        try:
            async with nats_connection.probing(endpoint, servers=(server,), anonymous=True) as (client, _):
                await client.flush(_WAIT_S)
        except EngineUnavailable:
            continue
        found.append(Shortcoming(expected="servers that want credentials", found=f"{server} that lets anybody connect"))
    return found


async def _synced(system: NatsEndpoint | None) -> list[Shortcoming]:
    """Whether each server has what it acknowledges on disk."""
    expected = "jetstream { sync_interval: always } on each server"
    if system is None:
        return [Shortcoming(expected=expected, found="no credentials of the system account to see it with")]
    found, answers = [], 0
    async with _connected(system) as connection:
        with contextlib.suppress(EngineUnavailable):  # after the last of them
            async with contextlib.aclosing(
                connection.replies("$SYS.REQ.SERVER.PING.JSZ", b"{}", timeout_s=2.0)
            ) as replies:
                async for reply in replies:
                    if reply.status:  # of this server, that nobody answers
                        break
                    answers += 1
                    answer = json.loads(reply.data)
                    if not answer.get("data", {}).get("config", {}).get("sync_always"):
                        name = text.sanitise(str(answer.get("server", {}).get("name")), 80)
                        found.append(Shortcoming(expected=expected, found=f"another one on {name}"))
    if not answers:
        words = "no server that says so: are these of the system account?"
        found.append(Shortcoming(expected=expected, found=words))
    return found


async def _revoking(revoking: NatsEndpoint | None, node: NatsEndpoint) -> list[Shortcoming]:
    """Whether a controller can have a node cut off, and nothing else by those credentials."""
    if revoking is None:
        words = "none: a node that is revoked stays connected until its user is revoked there, or its credentials end"
        return [Shortcoming(expected=_CUTS_OFF, found=words, serious=False)]
    account = await asyncio.to_thread(_account_of, node)
    found = []
    async with nats_connection.probing(revoking) as (client, refused):
        for subject in _NOT_TO_REVOKE:
            await client.publish(subject, b"")
        for subject in (">", "$SYS.>"):
            await client.subscribe(subject)
        for _ in range(2):
            await client.flush(_WAIT_S)
        found += [
            Shortcoming(expected=f"credentials to revoke with that do not reach {one}", found="that they do")
            for one in (*_NOT_TO_REVOKE, ">", "$SYS.>")
            if not any(f'"{one.lower()}"' in words for words in refused)
        ]
    async with _connected(revoking) as connection:
        try:
            # What the servers have already is handed to them once more: nothing changes by it.
            token = (await connection.request(deployment.claims_of(account), b"")).data
            taken = (await connection.request(deployment.UPDATE_CLAIMS, token)).data
        except EngineUnavailable as error:
            return [*found, Shortcoming(expected=_CUTS_OFF, found=f"some that do not: {error}")]
    if b'"code":200' not in taken:
        found.append(Shortcoming(expected=_CUTS_OFF, found=text.sanitise(taken.decode("utf-8", "replace"), 200)))
    return found


def _account_of(endpoint: NatsEndpoint) -> str:
    """The public key of the account whose user these credentials are."""
    found = nkeys.UserCredentials.parse(files.read_at_most(endpoint.credentials, _CREDENTIALS_BYTES))
    claims = nkeys.unverified(found.token)
    nats = claims.get("nats")
    return str((nats.get("issuer_account") if isinstance(nats, dict) else None) or claims.get("iss"))


@contextlib.asynccontextmanager
async def _connected(endpoint: NatsEndpoint) -> AsyncIterator[NatsConnection]:
    async with NatsConnection(endpoint) as connection:
        try:
            async with asyncio.timeout(_WAIT_S):
                await connection.wait_up()
        except TimeoutError as error:
            raise EngineUnavailable(connection.reason) from error
        yield connection

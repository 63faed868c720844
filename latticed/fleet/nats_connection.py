"""A connection to the message system that is made again whenever it is lost.

nats-py's own reconnecting is off. It waits the same time at each try and keeps what was published meanwhile for later;
and a client whose token expired or was revoked closes for ever. Here every loss is alike: what was asked fails, the
subscriptions stay, and a new client is made after a pause.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from latticed.fleet import nkeys
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_client import BoundedClient, NatsError, NoServersError, TooLong, cancellable, closed, over
from latticed.kit import files, logs, text
from latticed.model.restart import Backoff

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = logs.get_logger()

REQUEST_S: Final = 5.0
"""How long an answer may take."""
PAUSES: Final = Backoff(base_s=5.0, ceiling_s=15.0, jitter=1.0)
"""Before each new client: any time from 0 to 10 s after the first loss, to 30 s later on. Spread over the whole of it,
so that ten thousand that lost a server at once do not come back at once.
"""
STEADY_S: Final = 60.0
"""A connection that was up for so long starts the pauses anew."""
CREDENTIALS_ENDED: Final = "the credentials ended"
"""What the reason of a lost connection begins with, when that is it."""
_CONNECT_S: Final = 15.0
_PING_S: Final = 10
_MOST_PINGS: Final = 2
_REFUSED: Final = "authorization violation"
_READ_AHEAD: Final = 8_192
"""Messages that NATS' client may hold of a subscription before they are sorted by subject."""
_CREDENTIALS_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsEndpoint:
    """Where to connect and as whom. `servers` are `tls://host:port`; the credentials file is read before each try, so
    that renewed ones count. `inbox` is what this client's inboxes begin with.

    Beside the file may lie those of before (`before`): where servers refuse the present ones and let in by those, they
    are put back.
    """

    servers: tuple[str, ...]
    tls: ssl.SSLContext
    credentials: Path
    name: str
    inbox: str

    @property
    def before(self) -> Path:
        """The credentials that the present ones have replaced."""
        return before(self.credentials)


@dataclass(frozen=True, slots=True)
class NatsReply:
    """An answer, with the headers of the engine; `status` is the number in its first line, empty for a message."""

    data: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        return self.headers.get("Status", "")


class _OneEach(asyncio.Queue["Msg"]):
    """Of each subject the newest message alone, in the turn of the first."""

    def _init(self, _maxsize: int) -> None:
        self._queue: dict[str, Msg] = {}

    def _put(self, item: Msg) -> None:
        self._queue[item.subject] = item

    def _get(self) -> Msg:
        return self._queue.pop(next(iter(self._queue)))

    def replaced(self, message: Msg) -> bool:
        """Whether it took the place of one of its subject."""
        if message.subject not in self._queue:
            return False
        self._queue[message.subject] = message
        return True


@dataclass(slots=True)
class _Subscription:
    """Messages of one subject, over all connections; the oldest go when nobody takes them."""

    subject: str
    waiting: asyncio.Queue[Msg]
    begun: Subscription | None = None

    async def begin(self, client: Client) -> None:
        """Tell a client of it."""
        # The client's own queue is emptied at once by `take`, and drops the newest when full.
        with cancellable():
            most = _READ_AHEAD if isinstance(self.waiting, _OneEach) else self.waiting.maxsize
            self.begun = await client.subscribe(self.subject, cb=self.take, pending_msgs_limit=most)

    async def end(self) -> None:
        if self.begun is not None:
            with contextlib.suppress(NatsError, OSError):
                await self.begun.unsubscribe()

    async def take(self, message: Msg) -> None:
        if isinstance(self.waiting, _OneEach) and self.waiting.replaced(message):
            return
        if self.waiting.full():
            self.waiting.get_nowait()
        self.waiting.put_nowait(message)


@dataclass(slots=True)
class _State:
    """What is known of the connection; `changed` is set anew at each change."""

    client: Client | None = None
    server: str = ""
    """Which server was chosen last."""
    reason: str = "not connected yet"
    connections: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    refused: bool = False
    """Whether servers refused the present credentials, so that those of before are tried; then these again."""


class NatsConnection:
    """`async with NatsConnection(endpoint) as connection`: it connects, and connects again, until the block is left.

    `random_roll` gives numbers in [0, 1), for the pauses; `on_change(up, reason)` hears of each change.
    """

    def __init__(
        self,
        endpoint: NatsEndpoint,
        *,
        on_change: Callable[[bool, str], None] = lambda _up, _reason: None,
        pauses: Backoff = PAUSES,
        random_roll: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint = endpoint
        self._on_change = on_change
        self._pauses = pauses
        self._roll = random_roll
        self._state = _State()
        self._subscriptions: list[_Subscription] = []
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep(), name="fleet connection")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    @property
    def up(self) -> bool:
        return self._state.client is not None

    @property
    def reason(self) -> str:
        """Why there is no connection, in the words of whatever failed last; empty while there is one."""
        return self._state.reason

    @property
    def connections(self) -> int:
        """How many there were, this one included."""
        return self._state.connections

    @property
    def server(self) -> tuple[tuple[int, int], int]:
        """Version of the server (major and minor), and the largest message that it takes; EngineUnavailable."""
        client = self._client()
        version = client.connected_server_version
        return (version.major, version.minor), client.max_payload

    async def wait_up(self) -> None:
        """Returns once there is a connection; at once when there is one."""
        while not self.up:
            await self._state.changed.wait()

    async def wait_for_another(self, seen: int) -> None:
        """Returns once there is a connection that is not the one numbered `seen` (`connections`)."""
        while not self.up or self.connections == seen:
            await self._state.changed.wait()

    async def request(
        self, subject: str, data: bytes, *, headers: dict[str, str] | None = None, timeout_s: float = REQUEST_S
    ) -> NatsReply:
        """The answer to a question; EngineUnavailable when none comes in time, or nobody listens."""
        client = self._client()
        try:
            with cancellable():
                answer = await client.request(subject, data, timeout=timeout_s, headers=headers)
        except (NatsError, OSError, TimeoutError) as error:
            raise EngineUnavailable(_words(error)) from error
        return NatsReply(answer.data, answer.headers or {})

    async def replies(
        self, subject: str, data: bytes, *, timeout_s: float = REQUEST_S
    ) -> AsyncGenerator[NatsReply, None]:
        """Answers to one question, until the caller has enough; EngineUnavailable if the next does not come in time."""
        client = self._client()
        inbox = client.new_inbox()
        try:
            with cancellable():
                subscription = await client.subscribe(inbox)
            try:
                with cancellable():
                    await client.publish(subject, data, reply=inbox)
                while True:
                    with cancellable():
                        answer = await subscription.next_msg(timeout=timeout_s)
                    yield NatsReply(answer.data, answer.headers or {})
            finally:
                with contextlib.suppress(NatsError, OSError):
                    await subscription.unsubscribe()
        except (NatsError, OSError, TimeoutError) as error:
            raise EngineUnavailable(_words(error)) from error

    async def lets_in(self, credentials: nkeys.UserCredentials) -> None:
        """Return once a server lets somebody in by these credentials, the connected one or another; EngineUnavailable,
        of the first, when none does.
        """
        others = [one for one in _shuffled(self._endpoint.servers) if one != self._state.server]
        servers = (self._state.server, *others) if self._state.server else others
        async with probing(self._endpoint, servers=servers, credentials=credentials) as (client, _):
            with cancellable():
                await client.flush(int(REQUEST_S))

    async def publish(self, subject: str, data: bytes) -> None:
        """Send without asking for an answer; EngineUnavailable without a connection."""
        try:
            with cancellable():
                await self._client().publish(subject, data)
        except (NatsError, OSError) as error:
            raise EngineUnavailable(_words(error)) from error

    async def messages(self, subject: str, *, most: int = 16, one_each: bool = False) -> AsyncGenerator[Msg, None]:
        """Messages of `subject` as they come, over all connections; beyond `most` that wait, the oldest go.

        `one_each`: of the subjects that it stands for, each has one message that waits, the newest. So whoever floods
        one of them takes nobody else's place.
        """
        mine = _Subscription(subject, _OneEach(most) if one_each else asyncio.Queue(most))
        self._subscriptions.append(mine)
        try:
            if (client := self._state.client) is not None:
                with contextlib.suppress(NatsError, OSError):  # then the next client is told
                    await mine.begin(client)
            while True:
                yield await mine.waiting.get()
        finally:
            self._subscriptions.remove(mine)
            await mine.end()

    def _client(self) -> Client:
        if self._state.client is None:
            raise EngineUnavailable(self._state.reason)
        return self._state.client

    async def _keep(self) -> None:
        """Have a client; when it is lost, pause and have another."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began_s = loop.time()
            reason = await self._in_a_task_of_its_own()
            failures = 1 if loop.time() - began_s >= STEADY_S else failures + 1
            self._told(None, reason)
            await asyncio.sleep(self._pauses.delay_s(failures, self._roll()))

    async def _in_a_task_of_its_own(self) -> str:
        """As `_one_client`. What nats-py leaves behind in a task ends with it: a cancellation that it takes for the end
        of its own wait counts on there (`Task.cancelling`), and by it the next time-out would end all trying.
        """
        living = asyncio.create_task(self._one_client(), name="fleet connection's client")
        try:
            await asyncio.wait({living})
        finally:
            if not living.done():
                living.cancel()
                await asyncio.wait({living})
        if living.cancelled():
            self._state.client = None
            return "the connection was given up"
        return living.result()

    async def _one_client(self) -> str:
        """Connect and wait until that is lost; why it was, or could not be made."""
        heard, ended = _Heard(), asyncio.Event()
        client = BoundedClient(heard.error)

        async def when_closed() -> None:
            ended.set()

        try:
            kept = await asyncio.to_thread(_kept, self._endpoint, before=self._state.refused)
            credentials = kept.credentials
            heard.expires_s = credentials.expires_s
            self._state.server = _shuffled(self._endpoint.servers)[0]
            async with asyncio.timeout(_CONNECT_S):
                # One server of several: a client that may not reconnect tries no second one.
                with cancellable():
                    await client.connect(
                        [self._state.server],
                        name=self._endpoint.name,
                        tls=self._endpoint.tls,
                        # Otherwise a server says in plain text whether TLS is wanted, and gets the token if not.
                        tls_handshake_first=True,
                        signature_cb=_signer(credentials),
                        user_jwt_cb=credentials.token.encode,
                        inbox_prefix=self._endpoint.inbox,
                        error_cb=heard.error,
                        closed_cb=when_closed,
                        allow_reconnect=False,
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=int(_CONNECT_S),
                        ping_interval=_PING_S,
                        max_outstanding_pings=_MOST_PINGS,
                    )
                if not client.is_connected:  # it takes a closed connection for an answer to its first ping
                    raise ConnectionResetError("the server closed the connection before it answered")
                for one in list(self._subscriptions):
                    await one.begin(client)
            if kept.before:
                await asyncio.to_thread(self._endpoint.before.replace, self._endpoint.credentials)
                log.info("credentials_put_back", expires=credentials.expires_s)
            self._state.refused = False
            self._state.connections += 1
            self._told(client, "")
            await over(client, ended)
        except Exception as error:  # noqa: BLE001 - a server's words make nats-py raise anything, and nobody else connects
            await heard.error(error)
        finally:
            self._state.client = None
            await closed(client)
        if heard.refused:
            self._state.refused = not self._state.refused
        return heard.why(time.time())

    def _told(self, client: Client | None, reason: str) -> None:
        changed = (client is None) != (self._state.client is None) or reason != self._state.reason
        self._state.client, self._state.reason = client, reason
        self._state.changed.set()
        self._state.changed = asyncio.Event()
        if changed:
            self._on_change(client is not None, reason)


@contextlib.asynccontextmanager
async def probing(
    endpoint: NatsEndpoint,
    *,
    servers: Sequence[str] = (),
    anonymous: bool = False,
    credentials: nkeys.UserCredentials | None = None,
) -> AsyncGenerator[tuple[Client, list[str]], None]:
    """A plain client, to find out what a server lets pass, and what it refuses in its words in lower case.
    `servers`: those to try, one after the other until one takes it; all of the endpoint's, in any order, when none are
    named. `credentials`: others than those of the endpoint.

    EngineUnavailable when no server takes it, in the words of the first, or when it hangs up.
    """
    refused = list[str]()

    async def on_error(error: Exception) -> None:
        refused.append(str(error).lower())

    if credentials is None and not anonymous:
        credentials = await asyncio.to_thread(_read, endpoint.credentials)
    first: EngineUnavailable | None = None
    for server in servers or _shuffled(endpoint.servers):
        client = BoundedClient(on_error)
        try:
            try:
                await _probe(client, server, endpoint, credentials, on_error)
            except (NatsError, OSError, TimeoutError) as error:
                first = first or EngineUnavailable(_words(error))
                continue
            yield client, refused
            return
        except (NatsError, OSError, TimeoutError) as error:
            raise EngineUnavailable(_words(error)) from error
        finally:
            await closed(client)
    raise first or EngineUnavailable("there is no server")


async def _probe(
    client: Client,
    server: str,
    endpoint: NatsEndpoint,
    credentials: nkeys.UserCredentials | None,
    on_error: Callable[[Exception], Awaitable[None]],
) -> None:
    async with asyncio.timeout(_CONNECT_S):
        with cancellable():
            await client.connect(
                [server],
                tls=endpoint.tls,
                tls_handshake_first=True,
                signature_cb=_signer(credentials) if credentials else None,
                user_jwt_cb=credentials.token.encode if credentials else None,
                inbox_prefix=endpoint.inbox,
                error_cb=on_error,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
            )
    if not client.is_connected:
        raise ConnectionResetError("the server closed the connection before it answered")


def _shuffled(servers: Sequence[str]) -> list[str]:
    return random.sample(servers, len(servers))


def before(credentials: Path) -> Path:
    """Where those lie that the credentials in a file have replaced."""
    return credentials.with_name(f"{credentials.name}.before")


@dataclass(frozen=True, slots=True)
class _KeptCredentials:
    """Credentials, and whether they are those of before."""

    credentials: nkeys.UserCredentials
    before: bool


def _kept(endpoint: NatsEndpoint, *, before: bool) -> _KeptCredentials:
    """Those to connect with: the present ones, or with `before` those that they have replaced, if there are."""
    with contextlib.suppress(FileNotFoundError):
        if before:
            return _KeptCredentials(_read(endpoint.before), before=True)
    return _KeptCredentials(_read(endpoint.credentials), before=False)


def _read(path: Path) -> nkeys.UserCredentials:
    return nkeys.UserCredentials.parse(files.read_at_most(path, _CREDENTIALS_BYTES))


def _signer(credentials: nkeys.UserCredentials) -> Callable[[str], bytes]:
    """What signs the server's nonce (ADR-14 of NATS)."""
    return lambda nonce: base64.b64encode(credentials.key.sign(nonce.encode()))


class _Heard:
    """What a client reported: kept for a person to read, never written at each try."""

    def __init__(self) -> None:
        self._reason = ""
        self._hung_up = False
        self.refused = False
        """Whether the server said that it does not take the credentials."""
        self.expires_s: int | None = None
        """When the credentials end, if they do."""

    async def error(self, error: Exception) -> None:
        self.refused |= _REFUSED in str(error).lower()
        # What follows from a first error ("no servers available", TLS that was cut off) says less than it.
        if not (self._reason and (self._hung_up or isinstance(error, NoServersError))):
            self._reason = _words(error)
        self._hung_up |= isinstance(error, TooLong)

    def why(self, now_s: float) -> str:
        """Why there is no connection."""
        reason = self._reason or "the server closed the connection"
        if self.expires_s is not None and self.expires_s <= now_s:
            # The server says so itself only if its refusal is read before it hangs up.
            return f"{CREDENTIALS_ENDED} {int(now_s - self.expires_s)} s ago by this host's clock ({reason})"
        return reason


def _words(error: BaseException) -> str:
    return text.sanitise(str(error) or type(error).__name__, 200)

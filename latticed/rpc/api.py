"""What the handlers work with, and how they read a request."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from aiohttp import web

from latticed import wire
from latticed.host.kv import quota_of
from latticed.kit import strict_json
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.rpc.chain_checks import Verifying
from latticed.rpc.connection import ControlConnection
from latticed.runners import lines
from latticed.runners.contract import runner_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from latticed.catalog.catalog import Catalog
    from latticed.host.ddns.keeper import DdnsKeeper
    from latticed.host.monitor.keeper import MonitorKeeper
    from latticed.host.network.keeper import PlanKeeper
    from latticed.host.notify.channels import ChannelKeeper
    from latticed.host.notify.keeper import NotificationQueue
    from latticed.host.program.keeper import ProgramKeeper
    from latticed.host.route.keeper import RouteKeeper
    from latticed.host.secret.keeper import SecretKeeper
    from latticed.host.task.keeper import TaskKeeper
    from latticed.host.tunnel.keeper import TunnelKeeper
    from latticed.kit.clock import Clock
    from latticed.kit.peers import Peer
    from latticed.ledger import Ledger
    from latticed.ledger.kv import KvQuota
    from latticed.lifecycle.backup import Backups
    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.lifecycle.policy import PolicyKeeper
    from latticed.lifecycle.presence import Presence
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.lifecycle.upgrades import UpgradeState
    from latticed.market.market import Market
    from latticed.model.audit import Actor, Event
    from latticed.model.lifecycle import Record
    from latticed.model.runtime import Runtime
    from latticed.rpc.access import Access, Scope
    from latticed.rpc.event_tail import EventTail
    from latticed.runners.child_spawner import ChildSpawner
    from latticed.runners.contract import Runner
    from latticed.runners.output import Outputs
    from latticed.settings import Settings
    from latticed.supervisor.history import History
    from latticed.supervisor.schedules import Schedules
    from latticed.supervisor.supervisor import Supervisor

# Once its head is complete a connection has `answer_s` (60 s); a stalled body must not take that long.
BODY_S: Final = 5.0

T = TypeVar("T")
Q = TypeVar("Q", bound="QueryParams")


class ListedPlugin(Value, frozen=True, kw_only=True):
    """A cached row of the lifecycle list as JSON; valid while `source` equals the present values."""

    source: tuple[Record, Presence, Runtime, UpgradeState | None, bool]
    row: bytes


@dataclass(slots=True, kw_only=True)
class Api:
    """The components that handlers call, and the settings in force.

    `started_at` is microseconds since the epoch, `started_s` seconds of the monotonic clock. `market` makes the
    marketplace when it is first asked for. `trouble`: what reloads of the settings could not apply. `around`: returns
    problems of the daemon's environment, such as files that do not answer or a state directory that was replaced.
    `undelivered`: (code, detail) of why notifications do not arrive. `test_channel`: what a channel makes of a test
    message. `closing`: set when the daemon stops, for streams. `shown`: cached rows by plugin id.
    """

    lifecycle: Lifecycle
    supervisor: Supervisor
    catalog: Catalog
    ledger: Ledger
    policy: PolicyKeeper
    revocations: RevocationKeeper
    backups: Backups
    clock: Clock
    settings: Settings
    access: Access
    runners: Mapping[str, Runner]
    spawner: ChildSpawner
    outputs: Outputs
    secrets: SecretKeeper
    notifications: NotificationQueue
    channels: ChannelKeeper
    test_channel: Callable[[str], Awaitable[dict[str, str]]]
    tasks: TaskKeeper
    plans: PlanKeeper
    market: Callable[[], Market]
    ddns: DdnsKeeper
    monitors: MonitorKeeper
    programs: ProgramKeeper
    tunnels: TunnelKeeper
    routes: RouteKeeper
    schedules: Schedules
    history: History
    version: str
    started_at: int
    started_s: float
    around: Callable[[], list[Problem]] = list
    undelivered: Callable[[], list[tuple[str, str]]] = list
    trouble: list[Problem] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    shown: dict[str, ListedPlugin] = field(default_factory=dict)
    paging: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever reads a page of events, so that all streams together read one page per turn of the loop."""
    tails: dict[bool, EventTail] = field(default_factory=dict)
    """What event streams follow together: with host calls (True) and without."""
    verifying: Verifying = field(init=False)

    def __post_init__(self) -> None:
        self.verifying = Verifying(self.ledger)

    def runner_of(self, record: Record) -> str:
        """The name of the runner of this plugin; KeyError for a type that there is not."""
        return self.runners[runner_key(record.id, record.facts.type)].name

    def quota(self) -> KvQuota:
        """What one key-value bucket may hold."""
        return quota_of(self.settings.host_calls)


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's JSON object; unknown fields are `bad_request`."""


class QueryParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's query parameters, each given once at most. This one takes none; a route names its own kind."""


class Ask:
    """One request of a peer: its scopes, its parameters, its body, read once and strictly.

    What it raises is a Problem, which becomes the answer.
    """

    def __init__(self, api: Api, request: web.Request) -> None:
        self.api = api
        self.request = request
        self._asked: QueryParams | None = None
        self._scopes: Scope | None = None

    @property
    def peer(self) -> Peer:
        """The caller as the kernel names it (uid, gid, pid, groups); Problem access_denied when that is not known."""
        connection = self.request.protocol
        if not isinstance(connection, ControlConnection) or connection.peer is None:
            raise Problem("access_denied", "the kernel does not know who is asking")
        return connection.peer

    @property
    def actor(self) -> Actor:
        """The caller as audit events name it."""
        return self.api.access.actor(self.peer)

    @property
    def scopes(self) -> Scope:
        """The scopes of the caller."""
        # Once per request: a reload of the settings meanwhile does not change them halfway.
        if self._scopes is None:
            self._scopes = self.api.access.scopes(self.peer)
        return self._scopes

    def may_take(self, seconds: float) -> None:
        """Let the answer take `seconds`, where that is more than answers usually may (`ControlConnection.answer_s`)."""
        connection = self.request.protocol
        if isinstance(connection, ControlConnection):
            connection.allow(seconds)

    @property
    def headers_only(self) -> bool:
        """Whether this is a HEAD request: streaming handlers then return before they produce a body."""
        return self.request.method == "HEAD"

    def need(self, scope: Scope) -> None:
        """Raise Problem("access_denied"), which names the missing scopes, unless the peer has all of `scope`."""
        # By their numbers: a Flag takes a tenth of a whole answer to make another one.
        if scope.value & ~self.scopes.value:
            # Iterating over a Flag gives its single members.
            words = ", ".join(str(part.name).lower() for part in scope & ~self.scopes)
            detail = f"this takes the scope {words}, which uid {self.peer.uid} does not have"
            raise Problem("access_denied", detail, "an administrator grants scopes under [access] in the settings")

    def part(self, name: str) -> str:
        """The value of `{name}` in the route's path, decoded."""
        return self.request.match_info[name]

    def take_query(self, kind: type[QueryParams]) -> None:
        """Read the query as the `kind` that the route declares; Problem bad_request for anything else in it."""
        known = kind.__struct_fields__
        if not known and "?" not in self.request.raw_path:  # as most are
            self._asked = kind()
            return
        given = self.request.query
        for name in given:
            # Of a parameter given twice, dict() below would silently drop one.
            if name not in known or len(given.getall(name)) != 1:
                expected = ", ".join(known) or "none"
                raise Problem("bad_request", f"expected query parameters {expected}, each once, found {name[:80]!r}")
        try:
            # Not strict: values of a query are text, numbers too.
            self._asked = msgspec.convert(dict(given), kind, strict=False)
        except msgspec.ValidationError as error:
            raise Problem("bad_request", f"the query: {error}") from error

    def query(self, kind: type[Q]) -> Q:
        """The query's parameters, of the kind that the handler's route declares; TypeError for another kind."""
        if not isinstance(self._asked, kind):
            raise TypeError(f"expected a route that declares {kind.__name__}, found {type(self._asked).__name__}")
        return self._asked

    @contextlib.asynccontextmanager
    async def recorded(self, told: Event) -> AsyncIterator[None]:
        """Record `told` before the block; record it again as denied when the block raises Problem.

        Problem audit_unavailable when it cannot be recorded: then the block is not run.
        """
        # Raises when it cannot be recorded: then the block is not entered.
        await self.api.ledger.record(told)
        try:
            yield
        except Problem as problem:
            await self.api.ledger.record(replace(told, decision="deny", code=problem.code, reason=problem.reason))
            raise

    async def raw(self) -> bytes:
        """The body as sent. Problems: too_large (MAX_BODY_BYTES), request_timeout (BODY_S), bad_request (cut off)."""
        # By the announced length, before anything is read; chunked bodies are bounded by aiohttp (client_max_size).
        if (self.request.content_length or 0) > wire.MAX_BODY_BYTES:
            raise Problem("too_large", f"expected a body of at most {wire.MAX_BODY_BYTES} bytes")
        try:
            async with asyncio.timeout(BODY_S):
                return await self.request.read()
        except TimeoutError as error:
            raise Problem("request_timeout", f"expected the whole body within {BODY_S:g} s") from error
        except (ConnectionError, web.RequestPayloadError) as error:
            raise Problem("bad_request", "expected the whole body, found its end before") from error

    async def body(self, kind: type[T], *, max_depth: int = strict_json.MAX_DEPTH) -> T:
        """The body as a `kind`; empty counts as `{}`. Problem("bad_request") for duplicate or unknown fields."""
        data = await self.raw()
        # Counted before decoding: small values take many times their bytes as Python objects.
        if lines.too_many(data):
            raise Problem("bad_request", f"the body: expected at most {lines.MAX_VALUES} values, found more")
        try:
            return msgspec.convert(strict_json.loads(data or b"{}", max_depth=max_depth), kind, strict=True)
        except (strict_json.InvalidJson, msgspec.ValidationError) as error:
            raise Problem("bad_request", f"the body: {error}") from error

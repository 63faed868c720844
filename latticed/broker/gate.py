"""The Gate: the only way from a plugin's runner to the host."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from latticed.broker.decide import CallAttempt, Rights, decide
from latticed.host.call import Caller, HostError
from latticed.kit import logs, text
from latticed.kit.log_limit import LogLimiter
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.kit.value import Value
from latticed.model.audit import HOST_CALL, Actor, AllowedCall, Event
from latticed.model.errors import Problem
from latticed.model.hostcall import FIX, Denial, Denied

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from latticed.broker.decide import Allow
    from latticed.host.call import Params, Served
    from latticed.kit.clock import Clock

    Answer: TypeAlias = Callable[[Any, HostError | None], None]
    """Takes the JSON result of a call, or the HostError that says why there is none."""
    Record: TypeAlias = Callable[[Event | AllowedCall, Callable[[Any, BaseException | None], None]], None]
    """Has an audit event recorded, and calls its second argument once with (seq, None) or (anything, error)."""

PAUSE_S: Final = 0.02
"""Delay before a call over its rate is answered: a plugin that retries at once would keep the event loop busy."""

log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """Limits per plugin: call rate (`of_call`: further rates by method), bytes of parameters, seconds for one call.

    The daemon sets them from `[host_calls]`, and replaces them on a reload: open Gates read them at each call.
    """

    rate: Rate = Rate(per_second=1_000, burst=2_000)
    of_call: Mapping[str, Rate] = field(default_factory=dict)
    request_bytes: int = 256 << 10
    deadline_s: float = 10.0


@dataclass(slots=True)
class Count:
    """Host calls of one plugin since the daemon started, and how many of them were denied."""

    calls: int = 0
    denied: int = 0


class Broker:
    """Makes Gates: one per running instance. `record` is `Ledger.note`.

    `services` by method, as `host.call.table` returns them; `counts` by plugin id, kept until it is forgotten.
    """

    def __init__(
        self,
        services: Mapping[str, Served],
        *,
        record: Record,
        clock: Clock,
        gate_limits: GateLimits,
    ) -> None:
        self.services = services
        self.record = record
        self.clock = clock
        self.limits = gate_limits
        # Not dropped with a Gate: operators see the calls of a plugin across its restarts.
        self.counts: dict[str, Count] = {}
        # A plugin decides how often a failing service is called: without a limit it could fill the log.
        self._failures = LogLimiter()

    def gate(self, caller: Caller, rights: Rights, *, calls_per_s: int | None = None) -> Gate:
        """A Gate for one instance of a plugin; `calls_per_s`: the rate that its manifest asks for, which counts only
        where it is lower than that of the settings.
        """
        return Gate(self, caller, rights, calls_per_s)

    def count(self, plugin_id: str) -> Count:
        """The count of a plugin, which goes on as it is changed."""
        return self.counts.setdefault(plugin_id, Count())

    def forget(self, plugin_id: str) -> None:
        """Drop the count of a plugin."""
        self.counts.pop(plugin_id, None)

    def failed(self, method: str, plugin_id: str, error: BaseException) -> HostError:
        """The answer after a service raised an unexpected exception, which is logged at a limited rate."""
        count = self._failures.take((plugin_id, method, type(error).__name__), self.clock.monotonic_s())
        if count is not None:
            log.error("host_call_failed", call=method, plugin_id=plugin_id, count=count, exc_info=error)
        # Without the exception's text, which may name paths or values of the host; the plugin is untrusted.
        return HostError(Denial.INTERNAL, "the host service failed, see the daemon's log")


class Gate:
    """Answers the host calls of one plugin until it is closed. Used on the event loop only."""

    def __init__(self, broker: Broker, caller: Caller, rights: Rights, calls_per_s: int | None) -> None:
        self.caller = caller
        self._broker = broker
        self._rights = rights
        # The id comes from the verified manifest, never from a message of the plugin.
        self._actor = str(Actor(kind="plugin", name=caller.plugin_id))
        self._calls_per_s = calls_per_s
        self._buckets = TokenBuckets()
        self._open = True
        # The deadline of each call, with its capability: `_expire` moves deadlines to now, which cancels the calls.
        self._under_way: dict[asyncio.Timeout, str] = {}
        # Shared by all Gates of a plugin: a restart makes a new Gate, and the count goes on.
        self._count = broker.count(caller.plugin_id)

    def capabilities(self) -> list[str]:
        """The effective capabilities, sorted; none once the Gate is closed."""
        return sorted(self._rights.declared & self._rights.granted) if self._open else []

    def regrant(self, granted: frozenset[str]) -> None:
        """Replace the grants while the plugin runs; calls under way that need others are cancelled and denied."""
        # Before the calls are cancelled: `_fault` reads it to say why.
        self._rights = replace(self._rights, granted=granted)
        self._expire([one for one, capability in self._under_way.items() if capability not in granted])

    def stand_by(self, calls: frozenset[str] | None, number: int) -> None:
        """Allow only these calls from now on (None: all), of the kept version `number` (0: the one in charge).

        Calls under way go on. What a version that stands by calls counts for no plugin: its successor is judged by its
        own calls.
        """
        self._rights = replace(self._rights, calls=calls)
        self.caller = replace(self.caller, standby=number)
        self._count = Count() if calls is not None else self._broker.count(self.caller.plugin_id)

    def close(self) -> None:
        """Refuse further calls and cancel those under way, with `service_unavailable`. Returns at once; idempotent."""
        # Before the calls are cancelled: `_fault` reads it to say why.
        self._open = False
        self._expire(self._under_way)

    def _expire(self, calls: Iterable[asyncio.Timeout]) -> None:
        """Cancel calls under way by moving their deadline to now; `_dispatch` then denies them, with a reason."""
        for one in calls:
            with contextlib.suppress(RuntimeError):  # it has expired or ended already
                one.reschedule(asyncio.get_running_loop().time())

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """As `call_raw`, for parameters that are decoded already; callers are inside the daemon. HostError."""
        try:
            payload = _encode(params)
        except HostError as error:
            return await self.refuse_raw(method, b"", error)
        return await self.call_raw(method, payload)

    async def call_raw(self, method: str, payload: bytes) -> Any:
        """As `begin`, for callers that wait: returns the result, or raises HostError."""
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        rest = self.begin(method, payload, _into(found))
        return await (found if rest is None else rest)

    def begin(self, method: str, payload: bytes, answer: Answer) -> Coroutine[Any, Any, Any] | None:
        """Decide one host call and queue its audit event, in this turn of the loop.

        Returns None if `answer(result, error)` will be called, once, with the JSON result or with the HostError that
        says why there is none; it may have been called already. The rest of an allowed call whose service waits is
        returned instead, to be awaited: it returns the result or raises HostError.

        `payload` is the parameters as the plugin wrote them, a JSON object, decoded into the service's own struct: an
        unknown field is refused before its value is decoded. Size and hash on record are of these bytes. The audit
        event is on record before the call is carried out, and before a denial is answered.
        """
        if (allowed := self._allowed(method, payload, answer)) is None:
            return None
        try:
            served, params = self._typed(method, payload)
        except HostError as error:
            self._deny(method, payload, error, answer)
            return None
        call = _Allowed(method, payload, served, params, allowed.capability)
        # On record before it is made (architecture, decision 8): a kill between the two leaves no unrecorded effect.
        # Size and hash, never the parameters: they may hold secrets, and the chain is kept.
        event = AllowedCall(self._actor, method, len(payload), hashlib.sha256(payload).hexdigest())
        if not served.waits:
            self._broker.record(event, functools.partial(self._carry_out, call, answer))
            return None
        recorded: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._broker.record(event, _into(recorded))
        return self._dispatch(call, recorded)

    def refuse(self, method: str, line: bytes, error: HostError, answer: Answer) -> None:
        """Refuse one host call, whose parameters cannot be told from the plugin's `line`: with `error`, unless it would
        not have been allowed anyway. Counts and is recorded like any, with size and hash of the line.
        """
        if self._allowed(method, line, answer) is not None:
            self._deny(method, line, error, answer)

    async def refuse_raw(self, method: str, line: bytes, error: HostError) -> Any:
        """As `refuse`, for callers that wait; raises HostError."""
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.refuse(method, line, error, _into(found))
        return await found

    def _allowed(self, method: str, payload: bytes, answer: Answer) -> Allow | None:
        """Count and decide one host call; None: it is denied, which `answer` is or will be told."""
        if not self._open:
            answer(None, _stopped())
            return None
        # A closed Gate neither counts nor records: a child that does not stop calling would fill the chain.
        self._count.calls += 1
        # The token is taken for every call, refused ones too: refusals are recorded and cost as much.
        asked = CallAttempt(method=method, size=len(payload), within_rate=self._within_rate(method))
        decision = decide(asked, self._rights, max_bytes=self._broker.limits.request_bytes)
        if isinstance(decision, Denied):
            # Name, grant, size and rate are judged on the bytes: nothing refused by them is decoded (docs/adr/0014).
            if not asked.within_rate:  # for any denial
                answer = _paused(answer)
            self._deny(method, payload, HostError(decision.code, decision.reason), answer)
            return None
        return decision

    def _within_rate(self, method: str) -> bool:
        """Take a token from each bucket that applies to this call, under the present limits; False if one was empty."""
        wanted, now_s = self._broker.limits, self._broker.clock.monotonic_s()
        overall, slower = wanted.rate, wanted.of_call.get(method)
        # A manifest may only lower the operator's rate, never raise it.
        if self._calls_per_s is not None and self._calls_per_s < overall.per_second:
            # A burst of one second.
            overall = Rate(per_second=self._calls_per_s, burst=self._calls_per_s)
        # The empty text is the name of no call.
        within = self._buckets.take("", overall, now_s) == 0
        # `take` comes first: every bucket loses its token, whatever the other says.
        return within if slower is None else self._buckets.take(method, slower, now_s) == 0 and within

    def _typed(self, method: str, payload: bytes) -> tuple[Served, Params]:
        """The service's call and its decoded parameters; HostError service_unavailable, or bad_params."""
        served = self._broker.services.get(method)
        if served is None:
            raise HostError(Denial.SERVICE_UNAVAILABLE, f"{method} is not served by this version of latticed")
        try:
            return served, msgspec.json.decode(payload, type=served.params)
        except msgspec.ValidationError as error:
            raise HostError(Denial.BAD_PARAMS, str(error)) from error
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:  # lone surrogate, 1e400, deep nesting
            found = text.sanitise(str(error), 100)
            raise HostError(Denial.BAD_PARAMS, f"params: expected values that can be carried, found {found}") from error

    def _carry_out(self, call: _Allowed, answer: Answer, _: int, problem: BaseException | None) -> None:
        """Carry out a call that waits for nothing, now that it is on record, and answer it."""
        if problem is not None:
            answer(None, _unrecorded(problem))
            return
        try:
            self._check_still_allowed(call.capability)
            result = call.served.answer_now(self.caller, call.params)
        except Exception as error:  # noqa: BLE001 - what is unexpected is logged
            self._deny(call.method, call.payload, self._fault(call, error), answer)
        else:
            answer(result, None)

    async def _dispatch(self, call: _Allowed, recorded: asyncio.Future[int]) -> Any:
        """The result of a service that waits, within the deadline, once the call is on record.

        Every other end but cancellation is recorded as a denial.
        """
        try:
            await recorded
        except Problem as problem:
            raise _unrecorded(problem) from problem
        # Made outside the block: `except` and `finally` need it, and its key in `_under_way`.
        deadline = asyncio.timeout(self._broker.limits.deadline_s)
        try:
            self._check_still_allowed(call.capability)
            async with deadline:
                # Within the block: `reschedule` raises RuntimeError for a timeout that was not entered.
                self._under_way[deadline] = call.capability
                return await call.served.answer(self.caller, call.params)
        except Exception as error:  # noqa: BLE001 - what is unexpected is logged
            denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._deny(call.method, call.payload, self._fault(call, error, deadline), _into(denied))
            return await denied
        finally:
            self._under_way.pop(deadline, None)

    def _check_still_allowed(self, capability: str) -> None:
        """HostError when, since the call was allowed, the Gate was closed or the capability taken back."""
        if not self._open:
            raise _stopped()
        if capability not in self._rights.granted:
            raise HostError(Denial.CAPABILITY_NOT_GRANTED, f"the operator has taken back {capability} meanwhile")

    def _fault(self, call: _Allowed, error: Exception, deadline: asyncio.Timeout | None = None) -> HostError:
        """Why an allowed call failed: what its service said, why its `deadline` expired, or `internal`."""
        if isinstance(error, HostError):
            return error
        # Asked of the timeout, not of the exception's type: a service may raise a TimeoutError of its own.
        if deadline is None or not deadline.expired():
            return self._broker.failed(call.method, self.caller.plugin_id, error)
        # A deadline moved to now (`_expire`) looks like one that passed: the state says which of them it was.
        try:
            self._check_still_allowed(call.capability)
        except HostError as ended:
            return ended
        return HostError(Denial.DEADLINE_EXCEEDED, f"no answer within {self._broker.limits.deadline_s:g} s")

    def _deny(self, method: str, payload: bytes, error: HostError, answer: Answer) -> None:
        """Have a denial recorded, then answer with it, or with why it could not be recorded."""
        # Counted before the write, which may fail: the number must not depend on the disk.
        self._count.denied += 1
        detail: dict[str, str | int | bool] = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        if error.fault.fix:
            detail[FIX] = error.fault.fix
        event = Event(
            actor=self._actor,
            action=HOST_CALL,
            target=method,
            decision="deny",
            code=error.code.value,
            reason=error.reason,
            detail=detail,
        )
        self._broker.record(event, lambda _, problem: answer(None, error if problem is None else _unrecorded(problem)))


class _Allowed(Value, frozen=True):
    """A call that was allowed: what was asked, and what it takes to carry it out."""

    method: str
    payload: bytes
    served: Served
    params: Params
    capability: str


def _into(future: asyncio.Future[Any]) -> Callable[[Any, BaseException | None], None]:
    """A callback that sets the result or the exception of `future`, unless its caller was cancelled."""

    def answer(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # retrieved, even if a cancellation comes before its caller looks

    return answer


def _paused(answer: Answer) -> Answer:
    """An Answer that is passed on after PAUSE_S."""

    def later(result: Any, error: HostError | None) -> None:
        asyncio.get_running_loop().call_later(PAUSE_S, answer, result, error)

    return later


def _stopped() -> HostError:
    return HostError(Denial.SERVICE_UNAVAILABLE, "the plugin is being stopped")


def _unrecorded(problem: BaseException) -> HostError:
    error = HostError(Denial.AUDIT_UNAVAILABLE, "the call cannot be recorded, so it is not made")
    error.__cause__ = problem
    return error


def _encode(params: dict[str, Any]) -> bytes:
    """The parameters as JSON; HostError bad_params."""
    try:
        return msgspec.json.encode(params)
    # In-process callers pass any object: bytes, lone surrogates (UnicodeEncodeError) or cycles are not JSON.
    except (TypeError, ValueError, RecursionError) as error:
        raise HostError(Denial.BAD_PARAMS, "expected parameters that JSON can carry") from error

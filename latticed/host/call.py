"""How a host service declares its calls: parameters as a struct, the caller, errors, and the table of all calls."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from latticed.model import hostcall
from latticed.model.errors import FaultError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


Whole = Annotated[int, Meta(ge=0, le=2**53)]
"""A whole number that every layer can carry: exact in JSON, within SQLite's 64 bits."""


class Params(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parameters of a call: a JSON object, decoded strictly; unknown fields are `bad_params`."""


class NoParams(Params, frozen=True):
    """For calls that take none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The plugin that makes a call; `buckets`: kv buckets of operators that it may also read (workers only).

    `standby`: the number of the kept version that calls, while another one is in charge: it has values of its own. 0
    for the one in charge.
    """

    plugin_id: str
    buckets: frozenset[str] = frozenset()
    standby: int = 0


class HostError(FaultError):
    """A host call that failed or was refused; the plugin gets `code: reason` (contracts §10).

    `reason` must hold nothing that plugins may not know (paths, values of secrets). `fix`: what an operator could
    grant, as `kind=value`; it is recorded in the audit event and not sent to the plugin.
    """

    code: hostcall.Denial

    def __init__(self, code: hostcall.Denial, reason: str, *, fix: str = "") -> None:
        super().__init__(code, reason, "")
        self.fault = hostcall.Denied(code, reason, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One call that a service carries out: `method` as in `model.hostcall`; `params` decodes its parameters.

    `serve(caller, params)` returns what becomes the JSON result. It is called after the broker has allowed and recorded
    the call, and is cancelled at the deadline. A plain function in its place has no deadline and needs no task: for
    what is answered from memory or by one row, because the event loop does nothing else meanwhile.
    """

    method: str
    params: type[Params]
    serve: Callable[[Caller, Any], Any]
    waits: bool = field(init=False)
    """Whether `serve` is a coroutine function."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "waits", inspect.iscoroutinefunction(self.serve))

    async def answer(self, caller: Caller, params: Any) -> Any:
        """What `serve` returns. A Problem whose code is a denial (quota_exceeded, not_found) becomes that HostError;
        any other one, such as ledger_unavailable, becomes service_unavailable.
        """
        try:
            return await self.serve(caller, params) if self.waits else self.serve(caller, params)
        except Problem as problem:
            raise _denial(problem) from problem

    def answer_now(self, caller: Caller, params: Any) -> Any:
        """As `answer`, for a call that does not wait."""
        try:
            return self.serve(caller, params)
        except Problem as problem:
            raise _denial(problem) from problem


def _denial(problem: Problem) -> HostError:
    """The denial that a plugin gets for a Problem of a service."""
    # Not `in hostcall.Denial`: on Python 3.11 that raises TypeError for a str that is no member.
    known = problem.code in hostcall.Denial._value2member_map_
    # A plugin sees documented denials only (contracts §10); other codes are for operators.
    code = hostcall.Denial(problem.code) if known else hostcall.Denial.SERVICE_UNAVAILABLE
    # The setting that its hint names, for the operator: plugins see neither.
    fix = f"setting={problem.hint.removeprefix('set ')}" if problem.hint.startswith("set ") else ""
    return HostError(code, problem.reason, fix=fix)


def table(served: Iterable[Served]) -> Mapping[str, Served]:
    """The calls by name, read-only. ValueError for a name that `model.hostcall` does not know, or a duplicate."""
    calls: dict[str, Served] = {}
    for call in served:
        # Checked when the table is made: the broker finds the capability of a call by this name.
        if call.method not in hostcall.CAPABILITY_OF or call.method in calls:
            raise ValueError(f"host call {call.method!r} is unknown or served twice")
        calls[call.method] = call
    return MappingProxyType(calls)

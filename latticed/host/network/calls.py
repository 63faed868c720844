"""network.*: changes of this host that plugins ask for, kept as plans; the root helper reads, applies and undoes.

A plugin plans, an operator approves to the helper, the helper applies. No host call approves (contracts §12).
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import msgspec
from msgspec import Meta

from latticed.host.call import Caller, HostError, Params, Served, Whole
from latticed.host.network import apply_client, intents, listeners, views
from latticed.host.node.calls import CachedReading
from latticed.kit import text
from latticed.model import plan
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.network.keeper import PlanKeeper
    from latticed.kit.clock import Clock
    from latticed.ledger.plans import PlanRow
    from latticed.plans.protocol import Observed

PAGE: Final = 100
"""The most plans in one answer of network.plans."""
CACHE_S: Final = 1.0
"""Seconds that a reading of listeners or interfaces is answered again."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ONLY_ROOT: Final = {
    "nft": "the ruleset (nft list ruleset)",
    "wireguard": "the interfaces' peers (wg show)",
    "proxy": "who is connected to the core",
}
"""The live state of these kinds, which only root can read."""
_LISTENERS, _INTERFACES = "listeners", "interfaces"
STATES: Final = (*plan.KINDS, _LISTENERS, _INTERFACES)
"""The kinds that network.state takes."""


class NetworkStateQuery(Params, frozen=True):
    """Parameters of network.state."""

    kind: str
    """What of the host is asked for."""


class NetworkPlan(Params, frozen=True):
    """Parameters of network.plan."""

    kind: str
    """Kind of the change."""
    intent: dict[str, Any]
    """What is wanted, a JSON object of that kind; secrets as `${secret:NAME}`."""


class NetworkPlans(Params, frozen=True):
    """Parameters of network.plans."""

    sha256: str = ""
    """That plan alone, with its intent; empty: all of the caller."""
    after: Whole = 0
    """The `number` of the last one of the page before."""
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = PAGE
    """Most plans in the answer."""


class NetworkApply(Params, frozen=True):
    """Parameters of network.apply."""

    sha256: str
    """The plan's name, as network.plan answered it."""


class NetworkCalls:
    """The host calls `network.state`, `network.plan`, `network.plans` and `network.apply`.

    `root`: the directory that has /proc and /sys.
    """

    def __init__(self, plans: PlanKeeper, *, clock: Clock, root: Path = Path("/")) -> None:
        self._plans = plans
        self._readings = {
            _LISTENERS: CachedReading(lambda: listeners.listeners(root), CACHE_S, clock),
            _INTERFACES: CachedReading(lambda: listeners.interfaces(root), CACHE_S, clock),
        }

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="network.state", params=NetworkStateQuery, serve=self._state),
            Served(method="network.plan", params=NetworkPlan, serve=self._plan),
            Served(method="network.plans", params=NetworkPlans, serve=self._plans_of),
            Served(method="network.apply", params=NetworkApply, serve=self._apply),
        )

    async def _state(self, _: Caller, asked: NetworkStateQuery) -> dict[str, Any]:
        """The live state of a kind; HostError bad_params, service_unavailable.

        Of nft, wireguard and proxy what the helper sees; listeners and interfaces are read here. Of nginx both: who
        listens at which addresses, and the helper's `live` and `target`; no `live`, and `target` None, while it does
        not run or has no such kind.
        """
        if asked.kind not in STATES:
            raise HostError(Denial.BAD_PARAMS, f"kind: expected one of {', '.join(STATES)}, found {_shown(asked.kind)}")
        if asked.kind in _ONLY_ROOT:
            return await self._seen_by_root(asked.kind)
        planned = asked.kind not in self._readings
        wanted = (_LISTENERS, _INTERFACES) if planned else (asked.kind,)
        found: dict[str, Any] = {"kind": asked.kind}
        for name in wanted:
            try:
                found |= await self._readings[name].get()
            # No /proc, or no descriptor left; the path is not for plugins, so only the system's message is shown.
            except OSError as error:
                unseen = f"the {name} cannot be read: {error.strerror or 'an error of input or output'}"
                raise HostError(Denial.SERVICE_UNAVAILABLE, unseen) from error
        if planned:
            try:
                observed = await self._plans.observe(asked.kind)
                found |= {"live": observed.live, "target": _target(asked.kind, observed)}
            except Problem:
                found["target"] = None
        return found

    async def _seen_by_root(self, kind: str) -> dict[str, Any]:
        """`{kind, live, target}` as the helper reports them; HostError service_unavailable."""
        try:
            observed = await self._plans.observe(kind)
        except Problem as problem:
            why = f"only root can see {_ONLY_ROOT[kind]}: {problem.code}: {problem.reason}"
            rest = f"{_LISTENERS} and {_INTERFACES} can be asked for"
            raise HostError(Denial.SERVICE_UNAVAILABLE, f"{why}; {rest}") from problem
        return {"kind": kind, "live": observed.live, "target": _target(kind, observed)}

    async def _plan(self, caller: Caller, asked: NetworkPlan) -> dict[str, Any]:
        """Store a plan and offer it to the helper; HostError bad_params (kind, intent, a secret in clear or not bound,
        an intent that the helper refuses), quota_exceeded. Planning the same again gives the plan that exists.
        """
        if asked.kind not in plan.KINDS:
            expected = ", ".join(plan.KINDS)
            raise HostError(Denial.BAD_PARAMS, f"kind: expected one of {expected}, found {_shown(asked.kind)}")
        # Off the loop: an intent of 256 KiB takes 30 ms.
        canonical = await asyncio.to_thread(_canonical, asked)
        try:
            row = await self._plans.plan(
                caller.plugin_id, asked.kind, canonical.decode("utf-8"), plan.sha256(canonical), asked.intent
            )
        except apply_client.HelperRefusal as refusal:
            raise HostError(Denial.BAD_PARAMS, f"{refusal.code}: {refusal.reason}") from refusal
        return {"ok": True, **views.for_plugin(row)}

    async def _plans_of(self, caller: Caller, asked: NetworkPlans) -> dict[str, Any]:
        """A page of the caller's plans, by number, without intents; or one plan with it. HostError not_found,
        bad_params.
        """
        if asked.sha256:
            _check_name(asked.sha256)
            await self._plans.refresh()
            row = self._found(caller, asked.sha256)
            return {"plans": [{**views.for_plugin(row), "intent": views.intent(row)}], "next": None}
        await self._plans.refresh()
        # One more than is shown, to know whether there is a next page.
        found = await self._plans.page(caller.plugin_id, after=asked.after, limit=asked.limit + 1)
        shown = found[: asked.limit]
        rows = [views.for_plugin(row) for row in shown]
        return {"plans": rows, "next": shown[-1].number if len(found) > len(shown) else None}

    async def _apply(self, caller: Caller, asked: NetworkApply) -> dict[str, Any]:
        """Have the helper apply what is approved, or narrows it; the plan's state says what became of it.

        HostError not_found; service_unavailable when the helper does not run or refuses, as `code: reason`.
        """
        _check_name(asked.sha256)
        try:
            await self._plans.apply(caller.plugin_id, asked.sha256)
        except Problem as problem:
            if problem.code == Denial.NOT_FOUND.value and not isinstance(problem, apply_client.HelperRefusal):
                raise
            why = f"nothing was applied: {problem.code}: {problem.reason}"
            raise HostError(Denial.SERVICE_UNAVAILABLE, why) from problem
        return {"ok": True, "sha256": asked.sha256, "state": plan.PlanState.APPLYING.value}

    def _found(self, caller: Caller, sha256: str) -> PlanRow:
        """The caller's plan of that name; HostError not_found."""
        row = self._plans.of_plugin(caller.plugin_id, sha256)
        if row is None:
            raise HostError(Denial.NOT_FOUND, "this plugin has no plan of that sha256")
        return row


def _canonical(asked: NetworkPlan) -> bytes:
    """The canonical form of a plan without secrets in clear; HostError bad_params. Takes long."""
    # The name of a plan is the hash of its canonical form, whatever the order of keys that the plugin sent.
    try:
        canonical = plan.canonical(asked.kind, asked.intent)
    except plan.BadIntent as error:
        raise HostError(Denial.BAD_PARAMS, text.sanitise(str(error), 400)) from error
    # Secrets: none in clear, before the intent is stored.
    intents.check(asked.intent)
    return canonical


def _check_name(sha256: str) -> None:
    """HostError bad_params for what cannot name a plan."""
    if not _SHA256.fullmatch(sha256):
        raise HostError(Denial.BAD_PARAMS, "sha256: expected 64 lower-case hex digits")


def _target(kind: str, observed: Observed) -> dict[str, Any] | None:
    """What is approved, confirmed and unconfirmed of `kind`, as `protocol.Target` has it; None without any."""
    found = next((one for one in observed.targets if one.kind == kind), None)
    return None if found is None else cast("dict[str, Any]", msgspec.to_builtins(found))


def _shown(kind: str) -> str:
    """Text of a plugin, for a message: quoted, escaped and cut."""
    return repr(text.sanitise(kind, 40))

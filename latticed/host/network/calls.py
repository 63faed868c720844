"""network.*: changes of this host that plugins ask for, stored as plans. Nothing here applies them.

A plugin plans, an operator approves, an applier (there is none yet) applies. No host call approves (contracts §12).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from latticed.host.call import Caller, HostError, Params, Served, Whole
from latticed.host.network import intents, listeners
from latticed.host.node.calls import CachedReading
from latticed.kit import clock as clocks
from latticed.kit import text
from latticed.ledger import plans as rows
from latticed.ledger.quota import RowQuota
from latticed.model import plan
from latticed.model.audit import Actor, Event
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.secret.references import PluginSecrets
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction

PAGE: Final = 100
"""The most plans in one answer of network.plans."""
PLANS: Final = RowQuota(plugin=100, total=2_000)
"""How many plans are kept, as docs/services.md says."""
CACHE_S: Final = 1.0
"""Seconds that a reading of listeners or interfaces is answered again."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ONLY_ROOT: Final = {
    "nft": "the ruleset (nft list ruleset)",
    "wireguard": "the interfaces' peers (wg show)",
}
"""The live state of these kinds, which only root can read."""
_LISTENERS, _INTERFACES = "listeners", "interfaces"
STATES: Final = (*plan.KINDS, _LISTENERS, _INTERFACES)
"""The kinds that network.state takes."""


class NetworkStateQuery(Params, frozen=True):
    """Parameters of network.state. `kind`: one of STATES."""

    kind: str


class NetworkPlan(Params, frozen=True):
    """Parameters of network.plan: a kind of `model.plan`, and what is wanted, as a JSON object."""

    kind: str
    intent: dict[str, Any]


class NetworkPlans(Params, frozen=True):
    """Parameters of network.plans. `sha256`: that plan alone, with its intent; `after`: the `number` of the last one of
    the page before.
    """

    sha256: str = ""
    after: Whole = 0
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = PAGE


class NetworkApply(Params, frozen=True):
    """Parameters of network.apply. `sha256`: the plan's name, as network.plan returned it."""

    sha256: str


class NetworkCalls:
    """The host calls `network.state`, `network.plan`, `network.plans` and `network.apply`.

    `secrets_of(plugin_id)` gives a plugin's secrets: a plan may refer only to those bound to it. `quota`: plans of one
    plugin; None: `PLANS`. `root`: the directory that has /proc and /sys.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        secrets_of: Callable[[str], PluginSecrets],
        quota: RowQuota | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._secrets_of = secrets_of
        self._quota = quota or PLANS
        self._readings = {
            _LISTENERS: CachedReading(lambda: listeners.listeners(root), CACHE_S, clock),
            _INTERFACES: CachedReading(lambda: listeners.interfaces(root), CACHE_S, clock),
        }

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="network.state", params=NetworkStateQuery, serve=self._state),
            Served(method="network.plan", params=NetworkPlan, serve=self._plan),
            Served(method="network.plans", params=NetworkPlans, serve=self._plans),
            Served(method="network.apply", params=NetworkApply, serve=self._apply),
        )

    async def _state(self, _: Caller, asked: NetworkStateQuery) -> dict[str, Any]:
        """What can be seen without root of this kind; HostError bad_params, service_unavailable."""
        if asked.kind not in STATES:
            raise HostError(Denial.BAD_PARAMS, f"kind: expected one of {', '.join(STATES)}, found {_shown(asked.kind)}")
        if asked.kind in _ONLY_ROOT:
            raise HostError(
                Denial.SERVICE_UNAVAILABLE,
                f"only root can see {_ONLY_ROOT[asked.kind]}, and this version has no root helper;"
                f" {_LISTENERS} and {_INTERFACES} can be asked for",
            )
        # nginx and proxy: who listens and at which addresses is what can be seen of them.
        wanted = (asked.kind,) if asked.kind in self._readings else (_LISTENERS, _INTERFACES)
        found: dict[str, Any] = {"kind": asked.kind}
        for name in wanted:
            try:
                found |= await self._readings[name].get()
            # No /proc, or no descriptor left; the path is not for plugins, so only the system's message is shown.
            except OSError as error:
                unseen = f"the {name} cannot be read: {error.strerror or 'an error of input or output'}"
                raise HostError(Denial.SERVICE_UNAVAILABLE, unseen) from error
        return found

    async def _plan(self, caller: Caller, asked: NetworkPlan) -> dict[str, Any]:
        """Store a plan and return it (`_view`). The same kind and intent again give the plan that exists.

        HostError bad_params for an unknown kind, a bad intent, or a secret that is in clear or not bound;
        quota_exceeded.
        """
        if asked.kind not in plan.KINDS:
            expected = ", ".join(plan.KINDS)
            raise HostError(Denial.BAD_PARAMS, f"kind: expected one of {expected}, found {_shown(asked.kind)}")
        # The name of a plan is the hash of its canonical form, whatever the order of keys that the plugin sent.
        try:
            canonical = plan.canonical(asked.kind, asked.intent)
        except plan.BadIntent as error:
            raise HostError(Denial.BAD_PARAMS, text.sanitise(str(error), 400)) from error
        # Secrets: none in clear, and only such that the plugin may use; before the intent is stored.
        intents.check(asked.intent)
        secrets = self._secrets_of(caller.plugin_id)
        for reference in sorted(intents.references(asked.intent)):
            secrets.expand(reference)  # only to check that it is bound: the value is not used
        sha256, now_us = plan.sha256(canonical), self._clock.wall_us()

        def change(tx: Transaction) -> rows.PlanRow:
            before = rows.get(tx, caller.plugin_id, sha256)
            row = rows.put(
                tx, caller.plugin_id, sha256, asked.kind, canonical.decode("utf-8"), self._quota, now_us=now_us
            )
            # Only what changed is an event: repeating a call must not fill the audit chain.
            if before is None or before.state is not row.state:
                tx.append_audit(_planned(caller, row))
            return row

        # Durable: the plugin is told the plan's name, by which an operator approves it.
        row = await self._ledger.write(change, durable=True)
        return {"ok": True, **_view(row)}

    async def _plans(self, caller: Caller, asked: NetworkPlans) -> dict[str, Any]:
        """A page of the caller's plans, by number, without intents; or one plan with it. HostError not_found,
        bad_params.
        """
        if asked.sha256:
            row = self._found(caller, asked.sha256)
            return {"plans": [{**_view(row), "intent": _intent(row)}], "next": None}
        # One more than is shown, to know whether there is a next page.
        one_more = asked.limit + 1
        found = await self._ledger.read_for_plugin(
            lambda db: rows.page(db, plugin_id=caller.plugin_id, after=asked.after, limit=one_more)
        )
        shown = found[: asked.limit]
        return {"plans": [_view(row) for row in shown], "next": shown[-1].number if len(found) > len(shown) else None}

    async def _apply(self, caller: Caller, asked: NetworkApply) -> dict[str, Any]:
        """Always HostError: not_found, or service_unavailable, since nothing can apply plans yet."""
        row = self._found(caller, asked.sha256)
        raise HostError(
            Denial.SERVICE_UNAVAILABLE,
            f"nothing was applied: this version has no applier for {row.kind}, the plan stays {row.state}",
        )

    def _found(self, caller: Caller, sha256: str) -> rows.PlanRow:
        """The caller's plan of that name; HostError bad_params, not_found."""
        if not _SHA256.fullmatch(sha256):
            raise HostError(Denial.BAD_PARAMS, "sha256: expected 64 lower-case hex digits")
        row = self._ledger.read(lambda db: rows.get(db, caller.plugin_id, sha256))
        if row is None:
            raise HostError(Denial.NOT_FOUND, "this plugin has no plan of that sha256")
        return row


def _planned(caller: Caller, row: rows.PlanRow) -> Event:
    """The audit event of a plan; the intent is in the row, not in the event."""
    return Event(
        actor=str(Actor(kind="plugin", name=caller.plugin_id)),
        action="network.plan",
        target=row.sha256,
        decision="allow",
        detail={"kind": row.kind, "bytes": len(row.intent.encode("utf-8"))},
    )


def _view(row: rows.PlanRow) -> dict[str, Any]:
    """A plan as plugins see it in answers, without its intent."""
    return {
        "number": row.number,
        "sha256": row.sha256,
        "kind": row.kind,
        "state": row.state.value,
        "created_at": clocks.rfc3339(row.created_at),
        "updated_at": clocks.rfc3339(row.updated_at),
    }


def _intent(row: rows.PlanRow) -> Any:
    """The intent of a plan, as it was given."""
    import json

    return json.loads(row.intent)["intent"]


def _shown(kind: str) -> str:
    """Text of a plugin, for a message: quoted, escaped and cut."""
    return repr(text.sanitise(kind, 40))

"""A fleet's controller as latticectl sees it: a real HTTP server on a real unix socket, answers made here.

Every answer is one of `controller_view`, and every request is decoded as that says. The rollout that it has takes the
next of `course` at each look; a document of any kind is taken as an intent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from latticed.fleet import controller_view as view
from tests.house import api_server
from tests.house.api_server import Answer

INTENT = "3f9c2a1b" + "0" * 56
OLDER = "77aa00bb" + "0" * 56
NOW = 1_800_000_000
POLICY = view.PolicyView()


def node(name: str, state: str = "settled", **fields: Any) -> view.NodeRow:
    return view.NodeRow(
        **{
            "name": name,
            "labels": {"role": "web", "zone": "eu"},
            "state": state,
            "present": state != "away",
            "assigned": INTENT,
            "generation": 7,
            "intent": INTENT,
            "seen": NOW - 5,
            "plugins": 1,
            **fields,
        }
    )


def wave(nodes: int, *, given: bool = True, **counts: int) -> view.WaveView:
    return view.WaveView(nodes=nodes, given=given, **counts)


def rollout(state: str = "running", *waves: view.WaveView, **fields: Any) -> view.RolloutView:
    """One of three nodes in two waves, unless `waves` say otherwise."""
    waves = waves or (wave(1, well=1), wave(2, given=False, pending=2))
    given = [one.nodes for one in waves if one.given]
    return view.RolloutView(
        **{
            "name": "r1",
            "intent": INTENT,
            "state": state,
            "reason": "",
            "policy": POLICY,
            "waves": waves,
            "wave": max(0, len(given) - 1),
            "wave_began": NOW,
            "began": NOW,
            "changed": NOW,
            "before": {OLDER: 2, "": 1},
            "nodes": sum(one.nodes for one in waves),
            "touched": sum(given),
            **fields,
        }
    )


@dataclass
class SimulatedController(api_server.Api):
    """The state of a controller that has three nodes."""

    nodes: list[view.NodeRow] = field(default_factory=lambda: [node("db-1"), node("web-1"), node("web-2")])
    alarms: tuple[view.AlarmView, ...] = ()
    engine: view.EngineView = field(default_factory=lambda: view.EngineView(connected=True))
    leader: bool = True
    fleet_events: list[view.EventView] = field(default_factory=list)
    sent: list[tuple[str, Any]] = field(default_factory=list)
    held: dict[str, bytes] = field(default_factory=dict)
    changes: dict[str, tuple[view.PlannedChange, ...]] = field(default_factory=dict)
    refusing: dict[str, str] = field(default_factory=dict)
    rollouts: list[view.RolloutView] = field(default_factory=list)
    course: list[view.RolloutView] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    invoked: Callable[[bytes], view.InvocationAnswer] | None = None

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if found := self.override.get(f"{method} {path}"):
            return found
        parts = path.split("/")
        match method, parts[1:]:
            case "GET", []:
                return _plain(self._fleet())
            case "GET", ["nodes"]:
                return _plain(self._page(query))
            case "GET", ["nodes", name]:
                return self._node(name)
            case "GET", ["events"]:
                return self._events(query)
            case "GET", ["intents"]:
                return _plain(view.IntentsPage(intents=tuple(map(_intent, (INTENT, OLDER)))))
            case "GET", ["bundles"]:
                return _plain(view.BundlesPage(bundles=tuple(_bundle(one, self.held[one]) for one in self.held)))
            case "PUT", ["bundles", sha256]:
                assert hashlib.sha256(body).hexdigest() == sha256
                self.held[sha256] = body
                return _plain(_bundle(sha256, body))
            case "GET", ["rollouts"]:
                return _plain(view.RolloutsPage(rollouts=tuple(self.rollouts)))
            case "GET", ["rollouts", name]:
                return self._rollout(name)
            case "POST", _:
                return self._posted(parts[1:], body)
        return api_server.problem(404, "not_found", f"no route {path}")

    def _posted(self, parts: list[str], body: bytes) -> Answer:
        match parts:
            case ["documents"]:
                self.sent.append(("documents", json.loads(body)))
                return _plain(view.DocumentTaken(kind="intent", sha256=INTENT, new=True, operator="b3A=" * 11))
            case ["plan"]:
                wanted = msgspec.json.decode(body, type=view.PlanWanted)
                self.sent.append(("plan", wanted))
                return _plain(self._plan(wanted))
            case ["rollouts"]:
                self.sent.append(("rollouts", msgspec.json.decode(body, type=view.RolloutWanted)))
                self.rollouts.insert(0, rollout())
                return _plain(rollout())
            case ["rollouts", name, verb]:
                self.sent.append((f"{verb} {name}", msgspec.json.decode(body, type=view.WithReason)))
                return self._rollout(name)
            case ["invoke"] if self.invoked is not None:
                return _plain(self.invoked(body))
        return api_server.problem(404, "not_found", f"no route {'/'.join(parts)}")

    def _fleet(self) -> view.FleetView:
        states = [one.state for one in self.nodes]
        counts = {name: states.count(name) for name in set(states)}
        return view.FleetView(
            fleet="shop",
            controller="control-1",
            version="9.8.7",
            leader=self.leader,
            lease=view.LeaseView(holder="control-1" if self.leader else "control-2", until=NOW + 10),
            engine=self.engine,
            certificate=view.CertificateView(state="valid", key="a2V5" * 11, expires=NOW + 86_400),
            nodes=view.NodeCounts(nodes=len(states), present=len(states) - states.count("away"), **counts),
            rollouts=tuple(one for one in self.rollouts if one.state not in {"done", "returned"}),
            alarms=self.alarms,
            at=NOW,
        )

    def _page(self, query: dict[str, str]) -> view.NodesPage:
        rows = [one for one in self.nodes if one.name > query.get("after", "")][: self.page]
        more = bool(rows) and rows[-1].name != self.nodes[-1].name
        return view.NodesPage(nodes=tuple(rows), next=rows[-1].name if more else "")

    def _node(self, name: str) -> Answer:
        row = next((one for one in self.nodes if one.name == name), None)
        if row is None:
            return api_server.problem(404, "not_found", f"expected a node of the fleet, found {name}")
        return _plain(view.NodeView(**{"node": row, "key": "bm9k" * 11, "serial": 1, **self.details.get(name, {})}))

    def _events(self, query: dict[str, str]) -> Answer:
        rows = [one for one in self.fleet_events if query.get("node") in {None, one.node}]
        if "after" in query:
            rows = [one for one in rows if one.id > int(query["after"])]
        if query.get("follow"):
            return 200, b"\n" + b"".join(msgspec.json.encode(one) + b"\n\n" for one in rows)
        limit = int(query.get("limit", 100))
        rows = rows[:limit] if "after" in query else rows[-limit:]
        newest = rows[-1].id if rows else max((one.id for one in self.fleet_events), default=0)
        return _plain(view.EventsPage(events=tuple(rows), next=newest))

    def _plan(self, wanted: view.PlanWanted) -> view.PlanView:
        rows = [one for one in self.nodes if wanted.nodes is None or one.name in wanted.nodes]
        plans = tuple(
            view.NodePlan(
                node=one.name,
                wave=number,
                present=one.present,
                refused=self.refusing.get(one.name, ""),
                reason="simulated" if one.name in self.refusing else "",
                way_back=one.name != "db-1",
                changes=self.changes.get(one.name, ()),
            )
            for number, one in enumerate(rows)
        )
        return view.PlanView(intent=wanted.intent, nodes=plans, sizes=(1,) * len(plans), notes=("a note",))

    def _rollout(self, name: str) -> Answer:
        if self.course:
            self.rollouts = [self.course.pop(0)]
        found = next((one for one in self.rollouts if one.name == name), None)
        return _plain(found) if found else api_server.problem(404, "not_found", f"expected a rollout, found {name}")


def event(number: int, name: str = "web-1", **fields: Any) -> view.EventView:
    shown = {"action": "fleet.taken_up", "target": "acme.demo", "code": "", "reason": "", **fields}
    digest = f"{number:064x}"
    return view.EventView(
        id=number, node=name, number=number, at=NOW - 60, received=NOW - 59, hash=digest, prev=digest, **shown
    )


def _plain(answer: msgspec.Struct) -> Answer:
    return 200, msgspec.to_builtins(answer)


def _intent(sha256: str) -> view.IntentView:
    return view.IntentView(
        sha256=sha256,
        generation=1,
        labels={},
        nodes=(),
        plugins=(),
        back_to=(),
        expires=NOW + 86_400,
        operator="b3A=" * 11,
        revoked=False,
        selected=3,
        assigned=0,
    )


def _bundle(sha256: str, body: bytes) -> view.BundleView:
    return view.BundleView(
        sha256=sha256, id="acme.demo", version="1.0.0", identity="7f" * 32, publisher="acme", size=len(body)
    )

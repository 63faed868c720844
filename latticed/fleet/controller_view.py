"""Every request and answer of the controller's API (`controller_routes`), as both sides of it decode them.

Times are whole seconds since 1970, UTC; 0 stands for never. Fields may be added: who reads an answer passes over those
that it does not know, and who asks may leave out what has a default. Errors are problem documents, as those of the
daemon's control socket (`wire.ProblemView`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

SOCKET: Final = "/run/latticed-controller/control.sock"
"""Where the controller listens unless its settings say otherwise."""
MOST_LISTED: Final = 1_000
"""Rows of one answer; `next` leads on."""
MOST_BUNDLE_BYTES: Final = 66 << 20
"""Of a bundle's file, as hosts take it."""
LINES_TYPE: Final = "application/x-ndjson"
"""Of followed events: one `EventView` in each line; an empty line now and then says that the connection stands."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Reason = Annotated[str, Meta(max_length=500)]
RolloutName = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?\Z")]


class _ControllerAnswer(Struct, frozen=True, kw_only=True):
    """Unknown fields are passed over."""


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused: a word that was misspelt must not be lost."""


# GET /api/fleet


class EngineView(_ControllerAnswer, frozen=True, kw_only=True):
    """The connection to the message system; `reason` says why there is none. `cuts_off`: whether the controller can
    have its servers cut off at once whom an operator revokes; otherwise his credentials end by themselves.
    """

    connected: bool
    reason: str = ""
    cuts_off: bool = False


class LeaseView(_ControllerAnswer, frozen=True, kw_only=True):
    """Which controller acts. `holder` is empty when nobody is known to; `until`: when the lease ends unless renewed."""

    holder: str = ""
    until: int = 0


class CertificateView(_ControllerAnswer, frozen=True, kw_only=True):
    """The operator's word that this controller's key counts. `state`: valid, missing, expired or revoked."""

    state: str
    key: str
    expires: int = 0
    operator: str = ""
    epoch: int = 0


class NodeCounts(_ControllerAnswer, frozen=True, kw_only=True):
    """How many nodes. The states exclude each other and come to `nodes`; the other counts overlap.

    `settled`: has what it is assigned, and is well. `pending`: takes it up. `unwell`, `refused` (its status says that
    the desired document does not count), `waiting` (a plan waits for approval on the host), `unassigned`, `away`.
    """

    nodes: int = 0
    settled: int = 0
    pending: int = 0
    unwell: int = 0
    refused: int = 0
    waiting: int = 0
    unassigned: int = 0
    away: int = 0
    present: int = 0
    alarmed: int = 0


class AlarmView(_ControllerAnswer, frozen=True, kw_only=True):
    """What somebody has to look at. `node` is empty where it is about the fleet; `since`: when it was first seen."""

    code: str
    reason: str
    hint: str = ""
    node: str = ""
    since: int = 0


class FleetView(_ControllerAnswer, frozen=True, kw_only=True):
    """The fleet in one answer; `rollouts` are those that are not over."""

    fleet: str
    controller: str
    version: str
    leader: bool
    lease: LeaseView
    engine: EngineView
    certificate: CertificateView
    nodes: NodeCounts
    rollouts: tuple[RolloutView, ...]
    alarms: tuple[AlarmView, ...]
    operators: tuple[str, ...] = ()
    at: int = 0


# GET /api/fleet/nodes, /api/fleet/nodes/{name}


class NodeRow(_ControllerAnswer, frozen=True, kw_only=True):
    """One node in a list. `state` is one of the names in `NodeCounts`.

    `assigned` is the intent that it is to have (SHA-256, empty for none) under `generation`; `intent` what it says that
    it has. `seen`: when its last status came.
    """

    name: str
    labels: dict[str, str]
    state: str
    present: bool
    assigned: str = ""
    generation: int = 0
    intent: str = ""
    settled: bool = False
    refused: str = ""
    reason: str = ""
    seen: int = 0
    plugins: int = 0
    unhealthy: int = 0
    plans: int = 0


class NodesPage(_ControllerAnswer, frozen=True, kw_only=True):
    """Nodes by name. `next`: what `after` must be for those that follow, empty at the end."""

    nodes: tuple[NodeRow, ...]
    next: str = ""


class PluginView(_ControllerAnswer, frozen=True, kw_only=True):
    """What a node says of one plugin. `denials_per_minute`: between its last two statuses."""

    id: str
    version: str
    identity: str
    status: str
    state: str
    health: str
    restarts: int
    denied: int
    code: str = ""
    reason: str = ""
    denials_per_minute: float = 0.0


class NodeView(_ControllerAnswer, frozen=True, kw_only=True):
    """One node with all that is known of it.

    `epoch` is that of its assignment; `reported` and `reported_epoch` are of the one that it has taken up. `rollout`:
    the one that touches it now. `events`: number of its newest event here; `missed`: events that were never seen here.
    `enrolment`: the request with which it joined, JSON (`enrolment.read_request`): proof of its key under the
    operator's, who invited it; empty where there is none here. `enrolments`: all such requests by its name, which name
    the keys that it may connect with.
    """

    node: NodeRow
    key: str
    serial: int
    epoch: int = 0
    reported: int = 0
    reported_epoch: int = 0
    status_at: int = 0
    expires: int = 0
    rollout: str = ""
    plugins: tuple[PluginView, ...] = ()
    plans: tuple[str, ...] = ()
    events: int = 0
    head: str = ""
    missed: int = 0
    enrolment: str = ""
    enrolments: tuple[str, ...] = ()
    alarms: tuple[AlarmView, ...] = ()


# GET /api/fleet/events


class EventView(_ControllerAnswer, frozen=True, kw_only=True):
    """One event of a node. `id` is this controller's own number, growing; `number` the node's. `hash` is of the event,
    and the next one's `prev`. `seq`, `actor` and `decision`: of the event in the daemon's own record that it tells; 0
    for one of the agent's own.
    """

    id: int
    node: str
    number: int
    at: int
    action: str
    target: str
    code: str
    reason: str
    received: int
    hash: str
    prev: str
    seq: int = 0
    actor: str = ""
    decision: str = ""


class EventsPage(_ControllerAnswer, frozen=True, kw_only=True):
    """Events, newest last: without `after` the newest, else those that follow it. `next`: the `after` that leads on."""

    events: tuple[EventView, ...]
    next: int = 0


# POST /api/fleet/documents, GET /api/fleet/intents


class DocumentTaken(_ControllerAnswer, frozen=True, kw_only=True):
    """What became of a signed document. `kind`: intent, controller, node, revocations, users or enrolment; `new`:
    whether it was not here before.
    """

    kind: str
    sha256: str
    new: bool
    operator: str
    notes: tuple[str, ...] = ()


class WantedView(_ControllerAnswer, frozen=True, kw_only=True):
    """A plugin as an intent has it. `bundle`: SHA-256 of the file that would be assigned, empty when there is none."""

    id: str
    status: str
    identity: str = ""
    versions: str = ""
    publisher: str = ""
    accept: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    bundle: str = ""
    version: str = ""


class IntentView(_ControllerAnswer, frozen=True, kw_only=True):
    """An intent; `assigned`: how many nodes are to have it, `selected`: how many its selector means."""

    sha256: str
    generation: int
    labels: dict[str, str]
    nodes: tuple[str, ...]
    plugins: tuple[WantedView, ...]
    back_to: tuple[str, ...]
    expires: int
    operator: str
    revoked: bool
    selected: int
    assigned: int
    taken: int = 0


class IntentsPage(_ControllerAnswer, frozen=True, kw_only=True):
    """All intents, the highest generation first."""

    intents: tuple[IntentView, ...]


# PUT /api/fleet/bundles/{sha256}, GET /api/fleet/bundles


class BundleView(_ControllerAnswer, frozen=True, kw_only=True):
    """A bundle that the controller has, and keeps in the engine. `here`: whether its file is still here."""

    sha256: str
    id: str
    version: str
    identity: str
    publisher: str
    size: int
    new: bool = False
    here: bool = True


class BundlesPage(_ControllerAnswer, frozen=True, kw_only=True):
    """All bundles, by plugin and version."""

    bundles: tuple[BundleView, ...]


# POST /api/fleet/plan


class SourceWanted(_Request, frozen=True, kw_only=True):
    """Where else the bundle of a plugin is: the SHA-256 of its file, and https addresses of it."""

    id: str
    sha256: Sha256
    urls: Annotated[tuple[str, ...], Meta(max_length=4)] = ()


class PlanWanted(_Request, frozen=True, kw_only=True):
    """A dry run of an intent. `nodes`: these alone; absent: all that it selects."""

    intent: Sha256
    nodes: Annotated[tuple[str, ...], Meta(max_length=10_000)] | None = None
    sources: Annotated[tuple[SourceWanted, ...], Meta(max_length=500)] = ()


class PlannedChange(_ControllerAnswer, frozen=True, kw_only=True):
    """What one plugin of one node would become. `change`: none, install, upgrade, downgrade, replace, activate,
    disable, configure, or blocked with `reason`.

    `accept`: what the node is asked to consent to; `added`: those of it that its present intent does not name.
    """

    plugin: str
    change: str
    from_version: str = ""
    to_version: str = ""
    from_status: str = ""
    to_status: str = ""
    accept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    reason: str = ""


class NodePlan(_ControllerAnswer, frozen=True, kw_only=True):
    """What would change on one node. `refused`: why it would not take the intent up, empty when it would.

    `wave` from 0, as `roll` would have it now. `way_back`: whether it could go back to what it has by itself.
    """

    node: str
    wave: int
    present: bool
    refused: str = ""
    reason: str = ""
    way_back: bool = True
    changes: tuple[PlannedChange, ...] = ()


class PlanView(_ControllerAnswer, frozen=True, kw_only=True):
    """A dry run; `sizes` of its waves. `notes`: what is worth knowing before it is begun."""

    intent: str
    nodes: tuple[NodePlan, ...]
    sizes: tuple[int, ...]
    notes: tuple[str, ...] = ()


# POST /api/fleet/rollouts, GET /api/fleet/rollouts[/{name}], POST /api/fleet/rollouts/{name}/halt|resume|back


class PolicyView(_Request, frozen=True, kw_only=True):
    """When a wave's gate opens, as `rollout.GatePolicy`."""

    unwell_share: Annotated[float, Meta(ge=0, le=1)] = 0.02
    away_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    settle_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    patience_s: Annotated[float, Meta(ge=1, le=604_800)] = 900.0
    denials_per_minute: Annotated[float, Meta(ge=0, le=1e9)] = 60.0
    restarts: Annotated[int, Meta(ge=0, le=1_000_000)] = 2


class RolloutWanted(_Request, frozen=True, kw_only=True):
    """Give an intent to the nodes that it selects, in waves of `sizes` (the last again and again).

    `name`: its own, else one is made. `policy`: the settings' where it is absent.
    """

    intent: Sha256
    name: RolloutName | None = None
    policy: PolicyView | None = None
    sizes: Annotated[tuple[Annotated[int, Meta(ge=1, le=100_000)], ...], Meta(min_length=1, max_length=32)] | None = (
        None
    )
    sources: Annotated[tuple[SourceWanted, ...], Meta(max_length=500)] = ()


class WaveView(_ControllerAnswer, frozen=True, kw_only=True):
    """One wave; `given`: whether its nodes were given the release. The counts are of its nodes as they are now."""

    nodes: int
    given: bool
    pending: int = 0
    well: int = 0
    unwell: int = 0
    away: int = 0


class RolloutView(_ControllerAnswer, frozen=True, kw_only=True):
    """A rollout. `state`: running, halted, returning, returned or done. `wave` from 0: the one that is waited for.

    `before`: what its nodes had, by how many had it (empty key: nothing that they could go back to). `stuck`: nodes
    that were touched and have no way back, when it goes back.
    """

    name: str
    intent: str
    state: str
    reason: str
    policy: PolicyView
    waves: tuple[WaveView, ...]
    wave: int
    wave_began: int
    began: int
    changed: int
    before: dict[str, int]
    nodes: int
    touched: int
    unwell: tuple[str, ...] = ()
    away: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


class RolloutsPage(_ControllerAnswer, frozen=True, kw_only=True):
    """Rollouts, the newest first."""

    rollouts: tuple[RolloutView, ...]


class WithReason(_Request, frozen=True, kw_only=True):
    """Why an operator halts, resumes or takes back a rollout."""

    reason: Reason = ""


# POST /api/fleet/invoke (body: the envelope of an invocation)


class InvocationAnswer(_ControllerAnswer, frozen=True, kw_only=True):
    """What a node answered, under its signature (verified here); `envelope` is the answer as it came, JSON.

    `code` and `reason`: what kept it, empty when it was carried out.
    """

    node: str
    nonce: str
    code: str
    reason: str
    answer: dict[str, Any]
    envelope: str


# POST /api/fleet/backup


class BackupWanted(_Request, frozen=True, kw_only=True):
    """Write a verified copy of the controller's database. `name`: of the file in the settings' backup directory; the
    time makes one where it is absent.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")] | None = None


class BackupDone(_ControllerAnswer, frozen=True, kw_only=True):
    """Where the copy is on the controller's host, its size in bytes, and the SHA-256 of its file."""

    path: str
    size: int
    sha256: str


# GET /api/health: without a scope


class HealthView(_ControllerAnswer, frozen=True, kw_only=True):
    """`status`: ok or degraded."""

    status: str

"""The shapes of answers that are not in `wire`. Their docstrings are descriptions in openapi.json.

They are TypedDicts: mypy checks the handlers against them, and nothing is converted at run time.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from latticed import wire  # noqa: TC001 - msgspec reads the annotations


class Trouble(TypedDict):
    """One thing that keeps the daemon from being healthy."""

    code: str
    detail: str


class MissingStep(TypedDict):
    """Why this host does not provide a level or feature (`token`): the step that failed, and what may help."""

    token: str
    step: str
    fix: str


class SandboxReport(TypedDict):
    """The sandbox level and features that this host provides; `floor` is the least level that the settings require."""

    level: str
    features: list[str]
    floor: str
    missing: list[MissingStep]


class HealthReport(TypedDict):
    """Only `status` for callers without the scope `read`. `not_running` counts active plugins by why they do not run.

    `notes`: facts for the operator that are no problems.
    """

    status: Literal["ok", "degraded"]
    problems: NotRequired[list[Trouble]]
    not_running: NotRequired[dict[str, int]]
    notes: NotRequired[list[Trouble]]
    sandbox: NotRequired[SandboxReport]


class Reply(TypedDict):
    """What a plugin replied to an invocation."""

    ok: bool
    message: str
    result: Any
    error: str | None


class LogLine(TypedDict):
    """`stream` is stderr, log (of log.write) or daemon."""

    seq: int
    at: str
    stream: str
    text: str


class LogPage(TypedDict):
    """`next` is what `after` must be for the lines that follow."""

    lines: list[LogLine]
    next: int


class AuditHead(TypedDict):
    """The newest event of the chain; seq 0 and no hash before the first."""

    seq: int
    head: str | None


class Glance(TypedDict):
    """The state of the daemon; `plugins` counts by status, `runtime` by state, `not_running` as in `HealthReport`."""

    version: str
    state: Literal["ok", "degraded"]
    problems: list[Trouble]
    started_at: str
    uptime_s: int
    plugins: dict[str, int]
    rejected: int
    runtime: dict[str, int]
    not_running: dict[str, int]
    audit: AuditHead
    calls: AuditHead
    public_key: str


class TrustedPublisher(TypedDict):
    """A publisher with its keys (base64), the ids that it may claim, and the highest risk that its plugins may have."""

    publisher: str
    keys: list[str]
    ids: list[str]
    max_risk: str | None


class RevokedThings(TypedDict):
    """Public keys (base64), artifact digests (hex) and plugins (`id@version`, `id@*`)."""

    keys: list[str]
    digests: list[str]
    plugins: list[str]


class Trust(TypedDict):
    """The policy in force; `error` when the file could not be taken as it is."""

    ok: bool
    error: str | None
    publishers: list[TrustedPublisher]
    require_signature: bool
    allow_unsigned_host_risk: bool
    revoked: RevokedThings


class Stop(TypedDict):
    """An active plugin that would stop, and why."""

    id: str
    version: str
    code: str
    reason: str


class Foreseen(TypedDict):
    """The active plugins that would stop."""

    stops: list[Stop]


class Lifted(TypedDict):
    """The revocation that was lifted."""

    kind: str
    value: str
    lifted: Literal[True]


class Judged(TypedDict):
    """Whether a plugin is available, and if not, the code and the reason."""

    ok: bool
    code: str | None
    reason: str | None


class BriefRuntime(TypedDict):
    """`message` only of what is degraded or unhealthy; `last_error` as in the whole list."""

    state: str
    health: str
    message: NotRequired[str]
    last_error: NotRequired[wire.ErrorInfo]


class BriefCandidate(TypedDict):
    """What an upgrade would take."""

    identity: str
    version: NotRequired[str]


class PluginBrief(TypedDict):
    """What a table of all plugins has of each; the members mean what they mean in the whole list."""

    id: str
    name: str
    version: NotRequired[str]
    publisher: NotRequired[str]
    capabilities: list[str]
    granted: list[str]
    available: bool
    status: str
    builtin: bool
    runtime: BriefRuntime
    candidate: NotRequired[BriefCandidate]


class AcceptedView(TypedDict):
    """What was accepted of a plugin's manifest; limits and level that are left to the settings are absent or empty."""

    type: str
    protocol: str
    interpreter: str
    args: list[str]
    features: list[str]
    level: str
    limits: dict[str, int]
    prefixes: list[str]
    dependencies: list[str]
    schedules: list[str]


class UsualView(TypedDict):
    """What the settings give where it is left to them; a limit that is absent is none."""

    level: str
    limits: dict[str, int]


class GrantsView(TypedDict):
    """What a plugin declares, and what of it the operator granted and accepted; `withheld` is the rest, to be named,
    `withheld_hosts` the hosts of the rest. `declares_hosts`: whether no hosts but those of its manifest can be granted.
    `usual`: what counts for a level or limit of `accepted` that is left to the settings. `unrecorded`: true while the
    ledger has not taken the last decision: the next start could undo it.
    """

    id: str
    declared: list[str]
    granted: list[str]
    masked: list[str]
    hosts: list[str]
    permits: list[str]
    accepted: AcceptedView | None
    usual: UsualView
    withheld: list[str]
    withheld_hosts: list[str]
    declares_hosts: bool
    unrecorded: NotRequired[bool]


class CallCount(TypedDict):
    """Host calls since the daemon started."""

    made: int
    denied: int


class Refusal(TypedDict):
    """Why a decision would be refused now."""

    code: str
    detail: str
    hint: str


class Sign(TypedDict):
    """A failure recognised in a plugin's stderr.

    `missing_module` (`value` is its name), `cannot_fork` or `cannot_thread`.
    """

    sign: str
    value: str


class DeniedRecord(TypedDict):
    """A DNS record that its provider does not take, and is not tried again."""

    name: str
    code: str
    reason: str


class FailedService(TypedDict):
    """A service that has failed for good, or that may not run; it is not tried again by itself."""

    name: str
    code: str
    reason: str


class LastEnd(TypedDict):
    """How the plugin's last process ended; `ts` is the name of `at` until 0.1, kept for one version more."""

    code: str
    reason: str
    at: str
    ts: str


class Causes(TypedDict):
    """What keeps a plugin from its next step, or from what it tries.

    `refusal`: why an install or activation would be refused now, `upgrade`: the same of an upgrade to its candidate;
    `working`: calls among the last denials that were allowed since; `ended`: the failure before its last restart;
    `missing_secrets`: those that denied calls named and that nobody has set.
    """

    refusal: Refusal | None
    upgrade: Refusal | None
    denied_records: list[DeniedRecord]
    failed_services: list[FailedService]
    signs: list[Sign]
    working: list[str]
    ended: LastEnd | None
    missing_secrets: list[str]


class ScheduleView(TypedDict):
    """One accepted schedule. `when`: `every_s:60`, `daily:02:30` or `cron:…`.

    `state`: waiting, running or stopped (its plugin does not run). `outcome` of the last run, absent before the first:
    `ok`, `running`, `cut_off` (the daemon was killed meanwhile), or the code of its failure, with `reason`.
    `runs` and `failures` count since it was accepted.
    """

    name: str
    when: str
    action: str
    state: Literal["waiting", "running", "stopped"]
    next_at: NotRequired[str]
    last_at: NotRequired[str]
    ended_at: NotRequired[str]
    outcome: NotRequired[str]
    reason: NotRequired[str]
    runs: int
    failures: int


class KeptView(TypedDict):
    """A version that a rollback can return to; `bad`: why it was given up."""

    version: str | None
    identity: str
    kept_at: str
    bad: wire.BadView | None


class ResourcesView(TypedDict):
    """What the processes of a plugin use: `cpu_s` seconds of processor time since the daemon started, the rest of now.

    `tasks` are processes and threads. `pressure`: percent of the last ten seconds in which some of them waited, by
    `cpu`, `memory` and `io`; empty where the kernel does not tell.
    """

    cpu_s: float
    memory_bytes: int
    tasks: int
    pressure: dict[str, float]


class PluginReport(TypedDict):
    """One plugin with its verdict, grants, kept versions, schedules and last denials (newest first).

    `resources` is null for a plugin that had no process of its own since the daemon started. `identity`: of the
    version that was accepted, or verifies.
    """

    plugin: wire.PluginView
    identity: str
    verdict: Judged
    grants: GrantsView
    kept: list[KeptView]
    calls: CallCount
    resources: ResourcesView | None
    schedules: list[ScheduleView]
    denials: list[wire.AuditRow]
    causes: NotRequired[Causes]


class HistorySteps(TypedDict):
    """What a plugin did in steps of `step_s` seconds, oldest first; the last one ended at `until`, or goes on.

    A step that is null was not looked at. `cpu_s`: seconds of processor time that its processes used in it;
    `memory_bytes`: the most that was seen; `denied`: how many of the `calls` were. Numbers are exact to 0.1 %.
    """

    step_s: int
    until: str | None
    cpu_s: list[float | None]
    memory_bytes: list[int | None]
    restarts: list[int | None]
    calls: list[int | None]
    denied: list[int | None]


class HistoryReport(TypedDict):
    """What a plugin used and did lately: the last hour by minutes, the last day by quarters of an hour.

    `since`: nothing is known of before, as the daemon started then, or first looked at it; null while it never did.
    """

    id: str
    since: str | None
    hour: HistorySteps
    day: HistorySteps


class DataLeft(TypedDict):
    """How much is stored under an id, or was before it was purged; `services`: how many have kept something."""

    values: int
    files: int
    notifications: int
    services: int


class ConfigSecret(TypedDict):
    """A secret that a configuration refers to; `bound`: the plugin may have it used."""

    name: str
    bound: bool


class ConfigView(TypedDict):
    """`config` is `{}` when none is set; `schema` is null for a plugin that takes none.

    `fits` is false when the plugin could not start with it; `problem` says why.
    """

    id: str
    is_set: bool
    config: dict[str, Any]
    schema: dict[str, Any] | None
    bytes: int | None
    sha256: str | None
    updated_at: str | None
    fits: bool
    problem: str | None
    secrets: list[ConfigSecret]


class ConfigSet(TypedDict):
    """`state` and `message` are those of the running plugin, after the restart if there was one."""

    id: str
    dry_run: bool
    changed: bool
    restarted: bool
    state: str
    message: str
    bytes: int
    sha256: str
    secrets: list[ConfigSecret]


class Forgotten(TypedDict):
    """`forgotten` is false when only old data was purged, and the bundle is still in the plugin directory."""

    id: str
    forgotten: bool
    purged: bool
    data: DataLeft


class SignedHead(TypedDict):
    """A statement of the host key about the chain up to `seq`."""

    seq: int
    hash: str
    ts: str
    signature: str
    chain: NotRequired[Literal["calls"]]


class AuditPage(TypedDict):
    """`next` is the cursor of the following page, null on the last; a number where decisions alone were asked for.

    `older` is that of the page with older events, where the newest were asked for.
    """

    events: list[wire.AuditRow]
    next: int | str | None
    older: NotRequired[int | str | None]
    heads: NotRequired[list[SignedHead]]
    checkpoint: NotRequired[SignedHead | None]
    calls_checkpoint: NotRequired[SignedHead | None]


class ChainEnd(TypedDict):
    """The last event of the chain."""

    seq: int
    hash: str


class ChainReport(TypedDict):
    """What recomputing a chain found; `first_bad_seq` and `reason` only when it does not hold.

    `calls` is that of the host calls' chain; `chain` says which one is meant where that is not the decisions'.
    """

    ok: bool
    events: int
    heads: int
    signed_seq: int
    removed_seq: int
    head: ChainEnd
    first_bad_seq: NotRequired[int | None]
    reason: NotRequired[str]
    chain: NotRequired[Literal["calls"]]
    calls: NotRequired[ChainReport]


class KeyPage(TypedDict):
    """`next` is what `after` must be for the following page, null on the last."""

    keys: list[str]
    next: str | None


class ValueSet(TypedDict):
    """The value that was set, and its size in bytes."""

    bucket: str
    key: str
    bytes: int


class ValueDeleted(TypedDict):
    """The key that was deleted."""

    bucket: str
    key: str
    deleted: Literal[True]

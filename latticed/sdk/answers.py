"""What the host answers to each call, for type checkers; a plugin that runs does not import this module.

Each class is the JSON object of one answer, or one row of a list in it. Times are texts in RFC 3339, UTC. A field
that is `None` is null in JSON; one of a class with `total=False` may be left out. `ANSWERS` says which answer is whose.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Json = Any
"""Any JSON value."""
Severity = Literal["info", "warning", "error", "critical"]
MonitorKind = Literal["http", "tcp", "ping"]
TaskState = Literal["submitted", "approved", "running", "done", "failed", "interrupted", "cancelled", "expired"]
Interpreter = Literal["sh", "bash", "python3", "node"]
Restart = Literal["always", "on-failure", "never"]
ProgramNetwork = Literal["none", "own", "host"]
RouteTarget = Literal["template", "invoke", "service", "static"]
PlanKind = Literal["nft", "wireguard", "nginx", "proxy"]
StateKind = Literal["nft", "wireguard", "nginx", "proxy", "listeners", "interfaces"]
RecordType = Literal["A", "AAAA"]
DdnsProvider = Literal["cloudflare", "rfc2136"]


class Ok(TypedDict):
    """`ok`: whether it was done; what false means is said where a call is described."""

    ok: bool


class LastError(TypedDict):
    """Why something failed last: a stable code, a text, and when."""

    code: str
    message: str
    at: str


# kv


class KvGetAnswer(Ok, total=False):
    """`ok` is false, and nothing else there, when there is no value. `value` is null for what is no text, and left out
    for more than 64 KiB; `version` changes with each change of the value.
    """

    value: str | None
    value_base64: str
    version: int


class KvListAnswer(TypedDict):
    """A page of keys; `next` is the `after` of the following one, null on the last."""

    keys: list[str]
    next: str | None


class KvPutAnswer(Ok, total=False):
    """`ok` is false when `if_version` did not hold; `version`, which is answered to `if_version` alone, is the value's
    version now, 0 without one.
    """

    version: int


# audit


class AuditEvent(TypedDict):
    """An event of the audit chains (contracts §11); `decision` is allow, deny or -; `chain` is decisions or calls."""

    seq: int
    ts: str
    actor: str
    action: str
    target: str
    decision: str
    code: str
    reason: str
    detail: dict[str, Json]
    prev: str
    hash: str
    chain: str


class AuditQueryAnswer(TypedDict):
    """A page of events, oldest first; `next` is the `after` of the following one, null on the last."""

    events: list[AuditEvent]
    next: int | str | None


# http, mail, notify


class Redirected(TypedDict):
    """The request that was answered in the end, where redirects led to another one."""

    method: str
    url: str


class _HttpAnswer(TypedDict):
    status_code: int
    header: dict[str, str | list[str]]
    body_base64: str


class HttpDoAnswer(_HttpAnswer, total=False):
    """What the web server answered; a header has one value, or a list of them. `redirected` is there after redirects:
    where its method is GET, what was posted has not arrived.
    """

    redirected: Redirected


class MailSendAnswer(Ok):
    """The relay took the message; `recipients` says how many."""

    message_id: str
    recipients: int


class NotifySendAnswer(Ok):
    """`duplicate`: `id` is that of an earlier message with the same `dedupe`."""

    id: str
    duplicate: bool


# node


class OsFacts(TypedDict):
    """The distribution, as os-release(5) names it."""

    id: str | None
    version_id: str | None
    name: str | None
    pretty_name: str | None


class KernelFacts(TypedDict):
    """As uname(2)."""

    name: str
    release: str
    version: str


class CpuFacts(TypedDict):
    """How many processors, and what they are called."""

    count: int | None
    model: str | None


class MemoryFacts(TypedDict):
    """Sizes in bytes."""

    total_bytes: int | None
    swap_bytes: int | None


class DiskFacts(TypedDict):
    """A mounted local file system."""

    mount: str
    type: str
    total_bytes: int


class InterfaceFacts(TypedDict):
    """A network interface; `addresses` with their prefix length. `mac` is null without node:admin."""

    name: str
    addresses: list[str]
    mtu: int | None
    state: str | None
    mac: str | None


class HardwareFacts(TypedDict):
    """Serial numbers, and the machine id."""

    product_serial: str | None
    product_uuid: str | None
    board_serial: str | None
    machine_id: str | None


class NodeFactsAnswer(TypedDict):
    """What rarely changes; null for what cannot be read. `hardware` is null without node:admin."""

    hostname: str | None
    os: OsFacts
    kernel: KernelFacts
    machine: str
    cpus: CpuFacts
    memory: MemoryFacts
    boot_time: str | None
    uptime_s: float | None
    disks: list[DiskFacts]
    interfaces: list[InterfaceFacts]
    hardware: HardwareFacts | None
    labels: dict[str, str]


class MemoryMetrics(TypedDict):
    """Bytes."""

    total_bytes: int | None
    available_bytes: int | None
    free_bytes: int | None
    cached_bytes: int | None
    swap_total_bytes: int | None
    swap_free_bytes: int | None


class CpuMetrics(TypedDict):
    """Seconds since boot, of all processors together, spent in each state."""

    user: float
    nice: float
    system: float
    idle: float
    iowait: float
    irq: float
    softirq: float
    steal: float


class DiskMetrics(DiskFacts):
    """A mounted local file system; `available_bytes` are without what is reserved for root."""

    free_bytes: int
    available_bytes: int
    inodes: int
    inodes_free: int


class NetworkMetrics(TypedDict):
    """Counters of one interface since boot."""

    name: str
    received_bytes: int
    received_packets: int
    received_errors: int
    received_dropped: int
    sent_bytes: int
    sent_packets: int
    sent_errors: int
    sent_dropped: int


class NodeMetricsAnswer(TypedDict):
    """What changes; null for what cannot be read. `load`: of 1, 5 and 15 minutes."""

    uptime_s: float | None
    load: list[float] | None
    memory: MemoryMetrics
    cpu: CpuMetrics | None
    disks: list[DiskMetrics]
    network: list[NetworkMetrics]


class JournalLine(TypedDict):
    """A line of the journal; `trusted`: its writer is known from the kernel; `dropped`: messages that journald lost."""

    id: str
    at: str | None
    unit: str | None
    comm: str | None
    pid: int | None
    uid: int | None
    priority: int | None
    message: str
    trusted: bool
    dropped: int


class NodeJournalAnswer(TypedDict):
    """Entries, oldest first; `gap`: some after the cursor that was given may be gone."""

    entries: list[JournalLine]
    cursor: str
    gap: bool


class NodeLabelsAnswer(Ok):
    """All labels of the machine."""

    labels: dict[str, str]


# monitor


class MonitorResult(TypedDict):
    """One check; `outcome` is up, down, blocked, unsupported or error; `status` that of an HTTP answer."""

    number: int
    at: str
    outcome: str
    code: str
    reason: str
    took_ms: int
    status: int | None
    certificate_expires_at: str | None


class MonitorFacts(TypedDict):
    """A monitor; `state` is unknown, up or down, since `since`; `last` its newest result."""

    name: str
    owner: str
    kind: MonitorKind
    target: str
    interval_s: float
    timeout_s: float
    failures: int
    statuses: list[int]
    body: str
    certificate_days: int
    shared: bool
    state: str
    since: str
    skipped: int
    last: MonitorResult | None


class MonitorListAnswer(TypedDict):
    """A page of monitors; `next` is the `after` of the following one, null on the last."""

    monitors: list[MonitorFacts]
    next: str | None


class MonitorResultsAnswer(TypedDict):
    """The newest results, oldest first."""

    state: str
    results: list[MonitorResult]


class MonitorPutAnswer(Ok):
    """`target` in its normal form."""

    target: str


# static


class StaticGetAnswer(Ok, total=False):
    """`ok` is false, and nothing else there, when there is no file. `content` is null for what is no text; `bytes` is
    the size of the whole file.
    """

    content: str | None
    content_base64: str
    bytes: int
    content_type: str | None
    etag: str
    modified_at: str


class _PublishedFile(TypedDict):
    path: str
    bytes: int
    content_type: str | None
    modified_at: str


class PublishedFile(_PublishedFile, total=False):
    """A published file; `sha256` is there when `digests` was asked for. `content_type` null: not served now."""

    sha256: str


class StaticListAnswer(TypedDict):
    """A page of files; `next` is the `after` of the following one, null on the last."""

    files: list[PublishedFile]
    next: str | None
    publisher: str


class StaticPutAnswer(Ok):
    """The file as it was stored."""

    bytes: int
    content_type: str
    etag: str


# task


class TaskSubmitAnswer(Ok):
    """`sha256` is that of the script, which an operator approves."""

    id: str
    sha256: str
    state: TaskState


class TaskCancelAnswer(Ok):
    """`ok` is false when the task has ended otherwise."""

    state: TaskState


class TaskFacts(TypedDict):
    """A task, without its script and output; times are null until they come."""

    seq: int
    id: str
    plugin: str
    name: str
    interpreter: Interpreter
    sha256: str
    state: TaskState
    code: str
    reason: str
    exit_code: int | None
    signal: int | None
    created_at: str
    approved_at: str | None
    started_at: str | None
    ended_at: str | None


class TaskGetAnswer(TaskFacts):
    """A task with its script and the end of its output; `truncated`: the output was longer."""

    script: str
    targets: list[str]
    timeout_s: int
    approved_by: str
    run: str
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool


class TaskListAnswer(TypedDict):
    """A page of tasks, newest first; `next` is the `after` of the following one, null on the last."""

    tasks: list[TaskFacts]
    next: int | None


# service


class ServicePutAnswer(Ok):
    """`state`: starting, running, waiting, ended, failed or stopped."""

    name: str
    state: str


class KeptQuota(TypedDict):
    """What a program may keep: bytes, and files and directories together."""

    bytes: int
    files: int


class KeptUse(KeptQuota):
    """A quota, and what the last measurement found."""

    used_bytes: int | None
    used_files: int | None


class ProgramOutput(TypedDict):
    """The end of what it wrote since its last start."""

    stdout: str
    stderr: str


class _Service(TypedDict):
    name: str
    program: str
    restart: Restart
    network: ProgramNetwork
    data: KeptUse | None
    hosts: list[str]
    state: str
    pid: int | None
    sandbox: str | None
    restarts: int
    started_at: str | None
    next_retry_at: str | None
    last_error: LastError | None


class ServiceFacts(_Service, total=False):
    """A program; `output` is there when one was asked for by its name."""

    output: ProgramOutput


class ServiceStatusAnswer(TypedDict):
    """Programs, by name."""

    services: list[ServiceFacts]


class CopiedFile(TypedDict):
    """A file of a copy."""

    name: str
    bytes: int
    sha256: str


class SavedCopy(TypedDict):
    """A copy of what a program keeps."""

    id: str
    at: str
    files: list[CopiedFile]


class ServiceSaveAnswer(SavedCopy):
    """`new` is false when the newest copy, which this is, has the same files."""

    ok: bool
    new: bool


class ServiceSavedAnswer(TypedDict):
    """Copies, newest first."""

    saved: list[SavedCopy]


class ServiceRevertAnswer(Ok):
    """The copy that it has now."""

    id: str


# tunnel


class _TunnelRule(TypedDict):
    service: str


class TunnelRule(_TunnelRule, total=False):
    """What comes for `hostname` and below `path` goes to `service`; left out or empty: any."""

    hostname: str
    path: str


class TunnelPutAnswer(Ok):
    """`state` as in the status; `trying`: a change is tried beside what runs."""

    name: str
    state: str
    trying: bool


class _TunnelFacts(TypedDict):
    name: str
    tunnel: str
    trying: bool
    state: str
    pid: int | None
    sandbox: str | None
    restarts: int
    started_at: str | None
    next_retry_at: str | None
    last_error: LastError | None
    version: str | None


class TunnelRow(_TunnelFacts, total=False):
    """A tunnel; `ingress` and `output` are there when one was asked for by its name."""

    ingress: list[TunnelRule]
    output: ProgramOutput


class TunnelStatusAnswer(TypedDict):
    """Tunnels, by name."""

    tunnels: list[TunnelRow]


# route, network, ddns


class RoutePutAnswer(Ok):
    """`url` is null while nothing listens, and `message` says why."""

    path: str
    url: str | None
    message: str


class ListenerFacts(TypedDict):
    """Who listens."""

    protocol: str
    address: str
    port: int
    uid: int


class PlanTarget(TypedDict):
    """What the root helper holds of a kind: plans by their sha256, or empty."""

    kind: str
    approved: str
    confirmed: str
    unconfirmed: str
    deadline_s: float
    drifted: bool | None
    problem: str


class _NetworkState(TypedDict):
    kind: StateKind


class NetworkStateAnswer(_NetworkState, total=False):
    """What is live of a kind. `listeners` and `complete`, `interfaces`: of those kinds, and of nginx; `live` (of a form
    of its own for each kind) and `target`: of nft, wireguard, proxy and nginx.
    """

    listeners: list[ListenerFacts]
    complete: bool
    interfaces: list[InterfaceFacts]
    live: Json
    target: PlanTarget | None


class _Plan(TypedDict):
    number: int
    sha256: str
    kind: PlanKind
    state: str
    code: str
    reason: str
    created_at: str
    updated_at: str


class PlanFacts(_Plan, total=False):
    """A plan; `code` and `reason` say what the root helper had against it; `intent` is there when one was asked for."""

    intent: Json


class NetworkPlanAnswer(_Plan):
    """The plan as it is kept."""

    ok: bool


class NetworkPlansAnswer(TypedDict):
    """A page of plans, oldest first; `next` is the `after` of the following one, null on the last."""

    plans: list[PlanFacts]
    next: int | None


class NetworkApplyAnswer(Ok):
    """`state` is applying."""

    sha256: str
    state: str


class DdnsPutAnswer(Ok):
    """`state`: pending, published, retrying, denied or no_address."""

    name: str
    type: RecordType
    state: str


class DdnsRecord(TypedDict):
    """A DNS record; `address` is what is wanted, `published` what the provider has."""

    name: str
    type: RecordType
    provider: DdnsProvider
    zone: str | None
    server: str | None
    ttl: int
    interface: str | None
    state: str
    address: str | None
    published: str | None
    failures: int
    last_success: str | None
    last_change: str | None
    last_error: LastError | None
    next_try: str | None


class DdnsStatusAnswer(TypedDict):
    """Records, by name and type."""

    records: list[DdnsRecord]


ANSWERS: dict[str, Any] = {
    "kv.get": KvGetAnswer,
    "kv.list": KvListAnswer,
    "kv.put": KvPutAnswer,
    "kv.delete": Ok,
    "log.write": Ok,
    "audit.query": AuditQueryAnswer,
    "http.do": HttpDoAnswer,
    "mail.send": MailSendAnswer,
    "notify.send": NotifySendAnswer,
    "node.facts": NodeFactsAnswer,
    "node.metrics": NodeMetricsAnswer,
    "node.journal": NodeJournalAnswer,
    "node.set_labels": NodeLabelsAnswer,
    "monitor.list": MonitorListAnswer,
    "monitor.results": MonitorResultsAnswer,
    "monitor.put": MonitorPutAnswer,
    "monitor.delete": Ok,
    "static.get": StaticGetAnswer,
    "static.list": StaticListAnswer,
    "static.put": StaticPutAnswer,
    "static.delete": Ok,
    "task.list": TaskListAnswer,
    "task.get": TaskGetAnswer,
    "task.submit": TaskSubmitAnswer,
    "task.cancel": TaskCancelAnswer,
    "service.put": ServicePutAnswer,
    "service.delete": Ok,
    "service.status": ServiceStatusAnswer,
    "service.save": ServiceSaveAnswer,
    "service.saved": ServiceSavedAnswer,
    "service.revert": ServiceRevertAnswer,
    "tunnel.put": TunnelPutAnswer,
    "tunnel.delete": Ok,
    "tunnel.status": TunnelStatusAnswer,
    "route.put": RoutePutAnswer,
    "route.delete": Ok,
    "network.state": NetworkStateAnswer,
    "network.plan": NetworkPlanAnswer,
    "network.plans": NetworkPlansAnswer,
    "network.apply": NetworkApplyAnswer,
    "ddns.put": DdnsPutAnswer,
    "ddns.delete": Ok,
    "ddns.status": DdnsStatusAnswer,
}
"""The answer of each host call, by its name."""

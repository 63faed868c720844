"""All settings with their defaults and bounds; `load` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - the loader resolves these annotations
from typing import Final

from latticed.settings import endpoints, relays
from latticed.settings.market import MarketSettings
from latticed.settings.programs import ApplySettings, ServiceSettings, TaskSettings, TunnelSettings
from latticed.settings.rules import setting as _setting

SCOPES: Final = ("read", "operate", "host", "trust")
"""What a caller of the control API can be allowed (contracts §7)."""
LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The daemon's own log."""

    level: str = _setting("info", one_of=LEVELS)
    """Entries of this level and above are written."""
    format: str = _setting("auto", one_of=("auto", "journal", "json", "text"))
    """Form of the lines; auto: for the journal under systemd, text on a terminal, else json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Bounds on what is read from a plugin directory (contracts §1)."""

    manifest_bytes: int = _setting(64 << 10, low=1 << 10, high=1 << 20)
    """Largest manifest.json."""
    artifact_bytes: int = _setting(64 << 20, low=1 << 10, high=1 << 30)
    """Largest artifact."""
    bundles: int = _setting(20_000, low=1, high=200_000)
    """Most bundles in one plugin directory; installed ones count first, the rest is shared by owner."""
    read_deadline_s: float = _setting(30.0, low=0.1, high=600)
    """Longest time to read one bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """When a changed bundle is verified (architecture, decision 5)."""

    quiet_s: float = _setting(0.15, low=0.0, high=60)
    """A changed bundle is verified when nothing has changed in it for so long."""
    max_wait_s: float = _setting(2.0, low=0.0, high=600)
    """A changed bundle is verified at the latest this long after its first change."""
    rescan_s: float = _setting(60.0, low=0.5, high=86_400)
    """The whole plugin directory is scanned again this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Which runner takes a plugin of each type; `noop` arms it without ever executing its artifact."""

    system: str = _setting("process", one_of=("process", "noop"))
    """How plugins of the type system are run; noop starts them without executing their artifact."""
    wasm: str = _setting("wasm", one_of=("wasm", "noop"))
    """How plugins of the type wasm are run; noop starts them without executing their artifact."""
    worker: str = _setting("worker", one_of=("worker", "noop"))
    """How plugins of the type worker are run; noop starts them without serving their template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionSettings:
    """Start, stop, backoff and breaker of plugins."""

    start_deadline_s: float = _setting(10.0, low=0.1, high=300)
    """Longest start of a plugin."""
    stop_grace_s: float = _setting(5.0, low=0.1, high=300)
    """Longest graceful stop of a plugin, then SIGKILL."""
    drain_s: float = _setting(10.0, low=0.0, high=600)
    """How long requests, invocations and runs of schedules under way may go on when the daemon stops."""
    backoff_base_s: float = _setting(1.0, low=0.0, high=600)
    """Pause after the first failure, doubled by each next one."""
    backoff_ceiling_s: float = _setting(60.0, low=0.1, high=86_400)
    """Longest pause between two starts; a quarter of it after failures that HTTP visitors may have caused."""
    healthy_after_s: float = _setting(60.0, low=0.1, high=86_400)
    """After running for so long, earlier failures are forgotten."""
    breaker_failures: int = _setting(6, low=1, high=1_000)
    """Failures in a row that open the breaker; those that visitors may have caused do not count."""
    ignore_critical: bool = _setting(default=False)
    """Whether critical plugins that are not healthy leave the daemon's health at 200."""
    kept_artifact_bytes: int = _setting(256 << 20, low=0, high=1 << 40)
    """Memory that holds artifacts of running plugins for their next start; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSettings:
    """How a new version of a plugin is watched."""

    gate_s: float = _setting(60.0, low=0.0, high=86_400)
    """How long a new version is watched before it stays; 0: it stays at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """How children are confined. If the daemon may change uids, each child gets one of its own."""

    floor: str = _setting("isolated", one_of=("filtered", "isolated", "dedicated"))
    """The least sandbox level of a plugin whose manifest names none."""
    interpreters: dict[str, str] = _setting({})
    """Interpreters that the first line of a script may name (python3, sh, node), and the path of each here."""
    uid_first: int = _setting(1_900_000_000, low=1_000, high=2_000_000_000)
    """First uid of children, where the daemon may change uids."""
    uids: int = _setting(65_536, low=16, high=1_000_000)
    """How many uids there are for children, from `uid_first` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginLimitSettings:
    """Limits of one plugin: those where its manifest names none, and the most that a manifest gets (`max_*`)."""

    memory_mib: int = _setting(256, low=8, high=1 << 20)
    """Memory of one process where a manifest is silent."""
    max_memory_mib: int = _setting(2_048, low=8, high=1 << 20)
    """The most memory that a manifest gets."""
    cpu_percent: int = _setting(0, low=0, high=100_000)
    """Percent of one core where a manifest is silent; 0: no limit."""
    max_cpu_percent: int = _setting(400, low=1, high=100_000)
    """The highest limit of processor time that a manifest gets."""
    processes: int = _setting(32, low=1, high=4_096)
    """Threads and processes together, where a manifest is silent."""
    max_processes: int = _setting(256, low=1, high=4_096)
    """The most threads and processes that a manifest gets."""
    open_files: int = _setting(64, low=16, high=4_096)
    """Open descriptors of one process, where a manifest is silent."""
    max_open_files: int = _setting(1_024, low=16, high=4_096)
    """The most open descriptors that a manifest gets."""
    scratch_mib: int = _setting(16, low=1, high=1 << 16)
    """Size of /scratch, the plugin's directory for temporary files."""
    scratch_files: int = _setting(1_024, low=16, high=1_000_000)
    """Most files in /scratch."""
    invoke_timeout_s: int = _setting(10, low=1, high=30)
    """Longest invocation where a manifest is silent."""
    max_invoke_timeout_s: int = _setting(30, low=1, high=600)
    """The longest invocation that a manifest gets."""
    invocations: int = _setting(8, low=1, high=256)
    """Invocations of one plugin at once."""
    stdout_kib: int = _setting(1_024, low=1, high=8_192)
    """Largest line on stdout where a manifest is silent (stdio-json-v1); all of them together have no limit."""
    max_stdout_kib: int = _setting(8_192, low=1, high=8_192)
    """The largest line on stdout that a manifest gets."""
    stderr_kib: int = _setting(1_024, low=1, high=1_024)
    """How much of the stderr of one invocation is kept."""
    host_calls: int = _setting(64, low=1, high=512)
    """Most host calls of one invocation (stdio-json-v1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCallSettings:
    """Limits on the host calls of one plugin; the `kv_*` are of one bucket."""

    per_second: int = _setting(1_000, low=1, high=1_000_000)
    """Most calls of one plugin in a second, sustained."""
    burst: int = _setting(2_000, low=1, high=1_000_000)
    """Most calls of one plugin at once, before per_second bounds them."""
    request_bytes: int = _setting(512 << 10, low=1 << 10, high=8 << 20)
    """Largest parameters of one call, as JSON."""
    deadline_s: float = _setting(10.0, low=0.1, high=300)
    """Longest call."""
    kv_value_bytes: int = _setting(64 << 10, low=1, high=1 << 20)
    """Largest value in a bucket."""
    kv_keys: int = _setting(10_000, low=1, high=10_000_000)
    """Most keys in one bucket."""
    kv_total_bytes: int = _setting(16 << 20, low=1, high=1 << 30)
    """Most bytes in one bucket, keys and values."""
    log_per_second: int = _setting(50, low=1, high=100_000)
    """Most lines in a second that one plugin may log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where plugins' routes and services are served."""

    listen: str = _setting("127.0.0.1:8787", fault=endpoints.loopback_fault)
    """Address and port where plugins' routes are served, on loopback only; port 0: any that is free."""
    hosts: tuple[str, ...] = _setting((), fault=endpoints.hosts_fault)
    """Host names that are answered there; none: the address and localhost. A name without a port stands for any
    port.
    """
    service_listen: str = _setting("", fault=endpoints.optional_loopback_fault)
    """Address and port where plugins' services are proxied, on loopback only; empty: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAuditSettings:
    """How much of the host calls' chain is kept; bounded by default, because plugins can fill it."""

    keep_days: int = _setting(0, low=0, high=36_500)
    """Days that host calls are kept in the audit record; 0: all."""
    max_bytes: int = _setting(2 << 30, low=0, high=1 << 50)
    """Bytes of host calls that are kept, counted as in an export; 0: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """How much of the decisions is kept (contracts §11)."""

    keep_days: int = _setting(0, low=0, high=36_500)
    """Days that decisions are kept in the audit record; 0: all."""
    max_bytes: int = _setting(0, low=0, high=1 << 50)
    """Bytes of decisions that are kept, counted as in an export; 0: all."""
    calls: CallAuditSettings = _setting(CallAuditSettings())


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may use the control socket (contracts §7); names or numeric ids map to scopes, resolved at load."""

    socket_group: str = _setting("")
    """Group of the control socket, empty: the daemon's own."""
    socket_owner: str = _setting("latticed")
    """User whose daemon latticectl talks to, besides root's and the caller's own."""
    own_user: bool = _setting(default=True)
    """Whether the daemon's own user has all scopes on the control socket."""
    users: dict[str, tuple[str, ...]] = _setting({}, one_of=SCOPES)
    """Scopes by user name or uid."""
    groups: dict[str, tuple[str, ...]] = _setting({}, one_of=SCOPES)
    """Scopes by group name or gid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSettings:
    """Where the key of secrets is, unless systemd passes it as a credential."""

    key_file: str = _setting("")
    """File with the key of secrets; empty: `secrets.key` beside the settings file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings:
    """Files that plugins publish."""

    plugin_files: int = _setting(1_000, low=1, high=100_000)
    """Most files that one plugin publishes."""
    file_bytes: int = _setting(1 << 20, low=1, high=64 << 20)
    """Largest file that a plugin publishes."""
    plugin_bytes: int = _setting(16 << 20, low=1, high=1 << 34)
    """Most bytes that one plugin publishes."""
    html: bool = _setting(default=False)
    """Whether plugins may publish HTML, which can carry scripts."""
    svg: bool = _setting(default=False)
    """Whether plugins may publish SVG, which can carry scripts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What node.journal may show, and how the journal reader is reached."""

    journal_units: tuple[str, ...] = _setting(())
    """Units whose journal `node.journal` may show."""
    journal_socket: str = _setting("")
    """Socket of `latticed-journal`, empty: `journal.sock` in `runtime_dir`."""
    journal_user: str = _setting("")
    """Whom `latticed-journal` runs as, if neither root, the daemon's user nor `latticed-journal`."""
    auth_log: str = _setting("/var/log/auth.log")
    """Read where there is no journald."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """The queue of notifications: of one plugin (`plugin_*`) and of all (`total_*`)."""

    plugin_items: int = _setting(1_000, low=1, high=1_000_000)
    """Notifications of one plugin that may wait."""
    plugin_bytes: int = _setting(4 << 20, low=1 << 10, high=1 << 30)
    """Bytes of notifications of one plugin that may wait."""
    total_items: int = _setting(10_000, low=1, high=1_000_000)
    """Notifications of all plugins that may wait."""
    total_bytes: int = _setting(32 << 20, low=1 << 10, high=1 << 30)
    """Bytes of notifications of all plugins that may wait."""
    backoff_base_s: float = _setting(5.0, low=0.1, high=3_600)
    """Pause after the first failed delivery, doubled by each next one."""
    backoff_ceiling_s: float = _setting(900.0, low=0.1, high=21_600)
    """Longest pause between two deliveries."""
    give_up_days: int = _setting(3, low=1, high=365)
    """Days of uptime after which a notification that nobody took fails."""
    keep_days: int = _setting(7, low=0, high=365)
    """Days that delivered and failed notifications are kept."""
    keep_items: int = _setting(10_000, low=0, high=1_000_000)
    """Most delivered and failed notifications that are kept; of more, the sender with the most loses its oldest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """Targets that plugins have checked: of one plugin (`plugin_*`) and of all (`total_*`)."""

    plugin_monitors: int = _setting(100, low=1, high=10_000)
    """Most monitors of one plugin."""
    total_monitors: int = _setting(1_000, low=1, high=100_000)
    """Most monitors of all plugins."""
    min_interval_s: float = _setting(10.0, low=0.5, high=3_600)
    """Shortest time between two checks of a monitor."""
    plugin_checks: int = _setting(16, low=2, high=256)
    """Most checks of one plugin at once."""
    total_checks: int = _setting(64, low=2, high=1_024)
    """Most checks at once."""
    results: int = _setting(500, low=1, high=500)
    """Results that are kept of each monitor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DdnsSettings:
    """DNS records kept for plugins."""

    plugin_records: int = _setting(16, low=1, high=1_000)
    """Most DNS records of one plugin."""
    total_records: int = _setting(200, low=1, high=10_000)
    """Most DNS records of all plugins."""
    poll_s: float = _setting(30.0, low=1, high=3_600)
    """How often the addresses of interfaces are read."""
    settle_s: float = _setting(30.0, low=0, high=3_600)
    """Another address of an interface counts after so long."""
    min_change_s: float = _setting(60.0, low=1, high=3_600)
    """Shortest time between two changes of a record, doubled by each in a hurry."""
    verify_s: float = _setting(21_600.0, low=1, high=86_400)
    """A record is compared with the provider's this often."""
    backoff_base_s: float = _setting(30.0, low=1, high=3_600)
    """Pause after the first failure, doubled by each next one."""
    backoff_ceiling_s: float = _setting(3_600.0, low=1, high=21_600)
    """Longest pause between two tries."""
    private: bool = _setting(default=False)
    """Whether addresses of private networks may be published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """The relay that mail.send goes to."""

    relay: str = _setting("", fault=relays.relay_fault)
    """Where mail goes: `smtps://HOST:PORT` or `smtp://HOST:PORT`, a private one with its address,
    `smtp://mail.lan:25=10.0.0.7`; empty: no mail.
    """
    starttls: bool = _setting(default=True)
    """Whether an `smtp://` relay must offer STARTTLS."""
    username: str = _setting("")
    """Whom to log in as, empty: nobody."""
    password: str = _setting("")
    """The password as `${secret:NAME}`, a secret that is bound to `latticed.mail`; never the value itself."""
    sender: str = _setting("")
    """The address that mail comes from."""
    allow: tuple[str, ...] = _setting((), fault=relays.allow_fault)
    """Whom plugins may write to (`ops@example.org`, `@example.org`); none: anybody."""
    recipients: int = _setting(10, low=1, high=100)
    """Most recipients of one message."""
    body_bytes: int = _setting(128 << 10, low=1 << 10, high=8 << 20)
    """Largest body of one message."""
    per_hour: int = _setting(30, low=1, high=100_000)
    """Messages that one plugin may send in an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective settings; `origins` maps each dotted key to where its value came from.

    `renamed`: keys of the file that have another name now (`latticed.settings.renamed`).
    """

    plugin_dir: Path
    """Where bundles are dropped: `/var/lib/latticed-plugins` for root, beside the state under systemd, else
    `$XDG_DATA_HOME/latticed/plugins`.
    """
    state_dir: Path
    """Records, audit record, stored bundles and host key (mode 0700): `/var/lib/latticed` for root, else
    `$XDG_STATE_HOME/latticed`.
    """
    runtime_dir: Path
    """Holds `control.sock`: `/run/latticed` for root, else `$XDG_RUNTIME_DIR/latticed`."""
    trust: Path
    """The trust policy: `trust.json` beside the settings file."""
    log: LogSettings = LogSettings()
    limits: LimitSettings = LimitSettings()
    watch: WatchSettings = WatchSettings()
    runners: RunnerSettings = RunnerSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    upgrade: UpgradeSettings = UpgradeSettings()
    sandbox: SandboxSettings = SandboxSettings()
    plugin_limits: PluginLimitSettings = PluginLimitSettings()
    host_calls: HostCallSettings = HostCallSettings()
    http: HttpSettings = HttpSettings()
    audit: AuditSettings = AuditSettings()
    access: AccessSettings = AccessSettings()
    secrets: SecretSettings = SecretSettings()
    static: StaticSettings = StaticSettings()
    node: NodeSettings = NodeSettings()
    notify: NotifySettings = NotifySettings()
    monitor: MonitorSettings = MonitorSettings()
    ddns: DdnsSettings = DdnsSettings()
    mail: MailSettings = MailSettings()
    task: TaskSettings = TaskSettings()
    service: ServiceSettings = ServiceSettings()
    tunnel: TunnelSettings = TunnelSettings()
    apply: ApplySettings = ApplySettings()
    market: MarketSettings = MarketSettings()
    config_file: Path | None = None
    origins: dict[str, str] = field(default_factory=dict)
    renamed: tuple[str, ...] = ()
    file_seen: tuple[int, ...] | None = field(default=None, compare=False)
    """`reading.fingerprint` of the settings file, taken before it was read."""

    @property
    def file_had_some(self) -> bool:
        """Whether there was a settings file, and not an empty one."""
        return self.file_seen is not None and self.file_seen[2] > 0

    @property
    def control_socket(self) -> Path:
        """Where the control API listens."""
        return self.runtime_dir / "control.sock"

    @property
    def trust_file(self) -> Path:
        """The file of the trust policy; the same as `trust`."""
        return self.trust

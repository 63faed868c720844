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
    """The daemon's own log: the least level that is written, and the form of its lines."""

    level: str = _setting("info", one_of=LEVELS)
    format: str = _setting("auto", one_of=("auto", "journal", "json", "text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Bounds on what is read from a plugin directory (contracts §1).

    `bundles`: most in one directory. `read_deadline_s`: longest time for reading one of them.
    """

    manifest_bytes: int = _setting(64 << 10, low=1 << 10, high=1 << 20)
    artifact_bytes: int = _setting(64 << 20, low=1 << 10, high=1 << 30)
    bundles: int = _setting(20_000, low=1, high=200_000)
    read_deadline_s: float = _setting(30.0, low=0.1, high=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """When a changed bundle is verified (architecture, decision 5).

    After `quiet_s` without a change, at the latest `max_wait_s` after the first. `rescan_s`: how often all are looked
    at.
    """

    quiet_s: float = _setting(0.15, low=0.0, high=60)
    max_wait_s: float = _setting(2.0, low=0.0, high=600)
    rescan_s: float = _setting(60.0, low=0.5, high=86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Which runner takes a plugin of each type; `noop` arms it without ever executing its artifact."""

    system: str = _setting("process", one_of=("process", "noop"))
    wasm: str = _setting("wasm", one_of=("wasm", "noop"))
    worker: str = _setting("worker", one_of=("worker", "noop"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionSettings:
    """Start, stop, backoff and breaker of plugins.

    `stop_grace_s`: how long a plugin may take to stop before it is killed; `drain_s`: how long requests under way may
    go on once the daemon stops. The pause after a failure is `backoff_base_s`, doubled by each next one up to
    `backoff_ceiling_s`; after `healthy_after_s` without one it begins anew. `breaker_failures` in a row open the
    breaker. `ignore_critical`: critical plugins do not turn health 503. `kept_artifact_bytes`: how much memory holds
    artifacts of running plugins for their next start.
    """

    start_deadline_s: float = _setting(10.0, low=0.1, high=300)
    stop_grace_s: float = _setting(5.0, low=0.1, high=300)
    drain_s: float = _setting(10.0, low=0.0, high=600)
    backoff_base_s: float = _setting(1.0, low=0.0, high=600)
    backoff_ceiling_s: float = _setting(60.0, low=0.1, high=86_400)
    healthy_after_s: float = _setting(60.0, low=0.1, high=86_400)
    breaker_failures: int = _setting(6, low=1, high=1_000)
    ignore_critical: bool = _setting(default=False)
    kept_artifact_bytes: int = _setting(256 << 20, low=0, high=1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSettings:
    """`gate_s`: how long a new version is watched before it stays; 0: it stays at once."""

    gate_s: float = _setting(60.0, low=0.0, high=86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """How children are confined. `interpreters`: names allowed in a script's first line, and their paths here.

    `floor`: the least level of a plugin whose manifest names none. If the daemon may change uids, each child gets one
    of its own: `uids` of them, from `uid_first` on.
    """

    floor: str = _setting("isolated", one_of=("filtered", "isolated", "dedicated"))
    interpreters: dict[str, str] = _setting({})
    uid_first: int = _setting(1_900_000_000, low=1_000, high=2_000_000_000)
    uids: int = _setting(65_536, low=16, high=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginLimitSettings:
    """Limits of one plugin: the default where its manifest names none, and the most that a manifest can get (`max_*`).

    `host_calls` and `stderr_kib` are per invocation of stdio-json-v1; 0 percent of a core means no limit.
    """

    memory_mib: int = _setting(256, low=8, high=1 << 20)
    max_memory_mib: int = _setting(2_048, low=8, high=1 << 20)
    cpu_percent: int = _setting(0, low=0, high=100_000)
    max_cpu_percent: int = _setting(400, low=1, high=100_000)
    processes: int = _setting(32, low=1, high=4_096)
    max_processes: int = _setting(256, low=1, high=4_096)
    open_files: int = _setting(64, low=16, high=4_096)
    max_open_files: int = _setting(1_024, low=16, high=4_096)
    scratch_mib: int = _setting(16, low=1, high=1 << 16)
    scratch_files: int = _setting(1_024, low=16, high=1_000_000)
    invoke_timeout_s: int = _setting(10, low=1, high=30)
    max_invoke_timeout_s: int = _setting(30, low=1, high=600)
    invocations: int = _setting(8, low=1, high=256)
    stdout_kib: int = _setting(1_024, low=1, high=8_192)
    max_stdout_kib: int = _setting(8_192, low=1, high=8_192)
    stderr_kib: int = _setting(1_024, low=1, high=1_024)
    host_calls: int = _setting(64, low=1, high=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCallSettings:
    """Limits on the host calls of one plugin.

    `per_second` sustained, `burst` at once; `request_bytes`: parameters of one call; `deadline_s`: longest call. The
    `kv_*` are of one bucket, `log_per_second` of log.write.
    """

    per_second: int = _setting(1_000, low=1, high=1_000_000)
    burst: int = _setting(2_000, low=1, high=1_000_000)
    request_bytes: int = _setting(512 << 10, low=1 << 10, high=8 << 20)
    deadline_s: float = _setting(10.0, low=0.1, high=300)
    kv_value_bytes: int = _setting(64 << 10, low=1, high=1 << 20)
    kv_keys: int = _setting(10_000, low=1, high=10_000_000)
    kv_total_bytes: int = _setting(16 << 20, low=1, high=1 << 30)
    log_per_second: int = _setting(50, low=1, high=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where plugins' routes are served, and for which Host names (none named: the address and localhost).

    A name without a port stands for any port. `service_listen`: where services are proxied; empty: they are not.
    """

    listen: str = _setting("127.0.0.1:8787", fault=endpoints.loopback_fault)
    hosts: tuple[str, ...] = _setting((), fault=endpoints.hosts_fault)
    service_listen: str = _setting("", fault=endpoints.optional_loopback_fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAuditSettings:
    """How much of the host calls' chain is kept; bounded by default, because plugins can fill it."""

    keep_days: int = _setting(0, low=0, high=36_500)
    max_bytes: int = _setting(2 << 30, low=0, high=1 << 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """How much of the decisions is kept (contracts §11); 0 keeps all. `max_bytes` counts events as an export does."""

    keep_days: int = _setting(0, low=0, high=36_500)
    max_bytes: int = _setting(0, low=0, high=1 << 50)
    calls: CallAuditSettings = _setting(CallAuditSettings())


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may use the control socket (contracts §7); names or numeric ids map to scopes, resolved at load.

    `socket_group`: its group, empty: the daemon's. `socket_owner`: the user whose daemon latticectl talks to, besides
    root's and the caller's own. `own_user`: the daemon's own user has all scopes.
    """

    socket_group: str = _setting("")
    socket_owner: str = _setting("latticed")
    own_user: bool = _setting(default=True)
    users: dict[str, tuple[str, ...]] = _setting({}, one_of=SCOPES)
    groups: dict[str, tuple[str, ...]] = _setting({}, one_of=SCOPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSettings:
    """The key file of secrets, unless systemd passes a credential; empty: `secrets.key` beside the settings."""

    key_file: str = _setting("")


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings:
    """Files that plugins publish: how many and how many bytes one plugin may have, how large one may be.

    `html` and `svg`: whether these types are allowed, which can carry scripts.
    """

    plugin_files: int = _setting(1_000, low=1, high=100_000)
    file_bytes: int = _setting(1 << 20, low=1, high=64 << 20)
    plugin_bytes: int = _setting(16 << 20, low=1, high=1 << 34)
    html: bool = _setting(default=False)
    svg: bool = _setting(default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What node.journal may show, and how the journal reader is reached (docs/write/services.md).

    `journal_socket` empty: `journal.sock` in the runtime directory. `journal_user`: the reader's user, if that is
    neither root nor the daemon's user.
    """

    journal_units: tuple[str, ...] = _setting(())
    journal_socket: str = _setting("")
    journal_user: str = _setting("")
    auth_log: str = _setting("/var/log/auth.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """The queue of notifications. `plugin_*` and `total_*`: how much may wait, of one plugin and of all.

    `backoff_*`: the pause after a failed delivery, doubled by each next one. After `give_up_days` of uptime it fails.
    `keep_*`: how long, and how many, delivered and failed ones are kept.
    """

    plugin_items: int = _setting(1_000, low=1, high=1_000_000)
    plugin_bytes: int = _setting(4 << 20, low=1 << 10, high=1 << 30)
    total_items: int = _setting(10_000, low=1, high=1_000_000)
    total_bytes: int = _setting(32 << 20, low=1 << 10, high=1 << 30)
    backoff_base_s: float = _setting(5.0, low=0.1, high=3_600)
    backoff_ceiling_s: float = _setting(900.0, low=0.1, high=21_600)
    give_up_days: int = _setting(3, low=1, high=365)
    keep_days: int = _setting(7, low=0, high=365)
    keep_items: int = _setting(10_000, low=0, high=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """Monitors: how many, of one plugin and of all; how often and how many checks run at once.

    `min_interval_s`: shortest time between two checks of one. `results`: how many of each are kept.
    """

    plugin_monitors: int = _setting(100, low=1, high=10_000)
    total_monitors: int = _setting(1_000, low=1, high=100_000)
    min_interval_s: float = _setting(10.0, low=0.5, high=3_600)
    plugin_checks: int = _setting(16, low=2, high=256)
    total_checks: int = _setting(64, low=2, high=1_024)
    results: int = _setting(500, low=1, high=500)


@dataclass(frozen=True, slots=True, kw_only=True)
class DdnsSettings:
    """DNS records kept for plugins: how many, how often they change, how often the provider is asked.

    `poll_s`: how often the addresses of interfaces are read; another one counts after `settle_s`. `min_change_s`:
    shortest time between two changes of a record. `verify_s`: how often it is compared with the provider's. `private`:
    addresses of private networks may be published.
    """

    plugin_records: int = _setting(16, low=1, high=1_000)
    total_records: int = _setting(200, low=1, high=10_000)
    poll_s: float = _setting(30.0, low=1, high=3_600)
    settle_s: float = _setting(30.0, low=0, high=3_600)
    min_change_s: float = _setting(60.0, low=1, high=3_600)
    verify_s: float = _setting(21_600.0, low=1, high=86_400)
    backoff_base_s: float = _setting(30.0, low=1, high=3_600)
    backoff_ceiling_s: float = _setting(3_600.0, low=1, high=21_600)
    private: bool = _setting(default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """The relay that mail.send goes to; none: no mail. `password`: a reference to a secret, never a value.

    `starttls`: what `smtp://` must offer. `username` empty: no login. `sender`: the address that mail comes from.
    `allow`: addresses and @domains that plugins may write to, none: anybody. `recipients` and `body_bytes` are of one
    message, `per_hour` counts messages of one plugin.
    """

    relay: str = _setting("", fault=relays.relay_fault)
    starttls: bool = _setting(default=True)
    username: str = _setting("")
    password: str = _setting("")
    sender: str = _setting("")
    allow: tuple[str, ...] = _setting((), fault=relays.allow_fault)
    recipients: int = _setting(10, low=1, high=100)
    body_bytes: int = _setting(128 << 10, low=1 << 10, high=8 << 20)
    per_hour: int = _setting(30, low=1, high=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective settings; `origins` maps each dotted key to where its value came from.

    `renamed`: keys of the file that have another name now (`latticed.settings.renamed`).
    """

    plugin_dir: Path
    state_dir: Path
    runtime_dir: Path
    trust: Path
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
    """`load.fingerprint` of the settings file, taken before it was read."""

    @property
    def control_socket(self) -> Path:
        """Where the control API listens."""
        return self.runtime_dir / "control.sock"

    @property
    def trust_file(self) -> Path:
        """The file of the trust policy; the same as `trust`."""
        return self.trust

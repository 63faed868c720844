"""What can be set, its defaults and its bounds; shapes only, nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - the loader resolves these annotations
from typing import Any, Final

SCOPES: Final = ("read", "operate", "host", "trust")
LEVELS: Final = ("debug", "info", "warning", "error")


def _setting(default: Any, *, low: float | None = None, high: float | None = None, one_of: tuple[str, ...] = ()) -> Any:
    rules = {"low": low, "high": high, "one_of": one_of}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    level: str = _setting("info", one_of=LEVELS)
    format: str = _setting("auto", one_of=("auto", "journal", "json", "text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what is read from the plugin directory (contracts §1)."""

    manifest_bytes: int = _setting(64 << 10, low=1 << 10, high=1 << 20)
    artifact_bytes: int = _setting(64 << 20, low=1 << 10, high=1 << 30)
    bundles: int = _setting(20_000, low=1, high=200_000)
    read_deadline_s: float = _setting(30.0, low=0.1, high=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """When a change on disk is judged (architecture decision 5)."""

    quiet_s: float = _setting(0.15, low=0.0, high=60)
    longest_s: float = _setting(2.0, low=0.0, high=600)
    rescan_s: float = _setting(60.0, low=0.5, high=86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runners:
    """Which runner takes a plugin of each type; `noop` arms it without ever executing its artifact."""

    system: str = _setting("process", one_of=("process", "noop"))
    wasm: str = _setting("wasm", one_of=("wasm", "noop"))
    worker: str = _setting("worker", one_of=("worker", "noop"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """How failures of a handle are answered. All times in seconds."""

    start_deadline_s: float = _setting(10.0, low=0.1, high=300)
    stop_grace_s: float = _setting(5.0, low=0.1, high=300)
    backoff_base_s: float = _setting(1.0, low=0.0, high=600)
    backoff_ceiling_s: float = _setting(60.0, low=0.1, high=86_400)
    healthy_after_s: float = _setting(60.0, low=0.1, high=86_400)
    breaker_failures: int = _setting(6, low=1, high=1_000)
    ignore_critical: bool = _setting(default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCalls:
    """Limits on what one plugin may ask of its Gate."""

    per_second: int = _setting(1_000, low=1, high=1_000_000)
    burst: int = _setting(2_000, low=1, high=1_000_000)
    request_bytes: int = _setting(256 << 10, low=1 << 10, high=8 << 20)
    deadline_s: float = _setting(10.0, low=0.1, high=300)
    kv_value_bytes: int = _setting(64 << 10, low=1, high=1 << 20)
    kv_keys: int = _setting(10_000, low=1, high=10_000_000)
    kv_total_bytes: int = _setting(16 << 20, low=1, high=1 << 30)
    log_per_second: int = _setting(50, low=1, high=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """How much of the audit chain is kept (contracts §11); 0 keeps all. `max_bytes` counts events as an export does."""

    keep_days: int = _setting(0, low=0, high=36_500)
    max_bytes: int = _setting(0, low=0, high=1 << 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use the control socket (contracts §7); names or numeric ids map to scopes, resolved at load."""

    socket_group: str = _setting("")
    own_user: bool = _setting(default=True)
    users: dict[str, tuple[str, ...]] = _setting({}, one_of=SCOPES)
    groups: dict[str, tuple[str, ...]] = _setting({}, one_of=SCOPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective settings; `origins` maps each dotted key to where its value came from."""

    plugin_dir: Path
    state_dir: Path
    runtime_dir: Path
    trust: Path
    log: Log = Log()
    limits: Limits = Limits()
    watch: Watch = Watch()
    runners: Runners = Runners()
    supervision: Supervision = Supervision()
    host_calls: HostCalls = HostCalls()
    audit: Audit = Audit()
    access: Access = Access()
    config_file: Path | None = None
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "control.sock"

    @property
    def trust_file(self) -> Path:
        return self.trust

"""Settings of what plugins can run on the host: approved scripts, long-lived programs, tunnels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Final

from latticed.settings.rules import setting

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_@+][A-Za-z0-9._@+-]*)+")
_UNIT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,120}\.service")
_KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


def names_fault(value: Any) -> str:
    """What the names in a table of programs have to be, in words, when one is not; else empty."""
    return "" if all(_NAME.fullmatch(name) for name in value) else "names of 1 to 64 of a-z, 0-9, '.', '_', '-'"


def absolute_fault(value: Any) -> str:
    """What a path has to be, in words, when `value` is neither absolute nor empty; else empty."""
    return "" if not value or (os.path.isabs(value) and "\0" not in value) else "an absolute path, or nothing"


def _path_fault(value: str) -> str:
    """What a path has to be, in words, when `value` is not absolute; else empty."""
    return absolute_fault(value) if value else "an absolute path"


def _plain_path_fault(value: str) -> str:
    """What a path that nginx is given has to be, in words, when `value` is none; else empty."""
    # A longer one leaves no room for a socket in that directory (unix(7): 108 bytes).
    return "" if _PLAIN_PATH.fullmatch(value) and len(value) <= 80 else "an absolute path of A-Z a-z 0-9 . _ @ + -"


def _plain_paths_fault(values: tuple[str, ...]) -> str:
    """The same of each of several."""
    return next(filter(None, map(_plain_path_fault, values)), "")


def _user_fault(value: str) -> str:
    """What a user's name has to be, in words, when `value` is none; else empty."""
    return "" if _NAME.fullmatch(value) else "the name of a user of this host"


def _unit_fault(value: str) -> str:
    """What the name of a service unit has to be, in words, when `value` is neither that nor empty; else empty."""
    return (
        "" if not value or _UNIT.fullmatch(value) else "the name of a unit, such as latticed-proxy.service, or nothing"
    )


def _kinds_fault(names: tuple[str, ...]) -> str:
    """What the names of kinds of plans have to be, in words, when one is not; else empty."""
    return "" if all(_KIND.fullmatch(name) for name in names) else 'names of kinds, such as "nft"'


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Scripts that plugins submit and operators approve; `plugin_*` is for one plugin, `total_*` for all."""

    enabled: bool = setting(default=True)
    """Whether plugins may submit scripts and approved ones run; switched off, those that run are ended."""
    total_at_once: int = setting(4, low=1, high=256)
    """Scripts that run at once."""
    plugin_at_once: int = setting(1, low=1, high=256)
    """Scripts of one plugin that run at once."""
    total_waiting: int = setting(100, low=1, high=100_000)
    """Tasks of all plugins that have not ended."""
    plugin_waiting: int = setting(20, low=1, high=10_000)
    """Tasks of one plugin that have not ended."""
    expire_s: int = setting(86_400, low=3_600, high=31_536_000)
    """A task that was not approved, or had no turn, expires after so long."""
    output_bytes: int = setting(64 << 10, low=1 << 10, high=1 << 20)
    """The last of stdout, and of stderr, that is kept."""
    memory_mib: int = setting(256, low=8, high=1 << 20)
    """Memory of one process of a script."""
    processes: int = setting(64, low=1, high=4_096)
    """Threads and processes of a script together."""
    keep_days: int = setting(30, low=0, high=3_650)
    """Days that ended tasks are kept."""
    keep_items: int = setting(1_000, low=0, high=100_000)
    """Most ended tasks that are kept; of more, the plugin with the most loses its oldest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Long-lived programs of plugins; `plugin_*` is for one plugin, `total_*` for all, the rest for one service."""

    programs: dict[str, str] = setting({}, fault=names_fault)
    """Programs that plugins may have kept running, and the path of each."""
    reads: dict[str, str] = setting({}, fault=names_fault)
    """By program: one file or directory that it may read besides its own."""
    host_network: tuple[str, ...] = setting(())
    """Programs that may be given the host's network."""
    total_services: int = setting(64, low=1, high=1_024)
    """Most services of all plugins."""
    plugin_services: int = setting(8, low=1, high=256)
    """Most services of one plugin, and most of its services, deleted ones included, that have kept `data`."""
    memory_mib: int = setting(512, low=8, high=1 << 20)
    """Memory of one process of a service."""
    processes: int = setting(128, low=1, high=4_096)
    """Threads and processes of a service together."""
    open_files: int = setting(1_024, low=16, high=4_096)
    """Open descriptors of one process of a service."""
    data_bytes: int = setting(256 << 20, low=4_096, high=1 << 40)
    """Most bytes that one service may keep."""
    data_files: int = setting(10_000, low=1, high=100_000)
    """Most files and directories that one service may keep."""
    output_bytes: int = setting(64 << 10, low=1 << 10, high=1 << 20)
    """The last of stdout, and of stderr, that can be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Tunnels from the internet, by cloudflared."""

    program: str = setting("", fault=absolute_fault)
    """Path of cloudflared; empty: no tunnels. Changed, it replaces those that run."""
    credentials_dir: str = setting("", fault=absolute_fault)
    """The directory with credentials and tokens of tunnels."""
    total_tunnels: int = setting(8, low=1, high=64)
    """Most tunnels of all plugins."""
    plugin_tunnels: int = setting(2, low=1, high=64)
    """Most tunnels of one plugin."""
    ready_s: float = setting(30.0, low=0.5, high=600)
    """A changed tunnel must be connected within so long."""
    check_s: float = setting(5.0, low=0.1, high=600)
    """How often a connected tunnel is asked whether it still is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxSettings:
    """The nginx that plans of kind `nginx` configure. Its program is `nginx` of `apply.programs`."""

    directory: str = setting("/var/lib/latticed-nginx", fault=_plain_path_fault)
    """Files of latticed's own nginx, which nothing else writes."""
    user: str = setting("www-data", fault=_user_fault)
    """The user of nginx's workers."""
    certificates: tuple[str, ...] = setting(
        ("/etc/letsencrypt", "/etc/ssl", "/etc/latticed/certificates", "/var/lib/acme"), fault=_plain_paths_fault
    )
    """Directories that certificates and keys may lie below."""
    files: tuple[str, ...] = setting(("/srv", "/var/www"), fault=_plain_paths_fault)
    """Directories that served files may lie below."""
    static_dir: str = setting("/var/lib/latticed/static", fault=_plain_path_fault)
    """Where the daemon keeps what plugins publish: `static` in its state directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """The core that plans of kind `proxy` run."""

    directory: str = setting("/run/latticed-proxy", fault=_path_fault)
    """Where the proxy core's file is; the root helper's alone."""
    user: str = setting("latticed-proxy", fault=_user_fault)
    """The user that the proxy core runs as; not root."""
    batch_s: float = setting(60.0, low=0.0, high=86_400)
    """How long users who are gone stay in the core's file, cut whenever they connect, and users who come back wait."""
    unit: str = setting("", fault=_unit_fault)
    """The unit of systemd that runs the core; empty: the root helper starts it itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplySettings:
    """The root helper (`latticed-apply`), which counts them only where root alone can change the file."""

    socket: str = setting("/run/latticed-apply/apply.sock", fault=_path_fault)
    """Where the root helper listens."""
    state_dir: str = setting("/var/lib/latticed-apply", fault=_path_fault)
    """What the root helper keeps: plans, snapshots, its record (mode 0700, root's)."""
    daemon_user: str = setting("latticed")
    """The user whose daemon may offer plans and apply approved ones, and nothing else."""
    approvers: tuple[str, ...] = setting(())
    """Users and `@group`s who may review, approve, confirm and undo, besides root."""
    kinds: tuple[str, ...] = setting((), fault=_kinds_fault)
    """Kinds of plans that the root helper applies."""
    restore: tuple[str, ...] = setting((), fault=_kinds_fault)
    """Kinds that it puts back to what was confirmed when something else changed them."""
    programs: dict[str, str] = setting({}, fault=names_fault)
    """Tools that are not at the path where the kind of plan expects them, and the path of each."""
    confirm_within_s: int = setting(60, low=1, high=3_600)
    """An applied plan is undone unless it is confirmed within so long."""
    poll_s: float = setting(10.0, low=0.1, high=3_600)
    """How often the live state is compared with what was confirmed."""
    nginx: NginxSettings = NginxSettings()
    proxy: ProxySettings = ProxySettings()

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
    """Scripts that plugins submit and operators approve; `plugin_*` is for one plugin, `total_*` for all.

    `*_at_once`: scripts that run at the same time. `*_waiting`: tasks that have not ended. `keep_*`: those that have.
    `expire_s`: a task that was not approved, or had no turn, expires then. `memory_mib` is of one process, `processes`
    counts threads too. `output_bytes`: the last of stdout, and of stderr, that is kept. With `enabled` off tasks are
    refused, none begins, and those that run are ended.
    """

    enabled: bool = setting(default=True)
    total_at_once: int = setting(4, low=1, high=256)
    plugin_at_once: int = setting(1, low=1, high=256)
    total_waiting: int = setting(100, low=1, high=100_000)
    plugin_waiting: int = setting(20, low=1, high=10_000)
    expire_s: int = setting(86_400, low=3_600, high=31_536_000)
    output_bytes: int = setting(64 << 10, low=1 << 10, high=1 << 20)
    memory_mib: int = setting(256, low=8, high=1 << 20)
    processes: int = setting(64, low=1, high=4_096)
    keep_days: int = setting(30, low=0, high=3_650)
    keep_items: int = setting(1_000, low=0, high=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Long-lived programs. `programs`: name and path of each that is allowed.

    `reads`: one more path that a program may read. `host_network`: those that may be given the host's own network.
    `total_services` and `plugin_services` count services; the other limits are of one, as in TaskSettings. `data_bytes`
    and `data_files` bound the directory that it may keep.
    """

    programs: dict[str, str] = setting({}, fault=names_fault)
    reads: dict[str, str] = setting({}, fault=names_fault)
    host_network: tuple[str, ...] = setting(())
    total_services: int = setting(64, low=1, high=1_024)
    plugin_services: int = setting(8, low=1, high=256)
    memory_mib: int = setting(512, low=8, high=1 << 20)
    processes: int = setting(128, low=1, high=4_096)
    open_files: int = setting(1_024, low=16, high=4_096)
    data_bytes: int = setting(256 << 20, low=4_096, high=1 << 40)
    data_files: int = setting(10_000, low=1, high=100_000)
    output_bytes: int = setting(64 << 10, low=1 << 10, high=1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Tunnels: the path of cloudflared and the directory with credentials; empty: no tunnels.

    `ready_s`: a changed tunnel must be connected within so long. `check_s`: how often a connected one is asked.
    """

    program: str = setting("", fault=absolute_fault)
    credentials_dir: str = setting("", fault=absolute_fault)
    total_tunnels: int = setting(8, low=1, high=64)
    plugin_tunnels: int = setting(2, low=1, high=64)
    ready_s: float = setting(30.0, low=0.5, high=600)
    check_s: float = setting(5.0, low=0.1, high=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxSettings:
    """The nginx that plans of kind `nginx` configure. Its program is `nginx` of `apply.programs`.

    `directory`: where its files are, which nothing else writes. `user`: of its workers. `certificates`, `files`:
    directories that certificates with their keys, and files of this host that are served, may lie below. `static_dir`:
    where the daemon keeps what plugins publish.
    """

    directory: str = setting("/var/lib/latticed-nginx", fault=_plain_path_fault)
    user: str = setting("www-data", fault=_user_fault)
    certificates: tuple[str, ...] = setting(
        ("/etc/letsencrypt", "/etc/ssl", "/etc/latticed/certificates", "/var/lib/acme"), fault=_plain_paths_fault
    )
    files: tuple[str, ...] = setting(("/srv", "/var/www"), fault=_plain_paths_fault)
    static_dir: str = setting("/var/lib/latticed/static", fault=_plain_path_fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """The core that plans of kind `proxy` run: as `user`, with its file in `directory`, which is the helper's alone.

    `batch_s`: how long users who are gone may stay in the core's file, cut whenever they connect, and users who come
    back wait: writing it costs every user his connections. `unit`: the unit of systemd that runs the core; empty: the
    helper starts it itself.
    """

    directory: str = setting("/run/latticed-proxy", fault=_path_fault)
    user: str = setting("latticed-proxy", fault=_user_fault)
    batch_s: float = setting(60.0, low=0.0, high=86_400)
    unit: str = setting("", fault=_unit_fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplySettings:
    """The root helper (`latticed-apply`), which counts them only where root alone can change the file.

    `daemon_user`: the user whose daemon may offer and apply what is approved, and nothing else. `approvers`: users (or
    `@group`) besides root who may review, approve, refuse, confirm and undo. `kinds`: kinds of plans that it applies,
    `restore`: those of them that it puts back where something else changed the host. `programs`: name and path of tools
    that are not at their usual place. `confirm_within_s`: how long an applied plan waits for its confirmation.
    `poll_s`: how often the live state is compared.
    """

    socket: str = setting("/run/latticed-apply/apply.sock", fault=_path_fault)
    state_dir: str = setting("/var/lib/latticed-apply", fault=_path_fault)
    daemon_user: str = setting("latticed")
    approvers: tuple[str, ...] = setting(())
    kinds: tuple[str, ...] = setting((), fault=_kinds_fault)
    restore: tuple[str, ...] = setting((), fault=_kinds_fault)
    programs: dict[str, str] = setting({}, fault=names_fault)
    confirm_within_s: int = setting(60, low=1, high=3_600)
    poll_s: float = setting(10.0, low=0.1, high=3_600)
    nginx: NginxSettings = NginxSettings()
    proxy: ProxySettings = ProxySettings()

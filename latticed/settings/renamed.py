"""Keys that have another name now. The old one is taken for one version, and the daemon says which line to change."""

from __future__ import annotations

from typing import Any, Final

RENAMED: Final = {
    "ddns.least_change_s": ("ddns.min_change_s", 1),
    "ddns.records": ("ddns.total_records", 1),
    "monitor.checks": ("monitor.total_checks", 1),
    "monitor.least_interval_s": ("monitor.min_interval_s", 1),
    "monitor.monitors": ("monitor.total_monitors", 1),
    "service.output_kib": ("service.output_bytes", 1 << 10),
    "service.services": ("service.total_services", 1),
    "static.files": ("static.plugin_files", 1),
    "static.total_bytes": ("static.plugin_bytes", 1),
    "task.at_once": ("task.total_at_once", 1),
    "task.expire_h": ("task.expire_s", 3_600),
    "task.output_kib": ("task.output_bytes", 1 << 10),
    "task.waiting": ("task.total_waiting", 1),
    "tunnel.tunnels": ("tunnel.total_tunnels", 1),
    "watch.longest_s": ("watch.max_wait_s", 1),
}
"""Old key -> (new key, how many of its unit one of the old unit is)."""


def modern(key: str, value: Any) -> tuple[str, Any]:
    """The present name of `key`, and `value` in its unit; both unchanged for every other key.

    `task.expire_h`, 2 becomes `task.expire_s`, 7200. A value that is no integer is left for the loader to refuse.
    """
    if key not in RENAMED:
        return key, value
    name, factor = RENAMED[key]
    # Not isinstance: `true` is no number, and 1 * 3600 would pass for one.
    return name, value * factor if type(value) is int else value


def advice(renamed: tuple[str, ...]) -> list[str]:
    """One sentence for each of these old keys, which are those of `Settings.renamed`."""
    return [f"{old} is called {_named(old)} now; the old name is taken for this version only" for old in renamed]


def _named(old: str) -> str:
    """The present name of an old key, and how its value has to be changed."""
    name, factor = RENAMED[old]
    return name if factor == 1 else f"{name} ({factor} times the value)"

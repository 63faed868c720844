"""Which settings take effect at a reload, and which wait for a restart. Pure."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from latticed.settings.shapes import Settings

SECTIONS: Final = frozenset(
    "access audit ddns host_calls log mail market node notify service static task trust tunnel upgrade watch".split()
)
"""All of these; `trust` is a path of its own."""
KEYS: Final = frozenset(
    {
        "http.hosts",
        "supervision.backoff_base_s",
        "supervision.backoff_ceiling_s",
        "supervision.breaker_failures",
        "supervision.drain_s",
        "supervision.healthy_after_s",
        "supervision.ignore_critical",
        "supervision.kept_artifact_bytes",
        "supervision.stop_grace_s",
        # How many checks run at once is fixed when the queue is made.
        "monitor.plugin_monitors",
        "monitor.total_monitors",
        "monitor.min_interval_s",
        "monitor.results",
        # Not the defaults, nor `sandbox.floor`: what a manifest leaves out counts as accepted with their values
        # (`lifecycle.manifest_defaults`), so another value is a question to the operator of every plugin.
        "plugin_limits.host_calls",
        "plugin_limits.invocations",
        "plugin_limits.max_cpu_percent",
        "plugin_limits.max_invoke_timeout_s",
        "plugin_limits.max_memory_mib",
        "plugin_limits.max_open_files",
        "plugin_limits.max_processes",
        "plugin_limits.max_stdout_kib",
        "plugin_limits.scratch_files",
        "plugin_limits.scratch_mib",
        "plugin_limits.stderr_kib",
        "sandbox.interpreters",
        "sandbox.uid_first",
        "sandbox.uids",
    }
)
OTHERS: Final = frozenset({"apply"})
"""Sections of other programs, which read them at their own start."""


def takes_effect(key: str) -> bool:
    """Whether a change of this dotted key takes effect at a reload of the daemon."""
    section = key.partition(".")[0]
    return section in SECTIONS or section in OTHERS or key in KEYS


def merged(current: Settings, fresh: Settings) -> Settings:
    """`current` with the values of `fresh` that take effect at a reload, and where they are from."""
    origins = {key: origin for key, origin in current.origins.items() if not takes_effect(key)}
    origins |= {key: origin for key, origin in fresh.origins.items() if takes_effect(key)}
    changed: dict[str, Any] = {"origins": origins, "config_file": fresh.config_file, "file_seen": fresh.file_seen}
    for section in fields(current):
        name, now = section.name, getattr(current, section.name)
        if name in SECTIONS or name in OTHERS:
            changed[name] = getattr(fresh, name)
        elif is_dataclass(now) and not isinstance(now, type):
            keys = [key.name for key in fields(now) if f"{name}.{key.name}" in KEYS]
            changed[name] = replace(now, **{key: getattr(getattr(fresh, name), key) for key in keys})
    return replace(current, **changed)

"""What this host's settings give a plugin whose manifest is silent: that is what silence was accepted as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model.accepted import Usual
from latticed.model.manifest import Limits
from latticed.settings import HostCalls, PluginLimits, Sandbox

if TYPE_CHECKING:
    from latticed.settings import Settings


def of(settings: Settings) -> Usual:
    """From the settings that the daemon started with: a reload changes none of them for plugins that run."""
    return _of(settings.sandbox, settings.plugin_limits, settings.host_calls)


def _of(sandbox: Sandbox, limits: PluginLimits, calls: HostCalls) -> Usual:
    return Usual(
        level=sandbox.floor,
        limits=Limits(
            memory_mib=limits.memory_mib,
            cpu_percent=limits.cpu_percent or None,
            processes=limits.processes,
            open_files=limits.open_files,
            invoke_timeout_s=limits.invoke_timeout_s,
            host_calls_per_s=calls.per_second,
            stdout_kib=limits.stdout_kib,
        ),
    )


DEFAULTS: Final = _of(Sandbox(), PluginLimits(), HostCalls())
"""Where no settings are at hand."""

"""The settings' values for what a manifest leaves out; leaving it out counts as asking for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model.accepted import Usual
from latticed.model.manifest import ManifestLimits
from latticed.settings import HostCallSettings, PluginLimitSettings, SandboxSettings

if TYPE_CHECKING:
    from latticed.settings import Settings


def of(settings: Settings) -> Usual:
    """The values that these settings give to what a manifest leaves out.

    Made once, from the settings of the daemon's start: a reload changes none of them.
    """
    return _of(settings.sandbox, settings.plugin_limits, settings.host_calls)


def _of(sandbox: SandboxSettings, limits: PluginLimitSettings, calls: HostCallSettings) -> Usual:
    """See `of`: the sections of the settings that have these values."""
    return Usual(
        level=sandbox.floor,
        limits=ManifestLimits(
            memory_mib=limits.memory_mib,
            # 0 in the settings means no limit, which is None here.
            cpu_percent=limits.cpu_percent or None,
            processes=limits.processes,
            open_files=limits.open_files,
            invoke_timeout_s=limits.invoke_timeout_s,
            host_calls_per_s=calls.per_second,
            stdout_kib=limits.stdout_kib,
        ),
    )


DEFAULTS: Final = _of(SandboxSettings(), PluginLimitSettings(), HostCallSettings())
"""For callers without settings."""

"""Settings from TOML and the environment, validated once, frozen (contracts §6).

Read by latticed and by latticectl: standard library only. Nothing here opens anything but the settings file.
"""

from latticed.settings.load import describe, fingerprint, load
from latticed.settings.renamed import advice
from latticed.settings.shapes import (
    SCOPES,
    AccessSettings,
    HostCallSettings,
    HttpSettings,
    LimitSettings,
    LogSettings,
    MonitorSettings,
    NotifySettings,
    PluginLimitSettings,
    RunnerSettings,
    SandboxSettings,
    Settings,
    SupervisionSettings,
    WatchSettings,
)

__all__ = [
    "SCOPES",
    "AccessSettings",
    "HostCallSettings",
    "HttpSettings",
    "LimitSettings",
    "LogSettings",
    "MonitorSettings",
    "NotifySettings",
    "PluginLimitSettings",
    "RunnerSettings",
    "SandboxSettings",
    "Settings",
    "SupervisionSettings",
    "WatchSettings",
    "advice",
    "describe",
    "fingerprint",
    "load",
]

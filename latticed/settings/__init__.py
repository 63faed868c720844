"""Settings from TOML and the environment, validated once, frozen (contracts §6).

Read by latticed and by latticectl: standard library only. Nothing here opens anything but the settings file.
"""

from latticed.settings.load import describe, load
from latticed.settings.shapes import (
    SCOPES,
    Access,
    HostCalls,
    Http,
    Limits,
    Log,
    Monitor,
    Notify,
    PluginLimits,
    Runners,
    Sandbox,
    Settings,
    Supervision,
    Watch,
)

__all__ = [
    "SCOPES",
    "Access",
    "HostCalls",
    "Http",
    "Limits",
    "Log",
    "Monitor",
    "Notify",
    "PluginLimits",
    "Runners",
    "Sandbox",
    "Settings",
    "Supervision",
    "Watch",
    "describe",
    "load",
]

"""Settings from TOML and the environment, validated once, frozen (contracts §6).

Read by latticed and by latticectl: standard library only. Nothing here opens anything but the settings file. A name is
imported when it is first asked for, so that finding the control socket (`places`) loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latticed.settings.reading import describe, fingerprint, load
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

_MODULES = {"advice": "renamed", "describe": "reading", "fingerprint": "reading", "load": "reading"}
"""Of the names that are not in `shapes`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'shapes')}")
    value = globals()[name] = getattr(module, name)
    return value

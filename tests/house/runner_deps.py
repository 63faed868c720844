"""What runners need to start confined children, for tests that make runners themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from latticed.catalog.builtins import Builtins
from latticed.host.route.table import RouteTable
from latticed.host.secret.references import PluginSecrets
from latticed.kit.clock import SystemClock
from latticed.runners.child_spawner import ChildSpawner
from latticed.runners.choice import RunnerDeps
from latticed.runners.kept_copies import KeptCopies
from latticed.runners.output import Outputs
from latticed.settings import PluginLimitSettings, SandboxSettings
from tests.house import children, plugin_secrets


def spawner(*, floor: str = "filtered", **limits: Any) -> ChildSpawner:
    """A spawner for this machine, which is probed once; `limits` are settings of `plugin_limits`."""
    return ChildSpawner(children.probed(), SandboxSettings(floor=floor), PluginLimitSettings(**limits))


def deps(
    state_dir: Path,
    builtins: Builtins | None = None,
    secrets_of: Callable[[str], PluginSecrets] = plugin_secrets.no_secrets,
) -> RunnerDeps:
    """All that runners need; no plugin has any permission."""
    return RunnerDeps(
        spawner=spawner(),
        outputs=outputs(),
        copies=KeptCopies(),
        routes=RouteTable(),
        state_dir=state_dir,
        start_deadline_s=10.0,
        permits=lambda _: (),
        prefixes=lambda _: frozenset(),
        builtins=builtins or Builtins(),
        secrets_of=secrets_of,
    )


def outputs(told: list[tuple[str, str]] | None = None) -> Outputs:
    """Rings; lines of stderr are appended to `told` as (plugin id, line)."""
    return Outputs(SystemClock(), lambda plugin_id, line: None if told is None else told.append((plugin_id, line)))

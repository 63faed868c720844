"""Which runner takes which type of plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.runners.noop import Noop
from latticed.runners.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.runners.contract import Runner
    from latticed.runners.ground import Ground
    from latticed.runners.output import Outputs

BUILT_IN: Final[frozenset[str]] = frozenset({"noop", "process"})


def choose(wanted: Mapping[str, str], ground: Ground, outputs: Outputs) -> dict[str, Runner]:
    """A runner for each plugin type from the settings' names; one that is not built in is held by noop, openly."""
    return {plugin_type: _runner(name, ground, outputs) for plugin_type, name in wanted.items()}


def _runner(name: str, ground: Ground, outputs: Outputs) -> Runner:
    match name:
        case "noop":
            return Noop("held by the noop runner, its artifact is not executed")
        case "process":
            return Process(ground, outputs)
        case _:
            return Noop(f"the {name} runner is not built into this version: held by noop, its artifact is not executed")

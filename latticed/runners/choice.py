"""Which runner takes which type of plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.runners.noop import Noop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.runners.contract import Runner

BUILT_IN: Final[frozenset[str]] = frozenset({"noop"})


def choose(wanted: Mapping[str, str]) -> dict[str, Runner]:
    """A runner for each plugin type from the settings' names; one that is not built in is held by noop, openly."""
    return {plugin_type: _runner(name) for plugin_type, name in wanted.items()}


def _runner(name: str) -> Runner:
    if name == "noop":
        return Noop("held by the noop runner, its artifact is not executed")
    return Noop(f"the {name} runner is not built into this version: held by noop, its artifact is not executed")

"""Chooses the runner of each plugin type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.runners import contract
from latticed.runners.builtin import BuiltinRunner
from latticed.runners.noop import NoopRunner
from latticed.runners.process import ProcessRunner
from latticed.runners.wasm import Caps, WasmRunner
from latticed.runners.wasm_compiler import Bounds
from latticed.runners.worker import WorkerRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latticed.catalog.builtins import Builtins
    from latticed.host.route.table import RouteTable
    from latticed.host.secret.references import PluginSecrets
    from latticed.runners.child_spawner import ChildSpawner
    from latticed.runners.contract import Runner
    from latticed.runners.kept_copies import KeptCopies
    from latticed.runners.output import Outputs

# Below 1: a compilation that takes too long then ends with its own code and hint, before the whole start is cancelled.
_COMPILING: Final = 0.8
"""The share of a start's deadline that compiling a module may take."""


class RunnerDeps(Value, frozen=True, kw_only=True):
    """What runners need. `permits(id)` returns the operator's permits for that plugin (`model.permits`), `prefixes(id)`
    the route prefixes granted to it; both are asked whenever they are needed, since grants change. `builtins` has the
    code of built-in plugins, `secrets_of(id)` what that plugin's references stand for, for one answer.
    """

    spawner: ChildSpawner
    outputs: Outputs
    copies: KeptCopies
    routes: RouteTable
    state_dir: Path
    start_deadline_s: float
    permits: Callable[[str], tuple[str, ...]]
    prefixes: Callable[[str], frozenset[str]]
    builtins: Builtins
    secrets_of: Callable[[str], PluginSecrets]


def choose(names: Mapping[str, str], deps: RunnerDeps) -> dict[str, Runner]:
    """Plugin type to runner, by the settings' names; an unknown name gives a noop runner whose reason says so.

    Built-in plugins, which are of type system, are held by noop when that type is.
    """
    built_in = "noop" if names.get("system") == "noop" else contract.BUILTIN
    return {key: _runner(name, deps) for key, name in {**names, contract.BUILTIN: built_in}.items()}


def _runner(name: str, deps: RunnerDeps) -> Runner:
    """The runner called `name`; a new one for each plugin type."""
    match name:
        case contract.BUILTIN:
            return BuiltinRunner(deps.builtins, deps.outputs, deps.spawner.invoking, deps.secrets_of)
        case "noop":
            return NoopRunner("held by the noop runner, its artifact is not executed")
        case "process":
            return ProcessRunner(deps.spawner, deps.outputs, deps.copies, deps.permits)
        case "wasm":
            caps = Caps(compile=Bounds(time_s=_COMPILING * deps.start_deadline_s))
            return WasmRunner(deps.spawner, deps.outputs, deps.copies, deps.state_dir, caps=caps)
        case "worker":
            return WorkerRunner(deps.routes, granted_prefixes=deps.prefixes)
        case _:
            return NoopRunner(
                f"the {name} runner is not built into this version: held by noop, its artifact is not executed"
            )

"""What the children of each plugin use: processor time, memory, tasks, and how much they wait.

    spawner.usage.of("acme.demo")   # Usage(cpu_s=1.25, memory_bytes=18_350_080, tasks=2, pressure={"cpu": 0.1, …})

The kernel counts in the plugin's cgroup. What it does not count there, for lack of a group or of a controller, is
summed up from /proc.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latticed.processes import tree
from latticed.sandbox import cgroup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.processes.child import Child
    from latticed.sandbox.cgroup import Delegation


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a plugin's children use. `cpu_s`: seconds of processor time since the daemon started, ended ones included;
    the rest is of now.

    `memory_bytes`: the memory that is charged to its group, page cache included; without the memory controller the
    resident memory of its processes, in which shared pages count for each. `tasks`: threads. `pressure`: percent of the
    last ten seconds in which some of them waited, by `cpu`, `memory`, `io`; empty without a group.
    """

    cpu_s: float
    memory_bytes: int = 0
    tasks: int = 0
    pressure: Mapping[str, float] = field(default_factory=dict)


class ChildUsage:
    """The children of each plugin, and what those that ended had used. `delegation`: where plugins have groups."""

    def __init__(self, delegation: Delegation | None) -> None:
        self._delegation = delegation
        self._running: dict[str, set[Child]] = {}
        self._ended_cpu_s: defaultdict[str, float] = defaultdict(float)

    def begin(self, plugin_id: str, child: Child) -> None:
        """Count a child of a plugin, until it is gone; those of no plugin (an empty id) are not counted."""
        if plugin_id:
            self._running.setdefault(plugin_id, set()).add(child)
            child.when_gone(functools.partial(self._end, plugin_id, child))

    def _end(self, plugin_id: str, child: Child) -> None:
        running = self._running.get(plugin_id, set())
        if child not in running:  # forgotten meanwhile
            return
        self._ended_cpu_s[plugin_id] += child.cpu_s
        running.discard(child)
        if not running:
            del self._running[plugin_id]

    def forget(self, plugin_id: str) -> None:
        """Drop what was counted of a plugin; a child that is still ending counts no more."""
        self._running.pop(plugin_id, None)
        self._ended_cpu_s.pop(plugin_id, None)

    def plugins(self) -> list[str]:
        """The ids of plugins that have, or had, a child since the daemon started."""
        return sorted({*self._running, *self._ended_cpu_s})

    def known(self, plugin_id: str) -> bool:
        """Whether a plugin has, or had, a child since the daemon started."""
        return plugin_id in self._running or plugin_id in self._ended_cpu_s

    def of(self, plugin_id: str) -> Usage:
        """What a plugin uses; zeros for one that had no child. Reads some files of the kernel's, and waits for none."""
        cpu_s, children = self._cpu_s(plugin_id), self._alive(plugin_id)
        if not children:
            return Usage(cpu_s=cpu_s)
        group = self._group(plugin_id)
        memory = cgroup.number(group / "memory.current") if group is not None else None
        tasks = cgroup.number(group / "pids.current") if group is not None else None
        if memory is None or tasks is None:
            seen = _processes(children)
            memory, tasks = seen.memory_bytes if memory is None else memory, seen.tasks if tasks is None else tasks
        pressure = cgroup.pressure(group) if group is not None else {}
        return Usage(cpu_s=cpu_s, memory_bytes=memory, tasks=tasks, pressure=pressure)

    def sample(self, plugin_id: str) -> tuple[int, int]:
        """`cpu_s` of `of` in milliseconds and its memory in KiB, at a third of the price."""
        children, memory = self._alive(plugin_id), None
        if children and (group := self._group(plugin_id)) is not None:
            memory = cgroup.number(group / "memory.current")
        if memory is None:
            memory = _processes(children).memory_bytes
        return int(self._cpu_s(plugin_id) * 1_000), memory >> 10

    def _cpu_s(self, plugin_id: str) -> float:
        return self._ended_cpu_s.get(plugin_id, 0.0) + sum(one.cpu_s for one in self._running.get(plugin_id, ()))

    def _alive(self, plugin_id: str) -> list[Child]:
        """Its children. One that has ended may be kept until all of it is gone; its pids may be another's by then."""
        return [one for one in self._running.get(plugin_id, ()) if one.exit is None]

    def _group(self, plugin_id: str) -> Path | None:
        """The directory of its control group; None where there are no groups."""
        return cgroup.of_plugin(self._delegation, plugin_id) if self._delegation is not None else None


def _processes(children: list[Child]) -> tree.Used:
    """What the processes of these children use, by /proc."""
    return tree.used(pid for one in children for pid in one.roots)

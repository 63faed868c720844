"""monitor.*: a plugin has targets checked, and reads their state.

A monitor belongs to the plugin that put it; other plugins may read it when its owner shares it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from latticed.host.call import Caller, HostError, Params, Served, Whole
from latticed.host.monitor import spec as specs
from latticed.host.monitor import watched
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.monitor.keeper import MonitorKeeper
    from latticed.host.monitor.watched import WatchedTarget

PAGE: Final = 200
"""Monitors in one answer of monitor.list."""


class MonitorList(Params, frozen=True):
    """Parameters of monitor.list."""

    after: str = ""
    """The `next` of the page before; empty for the first."""


class MonitorResults(Params, frozen=True):
    """Parameters of monitor.results."""

    name: str
    """Name of the monitor."""
    owner: str = ""
    """The plugin that put it; empty: the caller."""
    after: Whole = 0
    """Only results with a greater number."""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    """How many, the newest ones."""


class MonitorName(Params, frozen=True):
    """Parameters of monitor.delete."""

    name: str
    """Name of one of the caller's own monitors."""


class MonitorCalls:
    """The host calls `monitor.list`, `monitor.results`, `monitor.put` and `monitor.delete`."""

    def __init__(self, monitors: MonitorKeeper) -> None:
        self._monitors = monitors

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="monitor.list", params=MonitorList, serve=self._list),
            Served(method="monitor.results", params=MonitorResults, serve=self._results),
            Served(method="monitor.put", params=specs.MonitorPut, serve=self._put),
            Served(method="monitor.delete", params=MonitorName, serve=self._delete),
        )

    def _list(self, caller: Caller, asked: MonitorList) -> dict[str, Any]:
        """A page of the monitors that the caller may read, by owner and name; `next` is null on the last page."""
        # A plugin id contains no slash, so the first one ends it. The monitor itself need not exist any more.
        owner, _, name = asked.after.partition("/")
        # `every` is sorted by owner and name, so `after` is where the page before ended.
        visible = [
            one
            for one in self._monitors.every()
            if (one.plugin_id, one.name) > (owner, name) and _may_read(caller, one)
        ]
        page = visible[:PAGE]
        more = f"{page[-1].plugin_id}/{page[-1].name}" if len(visible) > PAGE else None
        return {"monitors": [one.view(whole=one.plugin_id == caller.plugin_id) for one in page], "next": more}

    async def _results(self, caller: Caller, asked: MonitorResults) -> dict[str, Any]:
        """The state and the newest results, oldest first; HostError not_found."""
        found = self._monitors.get(asked.owner or caller.plugin_id, asked.name)
        if found is None or not _may_read(caller, found):
            # The same answer for both, so that a caller cannot find out which names others use.
            raise _not_found()
        results = self._monitors.results(found.key, after=asked.after, limit=asked.limit)
        return {"state": found.status.state, "results": [watched.result_view(one) for one in results]}

    async def _put(self, caller: Caller, asked: specs.MonitorPut) -> dict[str, Any]:
        """Check the target from now on; `target` in the answer is its normal form."""
        spec = specs.checked(asked, least_interval_s=self._monitors.settings.min_interval_s)
        made = await self._monitors.put(caller.plugin_id, asked.name, spec)
        return {"ok": True, "target": made.spec.target}

    async def _delete(self, caller: Caller, asked: MonitorName) -> dict[str, Any]:
        """Delete a monitor of the caller; `ok` is whether there was one."""
        return {"ok": await self._monitors.delete(caller.plugin_id, asked.name)}


def _may_read(caller: Caller, one: WatchedTarget) -> bool:
    """Whether the caller owns this monitor, or its owner shares it."""
    return one.plugin_id == caller.plugin_id or one.spec.shared


def _not_found() -> HostError:
    """The error for a monitor that does not exist, or that the caller may not read."""
    return HostError(Denial.NOT_FOUND, "there is no such monitor, or its owner does not share it")

"""service.*: a plugin has a program of the operator's list kept running, confined, and reads its state and output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.host.call import Caller, HostError, Params, Served
from latticed.host.program import spec as specs
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.program.keeper import KeptProgram, ProgramKeeper


class ProgramDelete(Params, frozen=True):
    """Parameters of service.delete."""

    name: str
    """Name of one of the caller's services."""
    data: bool = False
    """Whether what it kept goes, too."""


class ProgramStatus(Params, frozen=True):
    """Parameters of service.status."""

    name: str = ""
    """That one, with its output; empty: all."""


class ProgramCalls:
    """The host calls `service.put`, `service.delete` and `service.status`."""

    def __init__(self, programs: ProgramKeeper) -> None:
        self._programs = programs

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="service.put", params=specs.ProgramPut, serve=self._put),
            Served(method="service.delete", params=ProgramDelete, serve=self._delete),
            Served(method="service.status", params=ProgramStatus, serve=self._status),
        )

    async def _put(self, caller: Caller, asked: specs.ProgramPut) -> dict[str, Any]:
        """Keep the program running from now on; `state` is that before it has started."""
        may = self._programs.rights
        egress, variables = may.egress(caller.plugin_id), may.variables(caller.plugin_id)
        spec = specs.checked(asked, self._programs.settings, variables, egress)
        made = await self._programs.put(caller.plugin_id, asked.name, spec)
        return {"ok": True, "name": made.name, "state": made.program.state}

    async def _delete(self, caller: Caller, asked: ProgramDelete) -> dict[str, Any]:
        """Stop and delete a program of the caller; `ok` is whether there was one, or something that it had kept."""
        specs.check_name(asked.name)
        existed = await self._programs.delete(caller.plugin_id, asked.name)
        if asked.data:
            existed |= await self._programs.remove_data(caller.plugin_id, asked.name)
        return {"ok": existed}

    def _status(self, caller: Caller, asked: ProgramStatus) -> dict[str, Any]:
        """The caller's programs, by name; a named one with the end of its output. HostError not_found."""
        mine = self._programs.of(caller.plugin_id)
        if not asked.name:
            # Without output, which bounds the answer: `service.output_bytes` are for each stream of each program.
            return {"services": [view(one) for one in mine]}
        found = [{**view(one), "output": one.program.output()} for one in mine if one.name == asked.name]
        if not found:
            raise HostError(Denial.NOT_FOUND, "there is no such service")
        return {"services": found}


def view(one: KeptProgram) -> dict[str, Any]:
    """One program as `service.status` shows it, as JSON; never arguments or environment, which may be private."""
    spec = one.spec
    return {
        "name": one.name,
        "program": spec.program,
        "restart": spec.restart,
        "network": spec.network,
        "data": _data(one),
        "hosts": list(spec.hosts),
        **one.program.view(),
    }


def _data(one: KeptProgram) -> dict[str, Any] | None:
    """The quota of a program's directory, and what the last measurement found in it (null: none yet); None without."""
    if (quota := one.spec.data) is None:
        return None
    used = one.kept.use if one.kept is not None else None
    return {
        "bytes": quota.bytes,
        "files": quota.files,
        "used_bytes": used.bytes if used is not None else None,
        "used_files": used.files if used is not None else None,
    }

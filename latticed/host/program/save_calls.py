"""service.save, saved, revert: copies of files that a service keeps, taken and put back for its plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from latticed.host.call import Caller, Params, Served
from latticed.host.program import saved
from latticed.host.program import spec as specs
from latticed.kit.clock import rfc3339

if TYPE_CHECKING:
    from latticed.host.program.keeper import ProgramKeeper
    from latticed.host.program.saved import Copy


class ProgramSave(Params, frozen=True):
    """Parameters of service.save."""

    name: str
    """Name of one of the caller's services."""
    files: tuple[str, ...]
    """Names of files in its directory."""
    keep: Annotated[int, Meta(ge=1, le=saved.MAX_COPIES)] = saved.KEEP
    """How many copies there are afterwards at most."""
    spare: str = ""
    """Id of a copy that stays besides."""


class ProgramSaved(Params, frozen=True):
    """Parameters of service.saved."""

    name: str
    """Name of one of the caller's services."""


class ProgramRevert(Params, frozen=True):
    """Parameters of service.revert."""

    name: str
    """Name of one of the caller's services."""
    id: str
    """Id of the copy."""


class SaveCalls:
    """The host calls `service.save`, `service.saved` and `service.revert`."""

    def __init__(self, programs: ProgramKeeper) -> None:
        self._programs = programs

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="service.save", params=ProgramSave, serve=self._save),
            Served(method="service.saved", params=ProgramSaved, serve=self._saved),
            Served(method="service.revert", params=ProgramRevert, serve=self._revert),
        )

    async def _save(self, caller: Caller, asked: ProgramSave) -> dict[str, Any]:
        """Copy these files; `new` is false when the newest copy is equal to them."""
        specs.check_name(asked.name)
        if not 1 <= len(asked.files) <= saved.MAX_FILES or len(set(asked.files)) < len(asked.files):
            raise specs.bad("files", f"1 to {saved.MAX_FILES} different names")
        for name in asked.files:
            if saved.NAME.fullmatch(name) is None or name == saved.INDEX:
                raise specs.bad("files", "names of A-Z a-z 0-9 . _ -, first a letter or digit")
        copy, new = await self._programs.save(
            caller.plugin_id, asked.name, asked.files, keep=asked.keep, spare=asked.spare
        )
        return {"ok": True, "new": new, **_view(copy)}

    async def _saved(self, caller: Caller, asked: ProgramSaved) -> dict[str, Any]:
        """The copies of one service, newest first."""
        specs.check_name(asked.name)
        return {"saved": [_view(copy) for copy in await self._programs.saved(caller.plugin_id, asked.name)]}

    async def _revert(self, caller: Caller, asked: ProgramRevert) -> dict[str, Any]:
        """Have the service keep exactly what was copied; it is stopped for that moment."""
        specs.check_name(asked.name)
        await self._programs.revert(caller.plugin_id, asked.name, asked.id)
        return {"ok": True, "id": asked.id}


def _view(copy: Copy) -> dict[str, Any]:
    """One copy as the calls show it, as JSON."""
    return {
        "id": copy.id,
        "at": rfc3339(copy.at),
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in copy.files],
    }

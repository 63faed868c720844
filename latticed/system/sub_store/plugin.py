"""The plugin: has the backend run and served as configured, looks after it, saves its files and puts them back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem
from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.plugin import SystemPlugin
from latticed.system.sub_store import check, render

if TYPE_CHECKING:
    from latticed.system.sub_store.intent import Intent

LOOK_S: Final = 15.0
"""Seconds between two looks at what is to be done: what was refused is asked for again, a backup may be due."""
PROBE_S: Final = 5.0
"""How long the backend may take to say what it is. Less than the manifest's `timeout_s`: a check that is late counts as
the plugin's own failure, and that would be restarted.
"""
DAY_S: Final = 86_400
KEEP: Final = 7
# Keys of kv: what the host was last asked to run and to serve, when the files were last saved, and the changed service
# that they were saved for, until one is put.
_SERVICE: Final = "service"
_PATH: Final = "path"
_SAVED_AT: Final = "saved_at"
_SAVED_FOR: Final = "saved_for"


class SubStore(SystemPlugin):
    """Actions `status`, `backup`, `backups`, `restore` {id}, `upgrade` {without_backup}.

    The backend is put once for each start of the plugin: putting it again would close its breaker.
    """

    _intent: Intent

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._running = self._served = False
        self._fault = self._backup_fault = self._version = ""
        self._noted: dict[str, str] = {}
        # An action and the background task must not save and put at the same time.
        self._changing = asyncio.Lock()

    async def started(self) -> None:
        try:
            self._intent = check.read(self.config)
        except Problem as problem:
            raise PluginError(problem.reason) from problem

    async def run(self) -> None:
        while True:
            async with self._changing:
                await self._look()
            await asyncio.sleep(LOOK_S)

    async def check(self) -> Health:
        if self._fault:
            return Health("degraded", self._fault[:400])
        try:
            state = await self._backend()
            if state["state"] != "running":
                return Health("degraded", _not_running(state)[:400])
            async with asyncio.timeout(PROBE_S):
                answer = await self._asked()
        except HostError as error:
            return Health("degraded", f"the backend: {error.message}"[:400])
        except TimeoutError:
            return Health("degraded", f"the backend: no answer to /api/utils/env within {PROBE_S:g} s")
        self._version = answer.version
        if answer.fault:
            return Health("degraded", f"the backend: {answer.fault}")
        if self._backup_fault:
            return Health("degraded", self._backup_fault[:400])
        return Health("healthy", f"Sub-Store {answer.version}".rstrip())

    async def do_status(self, _payload: Any) -> Any:
        """`{"backend", "version", "fault", "backups"}`: state as service.status has it, backups newest first."""
        try:
            backend = await self._backend()
        except HostError as error:
            backend = {"state": "missing", "last_error": {"code": error.code, "message": error.message}}
        shown = {name: backend.get(name) for name in ("state", "restarts", "started_at", "next_retry_at", "last_error")}
        fault = self._fault or self._backup_fault
        return {"backend": shown, "version": self._version, "fault": fault, "backups": await self._copies()}

    async def do_backup(self, _payload: Any) -> Any:
        """Save the files now: `{"id", "new", "at", "files"}`; `new` is false when the newest backup is equal."""
        async with self._changing:
            return await self._save()

    async def do_backups(self, _payload: Any) -> Any:
        """`{"backups"}`: newest first."""
        return {"backups": await self._copies()}

    async def do_restore(self, payload: Any) -> Any:
        """Have the backend keep exactly what `{"id"}` holds; what it has now is saved first, where it can be."""
        if not isinstance(payload, dict) or payload.keys() != {"id"} or not isinstance(payload["id"], str):
            raise PluginError('expected {"id": "ID"} of a backup: latticectl invoke latticed.sub-store backups')
        async with self._changing:
            before = None
            # What is broken cannot be saved, and may be why it is to be replaced.
            with contextlib.suppress(PluginError):
                before = (await self._save(spare=payload["id"]))["id"]
            try:
                await self.host.call("service.revert", name=render.SERVICE, id=payload["id"])
            except HostError as error:
                raise PluginError(error.message) from error
        await self.host.log.info("restored", id=payload["id"], before=before)
        return {"id": payload["id"], "before": before}

    async def do_upgrade(self, payload: Any) -> Any:
        """Ask again for what is configured; `{"without_backup": true}`: also when what is there cannot be saved."""
        if payload not in ({}, None, {"without_backup": False}, {"without_backup": True}):
            raise PluginError('expected {} or {"without_backup": true}')
        async with self._changing:
            self._running = self._served = False
            await self._look(without_backup=bool(payload and payload["without_backup"]))
        if self._fault:
            raise PluginError(self._fault)
        return {"backend": (await self._backend())["state"]}

    # What goes on

    async def _look(self, *, without_backup: bool = False) -> None:
        """Have the backend run and served, unless it is, and its files saved once a day; keeps what was refused."""
        self._fault = ""
        try:
            if not self._running:
                await self._run(without_backup=without_backup)
            if not self._served:
                await self._serve()
        except (HostError, PluginError) as error:
            self._fault = error.message if isinstance(error, HostError) else str(error)
        # Also then: what runs goes on, perhaps for days.
        try:
            await self._save_daily()
            self._backup_fault = ""
        except (HostError, PluginError) as error:
            said = error.message if isinstance(error, HostError) else str(error)
            self._backup_fault = f"the daily backup failed: {said}"

    async def _run(self, *, without_backup: bool) -> None:
        """Put the service. Before it becomes another one its files are saved; it stays as it is where that fails.

        Saved once, however often the put is refused: a backup each time would soon be all that is kept.
        """
        wanted = render.service(self._intent)
        text = json.dumps(wanted, sort_keys=True)
        before = await self.host.kv.get(_SERVICE)
        saved_for = await self._note_of(_SAVED_FOR)
        if before not in (None, text) and saved_for != text and not without_backup:
            try:
                made = await self._save()
            except PluginError as error:
                hint = "latticectl invoke latticed.sub-store upgrade '{\"without_backup\": true}' does it all the same"
                raise PluginError(f"not changed, because its files could not be saved: {error}; {hint}") from error
            if made["id"]:
                saved_for = text
                await self._note(_SAVED_FOR, text)
        await self.host.call("service.put", **wanted)
        await self.host.kv.put(_SERVICE, text)
        if saved_for:
            await self._note(_SAVED_FOR, "")  # wanted again later, it is saved for again
        self._running = True

    async def _serve(self) -> None:
        """Put the route, and take away that of an earlier path."""
        before = await self.host.kv.get(_PATH)
        if before not in (None, self._intent.path):
            await self.host.call("route.delete", path=before)
        await self.host.kv.put(_PATH, self._intent.path)
        answer = await self.host.call("route.put", **render.route(self._intent))
        if answer["message"]:
            raise PluginError(answer["message"])
        self._served = True

    async def _backend(self) -> Any:
        """The service as service.status shows it."""
        return (await self.host.call("service.status", name=render.SERVICE))["services"][0]

    async def _asked(self) -> render.Answer:
        """What the backend says of itself."""
        found = await self.host.call("http.do", **render.probe(self._intent))
        return render.answer(found["status_code"], base64.b64decode(found["body_base64"]))

    # Backups

    async def _save_daily(self) -> None:
        """Save the files if that was last done a day ago; a clock that was set back does not put it off for longer."""
        last = await self._note_of(_SAVED_AT)
        since_s = time.time() - float(last) if last and last.isdecimal() else DAY_S
        if 0 <= since_s < DAY_S:
            return
        await self._save()

    async def _save(self, *, spare: str = "") -> Any:
        """Save the files; PluginError when they cannot be. `{"id": None}` while there is none. `spare`: the id of a
        backup that does not go for it.
        """
        wanted = {"name": render.SERVICE, "files": [*render.FILES], "keep": KEEP, "spare": spare}
        try:
            made = await self.host.call("service.save", **wanted)
        except HostError as error:
            if error.code == "not_found":
                return {"id": None, "new": False}
            raise PluginError(error.message) from error
        await self._note(_SAVED_AT, str(int(time.time())))
        return made

    async def _note(self, key: str, value: str) -> None:
        """Keep what was done. Where kv takes no more it counts until the next start, so that it is not done over and
        over.
        """
        self._noted[key] = value
        with contextlib.suppress(HostError):
            await self.host.kv.put(key, value)

    async def _note_of(self, key: str) -> str | None:
        return self._noted[key] if key in self._noted else await self.host.kv.get(key)

    async def _copies(self) -> Any:
        return (await self.host.call("service.saved", name=render.SERVICE))["saved"]


def _not_running(state: Any) -> str:
    """A backend that does not run, in words."""
    error = state["last_error"]
    again = f", tried again at {state['next_retry_at']}" if state["next_retry_at"] else ""
    return f"the backend is {state['state']}{again}" + (f": {error['message']}" if error else "")

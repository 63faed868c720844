"""The tunnels of all plugins: on record, running while their owner may have them, changed without being lost.

A change is validated, then tried; when the new configuration is not connected in time, the one before it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from latticed.host.tunnel import spec as specs
from latticed.host.tunnel.connector import Connector
from latticed.host.tunnel.files import TunnelFiles
from latticed.kit import logs
from latticed.ledger import programs as rows
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

    from latticed.host.permissions import PermissionRefused
    from latticed.host.tunnel.connector import ConnectorDeps
    from latticed.host.tunnel.spec import TunnelSpec
    from latticed.ledger import Ledger

T = TypeVar("T")

LOOK_S: Final = 0.5
"""At least so often somebody looks whether what runs still may."""
FOLDER: Final = "tunnels"
log = logs.get_logger()


class TunnelKeeper:
    """An async context manager: entered, every tunnel on record runs as soon as its owner may have it.

    `refusal(plugin_id)`: why it may not have tunnels now, or None. Configurations lie in `state_dir`,
    credentials, while they are in use, in `runtime_dir`.
    """

    def __init__(
        self,
        ledger: Ledger,
        house: ConnectorDeps,
        *,
        refusal: Callable[[str], PermissionRefused | None],
        state_dir: Path,
        runtime_dir: Path,
    ) -> None:
        self._ledger = ledger
        self._house = house
        self._refusal = refusal
        self._state, self._runtime = state_dir / FOLDER, runtime_dir / FOLDER
        self._tunnels: dict[tuple[str, str], Connector] = {}
        self._trials: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._in_force: dict[tuple[str, str], TunnelSpec] = {}
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by plugin
        self._changes: set[asyncio.Task[Any]] = set()
        self._judging: dict[asyncio.Task[None], str] = {}  # and whose it is
        self._wanted = asyncio.Event()
        self._server: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._clear_remains)
        for row in await self._ledger.read_slow(lambda db: rows.load_all(db, "tunnel")):
            try:
                spec = specs.decode(row.spec)
            except msgspec.MsgspecError as error:  # written by another version; it is kept, and put anew by its owner
                log.error("tunnel_unreadable", plugin_id=row.plugin_id, name=row.name, reason=str(error))
                continue
            made = self._make(row.plugin_id, row.name, spec)
            if row.candidate:
                key = (row.plugin_id, row.name)
                with contextlib.suppress(Problem):  # the disk is full or ill: the next start does it
                    await self._ledger.write(lambda tx, key=key: rows.consider(tx, key[0], "tunnel", key[1], ""))  # type: ignore[misc]
                made.life.fault("change_interrupted", "latticed ended while a change was tried: the one before is back")
        self._server = asyncio.create_task(self._serve(), name="tunnels")
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in [*self._trials.values(), *([self._server] if self._server else [])]:
            one.cancel()
            await asyncio.gather(one, return_exceptions=True)
        await asyncio.gather(*self._changes, return_exceptions=True)
        await asyncio.gather(*(one.end() for one in self._tunnels.values()))
        self._tunnels.clear()

    def recheck(self, plugin_id: str) -> None:
        """Have what may run of one plugin run; what may not is being ended when this returns, and killed if it must."""
        self._recheck(self.of(plugin_id))
        for judging in self._judged_for(plugin_id):
            judging.cancel()

    async def drained(self, plugin_id: str) -> None:
        """Return once nothing of one plugin runs that may not, and no credentials of it are left."""
        if self._refusal(plugin_id) is not None:
            judged = self._judged_for(plugin_id)
            await asyncio.gather(*(one.end() for one in self.of(plugin_id)), *judged, return_exceptions=True)

    def _judged_for(self, plugin_id: str) -> list[asyncio.Task[None]]:
        """What is being validated and may not run."""
        refused = self._refusal(plugin_id) is not None
        return [one for one, owner in self._judging.items() if owner == plugin_id and refused]

    def of(self, plugin_id: str) -> list[Connector]:
        """Those of one plugin, by name."""
        return [self._tunnels[key] for key in sorted(key for key in self._tunnels if key[0] == plugin_id)]

    # What plugins change. A caller that is cancelled leaves no half of a change behind.

    async def put(self, plugin_id: str, name: str, spec: TunnelSpec) -> Connector:
        """Run `spec` from now on; in place of another one once it is connected.

        Problems: bad_params when cloudflared refuses it, credentials_unusable, quota_exceeded, sandbox_unavailable, …
        """
        return await self._whole(self._put(plugin_id, name, spec))

    async def delete(self, plugin_id: str, name: str) -> bool:
        """End it and forget it; False when there was none."""
        return await self._whole(self._delete(plugin_id, name))

    async def forget(self, plugin_id: str) -> int:
        """Delete all of one plugin; how many there were."""
        async with self._changing[plugin_id]:  # after a change that is under way
            names = [one.name for one in self.of(plugin_id)]
        return sum([await self.delete(plugin_id, name) for name in names])

    async def _put(self, plugin_id: str, name: str, spec: TunnelSpec) -> Connector:
        async with self._changing[plugin_id]:
            key = plugin_id, name
            before = self._tunnels.get(key)
            if before is not None and before.spec == spec and before.life.state not in {"ended", "failed"}:
                return before
            tunnel = before or Connector(plugin_id, name, spec, self._place(plugin_id, name), self._house)
            await self._validated(tunnel, spec)
            if before is None or key not in self._in_force:
                await self._record(plugin_id, name, spec)
                await self._stop_trial(key)
                await tunnel.take(spec)
                self._tunnels[key] = tunnel
                self._in_force[key] = spec
                self._begin(tunnel)
                return tunnel
            text = specs.encode(spec)
            await self._ledger.write(lambda tx: rows.consider(tx, plugin_id, "tunnel", name, text), durable=True)
            await self._stop_trial(key)
            await tunnel.take(spec)
            tunnel.trying = True
            self._begin(tunnel)
            self._trials[key] = asyncio.create_task(self._try(tunnel, spec), name=f"trial {plugin_id}/{name}")
            return tunnel

    async def _validated(self, tunnel: Connector, spec: TunnelSpec) -> None:
        """Have it validated, unless its owner may not have tunnels by then: the next one of the id gets none of it."""
        judging = asyncio.ensure_future(tunnel.validate(spec))
        self._judging[judging] = tunnel.plugin_id
        try:
            await asyncio.wait({judging})
        finally:
            judging.cancel()
            del self._judging[judging]
        if (refusal := self._refusal(tunnel.plugin_id)) is not None:
            raise Problem("not_armed", f"{tunnel.plugin_id} may not have tunnels any more: {refusal.reason}")
        judging.result()

    async def _record(self, plugin_id: str, name: str, spec: TunnelSpec) -> None:
        settings, now_us, text = self._house.settings(), self._house.tools.clock.wall_us(), specs.encode(spec)
        quota = RowQuota(plugin=settings.plugin_tunnels, total=settings.total_tunnels)
        await self._ledger.write(
            lambda tx: rows.put(tx, plugin_id, "tunnel", name, text, quota, now_us=now_us), durable=True
        )

    async def _delete(self, plugin_id: str, name: str) -> bool:
        async with self._changing[plugin_id]:
            existed = await self._ledger.write(lambda tx: rows.delete(tx, plugin_id, "tunnel", name), durable=True)
            key = plugin_id, name
            await self._stop_trial(key)
            self._in_force.pop(key, None)
            if (found := self._tunnels.pop(key, None)) is not None:
                await found.end()
                await asyncio.to_thread(self._place(plugin_id, name).clear)
            return existed

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())  # heard, whoever waits
        return await asyncio.shield(task)

    # A change that is being tried.

    async def _try(self, tunnel: Connector, spec: TunnelSpec) -> None:
        """Keep `spec` when it connects in time; else have the one before back."""
        if await tunnel.settled():
            with contextlib.suppress(Problem):  # a full disk: it runs, and at the next start the one before does
                await self._record(tunnel.plugin_id, tunnel.name, spec)
            self._in_force[tunnel.plugin_id, tunnel.name] = spec
            tunnel.trying = False
            return
        code, message, _ = tunnel.life.error or ("not_ready", f"it was {tunnel.view()['state']}", 0)
        with contextlib.suppress(Problem):
            await self._ledger.write(lambda tx: rows.consider(tx, tunnel.plugin_id, "tunnel", tunnel.name, ""))
        await tunnel.take(self._in_force[tunnel.plugin_id, tunnel.name])
        tunnel.trying = False
        self._begin(tunnel)
        why = f"the new configuration was not connected in time ({code}: {message}): the one before is back"
        tunnel.life.fault("change_undone", why)
        log.warning("tunnel_change_undone", plugin_id=tunnel.plugin_id, name=tunnel.name, code=code)

    async def _stop_trial(self, key: tuple[str, str]) -> None:
        trial = self._trials.pop(key, None)
        if trial is not None:
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            if key in self._tunnels:
                self._tunnels[key].trying = False

    # Running.

    async def _serve(self) -> None:
        while True:
            self._wanted.clear()
            try:
                self._recheck(self._tunnels.values())
            except Exception:
                log.error("tunnels_failed", exc_info=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wanted.wait()

    def _recheck(self, tunnels: Iterable[Connector]) -> None:
        """Begin what may run, end what may not."""
        for one in tunnels:
            refusal = self._refusal(one.plugin_id)
            if refusal is None and one.is_bound:
                one.begin()
                continue
            if refusal is not None and refusal.distrusted:
                one.life.kill()
            if one.life.begun and not one.life.ending:
                log.info("tunnel_stopped", plugin_id=one.plugin_id, name=one.name)
                one.life.ending = True
                ending = asyncio.create_task(one.end())  # one that takes its time holds up no other
                self._changes.add(ending)
                ending.add_done_callback(self._changes.discard)
                ending.add_done_callback(lambda _: self._wanted.set())  # it may run again by now

    def _allowed(self, one: Connector) -> bool:
        return self._refusal(one.plugin_id) is None and one.is_bound

    def _begin(self, tunnel: Connector) -> None:
        if self._allowed(tunnel):
            tunnel.begin()

    def _make(self, plugin_id: str, name: str, spec: TunnelSpec) -> Connector:
        key = plugin_id, name
        made = self._tunnels[key] = Connector(plugin_id, name, spec, self._place(plugin_id, name), self._house)
        self._in_force[key] = spec
        return made

    def _place(self, plugin_id: str, name: str) -> TunnelFiles:
        folder = f"{plugin_id}+{name}"  # neither has a '+'
        return TunnelFiles(state=self._state / folder, runtime=self._runtime / folder)

    def _clear_remains(self) -> None:
        """Credentials that an earlier life was killed with, and configurations: those in force are written anew."""
        for directory in (self._state, self._runtime):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in directory.iterdir():
                TunnelFiles(state=folder, runtime=folder).clear()

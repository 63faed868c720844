"""Common base of the keepers of programs and tunnels: processes that run while their plugin may act."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from latticed.host.keeper import Keeper
from latticed.kit import logs
from latticed.ledger import programs as rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latticed.host.permissions import PermissionRefused
    from latticed.host.program.supervised import SupervisedProgram
    from latticed.ledger import Ledger
    from latticed.ledger.programs import Kind

RECHECK_S: Final = 0.5
"""Seconds between rechecks of all items, in case a call of `recheck` was missed."""
log = logs.get_logger()


class SupervisedItem(Protocol):
    """What a keeper holds: a program of a plugin or a tunnel, and what runs for it. `start` has no effect while it is
    started; `kill` kills its processes, after which `stop` must follow; `stop` returns once none of them is left.
    """

    plugin_id: str
    name: str

    @property
    def program(self) -> SupervisedProgram: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    async def stop(self) -> None: ...


Supervised = TypeVar("Supervised", bound=SupervisedItem)


class SupervisedKeeper(Keeper[Supervised]):
    """An async context manager: entered, items run while their plugin may act; left, none runs.

    `kind`: `service` or `tunnel`, that of the rows. `refusal(plugin_id)`: why it may not have programs run now, or
    None.
    """

    def __init__(self, ledger: Ledger, kind: Kind, *, refusal: Callable[[str], PermissionRefused | None]) -> None:
        super().__init__(
            ledger,
            kind,
            delete_row=lambda tx, plugin_id, name: rows.delete(tx, plugin_id, kind, name),
            delete_rows=lambda tx, plugin_id: rows.clear(tx, plugin_id, kind),
        )
        self._refusal = refusal
        self._wanted = asyncio.Event()
        self._rechecks: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._load()
        self._rechecks = asyncio.create_task(self._keep_rechecking(), name=f"{self._kind}s")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._rechecks is not None:
            self._rechecks.cancel()
            # Before the items are stopped: a recheck would start them again.
            await asyncio.gather(self._rechecks, return_exceptions=True)
        await super().__aexit__(*exc)

    def recheck(self, plugin_id: str) -> None:
        """Start what may run of one plugin; begin to stop what may not, killing it if the plugin is distrusted. Returns
        at once: see `drained`.
        """
        self._recheck(self.of(plugin_id))

    async def drained(self, plugin_id: str) -> None:
        """Return once no process is left of those items of one plugin that may not run now."""
        # Not only awaited but stopped: the recheck that was to begin it may have been missed.
        await asyncio.gather(*(one.stop() for one in self.of(plugin_id) if self._why_not(one) is not None))

    # For subclasses.

    @abc.abstractmethod
    async def _load(self) -> None:
        """Make an item, not started, for every row of this kind."""

    def _why_not(self, one: Supervised) -> PermissionRefused | None:
        """Why an item may not run now, or None; subclasses add reasons of their own."""
        return self._refusal(one.plugin_id)

    def _start_permitted(self, one: Supervised) -> None:
        """Start an item, unless it may not run; then a recheck starts it once it may."""
        if self._why_not(one) is None:
            one.start()

    async def _stop(self, items: Iterable[Supervised]) -> None:
        await asyncio.gather(*(one.stop() for one in items))

    # Rechecks.

    async def _keep_rechecking(self) -> None:
        """Recheck all items every RECHECK_S, and at once when one has stopped, until cancelled."""
        failed = f"{self._kind}s_failed"
        while True:
            # Cleared before the recheck, not after: a request that comes during it leads to another one.
            self._wanted.clear()
            try:
                # No await in `_recheck`, so the dict does not change while it is iterated.
                self._recheck(self._kept.values())
            # Logged, and the loop goes on: without it nothing would be stopped any more when permissions are lost.
            except Exception:
                log.error(failed, exc_info=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._wanted.wait()

    def _recheck(self, items: Iterable[Supervised]) -> None:
        """Start what may run, begin to stop what may not. Does not wait."""
        stopped = f"{self._kind}_stopped"
        for one in items:
            refusal = self._why_not(one)
            if refusal is None:
                one.start()
                continue
            if refusal.of_item and one.program.error_code != refusal.code:
                one.program.note_error(refusal.code, refusal.reason)
            # At each recheck, also while it is already being stopped: that stop may have begun with a grace period.
            if refusal.distrusted:
                one.kill()
            if one.program.started and not one.program.stopping:
                log.info(stopped, plugin_id=one.plugin_id, name=one.name, code=refusal.code)
                one.program.stopping = True
                stopping = self._background.start(one.stop())  # not awaited: a slow stop must not delay other items
                stopping.add_done_callback(lambda _: self._wanted.set())  # permitted again meanwhile: start it now

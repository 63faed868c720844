"""The tunnels of all plugins: stored in the ledger, running while their owner may act.

A change is validated, then tried beside what runs: a second connector has to be connected before it replaces the first,
so that no visitor meets a tunnel without one.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from latticed.host.permissions import PermissionRefused
from latticed.host.program.supervised_keeper import SupervisedKeeper
from latticed.host.tunnel import spec as specs
from latticed.host.tunnel.files import TunnelFiles
from latticed.host.tunnel.tunnel import KeptTunnel
from latticed.kit import logs
from latticed.ledger import programs as rows
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from latticed.host.tunnel.command import TunnelDeps
    from latticed.host.tunnel.spec import TunnelSpec
    from latticed.ledger import Ledger
    from latticed.model.restart import RestartPolicy
    from latticed.settings.programs import TunnelSettings as Settings

FOLDER: Final = "tunnels"
"""Name of the directory of tunnels below the state directory and the runtime directory."""
log = logs.get_logger()


class TunnelKeeper(SupervisedKeeper[KeptTunnel]):
    """An async context manager: entered, every stored tunnel runs while its owner may act; left, none does.

    `refusal(plugin_id)`: why it may not have tunnels now, or None. Configurations are in `state_dir`, credentials,
    while they are in use, in `runtime_dir`.
    """

    def __init__(
        self,
        ledger: Ledger,
        deps: TunnelDeps,
        *,
        refusal: Callable[[str], PermissionRefused | None],
        state_dir: Path,
        runtime_dir: Path,
    ) -> None:
        super().__init__(ledger, "tunnel", refusal=refusal)
        self._deps = deps
        self._state, self._runtime = state_dir / FOLDER, runtime_dir / FOLDER
        # Tasks under way, for `recheck`: there is no item to stop before the first put of a tunnel is through.
        self._validations: dict[asyncio.Task[None], str] = {}  # to plugin id

    def restart_by(self, policy: RestartPolicy) -> None:
        """Restart tunnels that are started from now on by this policy."""
        self._deps.policy = policy

    @property
    def settings(self) -> Settings:
        """The settings in force. Assigned, they hold at once: tunnels that were started with another program or another
        directory of credentials are tried with the new ones as a change is, and none runs while no program is named.
        """
        return self._deps.settings

    @settings.setter
    def settings(self, fresh: Settings) -> None:
        self._deps.settings = fresh
        for plugin_id in {one.plugin_id for one in self.every()}:
            self.recheck(plugin_id)
        for one in self.every():
            self._renew(one)

    async def _load(self) -> None:
        # In a thread, as it walks directories; before any item is made, as it removes every tunnel's files.
        await asyncio.to_thread(self._clear_leftovers)
        for row in await self._ledger.read_slow(lambda db: rows.load_all(db, "tunnel")):
            if (spec := self._decoded(row, specs.decode)) is None:
                continue
            made = self._made(row.plugin_id, row.name, spec)
            self._kept[row.plugin_id, row.name] = made
            # The daemon ended during a trial: `row.spec` is still the previous one, which is what starts.
            if row.candidate:
                with contextlib.suppress(Problem):  # full disk: the next start tries again
                    await self._drop_candidate(made)
                made.note_error("change_interrupted", "latticed ended while a change was tried: the one before is back")

    def recheck(self, plugin_id: str) -> None:
        """As the base, and cancel validations for a plugin that may not have tunnels any more."""
        super().recheck(plugin_id)
        for validation in self._forbidden_validations(plugin_id):
            validation.cancel()

    async def drained(self, plugin_id: str) -> None:
        """Return once no process and no validation is left of those tunnels of one plugin that may not run now, and
        their credentials are removed.
        """
        await asyncio.gather(
            super().drained(plugin_id),
            *(one.stop_unbound() for one in self.of(plugin_id)),
            *self._forbidden_validations(plugin_id),
            return_exceptions=True,
        )

    async def put(self, plugin_id: str, name: str, spec: TunnelSpec) -> KeptTunnel:
        """Run `spec` from now on. Returns the tunnel once the spec is valid and on disk; it is started afterwards.

        If a tunnel of that name exists, `spec` is tried beside it, and replaces the stored one only once it is
        connected; `KeptTunnel.trial` is set until then. Putting what runs again changes nothing.

        Problems: bad_params when cloudflared refuses it, credentials_unusable, not_armed when the plugin lost its
        permission meanwhile, quota_exceeded, sandbox_unavailable, ledger_unavailable.
        """
        return await self._change(plugin_id, lambda: self._put(plugin_id, name, spec))

    async def put_back(self, plugin_id: str, name: str, spec: TunnelSpec) -> None:
        """Run again what the plugin had, as `put`. While it may not have tunnels, it is stored in place of what is
        there now, without a trial: no connector runs then, and a recheck starts it once it may.
        """
        if self._refusal(plugin_id) is None:
            await self.put(plugin_id, name, spec)
        else:
            await self._change(plugin_id, lambda: self._store(plugin_id, name, spec))

    async def _store(self, plugin_id: str, name: str, spec: TunnelSpec) -> None:
        """As `put_back`, after earlier changes of this plugin."""
        if (before := self.get(plugin_id, name)) is not None:
            await self._stop([before])
        made = self._made(plugin_id, name, spec)
        await self._record(made, spec)
        self._kept[plugin_id, name] = made
        self._start_permitted(made)  # it may have been permitted meanwhile

    async def _put(self, plugin_id: str, name: str, spec: TunnelSpec) -> KeptTunnel:
        """As `put`, after earlier changes of this plugin."""
        before = self.get(plugin_id, name)
        over = before is not None and before.program.state in {"ended", "failed"}
        if before is not None and before.wanted == spec and not over:
            return before
        # First, while the existing tunnel goes on: a spec that is refused here changes nothing.
        tunnel = before or self._made(plugin_id, name, spec)
        try:
            await self._validate(tunnel, spec)
            if before is None:
                await self._record(tunnel, spec)
        except BaseException:
            if before is None:  # nobody would remove its directories: there is no tunnel of that name
                await asyncio.to_thread(self._files(plugin_id, name).clear)
            raise
        if before is None:
            self._kept[plugin_id, name] = tunnel
            self._start_permitted(tunnel)
            return tunnel
        text = None
        # Once more where what serves, and is wanted, was replaced by an earlier trial before that was stopped.
        while text is None or (not text and spec != tunnel.serving.spec):
            text = "" if spec == tunnel.serving.spec else specs.encode(spec)
            # Before the trial: a daemon that is killed meanwhile starts with the old spec, and says why.
            await self._consider(tunnel, text)
            # An earlier trial would store its own spec in the end.
            await tunnel.stop_trial()
        if text:
            self._start_permitted(tunnel)
            self._begin_trial(tunnel, spec)
            return tunnel
        # Back to what serves, or the same again after it had failed, which the operator may have mended.
        if over:
            await tunnel.stop()
        self._start_permitted(tunnel)
        return tunnel

    async def _validate(self, tunnel: KeptTunnel, spec: TunnelSpec) -> None:
        """Return if the spec is valid and the plugin still may have tunnels; Problem otherwise, as `put`.

        The permission is asked for after the validation, which takes seconds: the id may by then belong to another
        publisher's plugin, which must not get this tunnel.
        """
        validation = asyncio.ensure_future(tunnel.validate(spec))
        self._validations[validation] = tunnel.plugin_id
        try:
            # asyncio.wait: `recheck` may cancel the validation, which, awaited, would look like our own cancellation.
            await asyncio.wait({validation})
        finally:
            validation.cancel()
            del self._validations[validation]
        # Asked before `result`, which would raise CancelledError for a validation that `recheck` cancelled.
        if (refusal := self._refusal(tunnel.plugin_id)) is not None:
            raise Problem("not_armed", f"{tunnel.plugin_id} may not have tunnels any more: {refusal.reason}")
        validation.result()

    def _forbidden_validations(self, plugin_id: str) -> list[asyncio.Task[None]]:
        """Validations under way for a plugin that may not have tunnels; empty when it may."""
        if self._refusal(plugin_id) is None:
            return []
        return [one for one, owner in self._validations.items() if owner == plugin_id]

    async def _record(self, tunnel: KeptTunnel, spec: TunnelSpec) -> None:
        """Store a spec as the one that is started from now on, and remove the candidate. Problems quota_exceeded,
        ledger_unavailable.
        """
        settings, now_us, text = self._deps.settings, self._deps.program.clock.wall_us(), specs.encode(spec)
        quota = RowQuota(plugin=settings.plugin_tunnels, total=settings.total_tunnels)
        await self._ledger.write(
            lambda tx: rows.put(tx, tunnel.plugin_id, "tunnel", tunnel.name, text, quota, now_us=now_us), durable=True
        )

    async def _settle(self, tunnel: KeptTunnel, spec: TunnelSpec) -> None:
        """As `_record`, of a tunnel that may be being deleted: then it stays deleted."""
        now_us, text = self._deps.program.clock.wall_us(), specs.encode(spec)
        await self._ledger.write(
            lambda tx: rows.settle(tx, tunnel.plugin_id, "tunnel", tunnel.name, text, now_us=now_us), durable=True
        )

    async def _drop_candidate(self, tunnel: KeptTunnel) -> None:
        """Remove the candidate from the row, so that the stored spec is the only one again. Problem
        ledger_unavailable.
        """
        await self._consider(tunnel, "", durable=False)

    async def _consider(self, tunnel: KeptTunnel, text: str, *, durable: bool = True) -> None:
        """Note the candidate in the row, or that there is none. Problem ledger_unavailable."""
        await self._ledger.write(
            lambda tx: rows.consider(tx, tunnel.plugin_id, "tunnel", tunnel.name, text), durable=durable
        )

    def _begin_trial(self, tunnel: KeptTunnel, spec: TunnelSpec) -> None:
        tunnel.trial = asyncio.create_task(self._try(tunnel, spec), name=f"trial {tunnel.plugin_id}/{tunnel.name}")

    async def _try(self, tunnel: KeptTunnel, spec: TunnelSpec) -> None:
        """The trial of a change, as a task: have a connector with `spec` replace the one that serves, and store `spec`,
        if it connects in time; else stop it, and note why.
        """
        # Two at a time: changes that follow each other quickly do not pile processes up.
        await tunnel.drained()
        code, message = "stopped", "the tunnel may not run now"
        # Asked here, and not only by rechecks: what is begun after a refusal would not be stopped by it.
        if self._why_not(tunnel) is None:
            tried = tunnel.begin(spec)
            if await tried.settled():
                tunnel.replace()
                with contextlib.suppress(Problem):  # full disk: it runs on, and the next start runs the one before
                    await self._settle(tunnel, spec)
                tunnel.trial = None
                log.info("tunnel_changed", plugin_id=tunnel.plugin_id, name=tunnel.name)
                self._renew(tunnel)
                return
            code, message, _ = tried.program.error or ("not_ready", f"it was {tried.view()['state']}", 0)
        # Full disk: the row keeps the candidate, and the next start of the daemon drops it (`_load`).
        with contextlib.suppress(Problem):
            await self._drop_candidate(tunnel)
        # `trial` stays set until then, so that `_stop` cancels and awaits this task meanwhile.
        await tunnel.undo()
        tunnel.trial = None
        why = f"the new configuration was not connected in time ({code}: {message}): the one before goes on"
        tunnel.note_error("change_undone", why)
        log.warning("tunnel_change_undone", plugin_id=tunnel.plugin_id, name=tunnel.name, code=code)

    def _renew(self, tunnel: KeptTunnel) -> None:
        """Try what serves with the settings in force, if it was started with others."""
        started_with, now = tunnel.serving.settings, (self.settings.program, self.settings.credentials_dir)
        if tunnel.trial is None and started_with not in (None, now) and self._why_not(tunnel) is None:
            self._begin_trial(tunnel, tunnel.serving.spec)

    def _why_not(self, one: KeptTunnel) -> PermissionRefused | None:
        """Why it may not run now, or None: its owner's refusal, no program, or an origin that is not bound any more."""
        if (refusal := self._refusal(one.plugin_id)) is not None:
            return refusal
        if not self.settings.program:
            return PermissionRefused("switched_off", "the operator has named no cloudflared (tunnel.program)")
        if one.serving.is_bound:
            return None
        return PermissionRefused("origin_not_bound", "an origin that it leads to is not bound any more")

    def _recheck(self, items: Iterable[KeptTunnel]) -> None:
        tunnels = list(items)
        super()._recheck(tunnels)
        for one in tunnels:
            if one.has_unbound:
                self._background.start(one.stop_unbound())

    async def _stop(self, items: Iterable[KeptTunnel]) -> None:
        tunnels = list(items)
        await asyncio.gather(*(one.stop_trial() for one in tunnels))  # first: a trial begins a process of its own
        await super()._stop(tunnels)

    async def _discard(self, items: Iterable[KeptTunnel]) -> None:
        """Stop these tunnels, and remove their files."""
        tunnels = list(items)
        await self._stop(tunnels)
        for one in tunnels:
            await asyncio.to_thread(self._files(one.plugin_id, one.name).clear)

    def _made(self, plugin_id: str, name: str, spec: TunnelSpec) -> KeptTunnel:
        """A tunnel in memory, not started."""
        return KeptTunnel(plugin_id, name, spec, self._files(plugin_id, name), self._deps)

    def _files(self, plugin_id: str, name: str) -> TunnelFiles:
        """Where a tunnel's files are: in directories of its own below the state and the runtime directory."""
        folder = f"{plugin_id}+{name}"  # unambiguous: neither contains a '+'
        return TunnelFiles(state=self._state / folder, runtime=self._runtime / folder)

    def _clear_leftovers(self) -> None:
        """Remove the credentials and configurations that a killed daemon left; each start of a tunnel writes its own
        again. Blocks.
        """
        for directory in (self._state, self._runtime):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in directory.iterdir():
                TunnelFiles(state=folder, runtime=folder).clear()

"""Polls settings, trust policy, socket and state directory, and applies what a reload can change."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from latticed import settings as settings_room
from latticed.broker.gate import GateLimits
from latticed.host.services import restart_policy
from latticed.kit import logs
from latticed.kit.poll import STALLED_S, Poll
from latticed.kit.token_bucket import Rate
from latticed.ledger.retention import Retention
from latticed.model.errors import Problem
from latticed.rpc import access
from latticed.settings import live, places

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.broker.gate import Broker
    from latticed.host.services import HostServices
    from latticed.ingress.ingress import Ingress
    from latticed.ledger import Ledger
    from latticed.rpc.api import Api
    from latticed.rpc.server import Server
    from latticed.settings import Settings

log = logs.get_logger()


class Reloader:
    """One poll each for settings, policy, socket and state directory, off the event loop.

    `config` is the settings file named on the command line. The daemon starts the polls (`looks`) every second.
    """

    def __init__(
        self,
        config: Path | None,
        api: Api,
        server: Server,
        *,
        broker: Broker,
        services: HostServices,
        listeners: tuple[Ingress, ...],
    ) -> None:
        self._config = config
        self._api = api
        self._server = server
        self._broker = broker
        self._services = services
        self._listeners = listeners
        # Of the file as it was read at the start, so that a change while the daemon opens is noticed.
        self._settings_seen = api.settings.file_seen
        self._settings_found: tuple[int, ...] | None = ()
        """The file's fingerprint at the poll before; `()` equals none."""
        self._settings = Poll("settings", self._look_at_settings)
        self._policy = Poll("policy", self._look_at_policy)
        self._displaced: Problem | None = None
        """Why the state directory is not the one that was opened; None while it is."""
        self.looks = (
            self._settings,
            self._policy,
            Poll("socket", self._look_at_socket),
            Poll("state", self._look_at_state),
        )
        """The polls; the daemon starts each of them every second."""

    async def reload(self) -> None:
        """SIGHUP: read settings and policy again and judge every bundle, changed or not.

        Settings first, since they name the policy file. A read that hangs is waited for STALLED_S at most, logged, and
        goes on in the background. What cannot be applied keeps what was in force, and is in `troubles`.
        """
        for look in (self._settings, self._policy):
            looking = look.start(always=True)
            # From when the poll began: one that has hung for a while already gets only the rest.
            await asyncio.wait({looking}, timeout=max(STALLED_S - look.running_s, 0))
            if look.running_s >= STALLED_S:
                log.error("reload_stalled", task=look.name)

    def troubles(self) -> list[Problem]:
        """Problems with the daemon's environment, for health: polls that stall, the socket, the state directory."""
        still = [look for look in self.looks if look.running_s >= STALLED_S]
        found = [
            Problem(f"{one.name}_stalled", f"expected an answer of the disk, found none for {one.running_s:.0f} s")
            for one in still
        ]
        return [*found, *(one for one in (self._server.trouble, self._displaced) if one is not None)]

    async def _look_at_settings(self, always: bool) -> None:  # noqa: FBT001 - signature of a Poll's work
        """Apply the settings file if it has changed and is the same as a poll before, or `always`.

        While an editor or a script writes it, it may be gone, empty or half for a moment.
        """
        # In a thread: a stat on a network file system may hang.
        found = await asyncio.to_thread(self._settings_fingerprint)
        before, self._settings_found = self._settings_found, found
        if not always and (found != before or found == self._settings_seen):
            return
        outcome = await asyncio.to_thread(self._read_settings)
        # What was read while it changed does not count either: the next polls read it again.
        if not always and found != await asyncio.to_thread(self._settings_fingerprint):
            return
        self._settings_seen = found
        if isinstance(outcome, Problem):
            self._refuse_settings(outcome)
        else:
            await self._apply_settings(*outcome)

    async def _look_at_policy(self, always: bool) -> None:  # noqa: FBT001 - signature of a Poll's work
        """Apply the trust policy if it has changed, or `always`; else retry recording it if that failed."""
        if await asyncio.to_thread(self._api.policy.look, always=always) or always:
            await self._policy_changed()
        elif not self._api.policy.recorded:
            await self._api.revocations.remember()

    async def _look_at_socket(self, _: bool) -> None:  # noqa: FBT001 - signature of a Poll's work
        """Listen again if the control socket was removed."""
        await self._server.look()

    async def _look_at_state(self, _: bool) -> None:  # noqa: FBT001 - signature of a Poll's work
        """Log, once for each kind, that the state directory or a file in it was replaced, and when it is back."""
        before, self._displaced = self._displaced, await asyncio.to_thread(self._api.ledger.directory_fault)
        if self._displaced is not None and (before is None or before.code != self._displaced.code):
            log.critical("state_displaced", code=self._displaced.code, reason=self._displaced.reason)
        elif self._displaced is None and before is not None:
            log.warning("state_back")

    async def _policy_changed(self) -> None:
        """Log what the policy file says now, and have the lifecycle judge everything by it."""
        policy = self._api.policy
        if policy.problem is not None:
            log.error("trust_policy_refused", code=policy.problem.code, reason=policy.problem.reason)
        else:
            log.info("trust_policy_loaded", publishers=len(policy.current.publishers))
        await self._api.lifecycle.policy_changed()

    def _settings_fingerprint(self) -> tuple[int, ...] | None:
        """Of the settings file in force, or of where one is expected. Blocks."""
        file = self._config or self._api.settings.config_file
        return settings_room.fingerprint(places.settings_file(file, os.environ, os.geteuid()))

    def _read_settings(self) -> tuple[Settings, access.Access, int] | Problem:
        """The settings, who may use the control API, and the socket's group; what is bad about them. Blocks."""
        try:
            fresh = settings_room.load(self._config, os.environ, os.geteuid(), in_force=self._api.settings)
            return (fresh, *resolved(fresh))
        except Problem as problem:
            return problem

    def _refuse_settings(self, problem: Problem) -> None:
        """Keep the settings in force, and show in health why."""
        # Once: the poll comes here every second while the file is bad.
        if problem.reason not in [known.reason for known in self._api.trouble]:
            log.error("settings_refused", reason=problem.reason, hint=problem.hint)
        self._api.trouble = [problem]
        self._settings_seen = ()  # retry: an I/O error may pass without a change of metadata

    async def _apply_settings(self, fresh: Settings, allowed: access.Access, gid: int) -> None:
        """Apply what a reload can change."""
        try:
            # Before anything is applied: if it fails, all of the old settings stay.
            await self._server.set_group(gid)
        except Problem as problem:
            self._refuse_settings(problem)
            return
        applied = live.merged(self._api.settings, fresh)
        # Compared with the file, so that what waits for a restart is named, also when it changed earlier.
        if waiting := _differences(applied, fresh):
            log.warning("settings_need_restart", keys=",".join(waiting))
        # No await from here on: no request sees half of it.
        self._api.settings = applied
        self._api.access, self._api.trouble = allowed, []
        self._api.lifecycle.upgrades.gate_s = applied.upgrade.gate_s
        self._broker.limits = gate_limits(applied)
        self._services.apply(applied)
        self._api.spawner.apply(applied.sandbox, applied.plugin_limits)
        self._api.catalog.apply(applied.watch)
        supervision = applied.supervision
        self._api.supervisor.apply(
            restart_policy(supervision),
            stop_grace_s=supervision.stop_grace_s,
            kept_bytes=supervision.kept_artifact_bytes,
        )
        for listener in self._listeners:
            listener.allow(applied.http)
        set_retention(self._api.ledger, applied)
        self._api.policy.file = applied.trust
        logs.configure(applied.log.level, form=applied.log.format)
        for sentence in settings_room.advice(fresh.renamed):
            log.warning("setting_renamed", reason=sentence)
        for sentence in allowed.without_effect:
            log.warning("access_without_effect", reason=sentence)
        log.info("settings_loaded")


def resolved(settings: Settings) -> tuple[access.Access, int]:
    """Who may use the control API, and the gid of the socket's group; Problem for a name that does not exist.

    Blocks: may ask a directory service.
    """
    allowed = access.resolve(settings.access, own_uid=os.geteuid())
    return allowed, access.socket_gid(settings.access.socket_group)


def set_retention(ledger: Ledger, settings: Settings) -> None:
    """Apply `audit.*` of the settings: how much of both audit chains the ledger keeps."""
    wanted = settings.audit
    ledger.retention = Retention(keep_days=wanted.keep_days, max_bytes=wanted.max_bytes)
    ledger.calls_retention = Retention(keep_days=wanted.calls.keep_days, max_bytes=wanted.calls.max_bytes)


def gate_limits(settings: Settings) -> GateLimits:
    """The limits of each plugin's host calls, from `host_calls.*` of the settings."""
    limits = settings.host_calls
    return GateLimits(
        rate=Rate(per_second=limits.per_second, burst=limits.burst),
        of_call={"log.write": Rate(per_second=limits.log_per_second, burst=2 * limits.log_per_second)},
        request_bytes=limits.request_bytes,
        deadline_s=limits.deadline_s,
    )


def _differences(applied: Settings, fresh: Settings) -> list[str]:
    """The dotted keys of which `fresh` has another value than `applied`."""
    old = {key: value for key, value, _ in settings_room.describe(applied)}
    return [key for key, value, _ in settings_room.describe(fresh) if old[key] != value]

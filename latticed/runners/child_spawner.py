"""Starts confined children, each at the level that probe, manifest and settings allow, each with its own uid.

There is one `ChildSpawner` in the daemon.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.model import permits as allowed
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.processes import child
from latticed.runners.uids import Uids
from latticed.runners.usage import ChildUsage
from latticed.sandbox import levels, rlimits, spec
from latticed.sandbox.levels import Level

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from latticed.model.manifest import Manifest
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.sandbox.host_facts import Probed
    from latticed.sandbox.levels import Chosen
    from latticed.sandbox.spec import ChildRequest
    from latticed.settings import PluginLimitSettings, SandboxSettings

PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""$PATH of every plugin, whatever the daemon's own is."""
INTERPRETERS: Final = ("python3", "sh", "node")
"""Interpreters that a script's first line may name when the settings list none, if the host has them."""

_PACKAGE: Final = Path(__file__).resolve().parent.parent
SDK_PATH: Final = str(_PACKAGE.parent)
"""PYTHONPATH of plugins in Python; only `latticed/sdk` is visible below it."""
# Importing latticed.sdk reads these two, and lists the directories on the way to them; nothing else is visible there.
_SDK_BINDS: Final = (str(_PACKAGE / "sdk"), str(_PACKAGE / "__init__.py"))
_SDK_LISTS: Final = (SDK_PATH, str(_PACKAGE))
_MIB: Final = 1 << 20


class Invoking(Value, frozen=True, kw_only=True):
    """Limits of one invocation: `timeout_s` in seconds, `line_bytes` for one line of stdout, `stderr_bytes` kept of
    stderr, `host_calls` in all, `at_once` invocations of a plugin at the same time.

    `line_bytes`, `stderr_bytes` and `host_calls` apply to stdio-json-v1 only.
    """

    timeout_s: float
    line_bytes: int
    stderr_bytes: int
    host_calls: int
    at_once: int


class ChildSpawner:
    """Starts every confined child of the daemon. `probed` is what the host gives, `floor` the least level for manifests
    that name none, `interpreters` the allowed names and their paths.

    A reload calls `apply` with what it changed of `limits` and `settings`; the floor is that of the daemon's start.
    """

    def __init__(self, probed: Probed, settings: SandboxSettings, limits: PluginLimitSettings) -> None:
        self.probed = probed
        self.floor = Level.of(settings.floor)
        self._named, self.interpreters = settings.interpreters, interpreters(settings.interpreters)
        self._limits = limits
        self._pool = settings.uid_first, settings.uids
        self._uids = Uids(*self._pool)
        self.usage = ChildUsage(probed.delegation)

    def apply(self, settings: SandboxSettings, limits: PluginLimitSettings) -> None:
        """Start children by these settings from now on; those that run keep what they have, their uids too."""
        if settings.interpreters != self._named:  # else no file is looked at
            self._named, self.interpreters = settings.interpreters, interpreters(settings.interpreters)
        self._limits = limits
        # Another pool only if it is one: in a new one each uid would first be tried as if it were free.
        if (settings.uid_first, settings.uids) != self._pool:
            self._pool = settings.uid_first, settings.uids
            self._uids = Uids(*self._pool)

    def choose(
        self,
        manifest: Manifest,
        *,
        needs: frozenset[str] = frozenset(),
        optional: frozenset[str] = frozenset(),
        permits: tuple[str, ...] = (),
    ) -> Chosen:
        """The level and features for a plugin: Problem("sandbox_unavailable") when this host does not give them.

        `needs` are features its runner requires, `optional` those it gets where this host has them; `permits` are the
        operator's words for this one plugin (`model.permits`).
        """
        # What the operator granted for this plugin is required like what the manifest asks for.
        needs |= frozenset(allowed.of_kind(permits, allowed.FEATURE))
        open_ = "open" in allowed.of_kind(permits, allowed.SANDBOX)
        required = levels.required(manifest.runtime.sandbox, floor=self.floor, needs=needs, open_=open_)
        chosen = levels.decide(required, self.probed.provided)
        if isinstance(chosen, Fault):
            raise Problem.of(chosen)
        # Added after the decision: that an optional feature is missing refuses nothing.
        return replace(chosen, features=chosen.features | (optional & self.probed.provided.features))

    def limits(self, manifest: Manifest) -> rlimits.ResourceLimits:
        """The manifest's limits, else the settings' defaults, capped by the settings' maxima. A limit of 0 counts as
        not set.
        """
        asked, most = manifest.runtime.limits, self._limits
        cpu = asked.cpu_percent or most.cpu_percent
        return rlimits.ResourceLimits(
            # The maximum counts for the settings' own default too.
            memory_bytes=min(asked.memory_mib or most.memory_mib, most.max_memory_mib) * _MIB,
            tasks=min(asked.processes or most.processes, most.max_processes),
            # ResourceLimits refuses less than this minimum.
            open_files=max(min(asked.open_files or most.open_files, most.max_open_files), rlimits.MIN_OPEN_FILES),
            cpu_percent=min(cpu, most.max_cpu_percent) if cpu else None,
            scratch_bytes=most.scratch_mib * _MIB,
            scratch_inodes=most.scratch_files,
        )

    def cpu_to_watch(self, limits: rlimits.ResourceLimits) -> int | None:
        """Percent of one core for `CpuWatch` to enforce; None without a limit or where a cgroup enforces it."""
        delegation = self.probed.delegation
        # A group that was delegated without the cpu controller limits nothing (hybrid cgroups, Delegate=memory).
        return None if delegation is not None and "cpu" in delegation.controllers else limits.cpu_percent

    def invoking(self, manifest: Manifest) -> Invoking:
        """The limits of one invocation: the manifest's, else the settings' defaults, capped by the settings' maxima."""
        asked, most = manifest.runtime.limits, self._limits
        return Invoking(
            timeout_s=min(asked.invoke_timeout_s or most.invoke_timeout_s, most.max_invoke_timeout_s),
            line_bytes=min(asked.stdout_kib or most.stdout_kib, most.max_stdout_kib) << 10,
            stderr_bytes=most.stderr_kib << 10,
            host_calls=most.host_calls,
            at_once=most.invocations,
        )

    async def spawn(
        self,
        request: ChildRequest,
        chosen: Chosen,
        *,
        on_exit: Callable[[Exit], None],
        stdout: asyncio.Protocol,
        stderr: asyncio.Protocol,
        on_ids: Callable[[spec.Ids | None], Awaitable[None]] | None = None,
    ) -> Child:
        """Start a child; see `processes.child.spawn`. It gets a uid of its own where the daemon may change uids.

        `on_ids` is awaited before the start with the ids it will have (None: the daemon's own), so that the caller can
        chown files to them. Problem as `processes.child.spawn` and `sandbox.spec.build`, and as `Uids.take`.
        """
        # The uid goes back to the pool in any case: on failure here, else when the child is gone.
        with self._ids() as ours:
            if on_ids is not None:
                await on_ids(ours.ids)
            # The settings win over names that the caller brings.
            known = {**request.interpreters, **self.interpreters}
            plan = spec.build(replace(request, ids=ours.ids, interpreters=known), chosen, self.probed)
            started = await child.spawn(plan, on_exit=on_exit, stdout=stdout, stderr=stderr)
            # Only once the whole tree is gone: until then its processes count for this uid (RLIMIT_NPROC).
            started.when_gone(ours.give_back)
            ours.keep()
            self.usage.begin(request.owner, started)
            return started

    @contextlib.contextmanager
    def _ids(self) -> Iterator[_UidLease]:
        """The lease of a uid for one start; it is given back at the end unless the child keeps it."""
        # Root must have other ids for its children, as no child is uid 0; another user can only with the capabilities.
        here = self.probed.standing
        lease = _UidLease(self._uids if here.uid == 0 or here.other_ids else None)
        try:
            yield lease
        finally:
            if not lease.kept:
                lease.give_back()


class _UidLease:
    """The lease of one child's uid, until it is gone; `ids` is None where children run as the daemon's user."""

    def __init__(self, uids: Uids | None) -> None:
        self._uids = uids
        self.ids: spec.Ids | None = None
        self.kept = False
        if uids is not None:
            uid = uids.take()
            self.ids = spec.Ids(uid=uid, gid=uid)

    def keep(self) -> None:
        """The child was started: from here on `give_back` is called when it is gone."""
        self.kept = True

    def give_back(self) -> None:
        """Return the uid to the pool; a second call does nothing."""
        if self._uids is not None and self.ids is not None:
            self._uids.give_back(self.ids.uid)
        self._uids = None


def interpreters(named: Mapping[str, str]) -> dict[str, str]:
    """Interpreter names to absolute paths: the settings' table as it is, or the defaults that this host has if it is
    empty.
    """
    if named:
        return dict(named)
    return {name: path for name in INTERPRETERS if (path := _find(name)) is not None}


def _find(name: str) -> str | None:
    """The first ELF program of that name in the usual directories; wrapper scripts are skipped."""
    for directory in ("/usr/bin", "/bin", "/usr/local/bin"):
        path = f"{directory}/{name}"
        with contextlib.suppress(OSError), open(path, "rb") as source:
            if os.access(path, os.X_OK) and source.read(4) == b"\x7fELF":
                return path
    return None


def for_python(request: ChildRequest) -> ChildRequest:
    """`request` with the SDK readable and on PYTHONPATH, for a program in Python."""
    environment = {**request.environment, "PYTHONPATH": SDK_PATH}
    return replace(request, environment=environment, binds=_SDK_BINDS, lists=_SDK_LISTS)


def reached(chosen: Chosen, probed: Probed) -> str:
    """A child's confinement for display: `isolated`, or `isolated+cgroup` where it has a cgroup of its own (which may
    only serve to kill it, see `cgroup.claim`).
    """
    return chosen.level.token + ("+cgroup" if probed.delegation is not None else "")

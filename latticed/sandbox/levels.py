"""Sandbox levels: what a plugin requires, what this host provides, and whether that is enough (pure).

A child always gets the host's highest level. When that is less than required, the plugin is refused with the step that
failed and a fix; it never runs at less.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.model.fault import Fault

if TYPE_CHECKING:
    from latticed.model import manifest

CODE: Final = "sandbox_unavailable"
"""The code of a refusal because this host gives less than is required."""


class Level(enum.IntEnum):
    """Levels of confinement in ascending order; each includes the guarantees of those before it; OPEN has none
    (docs/security/sandbox.md).
    """

    OPEN = 0
    FILTERED = 1
    ISOLATED = 2
    DEDICATED = 3

    @property
    def token(self) -> str:
        """Its name in manifests, settings and answers."""
        return self.name.lower()

    @classmethod
    def of(cls, token: str) -> Level:
        """The level called `token`; ValueError when there is none."""
        try:
            return cls[token.upper()]
        except KeyError:
            raise ValueError(f"expected {' | '.join(level.token for level in cls)}, found {token!r}") from None


PROCESSES: Final = "processes"
THREADS: Final = "threads"
WORKDIR: Final = "workdir"
CGROUP: Final = "cgroup"
NETWORK: Final = "network"
FEATURES: Final = frozenset({PROCESSES, THREADS, WORKDIR, CGROUP, NETWORK})
"""A manifest may ask for the first three; `network` is for the daemon's helpers, `cgroup` for hard limits."""


class Failure(Value, frozen=True, kw_only=True):
    """Why `token` (a level or a feature) is not provided: `step` failed with `errno` (0: nothing failed).

    `fix`: what an operator can do about it, empty when nothing is known.
    """

    token: str
    step: str
    errno: int = 0
    fix: str = ""

    @property
    def words(self) -> str:
        """Errno and step in one phrase, such as "EPERM at unshare(user)"."""
        return f"{errno.errorcode.get(self.errno, self.errno)} at {self.step}" if self.errno else self.step


class Provided(Value, frozen=True, kw_only=True):
    """What the probe found: the highest level, the features at that level, and `failures`: why there is no more."""

    level: Level
    features: frozenset[str] = frozenset()
    failures: tuple[Failure, ...] = ()

    def failure(self, token: str) -> Failure | None:
        """Why `token` (a level or a feature) is not provided; None when that is not known."""
        return next((failure for failure in self.failures if failure.token == token), None)


class Required(Value, frozen=True, kw_only=True):
    """The least a plugin may run with. `open_`: the operator allowed level `open` for this plugin."""

    level: Level
    features: frozenset[str] = frozenset()
    open_: bool = False


class Chosen(Value, frozen=True, kw_only=True):
    """The level and the features that one child runs with."""

    level: Level
    features: frozenset[str]


def required(
    asked: manifest.SandboxSpec, *, floor: Level, needs: frozenset[str] = frozenset(), open_: bool = False
) -> Required:
    """What a plugin needs: its manifest's level and features, and its runner's `needs`.

    `floor` (a setting) counts where the manifest names no level; `open_`: see Required.
    """
    level = floor if asked.level is None else Level.of(asked.level)
    return Required(level=level, features=frozenset(asked.features) | needs, open_=open_)


def decide(required: Required, provided: Provided) -> Chosen | Fault:
    """The highest level with the required features, or a Fault ("sandbox_unavailable") that names the missing level or
    feature, the step that failed, its errno and a fix.
    """
    # Features are not looked up: at `open` nothing is taken from the child.
    if required.open_:
        return Chosen(level=Level.OPEN, features=required.features)
    # `open` confines nothing: the operator may choose it (above), it is never used because a host gives nothing more.
    if provided.level < required.level or provided.level < Level.FILTERED:
        level = max(required.level, Level.FILTERED)
        return _refused(level.token, provided, _level_failure(level, provided))
    # Sorted, so that the same lack always gives the same message.
    for token in sorted(required.features - provided.features):
        return _refused(token, provided, provided.failure(token))
    return Chosen(level=provided.level, features=required.features)


def _level_failure(level: Level, provided: Provided) -> Failure | None:
    """The failure of the first level above what is provided."""
    between = (Level(value) for value in range(provided.level + 1, level + 1))
    return next((found for level in between if (found := provided.failure(level.token))), None)


def _refused(token: str, provided: Provided, failure: Failure | None) -> Fault:
    """The Fault for a level or feature `token` that is required and missing; `failure` says why, if that is known."""
    found = f"host gives {provided.level.token}" + (f": {failure.words}" if failure else "")
    hint = failure.fix if failure and failure.fix else "latticectl health shows what this host gives and why no more"
    return Fault(CODE, f"needs {token}, {found}", hint)


class HostSupport(Value, frozen=True, kw_only=True):
    """What explains a failed step: kernel settings (sysctl) as read at boot, None where the kernel has no such setting.

    `unprivileged_userns_clone` is Debian's, `apparmor_restricts_userns` Ubuntu's. `filtered_already`: a seccomp filter
    applies to the daemon itself.
    """

    max_user_namespaces: int | None = None
    unprivileged_userns_clone: int | None = None
    apparmor_restricts_userns: int | None = None
    memfd_noexec: int | None = None
    filtered_already: bool = False


def fix(step: str, error: int, host: HostSupport) -> str:
    """What an operator can do about `step` having failed with the errno `error`; "" when nothing is known.

    `step` is a name that the stub gave to `begin`, such as `unshare(user)` or `bind(/usr/lib)`.
    """
    kind = step.split("(", 1)[0]  # `bind` of `bind(/usr/lib)`
    if kind == "unshare":
        return _unshare_fix(step, error, host)
    if kind.startswith("landlock"):
        return "the kernel lacks Landlock: 5.13 or newer, with landlock in the boot parameter lsm="
    if kind in {"uid_map", "gid_map", "setgroups_deny", "propagation", "root", "bind", "data", "scratch", "pivot_root"}:
        if host.apparmor_restricts_userns:
            return (
                "sysctl kernel.apparmor_restrict_unprivileged_userns is 1: give latticed an AppArmor profile that has"
                " `userns,` (docs/security/sandbox.md has one)"
            )
        return "mounts are refused: allow @mount in the unit's SystemCallFilter, or the container user namespaces"
    if kind in {"setgroups", "setresgid", "setresuid"}:
        return "another uid needs CAP_SETUID and CAP_SETGID: run latticed as root, or lower the level"
    if kind == "seccomp":
        return "the kernel or the unit refuses seccomp filters: CONFIG_SECCOMP_FILTER, SystemCallFilter=@sandbox"
    if kind == "execveat" and error == errno.EACCES and host.memfd_noexec:
        return "sysctl vm.memfd_noexec refuses programs in memory: set it to 1 or less, or let user namespaces be"
    return ""


def _unshare_fix(step: str, error: int, host: HostSupport) -> str:
    """As `fix`, for a namespace that was refused: the first of the known causes that fits."""
    # ENOSPC: a limit in /proc/sys/user is reached, or namespaces are nested too deep (unshare(2)).
    if host.max_user_namespaces == 0 or error == errno.ENOSPC:
        return "no more namespaces are allowed: raise sysctl user.max_user_namespaces (and its like)"
    if host.unprivileged_userns_clone == 0:
        return "sysctl kernel.unprivileged_userns_clone is 0: set it to 1"
    if host.filtered_already:
        return (
            "the unit sets RestrictNamespaces=yes (or the container's seccomp profile refuses namespaces):"
            " allow user mnt pid net ipc"
        )
    return f"the kernel refused {step}: user namespaces must be allowed for latticed's user"

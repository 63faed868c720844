"""Runtime state of a plugin (architecture, Runtime). Never has paths, environment, command lines or sockets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.fault import Fault


class RuntimeState(StrEnum):
    """Ready (`armed`), down on purpose or not started yet (`stopped`), or down because of an error (`failed`)."""

    ARMED = "armed"
    STOPPED = "stopped"
    FAILED = "failed"


class Health(StrEnum):
    """The health of a plugin by its last check; `unknown` until one was answered."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


STARTING: Final = "starting"
"""The message of a stopped plugin that is being started, or waits for its turn."""


def shown(state: str, message: str) -> str:
    """The state as shown to people: a stopped plugin that is being started is `starting`."""
    return STARTING if state == RuntimeState.STOPPED and message == STARTING else state


def why_not_running(state: str, code: str) -> str:
    """Why an active plugin in this state, with this code of its last error, is not running; empty when it is."""
    if state == RuntimeState.ARMED:
        return ""
    return code or RuntimeState.FAILED.value if state == RuntimeState.FAILED else STARTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The runtime state of one plugin, as its supervisor sees it.

    Times are microseconds since the epoch, 0 for not known.

    `pid` 0: no process. `next_retry_at`: while it is failed and will be started again.
    """

    state: RuntimeState = RuntimeState.STOPPED
    runner: str = ""
    health: Health = Health.UNKNOWN
    message: str = ""
    pid: int = 0
    restart_count: int = 0
    next_retry_at: int = 0
    last_error: Fault | None = None
    started_at: int = 0
    stopped_at: int = 0
    updated_at: int = 0
    sandbox: str = ""

"""What is alive right now of a plugin (architecture, Runtime). Never paths, environment, command lines, sockets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    ARMED = "armed"
    STOPPED = "stopped"
    FAILED = "failed"


class Health(StrEnum):
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastError:
    """What went wrong last; `hint` says what to do, when that is known."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One handle as its supervisor sees it. Times are microseconds since the epoch, 0 for not known."""

    state: State = State.STOPPED
    runner: str = ""
    health: Health = Health.UNKNOWN
    message: str = ""
    pid: int = 0
    restart_count: int = 0
    next_retry_at: int = 0
    last_error: LastError | None = None
    started_at: int = 0
    stopped_at: int = 0
    updated_at: int = 0
    sandbox: str = ""

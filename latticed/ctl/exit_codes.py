"""latticectl's exit codes (contracts §8), and the one for each problem."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.errors import Problem


class ExitCode(IntEnum):
    """What latticectl ends with. 130 and 141 are 128 plus SIGINT and SIGPIPE, as a shell reports them."""

    OK = 0
    """Done; "already so" too."""
    FAILED = 1
    """Failed, or refused by the daemon."""
    USAGE = 2
    """Wrong usage, bad settings, an unreadable trust policy."""
    UNHEALTHY = 3
    """Not well (health --check, doctor), or something ends soon (trust horizon)."""
    NOT_FOUND = 4
    """There is nothing of that name."""
    DENIED = 5
    """Not allowed: a scope is missing, or the socket is closed to you."""
    REFUSED = 6
    """Verification failed."""
    UNREACHABLE = 7
    """The daemon cannot be reached."""
    INTERRUPTED = 130
    """Interrupted (Ctrl-C)."""
    PIPE_CLOSED = 141
    """Nobody reads the output any more."""


_BY_CODE: Final = MappingProxyType(
    {
        "usage": ExitCode.USAGE,
        "settings_invalid": ExitCode.USAGE,
        "policy_invalid": ExitCode.USAGE,
        "policy_unreadable": ExitCode.USAGE,
        "not_found": ExitCode.NOT_FOUND,
        "forbidden": ExitCode.DENIED,
        "socket_denied": ExitCode.DENIED,
        "socket_foreign": ExitCode.DENIED,
        "policy_denied": ExitCode.DENIED,
        "unreachable": ExitCode.UNREACHABLE,
    }
)
"""Problems of latticectl's own; what the daemon refuses is told apart by its HTTP status."""

_BY_STATUS: Final = MappingProxyType({401: ExitCode.DENIED, 403: ExitCode.DENIED, 404: ExitCode.NOT_FOUND})


def of(problem: Problem) -> ExitCode:
    """The exit code of a verb that ended in `problem`."""
    # Only an ApiRefusal has one. Its class is not imported here: that would load the client.
    status = getattr(problem, "status", None)
    if status is not None:
        return _BY_STATUS.get(status, ExitCode.FAILED)
    return _BY_CODE.get(problem.code, ExitCode.FAILED)

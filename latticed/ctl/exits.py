"""What latticectl's exit codes mean (contracts §8), and which problem ends in which."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.errors import Problem


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    NOT_FOUND = 4
    DENIED = 5
    REFUSED = 6
    UNREACHABLE = 7
    INTERRUPTED = 130
    PIPE_CLOSED = 141


_BY_CODE: Final = MappingProxyType(
    {
        "usage": Exit.USAGE,
        "settings_invalid": Exit.USAGE,
        "policy_invalid": Exit.USAGE,
        "policy_unreadable": Exit.USAGE,
        "not_found": Exit.NOT_FOUND,
        "forbidden": Exit.DENIED,
        "socket_denied": Exit.DENIED,
        "socket_foreign": Exit.DENIED,
        "policy_denied": Exit.DENIED,
        "unreachable": Exit.UNREACHABLE,
    }
)
"""Problems of latticectl's own; what the daemon refuses is told apart by its HTTP status."""

_BY_STATUS: Final = MappingProxyType({401: Exit.DENIED, 403: Exit.DENIED, 404: Exit.NOT_FOUND})


def of(problem: Problem) -> Exit:
    """The exit code of a verb that ended in `problem`."""
    status = getattr(problem, "status", None)
    if status is not None:
        return _BY_STATUS.get(status, Exit.FAILED)
    return _BY_CODE.get(problem.code, Exit.FAILED)

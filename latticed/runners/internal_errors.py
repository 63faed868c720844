"""Unexpected exceptions while a host call is answered: an error for the plugin, and rate-limited log lines."""

from __future__ import annotations

import asyncio
from typing import Final

from latticed.host.call import HostError
from latticed.kit import logs, text
from latticed.kit.log_limit import LogLimiter
from latticed.model.hostcall import Denial

# A plugin can cause failures as fast as it makes calls.
_FAILURES: Final = LogLimiter()

log = logs.get_logger()


def report(method: str, error: BaseException) -> HostError:
    """Log that answering a call of `method` failed, and return the error for the plugin.

    Lines are limited per exception class, not per `method`, which is text of the plugin's choice.
    """
    count = _FAILURES.take((type(error).__name__,), asyncio.get_running_loop().time())
    if count is not None:
        call = text.sanitise(method, 80)
        log.error("host_call_failed", call=call, error=repr(error), count=count, exc_info=error)
    return HostError(Denial.INTERNAL, "the host service failed, see the daemon's log")

"""What the ledger refuses, in the words of a host call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.host.call import HostError
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.model.errors import Problem


def of_problem(problem: Problem) -> HostError:
    """A Problem whose code is a denial keeps it (quota_exceeded); any other means that the service is not available."""
    known = problem.code in Denial._value2member_map_
    return HostError(Denial(problem.code) if known else Denial.SERVICE_UNAVAILABLE, problem.detail)

"""Whether a long-lived program is restarted after it has ended, and when. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.restart import VISITED

if TYPE_CHECKING:
    from latticed.model.restart import Failures, RestartPolicy

Restart = Literal["always", "on-failure", "never"]
State = Literal["stopped", "starting", "running", "waiting", "ended", "failed"]
"""`stopped`: its owner may not have it run; `waiting`: for its restart; `ended`, `failed`: not restarted until it is
put again.
"""


class ProgramEnded(Value, frozen=True, kw_only=True):
    """How one run of a program ended. `status` is the exit code; None when a signal ended it, or when it could not even
    be started.

    `visited`: a visitor's connection had reached it since its start, and may have caused the end: the message says so,
    and the end counts for the backoff but not for the breaker. `excused`: so does this one, for another reason that is
    not the program's. `final`: a restart would end the same way, whatever the rules say.
    """

    code: str
    message: str
    status: int | None = None
    visited: bool = False
    excused: bool = False
    final: bool = False

    @property
    def shown_message(self) -> str:
        """The message for people; names the visitor when there was one."""
        return f"{self.message} {VISITED}" if self.visited else self.message


class ProgramRefused(Problem):
    """A program may not be started; `ended` is what its rules get for this start."""

    def __init__(self, ended: ProgramEnded) -> None:
        super().__init__(ended.code, ended.message)
        self.ended = ended


class RestartAfter(Value, frozen=True, kw_only=True):
    """It is restarted after `delay_s` seconds; `failures` is to be passed to the next `after`."""

    failures: Failures
    delay_s: float


class NoRestart(Value, frozen=True, kw_only=True):
    """It is not restarted. `code` and `message` say why; both are empty when it ended as it should."""

    state: Literal["ended", "failed"]
    code: str = ""
    message: str = ""


class RestartRules(Value, frozen=True, kw_only=True):
    """What `after` judges by. `restart`: what its owner wants; `policy`: backoff and breaker; `hopeless`: exit codes
    after which a restart would end the same way, such as refused credentials.
    """

    restart: Restart
    policy: RestartPolicy
    hopeless: frozenset[int] = frozenset()


def after(
    before: Failures, ended: ProgramEnded, rules: RestartRules, *, uptime_s: float, roll: float
) -> RestartAfter | NoRestart:
    """Whether to restart a program that ended after `uptime_s` seconds; `roll` in [0, 1) is random.

        restart="always", status 0       ->  RestartAfter
        restart="on-failure", status 0   ->  NoRestart(state="ended")
        restart="never", status 1        ->  NoRestart(state="failed")
        a further failure in a row that opens the breaker  ->  NoRestart(state="failed", code="crash_loop")

    `before`: what the last `RestartAfter` had, at first `Failures()`.
    """
    # Before all else: also a program that is always to be restarted stays ended after such a code.
    if ended.final or ended.status in rules.hopeless:
        return NoRestart(state="failed", code=ended.code, message=ended.message)
    # Exit code 0 with `always` counts as a failure below: a program that ends at once would be restarted in a loop.
    if ended.status == 0 and rules.restart != "always":
        return NoRestart(state="ended")
    if rules.restart == "never":
        return NoRestart(state="failed", code=ended.code, message=ended.message)
    failures = before.after(uptime_s, rules.policy, excused=ended.visited or ended.excused)
    if failures.breaker_open(rules.policy):
        message = f"it ended {failures.counted} times in a row, last: {ended.message}"
        return NoRestart(state="failed", code="crash_loop", message=message)
    return RestartAfter(failures=failures, delay_s=failures.delay_s(rules.policy, roll))

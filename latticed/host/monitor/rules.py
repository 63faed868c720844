"""What follows from a result: pure, so that every sequence can be tried.

    unknown ─ up ────────────────► up ◄──────────────► down ◄──── unknown
                                     `failures` in a row      (`failures` in a row)

A transition alerts, but for the first `up`: that a new target is fine is no news.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

State = Literal["unknown", "up", "down"]
Outcome = Literal["up", "down", "unsupported", "blocked", "error"]
"""`unsupported`: this host cannot make such a check; `blocked`: the guard forbids it; `error`: not to be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorStatus:
    """How a monitor stands, and how many results in a row have spoken against it."""

    state: State = "unknown"
    against: int = 0


def decide(
    before: MonitorStatus, outcome: Outcome, failures: int
) -> tuple[MonitorStatus, Literal["up", "down"] | None]:
    """The standing after one more result, and the alert that is due.

    What says nothing about the target (unsupported, blocked, error) changes nothing.
    """
    match outcome:
        case "unsupported" | "blocked" | "error":
            return before, None
        case "up" | "down":
            pass
        case _:
            assert_never(outcome)
    if outcome == before.state or (before.state == "unknown" and outcome == "up"):
        return MonitorStatus(state=outcome), None
    against = before.against + 1
    if against < failures:
        return MonitorStatus(state=before.state, against=against), None
    return MonitorStatus(state=outcome), outcome

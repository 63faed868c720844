"""runners.faults: failures of ours while a plugin's host call is answered."""

from __future__ import annotations

import pytest

from latticed.kit.log_limit import LogLimiter
from latticed.model.hostcall import Denial
from latticed.runners import internal_errors


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int]] = []

    def error(self, event, **fields):
        self.entries.append((event, fields["count"]))


async def test_a_flood_of_failures_under_many_names_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method is the plugin's text: another one each time makes no further line."""
    log = Log()
    monkeypatch.setattr(internal_errors, "log", log)
    monkeypatch.setattr(internal_errors, "_FAILURES", LogLimiter())
    for number in range(1_000):
        assert internal_errors.report(f"kv.get{number}", KeyError("x")).code is Denial.INTERNAL
    internal_errors.report("kv.get", ValueError("x"))
    assert log.entries == [("host_call_failed", 1), ("host_call_failed", 1)]

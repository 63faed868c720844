"""With CI=true, a skip is a failure unless tests/skips.txt lists it: a test that never runs proves nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(slots=True, eq=False)  # a plugin is told apart by identity
class SkipRule:
    """A pytest plugin that collects skips and, in CI, fails the session for those that are not allowed."""

    allowed: tuple[re.Pattern[str], ...]
    enforced: bool
    skipped: list[str] = field(default_factory=list)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report.nodeid, report)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report.nodeid, report)

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.enforced and self.refused() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.enforced and (refused := self.refused()):
            terminalreporter.section("skips that tests/skips.txt does not list", red=True)
            for line in refused:
                terminalreporter.line(line)

    def refused(self) -> list[str]:
        """The skips that no line of tests/skips.txt matches."""
        return [line for line in self.skipped if not any(rule.search(line) for rule in self.allowed)]

    def _note(self, nodeid: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.append(f"{nodeid}: {reason.removeprefix('Skipped: ')}")


def from_file(path: Path) -> SkipRule:
    """The rule as `path` and the environment state it."""
    return SkipRule(allowed=tuple(parse(path.read_text().splitlines())), enforced=os.environ.get("CI") == "true")


def parse(lines: Iterable[str]) -> list[re.Pattern[str]]:
    """Lines of `regular expression <tab> reason`; ValueError names a line without a reason."""
    rules = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition("\t")
            if not reason.strip():
                raise ValueError(f"line {number}: expected a regular expression, a tab and a reason, found {line!r}")
            rules.append(re.compile(pattern))
    return rules

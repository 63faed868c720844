"""What the helper does at each look, with a real file, store and record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latticed.kit.clock import SystemClock
from latticed.plans import upkeep
from latticed.plans.records import Target
from latticed.plans.steps import StepChain
from latticed.plans.store import Store
from tests.house import file_kind

RENDERING = b"allow admin\n"


class Host:
    """A confirmed file, and the helper's upkeep, which puts it back at each look."""

    def __init__(self, directory: Path) -> None:
        self.kind = file_kind.FileKind(directory=directory)
        self.kind.path.write_bytes(RENDERING)
        (directory / "state").mkdir(mode=0o700)
        self.store = Store(directory / "state")
        self.store.open()
        self.store.hold("a" * 16, "rendering", RENDERING)
        self.store.put_target(Target(kind="file", confirmed="f" * 64, rendering="a" * 16))
        self.chain = StepChain(self.store.steps, SystemClock())
        chosen = frozenset({"file"})
        choices = upkeep.Choices(kinds={"file": self.kind}, enabled=chosen, restored=chosen)
        self.upkeep = upkeep.Upkeep(self.store, self.chain, choices, clock=SystemClock())

    def order(self, **orders: str) -> None:
        (self.kind.directory / "orders.json").write_text(json.dumps(orders))

    def look(self) -> tuple[bool | None, str]:
        self.upkeep.look_for_drift()
        return self.upkeep.drifted.get("file"), self.upkeep.problem("file")

    def steps(self) -> list[str]:
        return [one.action for one in self.chain.after(0, 500)]


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "DRIFT_S", 0.0)
    return Host(tmp_path)


def test_a_drift_that_cannot_be_put_back_is_one_step_and_told_the_same_at_each_look(host, caplog):
    assert host.look() == (False, "")
    host.order(commit="fail")
    host.kind.path.write_bytes(b"allow stranger\n")
    for _ in range(20):
        assert host.look() == (True, "drift that could not be put back: tool_failed")
    assert host.steps() == ["plan.drift"]
    host.order(commit="half", self_check="bug")
    assert host.look()[0]
    host.order()
    assert host.look() == (False, "")
    assert host.kind.path.read_bytes() == RENDERING
    assert host.steps() == ["plan.drift", "plan.drift_restored"]


def test_a_look_that_fails_in_the_middle_of_a_drift_makes_no_other_one_of_it(host):
    host.kind.path.write_bytes(b"allow stranger\n")
    for _ in range(5):
        host.order(commit="fail")
        assert host.look() == (True, "drift that could not be put back: tool_failed")
        host.order(observe="missing")
        assert host.look() == (None, "the look at the live state failed: tool_missing")
    assert host.steps() == ["plan.drift"]


def test_another_drift_is_another_step(host):
    for _ in range(2):
        host.kind.path.write_bytes(b"allow stranger\n")
        assert host.look() == (False, "")
    assert host.steps() == ["plan.drift", "plan.drift_restored"] * 2


def test_a_drift_whose_step_cannot_be_recorded_is_drift_all_the_same(host, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(28, "No space left on device")

    host.kind.path.write_bytes(b"allow stranger\n")
    with monkeypatch.context() as patched:
        patched.setattr(host.chain, "append", full)
        assert host.look() == (True, "the look at the live state failed: OSError")
    assert host.look() == (False, "")

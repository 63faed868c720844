"""Confirming is one write: whatever fails around it, a plan is kept and its approval used up, or it is undone."""

from __future__ import annotations

import contextlib
import errno

import pytest

from latticed.kit import files
from latticed.kit.clock import SystemClock
from latticed.plans import operations, protocol, upkeep
from latticed.plans.decide import Role
from latticed.plans.operations import Asker
from latticed.plans.steps import StepChain
from latticed.plans.store import Store
from tests.house import file_kind

ROOT = Asker(role=Role.ROOT, actor="root")
WIDE, NARROW = {"allow": ["admin", "ada"]}, {"allow": ["admin"]}
WRITES = 12  # more than any request here makes


class Killed(BaseException):
    """In place of a kill -9: nothing catches it."""


class Helper:
    """The helper's operations in this process; `again` is its next start."""

    def __init__(self, directory):
        self.directory = directory
        self.kind = file_kind.FileKind(directory=directory)
        (directory / "state").mkdir(mode=0o700, exist_ok=True)
        self.store = Store(directory / "state")
        self.store.open()
        clock, chosen = SystemClock(), frozenset({"file"})
        steps = StepChain(self.store.steps, clock)
        choices = upkeep.Choices(kinds={"file": self.kind}, enabled=chosen, confirm_within_s=600)
        self.upkeep = upkeep.Upkeep(self.store, steps, choices, clock=clock)
        self._operations = operations.Operations(
            self.store, steps, choices, self.upkeep, clock=clock, arm=lambda *_: lambda: None
        )

    def ask(self, request):
        return self._operations.carry_out(request, ROOT)

    def again(self):
        return Helper(self.directory)

    def approved(self, intent):
        plan = self.ask(protocol.Offer(kind="file", intent=intent)).plan
        self.ask(protocol.Approve(plan=plan, review=self.ask(protocol.Review(plan=plan)).review))
        return plan

    def applied(self, intent):
        plan = self.approved(intent)
        assert self.ask(protocol.Apply(plan=plan)).state == "unconfirmed"
        assert self.ask(protocol.Confirm(plan=plan)).state == "applied"
        return plan


def failing(monkeypatch, number, error, *, after):
    """The write of that number, counted from 0, raises `error` in place of its last step, or (`after`) behind it."""
    real, seen = files.sync_directory, []

    def sync(directory):
        seen.append(directory)
        if len(seen) != number + 1:
            real(directory)
            return
        if after:
            real(directory)
        raise error

    monkeypatch.setattr(files, "sync_directory", sync)


@pytest.mark.parametrize("number", range(WRITES))
def test_an_approval_is_used_up_by_what_is_kept_wherever_a_kill_comes(tmp_path, monkeypatch, number):
    helper = Helper(tmp_path)
    plan = helper.approved(WIDE)
    helper.ask(protocol.Apply(plan=plan))
    with monkeypatch.context() as patched:
        failing(patched, number, Killed(), after=True)
        with contextlib.suppress(Killed):
            helper.ask(protocol.Confirm(plan=plan))
    helper = helper.again()
    if helper.store.target("file").confirmed:
        assert helper.store.plan(plan).state != "approved"
    else:
        assert helper.ask(protocol.Rollback(plan=plan)).state == "rolled_back"


@pytest.mark.parametrize("number", range(WRITES))
def test_what_narrows_is_kept_or_undone_wherever_the_disk_fails(tmp_path, monkeypatch, number):
    """What is confirmed is on the host, and its rendering there to be put back."""
    helper = Helper(tmp_path)
    wide = helper.applied(WIDE)
    narrow = helper.ask(protocol.Offer(kind="file", intent=NARROW)).plan
    with monkeypatch.context() as patched:
        failing(patched, number, OSError(errno.EIO, "Input/output error"), after=False)
        helper.ask(protocol.Apply(plan=narrow))
    helper = helper.again()
    target = helper.store.target("file")
    assert target.armed is None
    assert target.confirmed in {wide, narrow}
    assert helper.kind.path.read_bytes() == helper.store.held(target.rendering, "rendering")
    assert (target.confirmed == narrow) is (helper.kind.path.read_bytes() == b"allow admin\n")

"""The supervisor's invariants hold for any order of events of a handle."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latticed.model import restart
from latticed.model.fault import Fault
from latticed.model.runtime import Health
from latticed.supervisor import decide as rules
from latticed.supervisor.decide import (
    Arm,
    Checked,
    Disarm,
    HandleAction,
    HandleState,
    InstanceFailed,
    Phase,
    RetryDue,
    Started,
    Stopped,
)

RULES = rules.SupervisionRules(restart=restart.RestartPolicy(breaker_failures=3, healthy_s=60), bad_checks=2)
FAULT = Fault("digest_mismatch", "tampered")


class Handle(RuleBasedStateMachine):
    """A model of what `decide` reacts to: plugin instances that start and end, a timer, an operator, a disk."""

    def __init__(self) -> None:
        super().__init__()
        self.state = HandleState()
        self.running = 0  # started (or starting) and not yet ended
        self.starting = False
        self.stopping = False
        self.timers = 0
        self.crashes = 0  # in a row, as an onlooker counts them
        self.own = 0  # of these, those of instances that no outside request had reached
        self.visited = False

    def post(self, event: rules.Event) -> None:
        before = self.state
        self.state, actions = rules.decide(before, event, RULES)
        for action in actions:
            self.perform(action)
        if before.phase is Phase.BROKEN and self.state.phase in {Phase.STARTING, Phase.ARMED, Phase.WAITING}:
            assert event == Arm(afresh=True), "only an operator closes the breaker"

    def perform(self, action: HandleAction) -> None:
        match action:
            case HandleAction.START:
                assert self.running == 0, "two instances at once"
                assert self.own < RULES.restart.breaker_failures, "started with an open breaker"
                self.running, self.starting, self.visited = 1, True, False
            case HandleAction.STOP:
                assert self.running == 1
                assert not self.stopping, "stopped twice"
                self.stopping = True
            case HandleAction.RETRY:
                assert self.running == 0, "a retry is for what is gone"
                self.timers += 1
            case HandleAction.CANCEL_RETRY:
                self.timers = 0

    # The operator, through the lifecycle.

    @rule(afresh=st.booleans())
    def want(self, *, afresh: bool) -> None:
        """`afresh`: a restart or another identity; otherwise the disk was checked."""
        if afresh:
            self.crashes = self.own = 0
        self.post(Arm(afresh=afresh))

    @rule()
    def disable(self) -> None:
        self.post(Disarm())
        self.crashes = self.own = 0

    @rule()
    def tamper(self) -> None:
        self.post(Disarm(FAULT))

    # The plugin.

    @precondition(lambda self: self.starting and not self.stopping)
    @rule()
    def finish_start(self) -> None:
        self.starting = False
        self.post(Started("here"))

    @precondition(lambda self: self.running and not self.stopping)
    @rule(uptime_s=st.sampled_from([0.0, 59.9, 60.0]), final=st.booleans())
    def fail(self, *, uptime_s: float, final: bool) -> None:
        self.running, starting, self.starting = 0, self.starting, False
        uptime_s, final = 0.0 if starting else uptime_s, final and starting  # only a start can fail for good
        if not final:
            self.count(uptime_s)
        self.post(InstanceFailed("exited", "x", uptime_s=uptime_s, final=final, visited=self.visited))

    @precondition(lambda self: self.state.phase is Phase.ARMED)
    @rule()
    def visit(self) -> None:
        """A request from outside; the next failure of this instance may be excused."""
        self.visited = True

    def count(self, uptime_s: float) -> None:
        if uptime_s >= RULES.restart.healthy_s:
            self.crashes = self.own = 0
        self.crashes, self.own = self.crashes + 1, self.own + (not self.visited)

    @precondition(lambda self: self.stopping)
    @rule()
    def finish_stop(self) -> None:
        self.running, self.stopping, self.starting = 0, False, False
        if self.state.wanted and self.state.pending is not None:
            self.count(self.state.pending.uptime_s)
        self.post(Stopped())

    @rule(health=st.sampled_from(Health), uptime_s=st.sampled_from([1.0, 100.0]))
    def check(self, health: Health, uptime_s: float) -> None:
        self.post(Checked(health, "so", uptime_s, visited=self.visited))

    @precondition(lambda self: self.timers)
    @rule()
    def timer(self) -> None:
        self.timers -= 1
        self.post(RetryDue())

    # Late news, which must not matter.

    @precondition(lambda self: not self.running)
    @rule(event=st.sampled_from([Started(), InstanceFailed("exited", "late"), Stopped()]))
    def late_event(self, event: rules.Event) -> None:
        before = self.state
        self.post(event)
        assert self.state == before

    # What always holds.

    @invariant()
    def phase_matches_the_running_instance(self) -> None:
        assert bool(self.running) == (self.state.phase in {Phase.STARTING, Phase.ARMED, Phase.STOPPING})
        assert self.stopping == (self.state.phase is Phase.STOPPING)

    @invariant()
    def only_a_waiting_handle_has_a_timer(self) -> None:
        """Exactly one."""
        assert self.timers == (1 if self.state.phase is Phase.WAITING else 0)

    @invariant()
    def unwanted_handle_is_stopped_or_stopping(self) -> None:
        if not self.state.wanted:
            assert self.state.phase in {Phase.STOPPED, Phase.REFUSED, Phase.STOPPING}

    @invariant()
    def broken_handle_is_wanted_and_has_a_fault(self) -> None:
        if self.state.phase is Phase.BROKEN:
            assert self.state.failures.breaker_open(RULES.restart)
            assert self.state.wanted
            assert self.state.fault is not None

    @invariant()
    def refused_handle_has_a_fault(self) -> None:
        if self.state.phase is Phase.REFUSED:
            assert self.state.fault is not None

    @invariant()
    def failures_in_a_row_are_counted(self) -> None:
        if self.state.phase is not Phase.STOPPING:
            assert (self.state.failures.in_a_row, self.state.failures.counted) == (self.crashes, self.own)

    @invariant()
    def failures_not_excused_open_the_breaker(self) -> None:
        """Excused ones between them do not matter, and alone never open it."""
        if self.state.phase is Phase.BROKEN:
            assert self.own >= RULES.restart.breaker_failures
        if self.state.phase in {Phase.WAITING, Phase.STARTING}:
            assert self.own < RULES.restart.breaker_failures

    def teardown(self) -> None:
        """Check that the handle stops and is not restarted once it is not wanted."""
        self.disable()
        if self.stopping:
            self.finish_stop()
        assert self.state.phase is Phase.STOPPED
        assert (self.running, self.timers) == (0, 0)


TestHandleInvariants = Handle.TestCase
TestHandleInvariants.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

"""The agent's process without network: it believes documents, keeps what it believed, and asks the daemon.

    link ──(socketpair)──► judge ──► keep, fsynced ──► ask the daemon, step by step ──► status, events ──► link

It acts over the control socket like any operator, by a fixed table of routes (`node_daemon`). What it has taken up is
on disk before the first request that follows from it: killed at any moment it begins again from there, and an older
document never counts afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.fleet import enrolment, judging, kept_state, messages, node_reports
from latticed.fleet.convergence import Convergence
from latticed.fleet.decision_tail import DecisionTail
from latticed.fleet.node_daemon import Daemon
from latticed.fleet.node_outbox import Outbox
from latticed.fleet.node_record import NodeRecord, unwritable
from latticed.fleet.pace import Cause, Pace, look_wait_s
from latticed.kit import logs
from latticed.kit.text import sanitise
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latticed.fleet import documents
    from latticed.fleet.documents import EnrolmentToken
    from latticed.fleet.kept_state import KeptState

RECONCILE_S: Final = 60.0
"""Between two looks at the daemon while nothing new comes."""
_BURST_S: Final = 10.0
"""Of looks, and of judging: what may be spent at once (`pace`)."""
_LOOK_S: Final = 1.0
_JUDGE_S: Final = 0.02
"""What a look, and judging a document, costs at least."""
_SEND_S: Final = 60.0
"""For the link to take a message; it is of no use when it takes longer."""
_BEAT_S: Final = 5.0
_WAITING: Final = 16
"""Invocations that wait for their turn."""

log = logs.get_logger()


class _Looks:
    """When `work` looks next: what other threads say that there is to look for, at the pace of `pace`."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._changed = threading.Condition()
        self._cause = Cause.NEW
        self._pace = Pace(burst_s=_BURST_S)
        self._last_s = time.monotonic()

    def tell(self, cause: Cause) -> None:
        with self._changed:
            self._cause = max(self._cause, cause)
            self._changed.notify()

    def wait(self, reconcile_s: float) -> bool:
        """Until the next look is due; False when there is none any more."""
        with self._changed:
            while not self._stopped.is_set():
                now = time.monotonic()
                wait_s = look_wait_s(self._pace, self._cause, last_s=self._last_s, now_s=now, reconcile_s=reconcile_s)
                if wait_s <= 0:
                    self._cause = Cause.TIME
                    return True
                self._changed.wait(wait_s)
        return False

    def looked(self, began_s: float) -> None:
        with self._changed:
            self._last_s = time.monotonic()
            self._pace = self._pace.worked(self._last_s - began_s, self._last_s, least_s=_LOOK_S)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()


class FleetNode:
    """See the module. `send` gives a message to the link; `now_s` is the wall clock; `tell` hears how it goes."""

    def __init__(
        self,
        kept: KeptState,
        daemon: Daemon,
        send: Callable[[messages.ToLink], None],
        *,
        now_s: Callable[[], float] = time.time,
        tell: Callable[[str], None] = lambda _said: None,
    ) -> None:
        self._kept = kept
        self._daemon = daemon
        self._send = send
        self._now_s = now_s
        self._tell = tell
        self._stopped = threading.Event()
        self._looks = _Looks(self._stopped)
        self._judging = Pace(burst_s=_BURST_S)
        self._record = NodeRecord(kept, send, now_s)
        self._convergence = Convergence(kept, daemon, self._record, send, self._stopped)
        self._tail = DecisionTail(kept, daemon, self._record, self._stopped, now_s)
        self._unkept: bytes | None = None  # a desired document that the disk did not take
        self._said_s, self._steady_s = float(kept.said_s()), time.clock_gettime(time.CLOCK_BOOTTIME)
        self._refusal = ("", "")  # code and reason of the newest desired document, if it does not count
        self._invoked: queue.Queue[tuple[int, judging.Carried]] = queue.Queue(_WAITING)

    def received(self, message: messages.ToNode) -> None:
        """Take a message of the link; what follows from it is done by `work` and `invoke`. OSError when it cannot be
        kept: then it does not count.
        """
        match message:
            case messages.NewDesired():
                self._paced(functools.partial(self._judge, message.document))
            case messages.InvocationAsked():
                self._paced(functools.partial(self._ask, message))
            case messages.BundleHere():
                if self._convergence.bundles.came(message.sha256):
                    self._looks.tell(Cause.NEW)
            case messages.BundleMissing():
                if self._convergence.bundles.failed(message.sha256, sanitise(message.reason, 400)):
                    self._looks.tell(Cause.NEW)
            case messages.EventTaken():
                self._kept.forget_event(message.number)
            case messages.RenewalWanted():
                self._paced(functools.partial(self._sign_renewal, message))
            case messages.LinkState():
                self._paced(functools.partial(self._link_changed, message))

    def work(self, *, reconcile_s: float = RECONCILE_S) -> None:
        """Converge when something new was taken up, and every `reconcile_s`; until `stop`."""
        repeated_s = time.monotonic()
        while self._looks.wait(reconcile_s):
            began_s = time.monotonic()
            with unwritable():
                self._judge_again()
            try:
                self.converge()
            except Problem as problem:  # the daemon is not there, or says what makes no sense
                log.warning("fleet_daemon_unreachable", code=problem.code, reason=problem.reason)
                self._tell_status({}, trouble=(problem.code, problem.reason))
            if began_s - repeated_s >= reconcile_s:
                repeated_s = began_s
                self._record.repeat()
            self._looks.looked(began_s)

    def invoke(self) -> None:
        """Carry out invocations, one after the other; until `stop`."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                number, carried = self._invoked.get(timeout=0.5)
                self._carry_out(number, carried)

    def follow(self) -> None:
        """Tell the daemon's decisions; until `stop`."""
        self._tail.work()

    def stop(self) -> None:
        """Have `work`, `invoke` and `follow` end after the request that they are at."""
        self._stopped.set()
        self._looks.wake()
        self._daemon.cut()

    def converge(self) -> None:
        """Bring the daemon to what is wanted, as far as it goes, and tell what became of it. Problem when the daemon
        cannot be asked.
        """
        found = self._convergence.look()
        if found is None:
            self._looks.tell(Cause.NEW)  # a newer one was taken up meanwhile
        else:
            self._tell_status(found)

    def _paced(self, work: Callable[[], None]) -> None:
        """Do what a message asks for, once that may be done again: whoever sends more is not read until then."""
        self._stopped.wait(self._judging.wait_s(time.monotonic()))
        began_s = time.monotonic()
        try:
            work()
        finally:
            now_s = time.monotonic()
            self._judging = self._judging.worked(now_s - began_s, now_s, least_s=_JUDGE_S)

    def _judge(self, data: bytes) -> None:
        with self._kept.lock:
            before = self._kept.state
            after, verdict = judging.judge(before, data, now_s=int(self._now_s()))
            if after != before:
                self._unkept = data  # unless it is, in a moment
                self._kept.keep(after)
            self._unkept = None
            refusal = (verdict.code, verdict.reason) if isinstance(verdict, judging.Refusal) else ("", "")
            changed, self._refusal = refusal != self._refusal, refusal
        if after.withdrawn != before.withdrawn:
            self._looks.tell(Cause.NEW)
        match verdict:
            case judging.TakenUp():
                self._send(messages.NothingNeeded())  # first: what is asked for from now on is of the new one
                self._convergence.bundles.forget()
                intent = after.present.intent if after.present else ""
                self._record.say("fleet.taken_up", intent, "", f"generation {after.generation} of epoch {after.epoch}")
                self._looks.tell(Cause.NEW)
            case judging.Refusal() if changed:
                self._record.refused("fleet.desired_refused", verdict)
                self._looks.tell(Cause.REFUSED)
            case judging.Unchanged() if changed:
                self._looks.tell(Cause.REFUSED)  # the status says no more that one was refused

    def _link_changed(self, message: messages.LinkState) -> None:
        log.info("fleet_link", up=message.up, reason=sanitise(message.reason, 200))
        if message.up:
            self._record.repeat()

    def _sign_renewal(self, message: messages.RenewalWanted) -> None:
        state = self._kept.state
        made = enrolment.renewal(self._kept.key, fleet=state.fleet, node=state.node, user=message.user)
        self._send(messages.RenewalSigned(node_key=state.node_key, document=made))

    def _judge_again(self) -> None:
        """Take up what the disk did not take before: the link does not bring the same document twice. OSError."""
        with self._kept.lock:
            if self._unkept is not None:
                self._judge(self._unkept)

    def _ask(self, message: messages.InvocationAsked) -> None:
        """Judge an invocation; one that counts waits for its turn."""
        with self._kept.lock:
            after, verdict = judging.judge_invocation(self._kept.state, message.document, now_s=int(self._now_s()))
            if isinstance(verdict, judging.Refusal):
                self._record.refused("fleet.invocation_refused", verdict)
                return  # whoever asked has no right to an answer
            if self._invoked.full():
                return  # its nonce is not spent: it may be sent again
            self._kept.keep(after)
            self._invoked.put_nowait((message.number, verdict))

    def _carry_out(self, number: int, carried: judging.Carried) -> None:
        """Have the daemon do what an operator asked for, and give the link the signed result."""
        wanted = carried.invocation
        code, reason, answer = "", "", {}
        # Those before it may have taken their time.
        if refusal := judging.why_not_begun(self._kept.state, carried, now_s=int(self._now_s())):
            self._record.refused("fleet.invocation_refused", refusal)
            code, reason = refusal.code, refusal.reason
        else:
            self._record.say("fleet.invoked", f"{wanted.plugin} {wanted.action}", "", "")
            body = {"action": wanted.action, "payload": wanted.payload}
            try:
                found = self._daemon.ask("POST", "plugins", "by-id", wanted.plugin, "invoke", body=body)
                answer = found if isinstance(found, dict) else {}
            except Problem as problem:
                code, reason = problem.code, problem.reason
        document = node_reports.signed_result(
            self._kept.state, wanted, self._kept.key, code=code, reason=reason, answer=answer
        )
        self._send(messages.InvocationDone(number=number, document=document))

    def _tell_status(self, found: Mapping[str, documents.PluginStatus], *, trouble: tuple[str, str] = ("", "")) -> None:
        """Give the link a status, signed."""
        made = node_reports.status(
            self._kept.state,
            found,
            refused=self._refusal,
            trouble=trouble,
            plans=self._plans(),
            at_s=self._status_s(),
        )
        self._tell(node_reports.in_words(made))
        self._send(messages.NewStatus(document=node_reports.signed_status(made, self._kept.key)))

    def _status_s(self) -> int:
        """When a status is made: by the wall clock, and where that is set back, as if it had not been: the status would
        be older than the last one, and not count.
        """
        steady_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._said_s = max(self._now_s(), self._said_s + steady_s - self._steady_s)
        self._steady_s = steady_s
        self._kept.keep_said(int(self._said_s))
        return int(self._said_s)

    def _plans(self) -> tuple[str, ...]:
        """Plans that wait for approval on the host."""
        with contextlib.suppress(Problem):
            page: dict[str, Any] = self._daemon.ask("GET", "plans", query={"state": "planned", "limit": "100"})
            return tuple(str(one["sha256"]) for one in page["plans"])
        return ()


def run(
    link: socket.socket,
    directory: Path,
    socket_path: str,
    *,
    reconcile_s: float = RECONCILE_S,
    owner: Callable[[], str] = lambda: "",
    pinned: EnrolmentToken | None = None,
    tell: Callable[[str], None] = lambda _said: None,
) -> int:
    """Be the node until the link closes its end; 0 then, 1 when the link sent what is no message or takes nothing.

    `directory` as `kept_state` has it. `pinned`: the token that counts, in place of the one in there. `tell` is called
    with how it goes, and with nothing every few seconds. Problem for one that was not enrolled, or is another's.
    """
    kept = kept_state.opened(directory, pinned)
    link.settimeout(_SEND_S)
    outbox = Outbox(link)
    node = FleetNode(kept, Daemon(socket_path, owner=owner), outbox.put, tell=tell)
    tell("looking at the daemon")
    failed = threading.Event()

    def whole(work: Callable[[], None]) -> None:
        """Run it to its end; the process ends with it when it fails, to be started again."""
        try:
            work()
        except BaseException:
            failed.set()
            log.error("fleet_node_failed", exc_info=True)
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    work = functools.partial(node.work, reconcile_s=reconcile_s)
    threads = [threading.Thread(target=whole, args=(one,)) for one in (work, node.invoke, node.follow, outbox.work)]
    for thread in threads:
        thread.start()
    try:
        ended = _read(link, node, tell)
    finally:
        node.stop()
        outbox.stop()
        for thread in threads:
            thread.join()
    return int(ended or failed.is_set())


def _read(link: socket.socket, node: FleetNode, tell: Callable[[str], None]) -> int:
    """Give the node every message, until the link's end."""
    decoder = messages.Decoder(messages.ToNode)
    while True:
        tell("")
        if not select.select([link], [], [], _BEAT_S)[0]:
            continue
        try:
            data = os.read(link.fileno(), 64 << 10)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            return int(decoder.in_the_middle)
        try:
            found = decoder.feed(data)
        except messages.BadMessage as error:
            log.error("fleet_link_malformed", reason=str(error))
            return 1
        for message in found:
            # What the disk does not take has not happened: the link brings it again.
            with unwritable():
                node.received(message)

"""The agent's process without network: it believes documents, keeps what it believed, and asks the daemon.

    link ──(socketpair)──► judge ──► keep, fsynced ──► ask the daemon, step by step ──► status, events ──► link

It acts over the control socket like any operator, by a fixed table of routes. What it has taken up is on disk before
the first request that follows from it: killed at any moment it begins again from there, and an older document never
counts afterwards.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import os
import queue
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.client.control import ControlClient
from latticed.fleet import documents, judging, kept_state, messages, planning
from latticed.fleet.engine import STATUS_BYTES
from latticed.kit import logs
from latticed.kit.text import sanitise
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.documents import Invocation, WantedPlugin
    from latticed.fleet.kept_state import KeptState

ROUTES: Final = frozenset(
    {
        ("GET", "plugins/by-id/*"),
        ("GET", "plugins/by-id/*/config"),
        ("GET", "plans"),
        ("GET", "secrets"),
        ("POST", "plugins/lifecycle"),
        ("POST", "plugins/by-id/*/upgrade"),
        ("POST", "plugins/by-id/*/rollback"),
        ("POST", "plugins/by-id/*/invoke"),
        ("PUT", "plugins/by-id/*/config"),
        ("PUT", "plugins/by-id/*/grants"),
        ("PUT", "secrets/*/plugins/*"),
        ("POST", "market/import"),
    }
)
"""Everything that is ever asked of the daemon. No script, no value of a secret, no trust, no approval of a plan."""
RECONCILE_S: Final = 60.0
"""Between two looks at the daemon while nothing new comes."""
_READ_S: Final = 600.0
"""For an answer: an upgrade may wait for a plugin's stop."""
_SEND_S: Final = 60.0
"""For the link to take a message; it is of no use when it takes longer."""
_OUTBOX: Final = 256
"""Messages that wait for the link."""
_REFUSALS_S: Final = 10.0
"""Between two refusals that are put on record: whoever has the engine may send as many as he likes."""
_STEPS: Final = 40
"""Steps for one plugin in one look; more would be a circle."""
_NOTICE_S: Final = 10.0
"""For the daemon to notice what was imported: it settles, and scans."""
_PAUSE_S: Final = 0.1
_AGAIN_S: Final = 55.0
"""Until a bundle is asked for again: a look is not always a whole `RECONCILE_S` after the last."""
_WAITING: Final = 16
"""Invocations that wait for their turn."""

log = logs.get_logger()


class Daemon:
    """The daemon, as far as the table of routes goes."""

    def __init__(self, socket_path: str, *, owner: Callable[[], str] = lambda: "") -> None:
        self._client = ControlClient(socket_path, read_s=_READ_S, owner=owner)

    def ask(
        self, method: str, *parts: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Any:
        """The answer, as JSON; Problem, also for what is not in the table."""
        if not allowed(method, parts):
            raise Problem("not_forwarded", f"expected a route of the table, found {method} {'/'.join(parts)[:200]}")
        match method:
            case "GET":
                return self._client.get(*parts, query=query)
            case "PUT":
                return self._client.put(*parts, body=body or {})
            case _:
                return self._client.post(*parts, body=body or {})

    def has(self, plugin_id: str, secrets: list[dict[str, Any]]) -> tuple[planning.Has, dict[str, Any]]:
        """What there is of a plugin, and the daemon's own report of it (empty when there is nothing)."""
        try:
            report = self.ask("GET", "plugins", "by-id", plugin_id)
        except Problem as problem:
            if problem.code != "not_found":
                raise
            return planning.Has(id=plugin_id), {}
        config = None
        with contextlib.suppress(Problem):  # of what was never installed there is none
            config = self.ask("GET", "plugins", "by-id", plugin_id, "config")
        try:
            return planning.view(plugin_id, report, config, secrets), report
        except (KeyError, TypeError, AttributeError) as error:
            raise Problem("bad_reply", f"the daemon's answer is not of this version: {error!r}") from error


def allowed(method: str, parts: tuple[str, ...]) -> bool:
    """Whether a request is in the table; a part that stands for an id may be anything but another path."""
    for known, path in ROUTES:
        steps = path.split("/")
        fits = known == method and len(steps) == len(parts) and all(parts)
        if fits and all(step in {"*", part} for step, part in zip(steps, parts, strict=True)):
            return True
    return False


class FleetNode:
    """See the module. `send` gives a message to the link; `now_s` is the wall clock."""

    def __init__(
        self,
        kept: KeptState,
        daemon: Daemon,
        send: Callable[[messages.ToLink], None],
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._kept = kept
        self._daemon = daemon
        self._send = send
        self._now_s = now_s
        self._lock = threading.RLock()
        self._dirty = threading.Event()
        self._stopping = False
        self._spool: set[str] = set()
        self._missing: dict[str, str] = {}
        self._asked: dict[str, float] = {}  # when, by this host's monotonic clock
        self._unkept: bytes | None = None  # a desired document that the disk did not take
        self._refusal = judging.Refusal(code="", expected="", found="")
        self._told_s = -_REFUSALS_S
        self._told: dict[str, str] = {}  # the last refusal of the daemon that was put on record, by plugin
        self._invoked: queue.Queue[tuple[int, Invocation]] = queue.Queue(_WAITING)

    def received(self, message: messages.ToNode) -> None:
        """Take a message of the link; what follows from it is done by `work` and `invoke`. OSError when it cannot be
        kept: then it does not count.
        """
        match message:
            case messages.NewDesired():
                self._judge(message.document)
            # Only of what was asked for: nothing grows by what the link says.
            case messages.BundleHere() if message.sha256 in self._asked:
                with self._lock:
                    self._spool.add(message.sha256)
                    self._missing.pop(message.sha256, None)
                self._dirty.set()
            case messages.BundleMissing() if message.sha256 in self._asked:
                with self._lock:
                    self._missing[message.sha256] = message.reason
                    self._asked.pop(message.sha256, None)
                self._dirty.set()
            case messages.InvocationAsked():
                self._ask(message)
            case messages.EventTaken():
                self._kept.forget_event(message.number)
            case messages.LinkState():
                log.info("fleet_link", up=message.up, reason=sanitise(message.reason, 200))
                if message.up:
                    self._repeat_events()

    def work(self, *, reconcile_s: float = RECONCILE_S) -> None:
        """Converge when something new was taken up, and every `reconcile_s`; until `stop`."""
        while not self._stopping:
            self._dirty.clear()
            with _unwritable():
                self._judge_again()
            try:
                self.converge()
            except Problem as problem:  # the daemon is not there, or says what makes no sense
                log.warning("fleet_daemon_unreachable", code=problem.code, reason=problem.reason)
                self._tell_status({}, trouble=problem)
            if not self._dirty.wait(reconcile_s):
                self._repeat_events()

    def invoke(self) -> None:
        """Carry out invocations, one after the other; until `stop`."""
        while not self._stopping:
            with contextlib.suppress(queue.Empty):
                number, wanted = self._invoked.get(timeout=0.5)
                self._answer(number, wanted, *self._carried_out(wanted))

    def stop(self) -> None:
        """Have `work` and `invoke` end after the request that they are at."""
        self._stopping = True
        self._dirty.set()

    def converge(self) -> None:
        """Bring the daemon to what is wanted, as far as it goes, and tell what became of it. Problem when the daemon
        cannot be asked.
        """
        found: dict[str, documents.PluginStatus] = {}
        present = self._kept.state.present
        if present is not None:
            secrets = self._daemon.ask("GET", "secrets")["secrets"]
            for wanted in present.plugins:
                if self._kept.state.present is not present:
                    self._dirty.set()  # a newer one was taken up meanwhile
                    return
                found[wanted.id] = self._one(present, wanted, secrets)
        self._tell_status(found)

    def _one(
        self, present: judging.Present, wanted: WantedPlugin, secrets: list[dict[str, Any]]
    ) -> documents.PluginStatus:
        """Take the steps that one plugin needs, and say what it is like then."""
        names = frozenset(str(one["name"]) for one in secrets)
        source = next((one for one in present.bundles if one.id == wanted.id), None)
        settled = wanted.id in self._kept.state.settled
        trouble: planning.Blocked | None = None
        for _ in range(_STEPS):
            has, report = self._daemon.has(wanted.id, secrets)
            step = planning.next_step(has, wanted, source=source, settled=settled, secrets=names)
            if step is None:
                if not settled and not has.gating:
                    self._settle(present, wanted.id)
                break
            if self._stopping or self._kept.state.present is not present:
                trouble = planning.Blocked(plugin=wanted.id, code="superseded", reason="something newer was taken up")
                break
            if self._kept.state.withdrawn:
                reason = "the intent, or who signed it, was revoked: nothing more follows from it"
                trouble = planning.Blocked(plugin=wanted.id, code="intent_revoked", reason=reason)
                break
            if (trouble := self._take(step)) is not None:
                break
            if isinstance(step, planning.Take) and not self._seen(has, secrets):
                reason = "its bundle was imported, and is not on record yet"
                trouble = planning.Blocked(plugin=wanted.id, code="bundle_awaited", reason=reason)
                break
            if isinstance(step, planning.Request) and step.binds:
                secrets = self._daemon.ask("GET", "secrets")["secrets"]
        else:
            reason = f"expected it to be settled after {_STEPS} steps, found more"
            trouble = planning.Blocked(plugin=wanted.id, code="no_end", reason=reason)
        has, report = self._daemon.has(wanted.id, secrets)
        return _plugin_status(has, report, trouble)

    def _seen(self, before: planning.Has, secrets: list[dict[str, Any]]) -> bool:
        """Whether the daemon has noticed a bundle that was imported; it is given some seconds for that."""
        until = time.monotonic() + _NOTICE_S
        while time.monotonic() < until and not self._stopping:
            if self._daemon.has(before.id, secrets)[0] != before:
                return True
            time.sleep(_PAUSE_S)
        return False

    def _take(self, step: planning.Step) -> planning.Blocked | None:
        """Do one step; what keeps it from being done, None when it was."""
        match step:
            case planning.Blocked():
                return step
            case planning.Take():
                with self._lock:
                    here, missing = step.sha256 in self._spool, self._missing.get(step.sha256, "")
                    # Again after a while: the link drops what is too much for it, and its answer may be dropped too.
                    due = time.monotonic() - self._asked.get(step.sha256, -math.inf) >= _AGAIN_S
                    if due:
                        self._asked[step.sha256] = time.monotonic()
                if here:
                    return self._request(step.then)
                if due:
                    self._send(messages.BundleNeeded(sha256=step.sha256, urls=step.urls))
                reason = missing or "its bundle is being fetched"
                return planning.Blocked(plugin=step.plugin, code="bundle_awaited", reason=reason)
            case _:
                return self._request(step)

    def _request(self, step: planning.Request) -> planning.Blocked | None:
        """Ask the daemon; what it refuses is told, and tried again at the next look."""
        target = f"{step.method} {'/'.join(step.parts)}"
        try:
            self._daemon.ask(step.method, *step.parts, body=step.body)
        except Problem as problem:
            if problem.code in {"unreachable", "socket_denied", "socket_foreign"}:
                raise
            if step.parts == ("market", "import") and problem.code in _SPOILT:
                with self._lock:  # have it fetched anew
                    self._spool.discard(str(step.body["sha256"]))
                    self._asked.pop(str(step.body["sha256"]), None)
            # Once: it is tried again at each look.
            if self._told.get(step.plugin) != problem.code:
                self._told[step.plugin] = problem.code
                self._event("fleet.refused", step.plugin, problem.code, problem.reason)
            return planning.Blocked(plugin=step.plugin, code=problem.code, reason=problem.reason)
        log.info("fleet_asked", plugin=step.plugin, request=target)
        self._told.pop(step.plugin, None)
        self._event("fleet.asked", step.plugin, "", target)
        return None

    def _settle(self, present: judging.Present, plugin_id: str) -> None:
        """From now on what differs of this plugin was altered by hand."""
        with self._lock:
            state = self._kept.state
            if state.present is not present:
                return
            with _unwritable():
                self._kept.keep(msgspec.structs.replace(state, settled=state.settled | {plugin_id}))
        self._event("fleet.settled", plugin_id, "", f"generation {present.generation}")

    def _judge(self, data: bytes) -> None:
        with self._lock:
            before = self._kept.state
            after, verdict = judging.judge(before, data, now_s=int(self._now_s()))
            if after != before:
                self._unkept = data  # unless it is, in a moment
                self._kept.keep(after)
            self._unkept = None
            refusal = verdict if isinstance(verdict, judging.Refusal) else _NONE
            changed, self._refusal = refusal != self._refusal, refusal
        if after.withdrawn != before.withdrawn:
            self._dirty.set()
        match verdict:
            case judging.TakenUp():
                with self._lock:
                    self._asked.clear()
                    self._missing.clear()
                intent = after.present.intent if after.present else ""
                self._event("fleet.taken_up", intent, "", str(verdict.generation))
                self._dirty.set()
            case judging.Refusal() if changed:
                self._refused("fleet.desired_refused", verdict)
                self._dirty.set()

    def _judge_again(self) -> None:
        """Take up what the disk did not take before: the link does not bring the same document twice. OSError."""
        with self._lock:
            if self._unkept is not None:
                self._judge(self._unkept)

    def _ask(self, message: messages.InvocationAsked) -> None:
        """Judge an invocation; one that counts waits for its turn."""
        with self._lock:
            before = self._kept.state
            after, verdict = judging.judge_invocation(before, message.document, now_s=int(self._now_s()))
            if isinstance(verdict, judging.Refusal):
                self._refused("fleet.invocation_refused", verdict)
                return  # whoever asked has no right to an answer
            if self._invoked.full():
                return  # its nonce is not spent: it may be sent again
            self._kept.keep(after)
            self._invoked.put_nowait((message.number, verdict.invocation))

    def _refused(self, action: str, verdict: judging.Refusal) -> None:
        """Put a refusal on record, unless the last one was just now; the status has it in any case."""
        now = time.monotonic()
        if now - self._told_s >= _REFUSALS_S:
            self._told_s = now
            log.warning("fleet_refused", code=verdict.code, reason=verdict.reason)
            self._event(action, "", verdict.code, verdict.reason)

    def _carried_out(self, wanted: Invocation) -> tuple[str, str, dict[str, Any]]:
        """(code, reason, answer) of an invocation, each empty where there is none."""
        self._event("fleet.invoked", f"{wanted.plugin} {wanted.action}", "", "")
        body = {"action": wanted.action, "payload": wanted.payload}
        try:
            answer = self._daemon.ask("POST", "plugins", "by-id", wanted.plugin, "invoke", body=body)
        except Problem as problem:
            return problem.code, problem.reason, {}
        return "", "", answer if isinstance(answer, dict) else {}

    def _answer(self, number: int, wanted: Invocation, code: str, reason: str, answer: dict[str, Any]) -> None:
        state = self._kept.state
        made = documents.InvocationResult(
            fleet=state.fleet,
            node=state.node,
            nonce=wanted.nonce,
            code=code,
            reason=sanitise(reason, 400),
            answer=answer,
        )
        try:
            signed = documents.sign(made, self._kept.key)
            if len(signed) > STATUS_BYTES:
                raise documents.Malformed("larger than the engine takes")
        except documents.Malformed:  # numbers that no JSON of ours carries, or too much of it
            short = msgspec.structs.replace(made, code="too_large", reason="the answer cannot be carried", answer={})
            signed = documents.sign(short, self._kept.key)
        self._send(messages.InvocationDone(number=number, document=signed))

    def _event(self, action: str, target: str, code: str, reason: str) -> None:
        """Chain, sign and keep one event, and give it to the link. What the disk does not take is in the log alone."""
        message = None
        with self._lock, _unwritable():
            message = self._kept.add_event(
                action, sanitise(target, 200), code, sanitise(reason, 400), at_s=int(self._now_s())
            )
        if message is not None:
            self._send(message)

    def _repeat_events(self) -> None:
        for message in self._kept.events():
            self._send(message)

    def _tell_status(self, found: Mapping[str, documents.PluginStatus], trouble: Problem | None = None) -> None:
        """Give the link a status, signed."""
        plans: tuple[str, ...] = ()
        with contextlib.suppress(Problem):
            page = self._daemon.ask("GET", "plans", query={"state": "planned", "limit": "100"})
            plans = tuple(str(one["sha256"]) for one in page["plans"])
        with self._lock:
            state, refusal = self._kept.state, self._refusal
        present = state.present
        code, reason = (
            (trouble.code, trouble.reason) if trouble else (refusal.code, refusal.reason if refusal.code else "")
        )
        wanted = {one.id for one in present.plugins} if present else set()
        made = documents.NodeStatus(
            fleet=state.fleet,
            node=state.node,
            at=int(self._now_s()),
            epoch=state.epoch,
            generation=state.generation,
            intent=present.intent if present else "",
            settled=not trouble and wanted <= state.settled and not any(one.code for one in found.values()),
            refused=code,
            reason=sanitise(reason, 400),
            plugins=tuple(found.values()),
            plans=plans,
            events=state.events,
            head=state.head,
        )
        self._send(messages.NewStatus(document=_signed(made, self._kept.key)))


_NONE: Final = judging.Refusal(code="", expected="", found="")
_SPOILT: Final = frozenset(
    {"not_found", "import_invalid", "import_mismatch", "changed_while_reading", "digest_mismatch", "foreign_owner"}
)
"""Codes of an import after which the file in the spool is of no use."""


def _signed(made: documents.NodeStatus, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a status, with as much of its plugins as the engine takes: of many first without reasons, then of
    those alone that are not as they were wanted, then none.
    """
    bare = tuple(msgspec.structs.replace(one, reason="") for one in made.plugins)
    for plugins in (made.plugins, bare, tuple(one for one in bare if one.code)):
        reason = made.reason or ("" if plugins is made.plugins else "too much to tell of each plugin")
        with contextlib.suppress(documents.Malformed):
            signed = documents.sign(msgspec.structs.replace(made, plugins=plugins, reason=reason), key)
            if len(signed) <= STATUS_BYTES:
                return signed
    reason = made.reason or "too much to tell of each plugin"
    return documents.sign(msgspec.structs.replace(made, plugins=(), reason=reason), key)


def _plugin_status(
    has: planning.Has, report: Mapping[str, Any], trouble: planning.Blocked | None
) -> documents.PluginStatus:
    runtime = report.get("plugin", {}).get("runtime", {})
    return documents.PluginStatus(
        id=has.id,
        version=has.now.version[:64],
        identity=has.now.identity,
        status=has.status,
        state=str(runtime.get("state") or ""),
        health=str(runtime.get("health") or ""),
        restarts=int(runtime.get("restart_count") or 0),
        denied=int(report.get("calls", {}).get("denied") or 0),
        code=trouble.code[:64] if trouble else "",
        reason=sanitise(trouble.reason, 400) if trouble else "",
    )


class Outbox:
    """Messages that wait for the link, which may take none for a while: only the thread of `work` waits for it."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._waiting: collections.deque[messages.ToLink] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False

    def put(self, message: messages.ToLink) -> None:
        """Send it in its turn. Of statuses the newest is kept; events beyond what fits come again at a later look."""
        with self._changed:
            if isinstance(message, messages.NewStatus):
                self._waiting = collections.deque(
                    one for one in self._waiting if not isinstance(one, messages.NewStatus)
                )
            elif len(self._waiting) >= _OUTBOX:
                return
            self._waiting.append(message)
            self._changed.notify()

    def work(self) -> None:
        """Send until `stop`, or until the link takes nothing any more: then its end is seen by who reads."""
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                message = self._waiting.popleft()
            try:
                self._link.sendall(messages.encode(message))
            except OSError as error:
                log.warning("fleet_link_unwritable", reason=str(error))
                with contextlib.suppress(OSError):
                    self._link.shutdown(socket.SHUT_RDWR)
                return

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()


def run(
    link: socket.socket,
    directory: Path,
    socket_path: str,
    *,
    reconcile_s: float = RECONCILE_S,
    owner: Callable[[], str] = lambda: "",
) -> int:
    """Be the node until the link closes its end; 0 then, 1 when the link sent what is no message or takes nothing.

    `directory` as `kept_state` has it. Problem for one that was not enrolled, or is another's.
    """
    kept = kept_state.opened(directory)
    link.settimeout(_SEND_S)
    outbox = Outbox(link)
    node = FleetNode(kept, Daemon(socket_path, owner=owner), outbox.put)
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
    threads = [threading.Thread(target=whole, args=(one,)) for one in (work, node.invoke, outbox.work)]
    for thread in threads:
        thread.start()
    try:
        ended = _read(link, node)
    finally:
        node.stop()
        outbox.stop()
        for thread in threads:
            thread.join()
    return int(ended or failed.is_set())


@contextlib.contextmanager
def _unwritable() -> Iterator[None]:
    """Log that the disk did not take what was to be kept, and go on."""
    try:
        yield
    except OSError as error:
        log.error("fleet_state_unwritable", reason=error.strerror or str(error))


def _read(link: socket.socket, node: FleetNode) -> int:
    """Give the node every message, until the link's end."""
    decoder = messages.Decoder(messages.ToNode)
    while True:
        select.select([link], [], [])
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
            with _unwritable():
                node.received(message)

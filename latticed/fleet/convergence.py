"""Bringing a daemon to what a node has taken up: one step of `planning` at a time, looking again after each."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.fleet import judging, messages, node_reports, planning
from latticed.fleet.node_record import unwritable
from latticed.kit import logs
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.fleet import documents
    from latticed.fleet.documents import WantedPlugin
    from latticed.fleet.kept_state import KeptState
    from latticed.fleet.node_daemon import Daemon
    from latticed.fleet.node_record import NodeRecord

_STEPS: Final = 40
"""Steps for one plugin in one look; more would be a circle."""
_NOTICE_S: Final = 10.0
"""For the daemon to notice what was imported: it settles, and scans."""
_PAUSE_S: Final = 0.1
_AGAIN_S: Final = 55.0
"""Until a bundle is asked for again: a look is not always a whole `RECONCILE_S` after the last."""
_LONGEST_S: Final = 3_600.0
_SPOILT: Final = frozenset({"not_found", "import_invalid", "changed_while_reading", "digest_mismatch", "foreign_owner"})
"""Codes of an import after which the file in the spool is of no use."""
_ANOTHER: Final = "import_mismatch"
"""Code of an import whose file is whole and holds another bundle than is wanted: fetched again, it is the same file."""
_UNTRIED: Final = frozenset({"busy", "stopping"})
"""Codes of one that was not begun: its file is wanted still."""
_UNREACHABLE: Final = frozenset({"unreachable", "socket_denied", "socket_foreign"})

log = logs.get_logger()


class Bundles:
    """What is known of bundles that were asked of the link, by SHA-256 of their files. Only of these: nothing grows by
    what the link says.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: set[str] = set()
        self._tried: set[str] = set()  # of these: another try needs no file that stays
        self._missing: dict[str, str] = {}
        self._asked: dict[str, float] = {}  # when, by this host's monotonic clock
        self._awaited: set[str] = set()
        self._spoilt: dict[str, int] = {}  # how often
        self._anew: set[str] = set()  # spoilt, and not asked for since
        self._others: dict[tuple[str, str], str] = {}  # by plugin and file: why it is not the bundle that is wanted

    def came(self, sha256: str) -> bool:
        """It is in the spool; False when nobody waits for it."""
        with self._lock:
            if sha256 not in self._awaited:
                return False
            self._awaited.discard(sha256)
            self._here.add(sha256)
            self._tried.discard(sha256)
            self._missing.pop(sha256, None)
            return True

    def failed(self, sha256: str, reason: str) -> bool:
        """It could not be fetched; False when nobody waits for it."""
        with self._lock:
            if sha256 not in self._awaited:
                return False
            self._awaited.discard(sha256)
            self._missing[sha256] = reason
            return True

    def spoilt(self, sha256: str) -> None:
        """What is in the spool is of no use: it is fetched anew, each time after twice as long. The file may be as it
        should be, and the one that a controller chose be another than the operator signed.
        """
        with self._lock:
            self._here.discard(sha256)
            self._spoilt[sha256] = self._spoilt.get(sha256, -1) + 1
            self._anew.add(sha256)

    def other(self, plugin_id: str, sha256: str, reason: str) -> None:
        """The file holds another bundle than is wanted of this plugin: it is not taken, nor fetched, for it again."""
        with self._lock:
            self._others[plugin_id, sha256] = reason

    def why_other(self, plugin_id: str, sha256: str) -> str:
        with self._lock:
            return self._others.get((plugin_id, sha256), "")

    def tried(self, sha256: str) -> messages.BundlesKept:
        """Its import was tried; what the link is to keep from now on."""
        with self._lock:
            self._tried.add(sha256)
            return self._kept()

    def only(self, wanted: set[str]) -> messages.BundlesKept:
        """Nothing else of what is here is wanted; what the link is to keep from now on."""
        with self._lock:
            self._here &= wanted
            self._tried &= wanted
            return self._kept()

    def _kept(self) -> messages.BundlesKept:
        kept = sorted(self._awaited | (self._here - self._tried))
        return messages.BundlesKept(sha256s=tuple(kept[: messages.MOST_KEPT]))

    def is_here(self, sha256: str) -> bool:
        with self._lock:
            return sha256 in self._here

    def why_missing(self, sha256: str) -> str:
        with self._lock:
            return self._missing.get(sha256, "")

    def ask(self, sha256: str, urls: tuple[str, ...]) -> messages.BundleNeeded | None:
        """What to ask the link now. Again after a while, whatever it said: it drops what is too much for it,
        its answer may be dropped too, and one that says at once that a bundle is missing is not asked in a circle.
        """
        now = time.monotonic()
        with self._lock:
            pause_s = min(_AGAIN_S * 2 ** self._spoilt.get(sha256, 0), _LONGEST_S)
            if now - self._asked.get(sha256, -math.inf) < pause_s:
                return None
            self._asked[sha256] = now
            self._awaited.add(sha256)
            anew = sha256 in self._anew
            self._anew.discard(sha256)
            return messages.BundleNeeded(sha256=sha256, urls=urls, anew=anew)

    def forget(self) -> None:
        """Something new was taken up: ask anew. What is in the spool stays, unless it was another bundle."""
        with self._lock:
            self._asked.clear()
            self._awaited.clear()
            self._missing.clear()
            self._spoilt.clear()
            others = {sha256 for _, sha256 in self._others}
            self._others.clear()
            self._here -= others
            self._anew |= others


class Convergence:
    """See the module. `send` gives a message to the link; `stopped` ends it after the request that it is at."""

    def __init__(
        self,
        kept: KeptState,
        daemon: Daemon,
        record: NodeRecord,
        send: Callable[[messages.ToLink], None],
        stopped: threading.Event,
    ) -> None:
        self.bundles = Bundles()
        self._kept = kept
        self._daemon = daemon
        self._record = record
        self._send = send
        self._stopped = stopped
        self._wanted: set[str] = set()  # bundles, of this look
        self._told: dict[str, str] = {}  # the last refusal of the daemon that was put on record, by plugin

    def look(self) -> dict[str, documents.PluginStatus] | None:
        """Take the steps that are to be taken; what each plugin is like then. None when something newer was taken up
        meanwhile; Problem when the daemon cannot be asked.
        """
        found: dict[str, documents.PluginStatus] = {}
        self._wanted.clear()
        present = self._kept.state.present
        if present is not None:
            secrets = self._daemon.ask("GET", "secrets")["secrets"]
            for wanted in present.plugins:
                if self._kept.state.present is not present:
                    return None
                found[wanted.id] = self._one(present, wanted, secrets)
        self._send(self.bundles.only(self._wanted))
        return found

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
            step = planning.next_step(has, wanted, source=source, settled=settled, secrets=names, since=present.since)
            if step is None:
                if not has.gating:
                    self._settle(present, wanted, has.now.identity)
                break
            if (trouble := self._barred(present, wanted.id) or self._take(step)) is not None:
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
        return node_reports.plugin_status(has, report, trouble)

    def _barred(self, present: judging.Present, plugin_id: str) -> planning.Blocked | None:
        """Why no step may be taken any more for what was wanted when the look began."""
        if self._stopped.is_set() or self._kept.state.present is not present:
            return planning.Blocked(plugin=plugin_id, code="superseded", reason="something newer was taken up")
        if self._kept.state.withdrawn:
            reason = "the intent, or who signed it, was revoked: nothing more follows from it"
            return planning.Blocked(plugin=plugin_id, code="intent_revoked", reason=reason)
        return None

    def _seen(self, before: planning.Has, secrets: list[dict[str, Any]]) -> bool:
        """Whether the daemon has noticed a bundle that was imported; it is given some seconds for that."""
        until = time.monotonic() + _NOTICE_S
        while time.monotonic() < until and not self._stopped.is_set():
            if self._daemon.has(before.id, secrets)[0] != before:
                return True
            self._stopped.wait(_PAUSE_S)
        return False

    def _take(self, step: planning.Step) -> planning.Blocked | None:
        """Do one step; what keeps it from being done, None when it was."""
        if isinstance(step, planning.Take):
            self._wanted.add(step.sha256)
        match step:
            case planning.Blocked():
                return step
            case planning.Take() if reason := self.bundles.why_other(step.plugin, step.sha256):
                return planning.Blocked(plugin=step.plugin, code="bundle_unknown", reason=reason)
            case planning.Take() if not self.bundles.is_here(step.sha256):
                if (needed := self.bundles.ask(step.sha256, step.urls)) is not None:
                    self._send(needed)
                reason = self.bundles.why_missing(step.sha256) or "its bundle is being fetched"
                return planning.Blocked(plugin=step.plugin, code="bundle_awaited", reason=reason)
            case planning.Take():
                blocked = self._request(step.then)  # a daemon that is not there has not tried it
                if blocked is None or blocked.code not in _UNTRIED:
                    self._send(self.bundles.tried(step.sha256))
                return blocked
            case _:
                return self._request(step)

    def _request(self, step: planning.Request) -> planning.Blocked | None:
        """Ask the daemon; what it refuses is told, and tried again at the next look."""
        target = f"{step.method} {'/'.join(step.parts)}"
        try:
            self._daemon.ask(step.method, *step.parts, body=step.body)
        except Problem as problem:
            if problem.code in _UNREACHABLE:
                raise
            code = problem.code
            if step.parts == ("market", "import") and code in _SPOILT:
                self.bundles.spoilt(str(step.body["sha256"]))
            if step.parts == ("market", "import") and code == _ANOTHER:
                self.bundles.other(step.plugin, str(step.body["sha256"]), problem.reason)
                code = "bundle_unknown"
            # Once: it is tried again at each look.
            if self._told.get(step.plugin) != problem.code:
                self._told[step.plugin] = problem.code
                self._record.say("fleet.refused", step.plugin, problem.code, problem.reason)
            return planning.Blocked(plugin=step.plugin, code=code, reason=problem.reason)
        log.info("fleet_asked", plugin=step.plugin, request=target)
        self._told.pop(step.plugin, None)
        self._record.say("fleet.asked", step.plugin, "", target)
        return None

    def _settle(self, present: judging.Present, wanted: WantedPlugin, identity: str) -> None:
        """From now on what differs of this plugin was altered by hand, and this is what it goes back to."""
        with self._kept.lock:
            state = self._kept.state
            if state.present is not present:
                return
            if (after := judging.settled(state, present, wanted, identity)) == state:
                return
            with unwritable():
                self._kept.keep(after)
        if wanted.id not in state.settled:
            self._record.say("fleet.settled", wanted.id, "", f"generation {present.generation}")

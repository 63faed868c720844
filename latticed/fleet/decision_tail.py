"""Follows the daemon's record of decisions into the node's own chain, each of its events once.

How far it is stands in the node's state, which is replaced together with the head of the chain: killed at any moment,
nothing is told twice and nothing is left out. A record that does not have the last event any more was replaced, or has
removed it; that is said, and what is new since then is followed.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.fleet import decisions
from latticed.fleet.decisions import Decision, Followed
from latticed.fleet.node_record import unwritable
from latticed.kit import logs
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from latticed.fleet.kept_state import KeptState
    from latticed.fleet.node_daemon import Daemon
    from latticed.fleet.node_record import NodeRecord
    from latticed.fleet.pace import Pace

AGAIN_S: Final = 5.0
"""Until the daemon is asked again that was not there, and until there may be room again."""
_KEEP_S: Final = 60.0
"""Between two times that it is kept how far the record was followed, while nothing of it is told."""

log = logs.get_logger()


class DecisionTail:
    """See the module. `now_s` is the wall clock; `stopped` ends `work`, once `Daemon.cut` has woken it."""

    def __init__(
        self, kept: KeptState, daemon: Daemon, record: NodeRecord, stopped: threading.Event, now_s: Callable[[], float]
    ) -> None:
        self._kept = kept
        self._daemon = daemon
        self._record = record
        self._stopped = stopped
        self._now_s = now_s
        self._paces: dict[str, Pace] = {}
        self._followed = Followed()
        self._kept_s = time.monotonic()
        self._trouble = ""

    def work(self) -> None:
        """Follow until `stopped`; a daemon that is away, or a disk that is full, is tried again."""
        while not self._stopped.is_set():
            try:
                with unwritable():
                    self._begin()
                    self._trouble = ""
                    for found in self._daemon.follow(self._followed.seq):
                        self._heard(found)
                        if self._stopped.is_set():
                            break
            except Problem as problem:
                if problem.code != self._trouble and not self._stopped.is_set():
                    self._trouble = problem.code
                    log.info("fleet_decisions_unread", code=problem.code, reason=problem.reason)
            self._stopped.wait(AGAIN_S)
        with unwritable():
            self._keep()

    def _begin(self) -> None:
        """Know where to go on: at the event after the last; when the record has that no more, at what is new since."""
        kept = self._kept.state.followed
        if kept is None:
            # A host that joins tells what happens from then on.
            self._followed = self._end()
            self._keep()
            return
        self._followed = kept
        if not kept.seq:
            return
        found = self._page(after=str(kept.seq - 1))
        if found and (found[0].seq, found[0].hash) == (kept.seq, kept.hash):
            return
        before = self._before(kept.ts)
        was = f"{found[0].seq} with hash {found[0].hash[:16]}" if found else "none"
        reason = (
            f"expected event {kept.seq} with hash {kept.hash[:16]} in the daemon's record, found {was}: it was "
            f"replaced, or has removed events; some may be missing before event {before.seq + 1}"
        )
        self._followed = msgspec.structs.replace(before, counted=kept.counted, since_s=kept.since_s)
        self._record.add("fleet.decisions_missing", "", "", reason, followed=self._followed)

    def _heard(self, found: Decision | None) -> None:
        """An event, or (None) that there is none now."""
        while found is not None and not self._stopped.is_set():
            after, verdict = decisions.take(
                self._followed,
                found,
                self._paces,
                waiting=self._kept.waiting(),
                now_s=time.monotonic(),
                at_s=int(self._now_s()),
            )
            match verdict:
                case decisions.Wait():
                    self._stopped.wait(AGAIN_S)
                    continue
                case decisions.Tell():
                    self._record.tell(found, at_s=_seconds(found.ts, int(self._now_s())), followed=after)
                    self._kept_s = time.monotonic()
            self._followed = after
            break
        if decisions.sum_is_due(self._followed, waiting=self._kept.waiting(), at_s=int(self._now_s())):
            told, self._followed = decisions.sum_of(self._followed)
            self._record.add("fleet.counted", "", "", told, followed=self._followed)
        elif time.monotonic() - self._kept_s >= _KEEP_S:
            self._keep()

    def _keep(self) -> None:
        self._kept_s = time.monotonic()
        with self._kept.lock:
            if self._kept.state.followed != self._followed:
                self._kept.keep(msgspec.structs.replace(self._kept.state, followed=self._followed))

    def _before(self, ts: str) -> Followed:
        """The last event before those since that time."""
        since = self._page(since=ts)
        if not since:
            return self._end()
        before = self._page(after=str(max(0, since[0].seq - 2)))
        if before and before[0].seq < since[0].seq:
            return _reached(before[0])
        return Followed(seq=since[0].seq - 1, ts=ts)

    def _end(self) -> Followed:
        newest = self._page(newest="1")
        return _reached(newest[0]) if newest else Followed()

    def _page(self, **query: str) -> list[Decision]:
        """The first event that is asked for; empty when there is none."""
        found: Any = self._daemon.ask("GET", "audit", query={**query, "limit": "1"})
        try:
            return msgspec.convert(found["events"], list[Decision])
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise Problem("bad_reply", f"the daemon's record is not of this version: {error}") from error


def _reached(last: Decision) -> Followed:
    return Followed(seq=last.seq, hash=last.hash, ts=last.ts)


def _seconds(ts: str, otherwise: int) -> int:
    """RFC 3339 as whole seconds since 1970."""
    try:
        return max(0, int(datetime.fromisoformat(ts).timestamp()))
    except ValueError:
        return otherwise

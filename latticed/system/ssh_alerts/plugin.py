"""The plugin: polls node.journal for sshd's entries, tells what `watch` finds in them, and keeps where it is."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from latticed.model.errors import Problem
from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.plugin import SystemPlugin
from latticed.system.ssh_alerts import check, render, watch
from latticed.system.ssh_alerts.intent import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

    from latticed.system.ssh_alerts.events import Event
    from latticed.system.ssh_alerts.intent import Page, Rules

LIMIT: Final = 250
"""Entries that are asked for at a time."""
TURN: Final = 25
"""Entries that are taken in one turn of the event loop."""
MAX_EMPTY: Final = 16
"""Pages without entries, one after the other, until the next round: others may be writing into the log all the time."""
RETRIES: Final = 30
"""How often a notification is sent again, a second later, while the host says that it is too fast."""
_STATE: Final = "state"


class SshAlerts(SystemPlugin):
    """Action `status`. What was read, told and remembered is one value of kv, written after the notifications were
    accepted: what a crash cuts off is read and told again, under the words that it was told under before.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._rules: Rules
        self._state: State | None = None
        self._trouble = ""

    async def started(self) -> None:
        try:
            document = check.document(dict(self.config))
            self._rules = check.rules(document, await asyncio.to_thread(_zone, document.time_zone))
        except Problem as problem:
            raise PluginError(problem.reason) from problem

    async def run(self) -> None:
        while True:
            try:
                await self._poll()
                self._trouble = ""
            except HostError as error:
                self._trouble = str(error)
            await asyncio.sleep(self._rules.poll_s)

    async def check(self) -> Health:
        if self._trouble:
            return Health("degraded", self._trouble[:400])
        state = self._state
        if state is None:
            return Health("healthy", "not polled yet")
        told = f"{state.counts.logins} logins, {state.counts.failures} failed attempts"
        if state.counts.unread:
            told += f", {state.counts.unread} messages could not be read"
        if not state.trusted:
            told += "; reads auth.log, into which other programs can write"
        return Health("healthy", told)

    async def do_status(self, _payload: Any) -> Any:
        """What was seen: `{watching, trouble, trusted, last_entry, counts, logins, known, failures, unread}`."""
        state = self._state or await self._load() or State()
        return _status(state, self._rules.zone, self._trouble)

    # One round

    async def _poll(self) -> None:
        """Take all entries that there are. HostError where one of them could not be told or kept, or not be read."""
        state = await self._loaded()
        # A page may be empty and have a new cursor: there was much to read, and nothing of sshd in it.
        cursor, empty = None, 0
        while state.cursor != cursor and empty < MAX_EMPTY:
            cursor = state.cursor
            try:
                page = await self._page(state)
            except HostError as error:
                await self._unread(state, error)
                raise
            state = await self._taken(state, page)
            empty = 0 if page.entries else empty + 1
        state, events = watch.tick(state, self._rules, int(time.time()))
        await self._keep(state, events)

    async def _loaded(self) -> State:
        if self._state is None:
            self._state = await self._load()
        if self._state is None:
            await self._keep(*watch.gone(State(), "forgotten", int(time.time())))
        return self._state or State()

    async def _load(self) -> State | None:
        """What was kept; None when it cannot be read: it is of another version, or an operator's."""
        data = await self.host.kv.get_bytes(_STATE)
        try:
            return State() if data is None else check.state(data)
        except ValueError:
            return None

    async def _page(self, state: State) -> Page:
        """The next entries. A first start begins with what comes after it."""
        answer = await self.host.node.journal("sshd", state.cursor, limit=LIMIT if state.cursor else 0)
        try:
            return check.page(answer)
        except ValueError as error:
            raise HostError("service_unavailable", f"the journal reader's answer cannot be read: {error}") from error

    async def _taken(self, state: State, page: Page) -> State:
        """The state after a page, kept."""
        now_s = int(time.time())
        after, events = watch.up(state, now_s)
        if page.gap:
            after, found = watch.gone(after, "gone", now_s)
            events += found
        for place in range(0, len(page.entries), TURN):
            after, found = watch.advance(after, self._rules, page.entries[place : place + TURN])
            events += found
            await asyncio.sleep(0)  # a storm of entries must not hold the event loop
        after = await self._keep(msgspec.structs.replace(after, cursor=page.cursor), events)
        if unread := after.counts.unread - state.counts.unread:
            await self.host.log.warning("messages of sshd could not be read", count=unread, last=after.sample)
        return after

    async def _unread(self, state: State, error: HostError) -> None:
        now_s = int(time.time())
        if error.code == "bad_params" and state.cursor:
            # The cursor is of another source: journald where auth.log was, or the other way round.
            after, events = watch.gone(state, "source", now_s)
            after = msgspec.structs.replace(after, cursor="")
        else:
            after, events = watch.down(state, error.message[:300], now_s)
        await self._keep(after, events)

    async def _keep(self, state: State, events: Iterable[Event]) -> State:
        """Send what is to be told, then write the state. HostError where that fails: all of it is done again."""
        for event in events:
            await self._send(render.render(event, self._rules.zone))
        if state != self._state:
            await self.host.kv.put(_STATE, check.encoded(state))
            self._state = state
        return state

    async def _send(self, message: render.Message) -> None:
        for left in range(RETRIES, -1, -1):
            try:
                await self.host.notify.send(
                    message.title,
                    message.body,
                    severity=message.severity,
                    event=message.event,
                    dedupe=message.dedupe,
                )
            except HostError as error:
                if error.code != "rate_limited" or not left:
                    raise
                await asyncio.sleep(1)
            else:
                return


def _zone(name: str) -> tzinfo:
    """Problem("config_invalid") for a name that this host does not know. Reads a file."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        expected = "a time zone that this host knows, as Europe/Berlin (package tzdata)"
        raise Problem("config_invalid", f"time_zone: expected {expected}, found {name[:60]!a}") from error


def _status(state: State, zone: tzinfo, trouble: str) -> dict[str, Any]:
    def at(seconds: int) -> str | None:
        return render.when(seconds, zone) if seconds else None

    known = []
    for name, seen in reversed(state.known.items()):
        user, _, network = name.rpartition(" ")
        times = {"first": at(seen.first_s), "last": at(seen.last_s), "logins": seen.count}
        known.append({"user": user, "network": network, **times})
    attack = state.attack
    return {
        "watching": bool(state.cursor) and not state.down_s,
        "trouble": trouble or None,
        "trusted": state.trusted,
        "last_entry": at(state.at_s),
        "counts": msgspec.structs.asdict(state.counts),
        "logins": [
            {"at": at(one.at_s), **{k: v for k, v in msgspec.structs.asdict(one).items() if k != "at_s"}}
            for one in reversed(state.logins)
        ],
        "known": known,
        "failures": None
        if attack is None
        else {
            "since": at(attack.first_s),
            "last": at(attack.last_s),
            "total": attack.total,
            "networks": attack.networks,
            "users": attack.users,
        },
        "unread": state.sample or None,
    }

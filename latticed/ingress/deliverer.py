"""Takes notifications out of the queue and has the fan-out plugin route and deliver them.

    queue ─► route {item} ─► a row for each channel ─► deliver {item, channel} ─► done │ retry │ fail

One message of a channel at a time; channels do not wait for each other. Routing and rendering are the plugin's, what is
durable is the host's (`host.notify.channels`). While the plugin does not run, everything waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import msgspec

from latticed.host.notify.rules import FANOUT, Outcome
from latticed.ingress.ingress import cancelled
from latticed.kit import logs
from latticed.kit.clock import rfc3339
from latticed.kit.tasks import fenced
from latticed.ledger.deliveries import LONGEST_HOLD_US, Planned
from latticed.ledger.notifications import NotificationRow
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from latticed.host.notify.channels import ChannelKeeper
    from latticed.host.notify.keeper import NotificationQueue
    from latticed.kit.clock import Clock
    from latticed.ledger.deliveries import Message
    from latticed.ledger.notifications import Item

    Invoke = Callable[[str, Any], Awaitable[dict[str, Any]]]

POLL_S: Final = 1.0
"""Seconds between two looks whether the plugin runs, while it does not."""
FAULT_PAUSE_S: Final = 5.0
"""Seconds until what failed for a fault of ours, or of the disk, is tried again."""
LONGEST_SLEEP_S: Final = 30.0
"""Due times are wall clock, which may be set meanwhile."""
SWEEP_S: Final = 60.0
ROUTED: Final = 32
"""Most items that are routed in one transaction."""
QUICK: Final = 4
"""Channels that are delivered to at once; http.do serves 8 requests of a plugin at once."""
SLOW: Final = 2
"""Further ones, of channels that were slow the last time: however many hang, the quick ones go on."""
SLOW_S: Final = 2.0
BODY_TOGETHER: Final = 1_000
"""Characters of a body where several items are one message."""
LOW_BYTES: Final = 256 << 20
LOW_SHARE: Final = 0.1
"""The disk of the state directory is low when less than both of these is free: soon nothing can be recorded."""

log = logs.get_logger()


class _RoutedChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel in the answer of `route`."""

    name: str
    bundle: str = ""
    window_s: float = 0.0
    hold_s: float = 0.0


class _Routed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of `route`."""

    channels: tuple[_RoutedChannel, ...]


class _Delivered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of `deliver`."""

    outcome: Literal["done", "retry", "fail"]
    code: str = ""
    reason: str = ""
    retry_after_s: float = 0.0
    pause_s: float = 0.0
    blames_channel: bool = True
    answered: str = ""


class Deliverer:
    """An async context manager: delivers while it is open. Leaving it lets deliveries under way end within `drain_s()`
    seconds: one that is cut off is made once more, since nobody knows what became of it.

    `invoke(action, payload)` has the plugin carry out an action, or raises Problem. `running()`: when the instance that
    runs was started, 0 for none. `active()`: whether the operator has it active, None before that is known.
    """

    def __init__(
        self,
        queue: NotificationQueue,
        channels: ChannelKeeper,
        *,
        invoke: Invoke,
        running: Callable[[], int],
        active: Callable[[], bool | None],
        clock: Clock,
        state_dir: Path,
        drain_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._queue = queue
        self.channels = channels
        self._invoke = invoke
        self._running = running
        self._active = active
        self._clock = clock
        self._state_dir = state_dir
        self._drain_s = drain_s
        self._ending = False
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._sending: set[str] = set()
        """Channels with a message under way: not those that only wait to try something again."""
        self._sent = asyncio.Event()
        self._slow: set[str] = set()
        self._turns: dict[str, float] = {}  # channel: when it was last delivered to
        self._shown: tuple[int, dict[str, str]] = (0, {})  # the instance and the degraded channels that it was told of
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._stop_deliveries)
            for work, name in (
                (self._route_next, "notification routing"),
                (self._dispatch, "notification delivery"),
                (self._follow, "notification events"),
                (self._sweep, "notification sweep"),
            ):
                stack.push_async_callback(cancelled, fenced(self._repeated(work), _failed, name=name))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def begin_none(self) -> None:
        """The daemon stops: no delivery begins from here on; those under way go on."""
        self._ending = True

    async def test(self, channel: str) -> dict[str, Any]:
        """What a channel makes of a test message: `{outcome, code, reason, answered}`. Problem, also when the plugin
        does not run. Nothing is queued; where it was taken, what waits for the channel is sent now.
        """
        item = {
            "id": f"test-{os.urandom(8).hex()}",
            "sender": "latticed",
            "event": "test",
            "severity": "info",
            "title": "test message",
            "body": "latticectl notify test: it can be ignored",
            "created_at": rfc3339(self._clock.wall_us()),
        }
        found = await self._asked(
            "deliver", {"channel": channel, "id": item["id"], "item": item, "more": []}, _Delivered
        )
        if found.outcome == "done":
            await self.channels.works(channel)
        return {
            "channel": channel,
            "outcome": found.outcome,
            "code": found.code,
            "reason": found.reason,
            "answered": found.answered,
        }

    def notes(self) -> list[tuple[str, str]]:
        """(code, detail) of what operators should know: items that nothing delivers, degraded channels."""
        found = []
        if not self._running() and (waiting := self.channels.waiting()):
            why = f"{waiting} notifications wait: {FANOUT} is not running"
            found.append(("notifications_wait", f"{why}: latticectl explain {FANOUT}"))
        for name, reason in self.channels.degraded().items():
            found.append(("channel_degraded", f"channel {name}: {reason}: latticectl notify test {name}"))
        return found

    # Routing.

    async def _route_next(self) -> None:
        """Route what is due, once there is something and the plugin runs."""
        await self._ready()
        # Asked again each time that there may be something: the plugin may have been stopped meanwhile.
        first = await self._queue.next(ready=self._running)
        if first is None:
            return
        items = [first, *await self._queue.take_more(ROUTED - 1)]
        avoid = sorted(self.channels.degraded())
        routed = []
        for item in items:
            try:
                routed.append((item, await self._route(item, avoid)))
            except Problem as problem:
                await self._queue.retry(item, code=problem.code, reason=problem.reason)
        if routed:
            await self.channels.plan(routed)

    async def _route(self, item: Item, avoid: list[str]) -> list[Planned]:
        """The channels of an item, as the plugin says; Problem."""
        found = await self._asked("route", {"item": _plain(item), "avoid": avoid}, _Routed)
        longest_s = LONGEST_HOLD_US / 1_000_000 - 3_600
        return [
            Planned(
                channel=one.name,
                bundle=one.bundle,
                window_us=round(min(max(one.window_s, 0), longest_s) * 1_000_000),
                hold_us=round(min(max(one.hold_s, 0), longest_s) * 1_000_000),
            )
            for one in found.channels
        ]

    # Delivery.

    async def _dispatch(self) -> None:
        """Begin a delivery for each channel that has something due and a slot; then wait for a change."""
        await self._ready()
        self.channels.changed.clear()
        await self._show_degraded()
        pause_s = LONGEST_SLEEP_S
        for name, wait_s in sorted(self.channels.due(), key=lambda one: self._turns.get(one[0], 0.0)):
            if self._ending:
                break
            if name in self._busy:
                continue  # its end sets `changed`
            if wait_s > 0:
                pause_s = min(pause_s, wait_s)
            elif self._has_slot(name):
                self._turns[name] = self._clock.monotonic_s()
                task = fenced(self._deliver(name), _failed, name=f"notification to {name}")
                self._busy[name] = task
                task.add_done_callback(lambda _, name=name: self._ended(name))  # type: ignore[misc]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self.channels.changed.wait()

    def _has_slot(self, name: str) -> bool:
        is_slow = name in self._slow
        taken = sum((one in self._slow) == is_slow for one in self._busy)
        return taken < (SLOW if is_slow else QUICK)

    def _ended(self, name: str) -> None:
        self._busy.pop(name, None)
        self.channels.changed.set()

    async def _deliver(self, name: str) -> None:
        """Deliver the next message of a channel, and record how that ended.

        The channel is busy until this returns: after a fault of ours, or of the disk, not before a pause.
        """
        try:
            message = await self.channels.take(name)
            if message is not None:
                self._sending.add(name)
                await self._send(name, message)
        except Problem as problem:  # the disk is full or failing
            log.warning("notification_step_failed", channel=name, code=problem.code)
        except Exception:
            log.error("notification_step_failed", channel=name, exc_info=True)
        else:
            return
        finally:
            self._over(name)
        await asyncio.sleep(FAULT_PAUSE_S)

    def _over(self, name: str) -> None:
        """No message of this channel is under way any more."""
        self._sending.discard(name)
        self._sent.set()

    async def _send(self, name: str, message: Message) -> None:
        """Have one message sent, and record how that ended."""
        began_s = self._clock.monotonic_s()
        found = await self._outcome(message)
        if self._clock.monotonic_s() - began_s >= SLOW_S:
            self._slow.add(name)
        else:
            self._slow.discard(name)
        # Until it is on record: the channel stays busy meanwhile, else the message would be sent again and again.
        while True:
            try:
                await self.channels.report(message, found)
            except Problem as problem:  # the disk is full or failing
                log.warning("notification_unrecorded", channel=name, code=problem.code)
                self._over(name)  # a stop does not wait for the disk
                await asyncio.sleep(FAULT_PAUSE_S)
            else:
                return

    async def _outcome(self, message: Message) -> Outcome:
        first, *more = message.items
        together = BODY_TOGETHER if more else None
        payload = {
            "channel": message.channel.name,
            "id": message.id,
            "item": _plain(first, together),
            "more": [_plain(one, together) for one in more],
        }
        try:
            found = await self._asked("deliver", payload, _Delivered)
        except Problem as problem:
            # Ours, or the plugin's: nothing that the channel could be blamed for, unless it took too long.
            return Outcome(
                outcome="retry",
                code=problem.code,
                reason=problem.reason,
                retry_after_s=FAULT_PAUSE_S if problem.code != "busy" else POLL_S,
                blames_channel=problem.code == "deadline_exceeded",
            )
        return Outcome(
            outcome=found.outcome,
            code=found.code,
            reason=found.reason,
            retry_after_s=found.retry_after_s,
            pause_s=found.pause_s,
            blames_channel=found.blames_channel,
        )

    async def _show_degraded(self) -> None:
        """Have the plugin show in its health which channels are degraded."""
        now = self._running(), self.channels.degraded()
        if now != self._shown and (now[1] or self._shown[1]):
            with contextlib.suppress(Problem):  # tried again at the next change
                await self._asked("degraded", now[1], dict[str, Any])
                self._shown = now

    async def _stop_deliveries(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s()):
                while self._sending:
                    self._sent.clear()
                    await self._sent.wait()
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # latticed's own events, and upkeep.

    async def _follow(self) -> None:
        if (active := self._active()) is None:
            await asyncio.sleep(POLL_S)  # the directories have not been looked at yet
        else:
            await self.channels.follow(told=active)

    async def _sweep(self) -> None:
        await asyncio.sleep(SWEEP_S)
        await self.channels.sweep()
        if self._active() and await asyncio.to_thread(_low, self._state_dir):
            day = rfc3339(self._clock.wall_us())[:10]
            await self.channels.say(
                NotificationRow(
                    title="the disk of latticed's state directory is almost full",
                    body="latticed stops accepting work when nothing can be written: free some space",
                    severity="critical",
                    event="disk.low",
                    dedupe=f"disk:{day}",
                )
            )

    # Common to all.

    async def _ready(self) -> None:
        """Return once the plugin runs."""
        while not self._running():  # noqa: ASYNC110 - no part of a handle tells when it is armed
            await asyncio.sleep(POLL_S)

    async def _asked(self, action: str, payload: Any, kind: type[Any]) -> Any:
        """The plugin's answer to an action, as a `kind`. Problem when it does not answer, or not like that."""
        reply = await self._invoke(action, payload)
        if not reply.get("ok"):
            raise Problem("plugin_error", str(reply.get("error") or reply.get("message") or "it failed"))
        try:
            return msgspec.convert(reply.get("result"), kind)
        except msgspec.ValidationError as error:
            raise Problem("plugin_error", f"{action}: {error}") from error

    async def _repeated(self, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat `work` until cancelled; what it raises is logged, and it goes on after a pause."""
        while True:
            try:
                await work()
            except Problem as problem:  # the disk is full or failing; the queue says so in its own way
                log.warning("notification_step_failed", code=problem.code)
                await asyncio.sleep(FAULT_PAUSE_S)
            except Exception:
                log.error("notification_step_failed", exc_info=True)
                await asyncio.sleep(FAULT_PAUSE_S)


def _plain(item: Item, together: int | None = None) -> dict[str, Any]:
    """An item as the plugin sees it; `together`: cut its body to so many characters."""
    return {
        "id": item.id,
        "sender": item.plugin_id,
        "event": item.event,
        "severity": item.severity,
        "title": item.title,
        "body": item.body if together is None else item.body[:together],
        "created_at": rfc3339(item.created_at),
    }


def _low(directory: Path) -> bool:
    """Whether the disk of a directory is almost full (statvfs(3)); blocks. What cannot be asked is not low."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    free = found.f_bavail * found.f_frsize
    return free < LOW_BYTES and free < LOW_SHARE * found.f_blocks * found.f_frsize


def _failed(error: BaseException) -> None:
    log.error("notification_delivery_failed", error=repr(error))

"""The plugin: routes and delivers what the host hands it, and shows which channels are degraded."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from latticed.model.errors import Problem
from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.notify import check, render, routing, services
from latticed.system.notify.intent import DeliverAsked, RouteAsked
from latticed.system.plugin import SystemPlugin

if TYPE_CHECKING:
    from latticed.system.notify.intent import FanoutIntent


class NotifyFanout(SystemPlugin):
    """Actions `route`, `deliver`, `degraded` for the host; an operator may try `route` with an item of his own."""

    async def started(self) -> None:
        self._intent = _read(self.config)
        self._rates = {name: _Rate(one.per_minute) for name, one in self._intent.channels.items()}
        self._degraded: dict[str, str] = {}

    async def check(self) -> Health:
        known = {name: why for name, why in self._degraded.items() if name in self._intent.channels}
        if known:
            return Health("degraded", "; ".join(f"channel {name}: {why}" for name, why in sorted(known.items()))[:400])
        return Health("healthy", f"{len(self._intent.channels)} channels, {len(self._intent.rules)} rules")

    async def do_route(self, payload: Any) -> Any:
        """`{"item", "avoid"?}` → `{"channels": [{"name", "bundle", "window_s", "hold_s"}]}`."""
        asked = _payload(payload, RouteAsked)
        found = routing.route(self._intent, asked.item, datetime.now(UTC), avoid=asked.avoid)
        return {"channels": [asdict(one) for one in found]}

    async def do_deliver(self, payload: Any) -> Any:
        """`{"channel", "id", "item", "more"}` → `{"outcome", "code", "reason", "retry_after_s", "pause_s",
        "blames_channel", "answered"}`.
        """
        asked = _payload(payload, DeliverAsked)
        channel = self._intent.channels.get(asked.channel)
        if channel is None:
            reason = f"the configuration has no channel {asked.channel[:40]}"
            gone = services.Verdict(outcome="fail", code="no_such_channel", reason=reason, blames_channel=False)
            return {**asdict(gone), "answered": ""}
        items = (asked.item, *asked.more)
        rule = routing.rule_of(self._intent, asked.item, asked.channel)
        text = render.compose(asked.item, asked.more, rule, host=self._intent.host)
        request = services.request(channel, text, asked.id, items)
        try:
            answer = await self.host.call(request.call, **request.params)
            found, answered = services.verdict(channel, answer, now=datetime.now(UTC))
        except HostError as error:
            found, answered = services.refused(request.call, error.code, error.message), ""
        pause_s = self._rates[asked.channel].take(asyncio.get_running_loop().time())
        return {**asdict(found), "pause_s": pause_s, "answered": answered}

    async def do_degraded(self, payload: Any) -> Any:
        """The degraded channels, by name with the reason; shown in the health."""
        if not isinstance(payload, dict):
            raise PluginError("expected an object")
        self._degraded = {str(name): str(why) for name, why in payload.items()}
        return {}


class _Rate:
    """A token bucket of one channel's messages: as many as `per_minute` at once, then one after the other."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute)
        self._seen_s = 0.0

    def take(self, now_s: float) -> float:
        """Count a message; seconds until the next one may be sent."""
        gained = (now_s - self._seen_s) * self._per_minute / 60
        self._left = min(self._left + gained, float(self._per_minute)) - 1
        self._seen_s = now_s
        return 0.0 if self._left >= 1 else (1 - self._left) * 60 / self._per_minute


def _read(config: Any) -> FanoutIntent:
    try:
        return check.read(config)
    except Problem as problem:
        raise PluginError(problem.reason) from problem


def _payload(payload: Any, kind: type[Any]) -> Any:
    try:
        return check.payload(payload, kind)
    except Problem as problem:
        raise PluginError(problem.reason) from problem

"""The plugin: carries its configuration out by tunnel.* and monitor.*, and says what the operator can do."""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.cloudflared import alerts, check, decode, render, states
from latticed.system.cloudflared.intent import TunnelIntent
from latticed.system.findings import IntentRefused
from latticed.system.plugin import SystemPlugin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latticed.system.cloudflared.intent import WantedTunnel
    from latticed.system.cloudflared.states import TunnelState
    from latticed.system.findings import Finding

POLL_S: Final = 5.0
"""Seconds between two looks at the tunnels: trouble is in the health at most so much later."""
AGAIN_S: Final = (5.0, 300.0)
"""Seconds until a tunnel.put that was refused is made again: doubled each time, up to the second."""
HOPELESS: Final = frozenset({"bad_params", "capability_denied", "capability_not_granted"})
"""Refusals that the same call meets again, until somebody changes something here."""
FIRST_TOLD: Final = 3
"""Troubles in a health message; the rest are counted."""


@dataclass(slots=True)
class _Put:
    """The tunnel.put of one configured tunnel. `refused`: code and message while it is not through; `next_s`: loop time
    of the next try; `confirmed`: its rules were seen to be those that answer.
    """

    done: bool = False
    refused: tuple[str, str] | None = None
    tries: int = 0
    next_s: float = 0.0
    in_force: list[dict[str, str]] | None = None
    confirmed: bool = False


@dataclass(slots=True)
class _Seen:
    """One look: a state for each configured tunnel, the views of tunnel.status and of monitor.list by name."""

    states: list[TunnelState] = field(default_factory=list)
    views: dict[str, Any] = field(default_factory=dict)
    monitors: dict[str, Any] = field(default_factory=dict)


class Cloudflared(SystemPlugin):
    """Actions `status`, `check`, `retry`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._intent = TunnelIntent()
        self._findings: Sequence[Finding] = ()
        self._puts: dict[str, _Put] = {}
        self._watched: set[str] = set()
        self._seen: _Seen | None = None
        self._fault = ""
        self._aside: list[str] = []  # refusals at the last look that say nothing of the tunnels
        self._known: dict[str, alerts.KnownTrouble] = {}
        self._hostname: str | None = None
        # Actions look, too: two at once would make the same calls twice.
        self._looking = asyncio.Lock()

    async def started(self) -> None:
        """With a configuration that means nothing it starts, and leaves what runs as it is: health names each fault."""
        try:
            self._intent = _read(dict(self.config))
        except IntentRefused as refused:
            self._findings = refused.findings
        self._puts = {one.name: _Put() for one in self._intent.tunnels}

    async def run(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(POLL_S)

    async def check(self) -> Health:
        if self._findings:
            return Health("degraded", f"the configuration is not carried out: {_told(list(map(str, self._findings)))}")
        if self._unset:
            return Health("degraded", "no tunnels are configured: latticectl config set latticed.cloudflared -f FILE")
        if self._fault or self._seen is None:
            return Health("degraded", self._fault or "the tunnels were not looked at yet")
        wrong = [f"{one.name}: {one.code}: {one.message}" for one in self._seen.states if one.level in _TROUBLE]
        wrong += [*self._origins_down(self._seen), *self._aside]
        if wrong:
            return Health("degraded", _told(wrong))
        waiting = [one.name for one in self._seen.states if one.level == "pending"]
        said = [f"waiting for {', '.join(waiting)}"] if waiting else [f"{len(self._seen.states)} tunnels connected"]
        said += sorted({note for one in self._seen.states if (note := _age(one))})
        return Health("healthy", "; ".join(said))

    # Actions.

    async def do_status(self, _payload: Any) -> Any:
        """`{"findings", "tunnels"}`: what is wrong with the configuration, and each tunnel with what can be done."""
        await self._look()
        if self._fault:
            raise PluginError(self._fault)
        seen = self._seen or _Seen()
        return {
            "findings": _plain(self._findings),
            "tunnels": [
                self._shown(one, wanted, seen) for one, wanted in zip(seen.states, self._intent.tunnels, strict=True)
            ],
        }

    async def do_check(self, payload: Any) -> Any:
        """What is wrong with a configuration, before it is set: `{"ok", "findings"}`. Nothing is changed."""
        try:
            _read(payload)
        except IntentRefused as refused:
            return {"ok": False, "findings": _plain(refused.findings)}
        return {"ok": True, "findings": []}

    async def do_retry(self, payload: Any) -> Any:
        """Put every tunnel again, or `{"name"}` alone: one that failed is started, one that was undone tried again."""
        if payload is not None and not (isinstance(payload, dict) and payload.keys() == {"name"}):
            raise PluginError('expected nothing, or {"name": NAME}')
        names = [name for name in self._puts if payload is None or name == payload["name"]]
        if payload is not None and not names:
            raise PluginError(f"no such tunnel: {str(payload['name'])[:80]!a}")
        for name in names:
            self._puts[name] = _Put()
        return await self.do_status(None)

    # Carrying out.

    @property
    def _unset(self) -> bool:
        """Whether the configuration says nothing of tunnels: then those that run are left alone."""
        return "tunnels" not in self.config

    async def _look(self) -> None:
        """Carry out what is not yet, see how it is, and tell what has changed."""
        if self._findings or self._unset:
            return
        async with self._looking:
            try:
                await self._put_tunnels()
                seen = await self._looked()
            except HostError as error:
                self._fault = str(error)
                return
            aside = []
            # Each for itself: what one of them is refused must not hide the tunnels, nor hold up the others.
            for step, without in (
                (self._remove_others, "what is not configured goes on"),
                (self._watch, "origins are not watched"),
                (self._tell, "the operator cannot be told"),
            ):
                try:
                    await step(seen)
                except HostError as error:
                    aside.append(f"{without}: {error}")
            self._fault, self._seen, self._aside = "", seen, aside

    async def _put_tunnels(self) -> None:
        for wanted in self._intent.tunnels:
            put, now_s = self._puts[wanted.name], asyncio.get_running_loop().time()
            if put.done or now_s < put.next_s:
                continue
            try:
                await self.host.call("tunnel.put", **render.tunnel(wanted))
            except HostError as error:
                least_s, most_s = AGAIN_S
                wait_s = min(least_s * 2.0**put.tries, most_s)
                put.refused, put.done = (error.code, error.message), error.code in HOPELESS
                put.next_s, put.tries = now_s + wait_s, put.tries + 1
            else:
                put.refused, put.done = None, True

    async def _looked(self) -> _Seen:
        views = {one["name"]: one for one in (await self.host.call("tunnel.status"))["tunnels"]}
        for wanted in self._intent.tunnels:
            put, view = self._puts[wanted.name], views.get(wanted.name)
            # Which rules answer is asked until they are the configured ones: only a put of ours changes them.
            if view is not None and view["state"] == "connected" and not view["trying"] and not put.confirmed:
                (named,) = (await self.host.call("tunnel.status", name=wanted.name))["tunnels"]
                put.in_force = named["ingress"]
                put.confirmed = put.in_force == render.ingress(wanted)
        every = [
            states.of_tunnel(one, views.get(one.name), refused=put.refused, in_force=put.in_force)
            for one, put in zip(self._intent.tunnels, self._puts.values(), strict=True)
        ]
        return _Seen(states=every, views=views)

    async def _remove_others(self, seen: _Seen) -> None:
        """Delete tunnels that are not configured (any more)."""
        every = zip(self._intent.tunnels, seen.states, strict=True)
        connected = {one.tunnel for one, state in every if state.level == "ok"}
        full = any((put.refused or ("",))[0] == "quota_exceeded" for put in self._puts.values())
        for name, view in seen.views.items():
            if name in self._puts:
                continue
            # One under a new name goes on until the new one answers, unless there is no room for both.
            if not full and view["tunnel"] in {one.tunnel for one in self._intent.tunnels} - connected:
                continue
            await self.host.call("tunnel.delete", name=name)
            for put in self._puts.values():
                put.next_s = 0.0

    async def _monitors(self) -> dict[str, Any]:
        """The monitors of this plugin, by name."""
        found: dict[str, Any] = {}
        after = ""
        while True:
            page = await self.host.call("monitor.list", after=after)
            found |= {one["name"]: one for one in page["monitors"] if one["owner"] == self.id}
            if not page["next"]:
                return found
            after = page["next"]

    async def _watch(self, seen: _Seen) -> None:
        """Have each origin watched, and note in `seen` what its monitor says."""
        wanted = render.monitors(self._intent)
        seen.monitors = await self._monitors()
        for name in seen.monitors.keys() - wanted.keys():
            await self.host.call("monitor.delete", name=name)
        for name, monitor in wanted.items():
            if name not in self._watched:
                await self.host.call("monitor.put", **monitor)
                self._watched.add(name)

    # Telling.

    async def _tell(self, seen: _Seen) -> None:
        """Notify the operator of what `alerts` says, and log it. What could not be sent is told at the next look."""
        now_s, refused = asyncio.get_running_loop().time(), None
        for state in seen.states:
            before = self._known.get(state.name, alerts.KnownTrouble())
            now, alert = alerts.after(before, state, await self._host_name(), now_s=now_s)
            try:
                if alert is not None:
                    await self.tell(
                        alert.title, alert.body, severity=alert.severity, event=alert.event, dedupe=alert.dedupe
                    )
            except HostError as error:
                refused = error
                continue
            self._known[state.name] = now
            if alert is not None:
                await self.host.log.write("info" if alert.severity == "info" else "warning", alert.title)
        if refused is not None:
            raise refused

    async def _host_name(self) -> str:
        if self._hostname is None:
            try:
                self._hostname = str((await self.host.node.facts())["hostname"] or "")
            except HostError:
                return ""
        return self._hostname

    def _origins_down(self, seen: _Seen) -> list[str]:
        """`http://backend.lan:8080: refused` for each origin whose monitor says that it is down."""
        found = []
        for service in self._intent.origins if self._intent.monitor_s else ():
            monitor = seen.monitors.get(render.monitor_name(service))
            if monitor is not None and monitor["state"] == "down":
                found.append(f"origin {service} is down: {(monitor['last'] or {}).get('code', '')}")
        return found

    def _shown(self, state: TunnelState, wanted: WantedTunnel, seen: _Seen) -> dict[str, Any]:
        view = seen.views.get(state.name) or {}
        origins = []
        for service in TunnelIntent(tunnels=(wanted,)).origins:
            monitor = seen.monitors.get(render.monitor_name(service)) if self._intent.monitor_s else None
            last = (monitor or {}).get("last") or {}
            origins.append(
                {
                    "service": service,
                    "state": monitor["state"] if monitor else "not_watched",
                    "code": last.get("code", ""),
                }
            )
        return {
            "name": state.name,
            "state": view.get("state"),
            "level": state.level,
            "code": state.code,
            "message": state.message,
            "fix": state.fix,
            "trying": view.get("trying", False),
            "restarts": view.get("restarts"),
            "started_at": view.get("started_at"),
            "version": state.version or None,
            "note": _age(state),
            "origins": origins,
        }


_TROUBLE: Final = frozenset({"degraded", "down"})


def _read(plain: Any) -> TunnelIntent:
    """The configuration; IntentRefused with every fault."""
    intent = decode.read(plain)
    if found := check.check(intent):
        raise IntentRefused(found)
    return intent


def _age(state: TunnelState) -> str:
    return states.age_note(state.version, dt.datetime.now(dt.UTC).date()) if state.version else ""


def _plain(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [
        {"code": one.code, "path": one.path, "expected": one.expected, "found": one.found, "hint": one.hint}
        for one in findings
    ]


def _told(sentences: list[str]) -> str:
    rest = len(sentences) - FIRST_TOLD
    return "; ".join(sentences[:FIRST_TOLD]) + (f"; and {rest} more" if rest > 0 else "")

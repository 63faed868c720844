"""The plugin: plans the sites of its configuration, has renewed certificates taken up, and says what is not served."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.nginx import expiry
from latticed.system.plugin import Measure, SystemPlugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KIND: Final = "nginx"
TOLD_KEY: Final = "told"
"""Where is kept which ends of certificates were told (`expiry.Told`)."""
POLL_S: Final = 10.0
"""Seconds between two looks: a renewed certificate is served at most so much later, and the time of a reload."""
TOLD: Final = 10
"""Names of sites in one message; the rest is counted."""


class Nginx(SystemPlugin):
    """Actions `plan` and `status`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen: Health | None = None
        # None: not looked yet. What was so at the start is in the health, and no news.
        self._unserved: frozenset[str] | None = None
        self._told: expiry.Told | None = None
        self._ends: dict[str, int] = {}

    def measures(self) -> tuple[Measure, ...]:
        text = "when the certificate of a site ends"
        values: dict[tuple[str, ...], int] = {(name,): ends_s for name, ends_s in self._ends.items()}
        name = "nginx_certificate_ends_seconds"
        return (Measure(name=name, kind="gauge", text=text, labels=("site",), values=values),)

    async def run(self) -> None:
        while True:
            try:
                state = await self._taken_up(await self.host.network.state(KIND))
                seen = health(state, now_s=int(time.time()))
                self._seen = await self.after_news(seen, partial(self._tell, state), partial(self._tell_of_ends, state))
            except HostError as error:
                self._seen = Health("degraded", str(error)[:400])
            await asyncio.sleep(POLL_S)

    async def check(self) -> Health:
        if self._seen is None:
            try:
                return health(await self.host.network.state(KIND), now_s=int(time.time()))
            except HostError as error:
                return Health("degraded", str(error)[:400])
        return self._seen

    async def do_plan(self, _payload: Any) -> Any:
        """What network.plan answers: `{"ok", "sha256", "state", …}`. Published files are planned as they are now."""
        wanted = dict(self.config)
        if owners := publishers(self.config):
            wanted["published"] = [await self._published(one) for one in owners]
        try:
            return await self.host.network.plan(KIND, wanted)
        except HostError as error:
            raise PluginError(str(error)) from error

    async def _published(self, owner: str) -> dict[str, Any]:
        """The files of a plugin, as the intent has them. PluginError."""
        files: dict[str, str] = {}
        publisher, after = "", cast("str | None", "")
        while after is not None:
            try:
                page = await self.host.call("static.list", plugin=owner, after=after, digests=True)
            except HostError as error:
                hint = f"latticectl caps grant {self.id} cap=static:read share={owner}"
                raise PluginError(f"the files of {owner} cannot be read ({error}); {hint}") from error
            files |= {one["path"]: one["sha256"] for one in page["files"]}
            publisher, after = page["publisher"], page["next"]
        if not files:
            raise PluginError(f"{owner} has published no files")
        return {"plugin": owner, "publisher": publisher, "files": files}

    async def do_status(self, _payload: Any) -> Any:
        """`{"sites", "nginx", "target", "plans"}`: what is served, what is confirmed, open plans."""
        try:
            state = await self.host.network.state(KIND)
            listed = (await self.host.network.plans())["plans"]
        except HostError as error:
            raise PluginError(str(error)) from error
        live = _live(state)
        plans = [one for one in listed if one["state"] not in {"stale", "refused"}]
        return {"sites": live.get("sites", []), "nginx": live.get("nginx"), "target": state["target"], "plans": plans}

    async def _taken_up(self, state: Any) -> Any:
        """The state, after certificates that have come or were renewed are in use: the same plan, applied again."""
        target = state["target"] or {}
        due = any(one["due"] for one in _live(state).get("sites", ()))
        if not due or not target.get("confirmed") or target.get("unconfirmed"):
            return state
        await self.host.network.apply(target["confirmed"])
        return await self.host.network.state(KIND)

    async def _tell(self, state: Any) -> None:
        """Notify of sites that are not served any more, once each."""
        now = frozenset(unserved(state))
        if self._unserved is not None and (lost := sorted(now - self._unserved)):
            body = f"{_listed(lost)}: nginx does not take the certificate, or it is not there"
            title = f"{_together(lost)} answer{'s' if len(lost) == 1 else ''} 503"
            await self.tell(title, body, event="nginx.site")
        # Afterwards: what could not be sent is news at the next look, too.
        self._unserved = now

    async def _tell_of_ends(self, state: Any) -> None:
        """Notify of certificates that end soon, and keep what was told: first the one, then the other, so that a kill
        between both repeats a notification under the same `dedupe`, and loses none.
        """
        if "sites" not in _live(state):
            return  # nothing is known, which is no reason to forget
        now_s = int(time.time())
        self._ends = ends = {one["name"]: one["expires_at"] for one in _live(state)["sites"] if one["expires_at"]}
        if self._told is None:
            self._told = expiry.read(_plain(await self.host.kv.get(TOLD_KEY)))
        notices, after = expiry.news(ends, self._told, now_s=now_s)
        for one in notices:
            severity = "critical" if one.days == 1 else "warning"
            left = expiry.left(one, now_s)
            title = f"The certificate of {_together(one.sites)} {left}"
            body = f"{_listed(list(one.sites))}: the certificate {left}"
            await self.tell(title, body, severity=severity, event="nginx.certificate", dedupe=one.word)
        if after != self._told:
            await self.host.kv.put(TOLD_KEY, json.dumps(after))
            self._told = after


def health(state: Any, *, now_s: int) -> Health:
    """Degraded where something else has changed files or process, a plan waits, a site is not served, or a certificate
    has ended or was renewed by one that cannot be used.
    """
    target = state["target"]
    if target is None:
        return Health("degraded", "latticed-apply does not run, or [apply] kinds has no nginx")
    if target.get("unconfirmed"):
        left = int(target.get("deadline_s", 0))
        return Health("degraded", f"plan {target['unconfirmed'][:12]} is unconfirmed and is undone in {left} s")
    if not target.get("confirmed"):
        return Health("degraded", "no plan is applied: latticectl apply latticed.nginx")
    if problem := target.get("problem"):
        return Health("degraded", f"{problem}: journalctl -t latticed-apply")
    if target.get("drifted"):
        return Health("degraded", "drift: nginx, or its files, were changed by something else: latticectl plan apply")
    if lost := unserved(state):
        return Health("degraded", f"without a certificate that can be used, and answering 503: {_listed(lost)}")
    sites = _live(state).get("sites", [])
    if broken := [one["name"] for one in sites if one["unusable"]]:
        return Health("degraded", f"renewed by a certificate that does not fit its key, or is none: {_listed(broken)}")
    if ended := [one["name"] for one in sites if one["expires_at"] and one["expires_at"] <= now_s]:
        return Health("degraded", f"with a certificate that has ended: {_listed(ended)}")
    return Health("healthy", f"plan {target['confirmed'][:12]}, {len(sites)} sites")


def publishers(config: Mapping[str, Any]) -> list[str]:
    """The plugins whose files a configuration publishes."""
    sites = config.get("sites", ())
    places = [*sites, *(location for site in sites for location in site.get("locations", ()))]
    return sorted({one["publish"] for one in places if "publish" in one})


def unserved(state: Any) -> list[str]:
    """Names of sites that answer 503 and are meant to be served."""
    return [one["name"] for one in _live(state).get("sites", []) if not one["served"]]


def _live(state: Any) -> dict[str, Any]:
    """What the helper sees; nothing while it does not run."""
    return state.get("live") or {}


def _plain(text: str | None) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return None


def _together(names: Sequence[str]) -> str:
    """Sites in a title, which has to tell one message from another: those with the same one count as repeats."""
    rest = len(names) - 1
    return f"{names[0]} and {rest} more site{'s' if rest > 1 else ''}" if rest else names[0]


def _listed(names: list[str]) -> str:
    rest = len(names) - TOLD
    return ", ".join(names[:TOLD]) + (f" and {rest} more" if rest > 0 else "")

"""The plugin: plans the firewall of its configuration, bans and unbans, says what decides over a packet, sees drift."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.findings import IntentRefused
from latticed.system.nft_guard import check, decode, facts, question
from latticed.system.nft_guard.intent import MAX_EXPIRY_S
from latticed.system.plugin import SystemPlugin

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND: Final = "nft"
POLL_S: Final = 5.0
"""Seconds between two looks at the live table: drift is in the health at most so much later."""
MEND_S: Final = 60.0
"""Seconds between two attempts to apply bans that are not in the table, or outlast their end there."""
MAX_BAN_S: Final = 365 * 86_400
MAX_KEPT: Final = 512
"""Bans of `ban` at a time: they are one value of kv. More belong into the configuration."""
_BANS: Final = "bans"
"""Key of the bans that were asked for by `ban`: `{network: {"address", "expires_at", "comment"}}`."""

Bans = dict[str, dict[str, Any]]


class NftGuard(SystemPlugin):
    """Actions `plan`, `test`, `ban`, `unban`, `status`.

    `plan` plans the configuration with the bans of `ban`, which are kept in kv until they are over; `ban` and `unban`
    what is applied, with other bans: what was configured since must not come in with one.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen: Health | None = None
        self._mended_s = float("-inf")
        self._unapplied = ""
        # Two actions at once would plan without each other's ban.
        self._changing = asyncio.Lock()

    async def run(self) -> None:
        while True:
            try:
                state = await self.host.network.state(KIND)
                await self._expire()
                await self._mend(state)
                self._seen = Health("degraded", self._unapplied[:400]) if self._unapplied else _health(state)
            except HostError as error:
                self._seen = Health("degraded", str(error)[:400])
            await asyncio.sleep(POLL_S)

    async def check(self) -> Health:
        if self._seen is None:
            try:
                return _health(await self.host.network.state(KIND))
            except HostError as error:
                return Health("degraded", str(error)[:400])
        return self._seen

    async def do_plan(self, _payload: Any) -> Any:
        """What network.plan answers: `{"ok", "sha256", "state", …}`."""
        return await self._planned(await self._intent())

    async def do_status(self, _payload: Any) -> Any:
        """`{"table", "target", "bans", "plans"}`: live table, what is confirmed, bans and their ends, open plans."""
        state = await self._state()
        live = state["live"] or {}
        plans = [one for one in (await self.host.network.plans())["plans"] if one["state"] not in {"stale", "refused"}]
        bans = list((await self._kept()).values())
        return {"table": live.get("table"), "target": state["target"], "bans": bans, "plans": plans}

    async def do_test(self, payload: Any) -> Any:
        """Which rule of the configured intent decides over `{from, to, port, proto?, iface?, state?}`."""
        state = await self._state()
        try:
            return await asyncio.to_thread(_answered, await self._intent(), state["live"], payload)
        except IntentRefused as refused:
            raise PluginError(refused.reason) from refused

    async def do_ban(self, payload: Any) -> Any:
        """Ban `{"address", "seconds", "comment"?}`: planned, and applied at once, since it only takes away."""
        given = _fields(payload, {"address", "seconds", "comment"}, {"address", "seconds"})
        seconds = given["seconds"]
        if type(seconds) is not int or not 1 <= seconds <= MAX_BAN_S:
            raise PluginError(f"seconds: expected 1 to {MAX_BAN_S}")
        until = min(int(time.time()) + seconds, MAX_EXPIRY_S)
        plain = {"address": given["address"], "expires_at": until, "comment": given.get("comment", "")}
        network = _network(plain)
        async with self._changing:
            before = await self._kept()
            # An earlier end would widen, and want an approval.
            if network in before and before[network]["expires_at"] >= until:
                return {"ok": True, "network": network, **before[network], "message": "it is banned for longer"}
            if network not in before and len(before) >= MAX_KEPT:
                raise PluginError(f"expected at most {MAX_KEPT} bans at a time; put more into the configuration")
            made = await self._changed(before, {**before, network: plain})
        return {"network": network, "expires_at": until, **made}

    async def do_unban(self, payload: Any) -> Any:
        """Lift a ban of `ban`, `{"address"}`. Within the approved intent it is applied at once."""
        given = _fields(payload, {"address"}, {"address"})
        network = _network({"address": given["address"], "expires_at": 0})
        async with self._changing:
            before = await self._kept()
            if network not in before:
                # A helper that ended after it had applied a ban has not said so: that one is not kept.
                before = {**before, **await self._unkept(network)}
            if network not in before:
                hint = "what the configuration bans is lifted there: latticectl config set"
                raise PluginError(f"{network} was not banned by this action; {hint}")
            made = await self._changed(before, {key: ban for key, ban in before.items() if key != network})
        return {"network": network, **made}

    # What is there

    async def _state(self) -> Any:
        try:
            return await self.host.network.state(KIND)
        except HostError as error:
            raise PluginError(str(error)) from error

    async def _expire(self) -> None:
        """Forget bans that are over; the kernel has ended them by itself."""
        async with self._changing:
            before = await self._kept()
            now_s = int(time.time())
            left = {network: ban for network, ban in before.items() if ban["expires_at"] > now_s}
            if left != before:
                await self._keep(left)

    async def _mend(self, state: Any) -> None:
        """Apply bans that were kept and are not in the table: latticed was killed in between, or the apply failed after
        its answer was waited for. Also where bans in the table outlast their end, since the clock was behind when they
        came in. Tried again after MEND_S; until then `_unapplied` says why.
        """
        target, live = state["target"] or {}, state["live"] or {}
        table = live.get("table") or {}
        if not target.get("confirmed") or target.get("unconfirmed") or target.get("drifted"):
            return
        async with self._changing:
            kept, there = await self._kept(), {one["network"] for one in table.get("bans", ())}
            # One that is nearly over may have ended in the kernel.
            soon_s = time.time() + 2 * POLL_S
            missing = [network for network, ban in kept.items() if network not in there and ban["expires_at"] > soon_s]
            if not missing and not live.get("unfinished"):
                self._unapplied = ""
            elif time.monotonic() >= self._mended_s + MEND_S:
                self._mended_s = time.monotonic()
                try:
                    await self._changed(kept, kept)
                    self._unapplied = ""
                except PluginError as error:
                    wrong = f"{len(missing)} bans are not in the table" if missing else "bans outlast their end"
                    self._unapplied = f"{wrong}: {error}"

    # What is wanted

    async def _kept(self) -> Bans:
        """The bans of `ban`, by network; some may be over. What an operator wrote there that is none is left out."""
        value = await self.host.kv.get_bytes(_BANS)
        try:
            found = json.loads(value or b"{}")
        except ValueError:  # UnicodeDecodeError is one
            return {}
        return {key: ban for key, ban in found.items() if _is_ban(ban)} if isinstance(found, dict) else {}

    async def _keep(self, bans: Bans) -> None:
        await self.host.kv.put(_BANS, json.dumps(bans, sort_keys=True))

    async def _intent(self) -> dict[str, Any]:
        """The configuration with the bans that are not over."""
        # In threads, here and below: with thousands of bans it takes a tenth of a second.
        return await asyncio.to_thread(_merged, self.config, await self._kept(), int(time.time()))

    async def _unkept(self, network: str) -> Bans:
        """The ban of this network in the intent that is applied, unless the configuration has one."""
        return await asyncio.to_thread(_unkept, await self._base(), self.config, network)

    async def _applied(self, before: Bans, after: Bans) -> dict[str, Any]:
        """The intent that is applied, with the bans `after` in place of `before`; the configuration with them where no
        plan of ours is.
        """
        base = await self._base()
        return await asyncio.to_thread(_exchanged, base, self.config, (before, after), int(time.time()))

    async def _base(self) -> Mapping[str, Any]:
        """The intent that is applied; the configuration where no plan of ours is."""
        base: Mapping[str, Any] = self.config
        try:
            target = (await self.host.network.state(KIND))["target"] or {}
            if target.get("confirmed"):
                found = await self.host.call("network.plans", sha256=target["confirmed"])
                base = found["plans"][0]["intent"]
        except HostError as error:
            if error.code not in {"service_unavailable", "not_found"}:
                raise PluginError(str(error)) from error
        return base

    async def _planned(self, intent: dict[str, Any]) -> Any:
        try:
            return await self.host.network.plan(KIND, intent)
        except HostError as error:
            raise PluginError(str(error)) from error

    async def _changed(self, before: Bans, after: Bans) -> dict[str, Any]:
        """Keep other bans, plan the intent with them and have it applied. PluginError where that needs an approval or
        is refused; then the bans are as before.
        """
        made = await self._planned(await self._applied(before, after))
        # A kill between the two leaves a ban that is kept and not applied, which `_mend` applies; never one that is
        # applied and that nobody knows how to lift.
        lifts = after.keys() < before.keys()
        if not lifts:
            await self._keep(after)
        try:
            done = await self.host.network.apply(made["sha256"])
        except HostError as error:
            if not lifts:
                await self._keep(before)
            raise PluginError(f"plan {made['sha256'][:12]}: {error.message}") from error
        if lifts:
            await self._keep(after)
        return {"ok": True, "sha256": made["sha256"], "state": done["state"]}


def _health(state: Any) -> Health:
    """Degraded where something else has changed the table, a plan waits, or none is applied."""
    target, table = state["target"] or {}, (state["live"] or {}).get("table") or {}
    if target.get("unconfirmed"):
        left = int(target.get("deadline_s", 0))
        return Health("degraded", f"plan {target['unconfirmed'][:12]} is unconfirmed and is undone in {left} s")
    if not target.get("confirmed"):
        return Health("degraded", "no plan is applied: latticectl apply latticed.nft-guard")
    if problem := target.get("problem"):
        return Health("degraded", f"{problem}: journalctl -t latticed-apply")
    if target.get("drifted"):
        gone = "is gone" if not table.get("present") else "was changed"
        return Health("degraded", f"drift: the table {gone} by something else: latticectl plan apply")
    return Health("healthy", f"plan {target['confirmed'][:12]}, {len(table.get('bans', ()))} bans")


def _answered(plain: dict[str, Any], live: Any, asked: Any) -> dict[str, Any]:
    """As `question.answer`; IntentRefused for an intent of which no table can be made."""
    intent = decode.read(plain)
    if found := check.check(intent):
        raise IntentRefused(found)
    return question.answer(intent, facts.from_plain(live), asked)


def _merged(config: Mapping[str, Any], kept: Bans, now_s: int) -> dict[str, Any]:
    """The configuration with the bans that are not over; of two of one network the later end holds."""
    added = {network: ban for network, ban in kept.items() if ban["expires_at"] > now_s}
    bans = []
    for ban in config.get("bans", []):
        # What cannot be read is left for the check, which names its place.
        network = _network_or_empty(ban) if added else ""
        other = added.get(network)
        if other is None or other["expires_at"] <= ban["expires_at"]:
            added.pop(network, None)
            bans.append(ban)
    bans += [added[network] for network in sorted(added)]
    return {**config, "bans": bans} if bans else dict(config)


def _exchanged(
    base: Mapping[str, Any], config: Mapping[str, Any], change: tuple[Bans, Bans], now_s: int
) -> dict[str, Any]:
    """An intent with the second bans in place of the first; what the configuration bans comes back where one is lifted.
    A ban that is over, and is not of the configuration, is left out.
    """
    before, after = change
    configured = config.get("bans", [])
    bans = [
        ban
        for ban in base.get("bans", [])
        if _network_or_empty(ban) not in before and (ban["expires_at"] > now_s or ban in configured)
    ]
    bans += [ban for ban in configured if before and ban not in bans and _network_or_empty(ban) in before]
    rest = {key: value for key, value in base.items() if key != "bans"}
    return _merged({**rest, "bans": bans} if bans else rest, after, now_s)


def _unkept(base: Mapping[str, Any], config: Mapping[str, Any], network: str) -> Bans:
    """The ban of a network in `base`; none where `config` has one."""
    applied, configured = (
        [ban for ban in one.get("bans", []) if _network_or_empty(ban) == network] for one in (base, config)
    )
    return {network: applied[0]} if applied and not configured else {}


def _is_ban(ban: Any) -> bool:
    return isinstance(ban, dict) and isinstance(ban.get("address"), str) and type(ban.get("expires_at")) is int


def _fields(payload: Any, known: set[str], required: set[str]) -> dict[str, Any]:
    if not isinstance(payload, dict) or payload.keys() - known or required - payload.keys():
        needed, most = ", ".join(sorted(required)), ", ".join(sorted(known))
        raise PluginError(f"expected an object with {needed}, and at most {most}")
    return payload


def _network(ban: dict[str, Any]) -> str:
    """What a ban hits. PluginError for an address that nobody can ban, or a comment that is none."""
    try:
        intent = decode.read({"bans": [ban]})
        if found := check.check(intent):
            raise IntentRefused(found)
    except IntentRefused as refused:
        raise PluginError(refused.reason) from refused
    return str(intent.bans[0].network)


def _network_or_empty(ban: Any) -> str:
    """The same, empty for what is none."""
    try:
        return str(decode.read({"bans": [ban]}).bans[0].network)
    except IntentRefused:
        return ""

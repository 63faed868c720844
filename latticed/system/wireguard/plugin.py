"""The plugin: plans the networks of its configuration, issues devices, ends them in time, and tells what they do."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from latticed.sdk.base import Health, PluginError, Reply
from latticed.sdk.calls import HostError
from latticed.system.findings import IntentRefused
from latticed.system.long_values import LongValues
from latticed.system.plugin import Measure, SecretReply, SystemPlugin
from latticed.system.wireguard import allocate, check, conf, decode, devices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.system.wireguard.devices import Kept, Met, Plain
    from latticed.system.wireguard.intent import WgNetwork

KIND: Final = "wireguard"
POLL_S: Final = 10.0
"""Seconds between two looks: an end takes effect at most so much later, and the time of an apply."""
MAX_DAYS: Final = 3_650
_METRICS: Final = (
    ("rx_bytes_total", "counter", "bytes from a device", "rx_bytes"),
    ("tx_bytes_total", "counter", "bytes to a device", "tx_bytes"),
    ("handshake_seconds", "gauge", "last handshake of a device, 0 for none", "handshake_at"),
)
TOLD: Final = 10
"""News of one notification; the rest is counted."""
_ISSUE: Final = frozenset(
    {
        *("network", "id", "name", "public_key", "expires_at", "days"),
        *("may_reach", "dns", "routes", "mtu", "keepalive_s"),
    }
)


class Wireguard(SystemPlugin):
    """Actions `plan issue prolong remove release disable enable rename adopt devices status`.

    What is taken away is applied at once: it needs no approval. What is given is planned, and waits for one.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen: Health | None = None
        self._measured: tuple[Measure, ...] = ()
        # Two actions at once would give one address twice.
        self._changing = asyncio.Lock()
        self._values = LongValues(self.host.kv)
        # Something was given back that was approved before, and that the helper does not have yet.
        self._returning = False

    async def run(self) -> None:
        while True:
            try:
                async with self._changing:
                    state = await self._state()
                    self._returning = self._returning and not await self.came_to_nothing()
                    if self._returning and self.may_try() and not (state["target"] or {}).get("unconfirmed"):
                        await self._take_effect(state)
                    else:
                        await self._end(state)
                self._seen = await self.after_news(self.with_refusal(_health(state)), partial(self._tell, state))
            except (HostError, PluginError) as error:
                self._seen = Health("degraded", str(error)[:400])
            await asyncio.sleep(POLL_S)

    def measures(self) -> tuple[Measure, ...]:
        return self._measured

    async def check(self) -> Health:
        return self._seen or _health(await self._state())

    async def do_plan(self, _payload: Any) -> Any:
        """What network.plan answers: `{"ok", "sha256", "state", …}`."""
        async with self._changing:
            return await self._planned(await self._wanted())

    async def do_issue(self, payload: Any) -> Any:
        """A device `{"network"?, "id", "public_key"?, "days"?, …}`: its file, with a key that is nowhere else.

        The same id again: a new key under the same addresses, and the key of before ends at once.
        """
        given = _fields(payload, _ISSUE, {"id"})
        async with self._changing:
            network = self._network(given.pop("network", None))
            kept = await self._kept(network["name"])
            member, private = await asyncio.to_thread(self._member, given, network, kept)
            state = await self._state()
            changed = devices.issued(kept, member)
            tunnel, issued = await asyncio.to_thread(_read, devices.merged(network, changed), member["id"])
            server = _server_key(network, state)
            text = conf.device(tunnel, issued, private_key=private, server_key=server)
            made = await self._changed(state, {network["name"]: changed}, tried=False)
        psk = issued.preshared_key
        told = {"network": network["name"], "id": issued.id, "public_key": issued.public_key, **made}
        result = {**told, "addresses": member["addresses"], "conf": text}
        message = "" if made["state"] == "applying" else f"it waits for an approval: latticectl apply {self.id}"
        return SecretReply(result, forms={psk: "key"} if psk else {}, message=message)

    async def do_prolong(self, payload: Any) -> Any:
        """Another end of a device, `{"network"?, "id", "days" or "expires_at"}`; a later one waits for an approval."""
        given = _with_end(_fields(payload, {"network", "id", "days", "expires_at"}, {"id"}))
        until = given.pop("expires_at", None)
        if type(until) is not int:
            raise PluginError("expected days, or expires_at in seconds since 1970")
        return await self._of_device(given, lambda kept, name: devices.prolonged(kept, name, until))

    async def do_remove(self, payload: Any) -> Any:
        """Take a device away, `{"network"?, "id"}`, at once; its addresses are held until `release`."""
        return await self._of_device(payload, devices.removed)

    async def do_disable(self, payload: Any) -> Any:
        """Switch a member off, `{"network"?, "id"}`, at once."""
        return await self._of_member(payload, lambda kept, name: devices.switched(kept, name, on=False))

    async def do_enable(self, payload: Any) -> Any:
        """Switch a member on again, `{"network"?, "id"}`: at once where that was approved, else planned."""
        return await self._of_member(payload, lambda kept, name: devices.switched(kept, name, on=True))

    async def do_rename(self, payload: Any) -> Any:
        """Give a member another name, `{"network"?, "id", "name"}`; nothing else of it changes."""
        given = _fields(payload, {"network", "id", "name"}, {"id", "name"})
        name = given.pop("name")
        return await self._of_member(given, lambda kept, one: replace(kept, names={**kept.names, one: name}))

    async def do_release(self, payload: Any) -> Any:
        """Let others have the addresses of a member that is no more, `{"network"?, "id"}`."""
        given = _fields(payload, {"network", "id"}, {"id"})
        async with self._changing:
            network = self._network(given.get("network"))
            kept = await self._kept(network["name"])
            name = given["id"]
            here = {one.get("id") for one in devices.merged(network, kept)["members"]}
            if name in here or name not in kept.had:
                raise PluginError(f"no addresses are held for {str(name)[:40]!r}")
            changed = replace(kept, had={one: value for one, value in kept.had.items() if one != name})
            await self._keep(network["name"], changed)
        return {"network": network["name"], "id": name, "addresses": kept.had[name]}

    async def do_adopt(self, payload: Any) -> Any:
        """A host's wg-quick file `{"conf", "name", "secret"}` as a network for the configuration, secrets left out."""
        given = _fields(payload, {"conf", "name", "secret"}, {"conf", "name", "secret"})
        if not all(isinstance(one, str) for one in given.values()):
            raise PluginError("conf, name, secret: expected text")
        try:
            found = conf.adopt(given["conf"], name=given["name"], secret=given["secret"])
        except IntentRefused as refused:
            raise PluginError(refused.reason) from refused
        message = "set and bind the secrets, put the network into the configuration, take the old interface down, apply"
        return Reply({"network": found.network, "secrets": found.secrets}, message=message)

    async def do_devices(self, _payload: Any) -> Any:
        """All members with what is seen of them: `[{"network", "id", "state", "handshake_at", "rx_bytes", …}]`."""
        state = await self._state()
        peers = _peers(state)
        found = []
        for network in (await self._wanted())["networks"]:
            for member in network["members"]:
                live = peers.get((network["name"], member["public_key"]), {})
                shown = {name: member.get(name) for name in ("id", "name", "addresses", "public_key", "expires_at")}
                seen = {name: live.get(name) for name in ("endpoint", "handshake_at", "rx_bytes", "tx_bytes")}
                found.append({"network": network["name"], **shown, "state": _state_of(member, live), **seen})
        return found

    async def do_status(self, _payload: Any) -> Any:
        """`{"target", "networks", "held", "plans"}`: what is confirmed, live interfaces, addresses held, open plans."""
        state = await self._state()
        plans = [one for one in (await self.host.network.plans())["plans"] if one["state"] not in {"stale", "refused"}]
        wanted = await self._wanted()
        held = {one["name"]: one.get("held", []) for one in wanted["networks"]}
        live = [
            {"name": one["name"], "public_key": one["public_key"], "peers": len(one["peers"])}
            for one in (state["live"] or {}).get("networks", [])
        ]
        return {"target": state["target"], "networks": live, "held": held, "plans": plans}

    # Changes

    async def _of_member(self, payload: Any, change: Callable[[Kept, str], Kept]) -> Any:
        given = _fields(payload, {"network", "id"}, {"id"})
        async with self._changing:
            network = self._network(given.get("network"))
            kept = await self._kept(network["name"])
            ids = [one.get("id") for one in devices.merged(network, kept)["members"]]
            if given["id"] not in ids:
                raise PluginError(f"{network['name']} has no member {str(given['id'])[:40]!r}")
            made = await self._changed(await self._state(), {network["name"]: change(kept, given["id"])})
        return {"network": network["name"], "id": given["id"], **made}

    async def _of_device(self, payload: Any, change: Callable[[Kept, str], Kept]) -> Any:
        given = _fields(payload, {"network", "id"}, {"id"})
        network = self._network(given.get("network"))
        if given["id"] not in (await self._kept(network["name"])).members:
            hint = "a member of the configuration is taken out there: latticectl config set"
            raise PluginError(f"{network['name']} has issued no device {str(given['id'])[:40]!r}; {hint}")
        return await self._of_member(payload, change)

    async def _changed(self, state: Any, changes: dict[str, Kept], *, tried: bool = True) -> dict[str, Any]:
        """Keep changes and have them take effect: what is taken away at once, the rest as a plan.

        `{"sha256", "state"}` of the plan of everything. Nothing is kept of what cannot be planned. Not `tried`: what it
        gives needs an approval for certain.
        """
        wanted = await self._wanted(changes)
        await asyncio.to_thread(_check, wanted)
        for name, kept in changes.items():
            await self._keep(name, kept)
        self._returning = self._returning or tried
        return await self._take_effect(state, tried=tried)

    async def _take_effect(self, state: Any, *, tried: bool = True) -> dict[str, Any]:
        """Apply what is taken away, and plan the rest: `{"sha256", "state"}` of the plan of everything."""
        self._tried = self._refused = (
            ""  # what became of an earlier one says nothing of this one, if it is not even planned
        )
        try:
            applied = await self._end(state, told=False)
        except HostError as error:
            raise PluginError(f"it is kept, and tried again every {POLL_S:g} s: {error.message}") from error
        wanted = await self._wanted()
        if applied == wanted:
            self._returning = False
            return {"sha256": (state["target"] or {}).get("confirmed", ""), "state": "applying"}
        made = await self._planned(wanted)
        if not tried:
            return {"sha256": made["sha256"], "state": made["state"]}
        found, self._returning = await self.apply_again(made)
        return {"sha256": made["sha256"], "state": found}

    async def _end(self, state: Any, *, told: bool = True) -> Plain | None:
        """Apply the confirmed intent without members that have to end; what is applied then. `told`: plan anew what was
        planned before, which the plan for that has pushed aside.
        """
        now_s = int(time.time())
        kept = {}
        for network in self._configured():
            before = await self._kept(network["name"])
            kept[network["name"]] = after = devices.remembered(network, before, now_s)
            if after != before:
                await self._keep(network["name"], after)
        applied = await self._applied(state)
        for name, after in kept.items():
            if (fewer := devices.without_old(after, applied or {})) != after:
                await self._keep(name, fewer)
        if applied is None:
            return None
        ended = devices.cut(applied, kept, now_s, self._configured())
        if ended == applied:
            return applied
        made = await self._planned(ended)
        await self.host.network.apply(made["sha256"])
        await self.host.log.info("members ended", plan=made["sha256"][:12])
        wanted = await self._wanted()
        if told and wanted != ended:
            await self._planned(wanted)
        return ended

    async def _applied(self, state: Any) -> Plain | None:
        """The intent that is confirmed at the helper, None when there is none of this plugin."""
        confirmed = (state["target"] or {}).get("confirmed", "")
        return await self.intent_of(confirmed) if confirmed else None

    async def _planned(self, intent: Plain) -> Any:
        # Here first: the helper says the same, but may not be there. In threads, here and elsewhere: with thousands of
        # members it takes a tenth of a second.
        await asyncio.to_thread(_check, intent)
        try:
            return await self.host.network.plan(KIND, intent)
        except HostError as error:
            raise PluginError(str(error)) from error

    def _member(self, given: dict[str, Any], network: Plain, kept: Kept) -> tuple[Plain, str]:
        """A device as a member of an intent, and its private key; that is empty when it has made its key itself."""
        name = given["id"]
        if name in {one.get("id") for one in network.get("members", [])}:
            raise PluginError(f"{name[:40]!r} is a member of the configuration, where its key stands")
        given = _with_end(given)
        private, public = ("", given.pop("public_key")) if "public_key" in given else _keys()
        before = kept.members.get(name, {})
        member = {**before, **given, "public_key": public}
        until = member.get("expires_at")
        if isinstance(until, int) and until <= time.time():
            raise PluginError(f"the end of {name[:40]!r} has passed: give days or expires_at")
        if "addresses" not in before:
            (tunnel,) = decode_networks(devices.merged(network, kept))
            try:
                member["addresses"] = [str(one) for one in allocate.addresses(tunnel, name)]
            except allocate.NoAddress as error:
                raise PluginError(str(error)) from error
        if secret := self.config.get("device_secret"):
            member["preshared_key"] = f"${{secret:{secret}#{name}.{kept.serials.get(name, 0) + 1}}}"
        return member, private

    # What is wanted

    def _configured(self) -> list[Plain]:
        return list(self.config.get("networks", []))

    def _network(self, name: Any) -> Plain:
        """The configured network of this name; without one, the only one."""
        found = [one for one in self._configured() if name in {None, one["name"]}]
        if len(found) != 1:
            names = ", ".join(one["name"] for one in self._configured()) or "none"
            raise PluginError(f"network: expected the name of one network of the configuration ({names})")
        return found[0]

    async def _wanted(self, changes: dict[str, Kept] | None = None) -> Plain:
        """The intent: the configuration with its devices. `changes`: what is to be kept, by network."""
        networks = []
        for network in self._configured():
            kept = (changes or {}).get(network["name"]) or await self._kept(network["name"])
            networks.append(devices.merged(network, devices.remembered(network, kept, int(time.time()))))
        return {"networks": networks}

    async def _kept(self, network: str) -> Kept:
        try:
            return devices.read(await self._values.get(f"devices.{network}"))
        except ValueError as error:
            raise PluginError(f"the value devices.{network} in kv is damaged: put it back from a backup") from error

    async def _keep(self, network: str, kept: Kept) -> None:
        await self._values.put(f"devices.{network}", await asyncio.to_thread(devices.written, kept))

    # What is there

    async def _state(self) -> Any:
        try:
            return await self.host.network.state(KIND)
        except HostError as error:
            raise PluginError(error.message) from error

    async def _tell(self, state: Any) -> None:
        """Notify of what devices did since the last look."""
        applied = await self._applied(state)
        peers = _peers(state)
        self._measured = _measures(applied, peers)
        refused: list[HostError] = []
        for network in (applied or {}).get("networks", []):
            try:
                await self._tell_of(network, peers)
            except HostError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    async def _tell_of(self, network: Plain, peers: Mapping[tuple[str, str], Plain]) -> None:
        key = f"met.{network['name']}"
        before = await self._met(key)
        seen = [
            {**live, "id": member["id"]}
            for member in network["members"]
            if (live := peers.get((network["name"], member["public_key"]))) is not None
        ]
        silent_s = int(self.config.get("silent_days", 30)) * 86_400
        after, news = devices.met(before, seen, now_s=int(time.time()), silent_s=silent_s)
        if news:
            rest = [f"and {len(news) - TOLD} more"] if len(news) > TOLD else []
            body = "\n".join([*news[:TOLD], *rest])
            title = f"{network['name']}: " + (news[0] if len(news) == 1 else f"{news[0]}, and {len(news) - 1} more")
            # What was met before tells this from the same news of another day.
            word = hashlib.sha256(f"{key} {devices.met_written(before)} {body}".encode()).hexdigest()
            await self.tell(title, body, event="wireguard.device", dedupe=word)
        # Afterwards: what cannot be sent is told at the next look; what cannot be kept again, under the same word.
        if devices.worth_keeping(before, after):
            await self._values.put(key, devices.met_written(after))

    async def _met(self, key: str) -> dict[str, Met]:
        """What was last seen of devices; of a damaged value nothing, so that news are told once more."""
        try:
            return devices.met_before(await self._values.get(key))
        except ValueError:
            return {}


def decode_networks(network: Plain) -> tuple[WgNetwork, ...]:
    """One network, decoded; PluginError with what is wrong with it."""
    try:
        return decode.read({"networks": [network]}).networks
    except IntentRefused as refused:
        raise PluginError(refused.reason) from refused


def _read(network: Plain, member: str) -> Any:
    """A network and the member of this id, decoded."""
    (tunnel,) = decode_networks(network)
    if tunnel.endpoint is None:
        raise PluginError(
            f"the network {tunnel.name} has no endpoint, so no device could dial it: put it into the config"
        )
    return tunnel, next(one for one in tunnel.members if one.id == member)


def _check(intent: Plain) -> None:
    try:
        if found := check.check(decode.read(intent)):
            raise IntentRefused(found)
    except IntentRefused as refused:
        raise PluginError(refused.reason) from refused


def _server_key(network: Plain, state: Any) -> str:
    """The public key of this host in a network, from its live interface or the configuration."""
    live = {one["name"]: one["public_key"] for one in (state["live"] or {}).get("networks", [])}
    found = live.get(network["name"]) or network.get("public_key", "")
    if not found:
        hint = "latticectl apply latticed.wireguard, or put its public_key into the configuration"
        raise PluginError(f"the public key of {network['name']} is not known before it is applied: {hint}")
    return str(found)


def _keys() -> tuple[str, str]:
    """A new private key and its public one, in base64."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    made = X25519PrivateKey.generate()
    both = made.private_bytes_raw(), made.public_key().public_bytes_raw()
    private, public = (base64.b64encode(one).decode("ascii") for one in both)
    return private, public


def _peers(state: Any) -> dict[tuple[str, str], Plain]:
    """Live peers by network and key."""
    return {
        (network["name"], peer["public_key"]): peer
        for network in (state["live"] or {}).get("networks", [])
        for peer in network["peers"]
    }


def _measures(applied: Plain | None, peers: dict[tuple[str, str], Plain]) -> tuple[Measure, ...]:
    """Metrics of each device that has a peer, by network and id."""
    found = {
        (network["name"], member["id"]): live
        for network in (applied or {}).get("networks", [])
        for member in network["members"]
        if (live := peers.get((network["name"], member["public_key"]))) is not None
    }
    return tuple(
        Measure(
            name=f"wireguard_device_{name}",
            kind=kind,
            text=text,
            labels=("network", "device"),
            values={key: int(live[of]) for key, live in found.items()},
        )
        for name, kind, text, of in _METRICS
    )


def _state_of(member: Plain, live: Plain) -> str:
    if not member.get("enabled", True):
        return "disabled"
    return "active" if live else "planned"


def _health(state: Any) -> Health:
    target = state["target"] or {}
    if target.get("unconfirmed"):
        left = int(target.get("deadline_s", 0))
        return Health("degraded", f"plan {target['unconfirmed'][:12]} is unconfirmed and is undone in {left} s")
    if not target.get("confirmed"):
        return Health("degraded", "no plan is applied: latticectl apply latticed.wireguard")
    if problem := target.get("problem"):
        return Health("degraded", f"{problem}: journalctl -t latticed-apply")
    if target.get("drifted"):
        return Health("degraded", "drift: interfaces, peers or table were changed by something else")
    peers = sum(len(one["peers"]) for one in (state["live"] or {}).get("networks", []))
    return Health("healthy", f"plan {target['confirmed'][:12]}, {peers} peers")


def _fields(payload: Any, known: frozenset[str] | set[str], required: set[str]) -> dict[str, Any]:
    if not isinstance(payload, dict) or payload.keys() - known or required - payload.keys():
        needed, most = ", ".join(sorted(required)), ", ".join(sorted(known))
        raise PluginError(f"expected an object with {needed}, and at most {most}")
    for name in payload.keys() & {"id", "network"}:
        if not isinstance(payload[name], str):
            raise PluginError(f"{name}: expected text")
    return dict(payload)


def _with_end(given: dict[str, Any]) -> dict[str, Any]:
    """With `expires_at` for `days` from now."""
    if "days" not in given:
        return given
    days = given["days"]
    if type(days) is not int or not 1 <= days <= MAX_DAYS:
        raise PluginError(f"days: expected 1 to {MAX_DAYS}")
    rest = {name: value for name, value in given.items() if name != "days"}
    return {**rest, "expires_at": int(time.time()) + days * 86_400}

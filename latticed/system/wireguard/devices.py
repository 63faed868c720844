"""What the plugin keeps of one network besides the configuration, and the documents that follow from it. Pure.

`Kept` is one value of kv for each network: devices that were issued, addresses that are held, who is switched off.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Plain = dict[str, Any]
"""A network, a member, or an intent as JSON values."""
MET_WITHIN_S: Final = 3_600
"""A kept handshake is at most so much older than the last; silence is counted in days."""
MAX_GONE: Final = 100
"""Keys that are remembered though no peer that is applied has them: a plan that was made before may bring them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`members`: devices by id, as in an intent. `had`: the addresses that each id has, or had and are not released.

    `off`: ids that an operator disabled. `ended`: by id, the end that was once reached: a clock that is set back brings
    nobody back. `gone`: keys of members that were removed or issued anew. `serials`: how often an id was issued.
    """

    members: Mapping[str, Plain] = field(default_factory=dict)
    had: Mapping[str, list[str]] = field(default_factory=dict)
    off: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    ended: Mapping[str, int] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    serials: Mapping[str, int] = field(default_factory=dict)


def read(value: bytes | None) -> Kept:
    """What `written` wrote; nothing kept where there is none. ValueError for what it never writes."""
    if value is None:
        return Kept()
    found = json.loads(value)
    try:
        return Kept(**{**found, "off": tuple(found["off"]), "gone": tuple(found["gone"])})
    except (TypeError, KeyError) as error:
        raise ValueError("no state of devices") from error


def written(kept: Kept) -> str:
    return json.dumps(asdict(kept), sort_keys=True, separators=(",", ":"))


def merged(network: Plain, kept: Kept) -> Plain:
    """The network of the configuration with its devices, what was changed about members, and what is held."""
    members = [*network.get("members", []), *(kept.members[one] for one in sorted(kept.members))]
    wanted = [_member(one, kept) for one in members]
    ids = {one.get("id") for one in wanted}
    held = list(network.get("held", []))
    told = {one.get("id") for one in held}
    held += [
        {"id": one, "addresses": list(addresses)}
        for one, addresses in sorted(kept.had.items())
        if one not in ids and one not in told
    ]
    return {**network, "members": wanted, **({"held": held} if held else {})}


def _member(member: Plain, kept: Kept) -> Plain:
    found = dict(member)
    name = str(found.get("id"))
    if name in kept.names:
        found["name"] = kept.names[name]
    if name in kept.off or ended(member, kept):
        found["enabled"] = False
    return found


def ended(member: Plain, kept: Kept) -> bool:
    """Whether this end of the member was reached once."""
    until = member.get("expires_at")
    return until is not None and kept.ended.get(str(member.get("id"))) == until


def remembered(network: Plain, kept: Kept, now_s: int) -> Kept:
    """With the addresses and the ends of all its members: those of the configuration may be taken out of it."""
    had, over = dict(kept.had), dict(kept.ended)
    for member in [*network.get("members", []), *kept.members.values()]:
        name, until = str(member.get("id")), member.get("expires_at")
        had[name] = [str(one) for one in member.get("addresses", [])]
        if isinstance(until, int) and until <= now_s:
            over[name] = until
    return replace(kept, had=had, ended=over)


def cut(applied: Plain, kept: Mapping[str, Kept], now_s: int, configured: Iterable[Plain] = ()) -> Plain:
    """The applied intent without what has to end at once: members that are off, over, or have a key that is gone.

    `configured`: networks of the configuration, whose members may have a key that was a device's before.
    """
    networks = []
    stay = {
        (network["name"], one.get("id"), one.get("public_key"))
        for network in configured
        for one in network.get("members", [])
    }
    for network in applied.get("networks", []):
        state = kept.get(network["name"], Kept())
        members = []
        for member in network.get("members", []):
            key = member["public_key"]
            if key in state.gone and (network["name"], member["id"], key) not in stay:
                continue
            over = ended(member, state) or member.get("expires_at", now_s + 1) <= now_s
            members.append({**member, "enabled": False} if over or member["id"] in state.off else member)
        networks.append({**network, "members": members})
    return {**applied, "networks": networks}


def without_old(kept: Kept, applied: Plain) -> Kept:
    """Without the oldest keys that are gone, beyond MAX_GONE, but for those of members that are applied in the network.

    `applied`: the intent that is, `{}` for none.
    """
    there = {one["public_key"] for network in applied.get("networks", []) for one in network.get("members", [])}
    old = kept.gone[:-MAX_GONE]
    return replace(kept, gone=(*(one for one in old if one in there), *kept.gone[-MAX_GONE:]))


def switched(kept: Kept, name: str, *, on: bool) -> Kept:
    """With a member disabled, or not any more."""
    others = tuple(one for one in kept.off if one != name)
    return replace(kept, off=others if on else (*others, name))


def issued(kept: Kept, member: Plain) -> Kept:
    """With a device, new or under a new key; the key of before is gone, and its disabling and end with it."""
    name = member["id"]
    before = kept.members.get(name)
    gone = kept.gone if before is None else (*kept.gone, before["public_key"])
    return replace(
        kept,
        members={**kept.members, name: member},
        had={**kept.had, name: list(member["addresses"])},
        off=tuple(one for one in kept.off if one != name),
        names={one: value for one, value in kept.names.items() if one != name},
        ended={one: value for one, value in kept.ended.items() if one != name},
        serials={**kept.serials, name: kept.serials.get(name, 0) + 1},
        gone=tuple(one for one in gone if one != member["public_key"]),
    )


def prolonged(kept: Kept, name: str, until: int) -> Kept:
    """With another end of a device, and what was reached of the one before forgotten."""
    return replace(
        kept,
        members={**kept.members, name: {**kept.members[name], "expires_at": until}},
        ended={one: value for one, value in kept.ended.items() if one != name},
    )


def removed(kept: Kept, name: str) -> Kept:
    """Without a device; its addresses stay held."""
    member = kept.members[name]
    return replace(
        kept,
        members={one: value for one, value in kept.members.items() if one != name},
        off=tuple(one for one in kept.off if one != name),
        names={one: value for one, value in kept.names.items() if one != name},
        gone=(*kept.gone, member["public_key"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What was last seen of one device: moments in seconds since 1970, the address that it came from."""

    handshake_at: int = 0
    host: str = ""
    silent: bool = False


def met(
    before: Mapping[str, Met], peers: Iterable[Plain], *, now_s: int, silent_s: int
) -> tuple[dict[str, Met], list[str]]:
    """What is seen of devices now, by id, and the news in words: first handshake, another address, silence.

    `peers`: `{id, endpoint, handshake_at}`. `silent_s` 0: no word of silence. A handshake that is in no peer any more,
    after a reboot, is the one that was seen before.
    """
    after: dict[str, Met] = {}
    news = []
    for peer in peers:
        was = before.get(peer["id"], Met())
        at = max(was.handshake_at, min(int(peer["handshake_at"]), now_s))
        host = str(peer["endpoint"]).rpartition(":")[0].strip("[]") if at > 0 else ""
        if at and not was.handshake_at:
            news.append(f"{peer['id']}: first handshake, from {host or 'an unknown address'}")
        elif host and was.host and host != was.host and at > was.handshake_at:
            news.append(f"{peer['id']}: comes from {host} now, before from {was.host}")
        quiet = bool(silent_s and at and now_s - at > silent_s)
        if quiet and not was.silent:
            news.append(f"{peer['id']}: silent for {(now_s - at) // 86_400} days")
        after[peer["id"]] = Met(handshake_at=at, host=host or was.host, silent=quiet)
    return after, news


def met_before(value: bytes | None) -> dict[str, Met]:
    """What `met_written` wrote; ValueError for anything else."""
    try:
        return {name: Met(**one) for name, one in json.loads(value or b"{}").items()}
    except (TypeError, AttributeError) as error:
        raise ValueError("no state of devices") from error


def met_written(met_now: Mapping[str, Met]) -> str:
    return json.dumps({name: asdict(one) for name, one in met_now.items()}, separators=(",", ":"))


def worth_keeping(before: Mapping[str, Met], after: Mapping[str, Met]) -> bool:
    """Whether to write what was met: not for handshakes alone, which come every two minutes of each device."""
    if before.keys() != after.keys():
        return True
    return any(
        (one.host, one.silent) != (before[name].host, before[name].silent)
        or one.handshake_at - before[name].handshake_at >= MET_WITHIN_S
        for name, one in after.items()
    )

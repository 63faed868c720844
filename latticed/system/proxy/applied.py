"""A rendering as what the core is given: pure, for the root helper, who keeps renderings and boots from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from latticed.system.proxy.intent import TRANSPORTS, Core, Protocol
from latticed.system.proxy.render import text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_LISTS: Final = {Core.SING_BOX: ("users", "name"), Core.XRAY: ("clients", "email")}
"""Where the users of an inbound stand, and what names one."""
_RULES: Final = {Core.SING_BOX: ("route", "inbound"), Core.XRAY: ("routing", "inboundTag")}
"""Which part has the rules, and what of a rule has the inbounds that it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFile:
    """What a rendering asks for. `until`: by user, when he ends, in seconds since 1970."""

    core: Core
    until: Mapping[str, int]
    config: dict[str, Any] = field(repr=False)


def read(rendering: bytes) -> CoreFile:
    """What `render.render` wrote; ValueError for anything else."""
    found = json.loads(rendering)
    if not isinstance(found, dict) or found.keys() != {"core", "until", "config"}:
        raise ValueError("no rendering of proxies")
    return CoreFile(core=Core(found["core"]), until=found["until"], config=found["config"])


def config(wanted: CoreFile, now_s: int) -> bytes:
    """The core's file at `now_s`: without users whose time is over, and without inbounds that have none left.

    A core that has no users for an inbound lets everybody in (Hysteria2), or all with the server's key (Shadowsocks).
    """
    over = {name for name, until in wanted.until.items() if until <= now_s}
    inbounds = [_due(wanted.core, one, over) for one in wanted.config["inbounds"]]
    kept = [one for one in inbounds if users(wanted.core, one)]
    return text(
        {**wanted.config, "inbounds": kept, **_routing(wanted.core, wanted.config, {one["tag"] for one in kept})}
    )


def users(core: Core, inbound: Mapping[str, Any]) -> tuple[str, ...]:
    """Who is let in at an inbound of a configuration."""
    where, name = _LISTS[core]
    listed = inbound[where] if core is Core.SING_BOX else inbound["settings"][where]
    return tuple(str(one[name]) for one in listed)


def _due(core: Core, inbound: dict[str, Any], over: Collection[str]) -> dict[str, Any]:
    where, name = _LISTS[core]
    if core is Core.SING_BOX:
        return {**inbound, where: [one for one in inbound[where] if one[name] not in over]}
    settings = inbound["settings"]
    return {**inbound, "settings": {**settings, where: [one for one in settings[where] if one[name] not in over]}}


def _routing(core: Core, file: Mapping[str, Any], tags: set[str]) -> dict[str, Any]:
    """The part of a file that has its rules, those for inbounds that are there. One that names none is for all."""
    part, names = _RULES[core]
    rules = []
    for rule in file[part]["rules"]:
        left = [one for one in rule.get(names, ()) if one in tags]
        if names not in rule or left:
            rules.append({**rule, names: left} if left else rule)
    return {part: {**file[part], "rules": rules}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What another file of a core would change: who has gone, and who has come."""

    gone: frozenset[str]
    come: frozenset[str]


def moves(core: Core, before: bytes, after: bytes) -> Moves | None:
    """The users who are in one file of the core and in no place of the other; None where anything else differs too.

    So a core that runs with the first may go on for a while: who is gone is cut, and who has come waits.
    """
    old, new = json.loads(before), json.loads(after)
    names_before, names = everybody(core, before), everybody(core, after)
    gone, come = names_before - names, names - names_before
    kept = {one["tag"]: _due(core, one, come) for one in new["inbounds"]}
    # An inbound that nobody is left for is not there, but for those who have come.
    stripped = {one["tag"]: _due(core, one, gone) for one in old["inbounds"]}
    if {tag: one for tag, one in stripped.items() if tag in kept or users(core, one)} != kept:
        return None
    expected = {**old, "inbounds": new["inbounds"], **_routing(core, old, set(kept))}
    return Moves(gone=gone, come=come) if expected == new else None


def core_of(config: bytes) -> Core:
    """Whose file it is."""
    return Core.XRAY if "routing" in json.loads(config) else Core.SING_BOX


def everybody(core: Core, config: bytes) -> frozenset[str]:
    """Who is let in at any inbound of a core's file."""
    return frozenset(name for one in json.loads(config)["inbounds"] for name in users(core, one))


def ports(core: Core, config: bytes) -> frozenset[tuple[str, int]]:
    """What the core has to have bound, as `("tcp", 443)`."""
    found = json.loads(config)
    where, kind = ("listen_port", "type") if core is Core.SING_BOX else ("port", "protocol")
    inbounds = {(each, one[where]) for one in found["inbounds"] for each in TRANSPORTS[Protocol(one[kind])]}
    return frozenset(inbounds | {("tcp", one["listen_port"]) for one in found.get("services", ())})

"""A network of 2,000 devices: kept whole in kv, issued from, planned within the limit of a plan."""

from __future__ import annotations

import base64
import ipaddress
import json
from typing import Any

from latticed.host.network import intents
from latticed.sdk.calls import HostError
from latticed.system.host import Host
from latticed.system.wireguard import devices
from latticed.system.wireguard.devices import Kept, Met
from latticed.system.wireguard.plugin import Wireguard
from tests.house import tunnels

MANY = 2_000
NAME = "wg-home"
FIRST = ipaddress.ip_address("10.80.0.2")


class World:
    """A host that keeps values of at most 64 KiB and plans of at most 256 KiB."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.planned: list[Any] = []

    async def __call__(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "kv.get":
                value = self.values.get(params["key"])
                return {"ok": value is not None, "value_base64": base64.b64encode(value or b"").decode()}
            case "kv.put":
                coded = params.get("value_base64")
                value = base64.b64decode(coded) if coded is not None else params["value"].encode()
                if len(value) > 64 << 10:
                    raise HostError("quota_exceeded", "too large")
                self.values[params["key"]] = value
                return {"ok": True}
            case "kv.list":
                return {"keys": sorted(one for one in self.values if one.startswith(params["prefix"])), "next": None}
            case "kv.delete":
                return {"ok": self.values.pop(params["key"], None) is not None}
            case "network.state":
                return {
                    "target": None,
                    "live": {"networks": [{"name": NAME, "public_key": tunnels.SERVER_KEY, "peers": []}]},
                }
            case "network.plan":
                intents.check(params["intent"])
                assert len(json.dumps(params["intent"], separators=(",", ":"))) <= 256 << 10
                self.planned.append(params["intent"])
                return {"ok": True, "sha256": "ab" * 32, "state": "planned"}
        raise AssertionError(method)


def kept(count: int) -> Kept:
    members = {f"d{number:04}": number for number in range(count)}
    return Kept(
        members={
            one: {"id": one, "public_key": tunnels.key(one), "addresses": [str(FIRST + number)]}
            for one, number in members.items()
        },
        had={one: [str(FIRST + number)] for one, number in members.items()},
        serials=dict.fromkeys(members, 1),
    )


async def test_two_thousand_devices_are_kept_issued_and_planned():
    world = World()
    document = tunnels.document(members=[], addresses=["10.80.0.1/16"])
    plugin = Wireguard(Host(world), id="latticed.wireguard", capabilities=(), config=document)
    await plugin._values.put(f"devices.{NAME}", devices.written(kept(MANY - 1)))
    made = await plugin.do_issue({"id": "last"})
    assert made.result["addresses"] == [str(FIRST + MANY - 1)]
    assert len(world.planned[-1]["networks"][0]["members"]) == MANY
    again = Wireguard(Host(world), id="latticed.wireguard", capabilities=(), config=document)
    assert len(devices.read(await again._values.get(f"devices.{NAME}")).members) == MANY
    assert len(world.values) > 2


def test_what_was_met_of_devices_is_written_for_news_not_for_every_handshake():
    """2,000 devices shake hands every two minutes each."""
    before = {"a": Met(handshake_at=1_000, host="h")}
    for after, written in (
        ({"a": Met(handshake_at=4_000, host="h")}, False),
        ({"a": Met(handshake_at=4_600, host="h")}, True),
        ({"a": Met(handshake_at=1_001, host="other")}, True),
        ({"a": Met(handshake_at=1_000, host="h", silent=True)}, True),
        ({}, True),
        ({**before, "b": Met()}, True),
    ):
        assert devices.worth_keeping(before, after) is written
    assert devices.met_before(devices.met_written(before).encode()) == before
    assert devices.met_before(None) == {}
    for broken in (b"[]", b'{"a": 1}', b'{"a": {"more": 1}}', b"x"):
        try:
            devices.met_before(broken)
        except ValueError:
            continue
        raise AssertionError(json.loads(broken))

"""What is kept of devices: addresses that are never given twice, ends that stay, news that are told once."""

from __future__ import annotations

import pytest

from latticed.system.wireguard import devices
from latticed.system.wireguard.devices import Kept, Met
from tests.house import tunnels

NETWORK = {"name": "wg-home", "members": [tunnels.member("site", 2)]}


def issued(kept, name, last, **changes):
    return devices.issued(kept, tunnels.member(name, last, **changes))


def ids(network):
    return [one["id"] for one in network["members"]]


def test_what_is_kept_is_read_back():
    kept = devices.remembered(NETWORK, issued(Kept(), "anna", 3, expires_at=5), 9)
    assert devices.read(devices.written(kept).encode()) == kept
    assert devices.read(None) == Kept()
    for broken in (b"", b"{}", b"[]", b'{"off": 1, "gone": []}', b"\xff", b'{"off": [], "gone": [], "more": 1}'):
        with pytest.raises((ValueError, TypeError)):
            devices.read(broken)


def test_addresses_of_a_removed_device_are_held_until_they_are_released():
    kept = issued(Kept(), "anna", 3)
    assert ids(devices.merged(NETWORK, kept)) == ["site", "anna"]
    kept = devices.removed(kept, "anna")
    merged = devices.merged(NETWORK, kept)
    assert (ids(merged), merged["held"]) == (["site"], [{"id": "anna", "addresses": ["10.80.0.3"]}])
    assert "held" not in devices.merged(NETWORK, issued(kept, "anna", 3))


def test_addresses_of_a_member_that_leaves_the_configuration_are_held_too():
    kept = devices.remembered(NETWORK, Kept(), 0)
    merged = devices.merged({**NETWORK, "members": []}, kept)
    assert merged["held"] == [{"id": "site", "addresses": ["10.80.0.2"]}]


def test_a_device_issued_again_has_another_key_and_the_old_one_is_gone():
    first = issued(Kept(), "anna", 3)
    second = issued(first, "anna", 3, public_key=tunnels.key("again"))
    assert (second.gone, second.serials) == ((tunnels.key("anna"),), {"anna": 2})
    applied = {"networks": [devices.merged(NETWORK, first)]}
    assert ids(devices.cut(applied, {"wg-home": second}, 0)["networks"][0]) == ["site"]


def test_an_end_holds_though_the_clock_is_set_back_and_a_later_end_lifts_it():
    kept = issued(Kept(), "anna", 3, expires_at=100)
    applied = {"networks": [devices.merged(NETWORK, kept)]}
    assert devices.cut(applied, {"wg-home": kept}, 99) == applied
    kept = devices.remembered(NETWORK, kept, 100)
    for now_s in (100, 50, 0):
        (network,) = devices.cut(applied, {"wg-home": kept}, now_s)["networks"]
        assert [one.get("enabled", True) for one in network["members"]] == [True, False]
    assert devices.merged(NETWORK, kept)["members"][1]["enabled"] is False
    later = {**tunnels.member("anna", 3), "expires_at": 200}
    assert "enabled" not in devices.merged(NETWORK, devices.issued(kept, later))["members"][1]


def test_only_what_ends_is_cut():
    kept = Kept(off=("site",))
    applied = {"networks": [devices.merged(NETWORK, Kept()), {"name": "other", "members": [tunnels.member("site", 2)]}]}
    cut = devices.cut(applied, {"wg-home": kept}, 0)
    assert [one["members"][0].get("enabled", True) for one in cut["networks"]] == [False, True]


def test_however_many_are_removed_each_is_cut_while_it_is_applied():
    """As while the helper is away; what is not applied is remembered for a while, and no longer."""
    kept = Kept()
    names = [f"d{n}" for n in range(devices.MAX_GONE + 20)]
    for n, name in enumerate(names):
        kept = issued(kept, name, n)
    applied = {"networks": [devices.merged(NETWORK, kept)]}
    for name in names:
        kept = devices.without_old(devices.removed(kept, name), applied)
    assert ids(devices.cut(applied, {"wg-home": kept}, 0)["networks"][0]) == ["site"]
    assert devices.without_old(kept, {}).gone == tuple(tunnels.key(name) for name in names[20:])


def test_a_key_that_was_a_devices_may_be_a_members_of_the_configuration():
    """Under its old id or another; the device that it was ends all the same."""
    kept = devices.removed(issued(Kept(), "anna", 3), "anna")
    for name in ("anna", "anna-laptop"):
        network = {**NETWORK, "members": [tunnels.member(name, 3, public_key=tunnels.key("anna"))]}
        applied = {"networks": [devices.merged(network, kept)]}
        assert devices.cut(applied, {"wg-home": kept}, 0, [network]) == applied
    before = {"networks": [devices.merged(NETWORK, issued(Kept(), "anna", 3))]}
    assert ids(devices.cut(before, {"wg-home": kept}, 0, [network])["networks"][0]) == ["site"]


def test_a_member_disabled_twice_is_kept_once():
    kept = devices.switched(devices.switched(Kept(), "site", on=False), "site", on=False)
    assert kept.off == ("site",)
    assert devices.switched(kept, "site", on=True) == Kept()


def peer(handshake_at=0, endpoint="", name="anna"):
    return {"id": name, "endpoint": endpoint, "handshake_at": handshake_at}


def told(before, *peers, now_s=1_000, silent_s=500):
    return devices.met(before, peers, now_s=now_s, silent_s=silent_s)


def test_first_handshake_another_address_and_silence_are_told_once():
    seen, news = told({}, peer())
    assert news == []
    seen, news = told(seen, peer(900, "192.0.2.1:5"))
    assert news == ["anna: first handshake, from 192.0.2.1"]
    for endpoint in ("192.0.2.1:5", "192.0.2.1:6"):
        seen, news = told(seen, peer(910, endpoint))
        assert news == []
    seen, news = told(seen, peer(920, "[2001:db8::1]:6"))
    assert news == ["anna: comes from 2001:db8::1 now, before from 192.0.2.1"]
    seen, news = told(seen, peer(920, "[2001:db8::1]:6"), now_s=100_000)
    assert news == ["anna: silent for 1 days"]
    assert told(seen, peer(920, "[2001:db8::1]:6"), now_s=200_000)[1] == []
    seen, news = told(seen, peer(200_001, "[2001:db8::1]:6"), now_s=200_002)
    assert (news, seen["anna"].silent) == ([], False)


def test_a_reboot_makes_no_first_handshake_and_no_silence_of_those_that_are_never_told():
    seen = {"anna": Met(handshake_at=900, host="192.0.2.1")}
    after, news = told(seen, peer(0, ""))
    assert (after, news) == (seen, [])
    assert told(seen, peer(0, ""), now_s=10**9, silent_s=0)[1] == []
    assert told({}, peer(0, ""), now_s=10**9)[1] == []


def test_a_handshake_in_the_future_is_now():
    seen, _ = told({}, peer(10**12, "192.0.2.1:1"), now_s=1_000)
    assert seen["anna"].handshake_at == 1_000

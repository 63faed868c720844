"""Configurations of cores: the same for the same, whole for everybody who may come in, and with no value in sight."""

from __future__ import annotations

import ipaddress
import json
import random

import pytest

from latticed.host.network import intents
from latticed.model import plan
from latticed.plans import protocol
from latticed.system.proxy import applied, check, decode, networks, render, values
from latticed.system.proxy import intent as model
from latticed.system.proxy.intent import Core
from tests.house import cores, proxies


def config(plain, now_s=0, secrets=None):
    intent = decode.read(plain)
    assert check.check(intent) == ()
    rendering = render.render(intent, secrets or proxies.secrets(intent))
    return json.loads(applied.config(applied.read(rendering), now_s))


def inbounds(plain, now_s=0):
    return {one["tag"]: one for one in config(plain, now_s)["inbounds"]}


def test_users_come_with_the_credential_that_each_protocol_asks_for():
    plain = proxies.document(
        proxies.reality(), proxies.trojan(), proxies.shadowsocks(method="2022-blake3-aes-128-gcm"), proxies.hysteria()
    )
    found = inbounds(plain)
    uuid, password = (proxies.value(f"PROXY_USERS#anna.{form}", form) for form in ("uuid", "password"))
    assert found["reality"]["users"] == [{"name": "anna", "uuid": uuid, "flow": "xtls-rprx-vision"}]
    assert found["tr"]["users"] == found["fast"]["users"] == [{"name": "anna", "password": password}]
    (user,) = found["ss"]["users"]
    assert len(user["password"]) == len(found["ss"]["password"]) == 24
    private = found["reality"]["tls"]["reality"]["private_key"]
    assert len(private) == 43
    assert not set(private) & set("+/=")


def test_private_networks_are_out_of_reach_unless_said_otherwise():
    rules = config(proxies.document())["route"]["rules"]
    private = list(networks.PRIVATE)
    rest = {"action": "route-options", "udp_connect": True}
    assert rules == [{"action": "resolve"}, {"action": "reject", "ip_cidr": private}, rest]
    assert config(proxies.document(reach_private=True))["route"]["rules"] == []
    plain = proxies.document(core="xray")
    del plain["api"]
    found = config(plain)
    private, public = found["routing"]["rules"]
    assert (private["outboundTag"], "127.0.0.0/8" in private["ip"]) == ("block", True)
    assert (public["outboundTag"], found["outbounds"][0]["tag"]) == ("direct", "block")
    (every,) = config({**plain, "reach_private": True})["routing"]["rules"]
    assert every == {"type": "field", "inboundTag": ["front"], "network": "tcp,udp", "outboundTag": "direct"}


def v4(networks):
    return [one for one in networks if one.version == 4]


def test_what_is_private_is_so_in_nat64_too_and_all_else_there_is_not():
    private = [ipaddress.ip_network(one) for one in networks.PRIVATE]

    def is_private(text):
        address = ipaddress.ip_address(text)
        return any(address in one for one in private if one.version == address.version)

    public = [ipaddress.ip_network(one) for one in networks.PUBLIC]
    size = sum(one.num_addresses for one in public if one.version == 4)
    assert size + sum(one.num_addresses for one in ipaddress.collapse_addresses(v4(private))) == 1 << 32
    assert not any(one.overlaps(other) for one in v4(private) for other in v4(public))
    for each in ("127.0.0.1", "10.1.2.3", "100.64.0.1", "192.0.0.8", "198.18.0.1", "169.254.169.254", "0.0.0.0"):
        assert is_private(each)
        assert is_private(f"64:ff9b::{each}")
    for each in ("::1", "::", "fe80::1", "fd00::1", "64:ff9b:1::1", "::ffff:8.8.8.8", "ff02::1"):
        assert is_private(each)
    for each in ("8.8.8.8", "64:ff9b::8.8.8.8", "2606:2800:220:1::1"):
        assert not is_private(each)


def test_the_api_is_on_loopback_with_a_secret():
    (service,) = config(proxies.document())["services"]
    assert (service["type"], service["listen"], service["listen_port"]) == ("api", "127.0.0.1", 9_180)
    assert service["secret"] == proxies.value("PROXY_API", "password")
    plain = proxies.document()
    del plain["api"]
    assert "services" not in config(plain)


def test_who_is_disabled_or_over_is_not_there_nor_what_nobody_is_left_for():
    plain = proxies.document(
        proxies.vless(),
        proxies.hysteria(outbound="second"),
        users=[
            proxies.user("anna", inbounds=["front"]),
            proxies.user("ben", expires_at=100),
            proxies.user("carl", enabled=False),
        ],
        outbounds=[{"tag": "second"}],
    )
    assert [one["name"] for one in inbounds(plain, 99)["front"]["users"]] == ["anna", "ben"]
    assert [one["name"] for one in inbounds(plain, 99)["fast"]["users"]] == ["ben"]
    found = config(plain, 100)
    # A Hysteria2 without users lets everybody in, and a rule that names no inbound is for all.
    assert [(one["tag"], [each["name"] for each in one["users"]]) for one in found["inbounds"]] == [("front", ["anna"])]
    assert all("inbound" not in one for one in found["route"]["rules"])


@pytest.mark.parametrize("seed", range(100))
def test_no_inbound_is_without_users_at_any_time(seed):
    plain = proxies.sound(random.Random(seed))
    core = Core(plain["core"])
    for now_s in (0, 1_800_000_000, 2**40):
        found = config(plain, now_s)
        ends = {one["id"]: one.get("expires_at", 2**50) for one in plain["users"] if one.get("enabled", True)}
        for inbound in found["inbounds"]:
            names = applied.users(core, inbound)
            assert names
            assert all(ends[name] > now_s for name in names)


@pytest.mark.parametrize("seed", range(100))
def test_the_order_of_lists_and_keys_does_not_matter(seed):
    rng = random.Random(seed)
    plain = proxies.sound(rng)
    other = json.loads(json.dumps(dict(reversed(plain.items()))))
    for name in ("inbounds", "users", "outbounds"):
        rng.shuffle(other[name])
    first, second = decode.read(plain), decode.read(other)
    assert render.render(first, proxies.secrets(first)) == render.render(second, proxies.secrets(second))


@pytest.mark.parametrize("seed", range(100))
def test_a_rendering_to_be_shown_has_references_and_no_value(seed):
    intent = decode.read(proxies.sound(random.Random(seed)))
    given = proxies.secrets(intent)
    shown = render.render(intent, values.shown(given)).decode()
    real = render.render(intent, given).decode()
    assert shown.count("\n") == real.count("\n")
    assert not any(value in shown for value in given.values())
    assert all("${secret:" in one for one, two in zip(shown.splitlines(), real.splitlines(), strict=True) if one != two)


def test_what_is_no_rendering_is_refused():
    for hostile in (b"", b"{}", b"[]", b'{"core": "v2ray", "until": {}, "config": {}}', b"\xff"):
        with pytest.raises(ValueError):
            applied.read(hostile)


@pytest.mark.parametrize("seed", range(12))
def test_sing_box_takes_what_is_rendered(seed, tmp_path):
    program = cores.sing_box() or pytest.skip(cores.NO_SING_BOX)
    rng = random.Random(f"sing-box {seed}")
    tls = cores.certificate(tmp_path, "vpn.example.org")
    plain = drawn(rng, "sing-box")
    for one in plain["inbounds"]:
        if "tls" in one:
            one["tls"] = tls
        # A build without uTLS refuses REALITY whatever its values are.
        if "reality" in one and not cores.has_utls(program):
            one["tls"] = tls
            del one["reality"]
    assert cores.checked(program, json.dumps(config(plain)).encode(), tmp_path) == ""


@pytest.mark.parametrize("seed", range(6))
def test_v2ray_takes_what_xray_is_given_and_both_have(seed, tmp_path):
    program = cores.v2ray() or pytest.skip(cores.NO_V2RAY)
    rng = random.Random(f"xray {seed}")
    tls = cores.certificate(tmp_path, "vpn.example.org")
    while True:
        plain = drawn(rng, "xray")
        if not any(one["protocol"] == "shadowsocks" or "reality" in one for one in plain["inbounds"]):
            break
    for one in plain["inbounds"]:
        if "tls" in one:
            one["tls"] = tls
    assert cores.checked(program, json.dumps(config(plain)).encode(), tmp_path) == ""


def test_two_thousand_users_fit_into_one_plan_with_all_their_secrets():
    users = [proxies.user(f"user-{one:04}", expires_at=1_800_000_000, quota_bytes=10**11) for one in range(2_000)]
    plain = proxies.document(proxies.vless(), proxies.trojan(), proxies.shadowsocks(), users=users)
    assert len(plan.canonical("proxy", plain)) < plan.MAX_INTENT_BYTES
    intents.check(plain)
    intent = decode.read(plain)
    assert check.check(intent) == ()
    given = model.references(intent)
    assert len(given) == 6_002
    values_of = tuple(
        protocol.SecretValue(reference=name, form=form, value=proxies.value(name, form)) for name, form in given.items()
    )
    assert protocol.encode(protocol.Offer(kind="proxy", intent=plain, secrets=values_of))


def drawn(rng, core):
    while True:
        plain = proxies.sound(rng)
        if plain["core"] == core and plain["inbounds"]:
            return plain


def test_every_reference_of_an_intent_is_needed_by_its_rendering():
    for seed in range(50):
        plain = proxies.sound(random.Random(seed))
        for one in plain["users"]:
            one["enabled"] = True
        intent = decode.read(plain)
        render.render(intent, {name: proxies.value(name, form) for name, form in model.references(intent).items()})

"""The file of a device, and a host's file that is taken over."""

from __future__ import annotations

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.wireguard import conf, decode, render
from tests.house import tunnels


def written(member=0, private_key="PRIVATE", **changes):
    (tunnel,) = decode.read(tunnels.document(**changes)).networks
    return conf.device(tunnel, tunnel.members[member], private_key=private_key, server_key=tunnels.SERVER_KEY)


def test_a_devices_file():
    device = tunnels.member("anna", 2, addresses=["10.80.0.2", "fd80::2"], preshared_key="${secret:PSK#anna}", mtu=1300)
    text = written(
        addresses=["10.80.0.1/24", "fd80::1/64"],
        dns=["10.80.0.1"],
        routes=["10.80.0.0/24", "192.168.1.0/24"],
        members=[device],
    )
    assert text == (
        "[Interface]\nPrivateKey = PRIVATE\nAddress = 10.80.0.2/32, fd80::2/128\nDNS = 10.80.0.1\nMTU = 1300\n\n"
        f"[Peer]\nPublicKey = {tunnels.SERVER_KEY}\nPresharedKey = ${{secret:PSK#anna}}\n"
        "AllowedIPs = 10.80.0.0/24, 192.168.1.0/24\nEndpoint = vpn.example.org:51820\nPersistentKeepalive = 25\n"
    )


def test_a_device_that_made_its_key_itself_gets_a_file_without_it():
    text = written(private_key="")
    assert f"# PrivateKey = (of the public key {tunnels.key('anna')})\n" in text
    assert "AllowedIPs = 10.80.0.0/24\n" in text


def test_a_devices_own_routes_and_keepalive_come_before_the_networks():
    device = tunnels.member("anna", 2, routes=["0.0.0.0/0", "::/0"], keepalive_s=0)
    text = written(routes=["10.80.0.0/24"], members=[device])
    assert "AllowedIPs = 0.0.0.0/0, ::/0\n" in text
    assert "PersistentKeepalive" not in text


def test_a_device_of_a_mesh_knows_the_others_and_of_a_hub_the_hub():
    members = [
        tunnels.member("anna", 2),
        tunnels.member("site", 3, subnets=["192.168.9.0/24"], endpoint="192.0.2.1:1"),
        tunnels.member("off", 4, enabled=False),
    ]
    assert written(members=members).count("[Peer]") == 1
    text = written(members=members, topology="mesh")
    assert text.count("[Peer]") == 2
    assert "# site\n" in text
    assert "AllowedIPs = 10.80.0.3/32, 192.168.9.0/24\nEndpoint = 192.0.2.1:1\n" in text


def test_without_an_endpoint_there_is_nothing_to_dial():
    document = tunnels.document()
    del document["networks"][0]["endpoint"]
    (tunnel,) = decode.read(document).networks
    with pytest.raises(ValueError, match="wg-home has no endpoint"):
        conf.device(tunnel, tunnel.members[0], private_key="", server_key=tunnels.SERVER_KEY)


SERVER = f"""
[Interface]
Address = 10.80.0.1/24, fd80::1/64   # of the hub
ListenPort = 51820
PrivateKey = {tunnels.key("private")}
MTU = 1400
DNS = 10.80.0.1

[Peer] # Anna's phone
PublicKey = {tunnels.key("anna")}
PresharedKey = {tunnels.key("psk")}
AllowedIPs = 10.80.0.2/32, fd80::2/128

[peer]
# Site (garden)
publickey={tunnels.key("site")}
AllowedIPs = 10.80.0.3/32
AllowedIPs = 192.168.9.0/24
Endpoint = 192.0.2.1:51820
PersistentKeepalive = 25

[Peer]
PublicKey = {tunnels.key("third")}
AllowedIPs = 10.80.0.4
PersistentKeepalive = off
"""


def test_a_hosts_file_becomes_a_network_and_its_secrets_stay_out():
    found = conf.adopt(SERVER, name="wg0", secret="WG_ZERO")
    (tunnel,) = decode.read({"networks": [found.network]}).networks
    assert (tunnel.name, tunnel.listen_port, tunnel.mtu) == ("wg0", 51_820, 1_400)
    assert [(one.id, one.name) for one in tunnel.members] == [
        ("anna-s-phone", "Anna s phone"),
        ("site-garden", "Site garden"),
        ("peer", ""),
    ]
    assert [str(one) for one in tunnel.members[1].subnets] == ["192.168.9.0/24"]
    assert (tunnel.members[1].keepalive_s, tunnel.members[2].keepalive_s) == (25, 0)
    assert found.secrets == {"WG_ZERO": "PrivateKey", "WG_ZERO_PSK_1": "PresharedKey of anna-s-phone"}
    assert tunnel.members[0].preshared_key == "WG_ZERO_PSK_1"
    for secret in ("private", "psk"):
        assert tunnels.key(secret) not in repr(found)
    assert len(render.links(decode.read({"networks": [found.network]}), dict.fromkeys(found.secrets, "x"))) == 1


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("PostUp = iptables -A FORWARD -i %i -j ACCEPT", "hook"),
        ("SaveConfig = true", "hook"),
        ("postdown = x", "hook"),
        ("nonsense", "bad_line"),
        ("MTU = 1300", "duplicate"),
        ("Colour = red", "unknown_key"),
    ],
)
def test_what_latticed_does_not_do_is_refused_with_its_line(line, code):
    with pytest.raises(IntentRefused) as caught:
        conf.adopt(SERVER.replace("MTU = 1400", f"MTU = 1400\n{line}"), name="wg0", secret="WG")
    assert [one.code for one in caught.value.findings] == [code]
    assert "iptables" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[Peer]", "[Interface]\n", "x" * (300 << 10), "\x00", "[Interface]\nMTU = 99999"])
def test_files_that_are_no_networks_are_refused(text):
    with pytest.raises(IntentRefused):
        conf.adopt(text, name="wg0", secret="WG")


def test_a_key_in_a_broken_line_is_not_repeated():
    with pytest.raises(IntentRefused) as caught:
        conf.adopt(
            f"[Interface]\n{tunnels.key('private')}\nPrivateKey: {tunnels.key('private')}", name="wg0", secret="W"
        )
    assert tunnels.key("private") not in str(caught.value.findings)

"""What a user reaches through a real core without `reach_private`: in a network of its own, with public addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from latticed.system.proxy import applied, check, decode, devices, render, subscriptions
from latticed.system.proxy.subscriptions import Format
from tests.house import cores, netns, ports, proxies

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX),
    pytest.mark.skipif(netns.why_not() is not None, reason=netns.why_not() or ""),
]
SECOND = "93.184.216.99"
PUBLIC = "93.184.216.34"


@contextlib.contextmanager
def client_of(inbound, tmp_path, **changes):
    """The port on loopback of a client of a core with this inbound."""
    made = {**inbound, "listen": "127.0.0.1", "port": ports.free()}
    plain = proxies.document(made, host="127.0.0.1", api={**proxies.API, "port": ports.free()}, **changes)
    core = plain.get("core", "sing-box")
    if core == "xray":
        del plain["api"]
    intent = decode.read(plain)
    assert check.check(intent) == ()
    secrets, port = proxies.secrets(intent), ports.free()
    configuration = applied.config(applied.read(render.render(intent, secrets)), 0)
    document = subscriptions.write(devices.links(intent, "anna", secrets), Format.SING_BOX)
    trusted = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    with (
        cores.running(configuration, tmp_path, "server", intent.api.port if intent.api else made["port"], core=core),
        cores.running(cores.client(document, port), tmp_path, "client", port, **trusted),
    ):
        yield port


@contextlib.contextmanager
def udp_session(port):
    """A socket, and the address that it sends to what is to be sent on (RFC 1928, section 7)."""
    with socket.create_connection(("127.0.0.1", port), cores.PATIENCE_S) as control, udp("127.0.0.1") as sock:
        control.sendall(b"\5\1\0")
        assert control.recv(2) == b"\5\0"
        control.sendall(b"\5\3\0\1\0\0\0\0\0\0")
        relay = ("127.0.0.1", struct.unpack(">H", control.recv(64)[8:10])[0])
        yield sock, relay


def udp(address):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.settimeout(0.5)
    return sock


def datagram(peer, data):
    address, port = peer.getsockname()
    return b"\0\0\0\1" + ipaddress.ip_address(address).packed + struct.pack(">H", port) + data


def arrives(session, peer, data):
    """Send it until `peer` has it: datagrams may be lost."""
    sock, relay = session
    until = time.monotonic() + cores.PATIENCE_S
    while time.monotonic() < until:
        sock.sendto(datagram(peer, data), relay)
        with contextlib.suppress(TimeoutError):
            while peer.recv(2_000) != data:
                pass
            return True
    return False


@pytest.mark.parametrize("name", ["shadowsocks", "trojan", "hysteria2"])
def test_a_udp_session_that_began_at_a_public_address_reaches_no_private_one(name, tmp_path):
    async def scenario():
        tls = cores.certificate(tmp_path, "vpn.example.org")
        made = {
            "shadowsocks": proxies.shadowsocks,
            "trojan": lambda: proxies.trojan(tls=tls),
            "hysteria2": lambda: proxies.hysteria(tls=tls),
        }[name]()
        with client_of(made, tmp_path) as port, udp(PUBLIC) as public, udp("127.0.0.1") as private:
            with udp_session(port) as session:
                assert arrives(session, public, b"first")
                for _ in range(5):
                    session[0].sendto(datagram(private, b"second"), session[1])
                assert arrives(session, public, b"third")
            private.setblocking(False)
            with pytest.raises(BlockingIOError):
                private.recv(2_000)

    netns.run((f"{PUBLIC}/32",), scenario)


def test_with_reach_private_a_udp_session_reaches_any_number_of_peers(tmp_path):
    async def scenario():
        with (
            client_of(proxies.shadowsocks(), tmp_path, reach_private=True) as port,
            udp(PUBLIC) as public,
            udp("127.0.0.1") as private,
            udp_session(port) as session,
        ):
            for one in (public, private, public):
                assert arrives(session, one, b"hello")

    netns.run((f"{PUBLIC}/32",), scenario)


PRIVATE = (
    *("127.0.0.1", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "localhost", "10.1.1.1", "100.64.0.1"),
    *("169.254.169.254", "192.0.0.8", "198.18.0.1", "168.63.129.16", "[64:ff9b::a01:101]"),
)
OF_IT = ("10.1.1.1/32", "100.64.0.1/32", "169.254.169.254/32", "192.0.0.8/32", "198.18.0.1/32", "168.63.129.16/32")


@contextlib.contextmanager
def everywhere():
    """The port of a server at all addresses, which says hello."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.sendall(b"hello")

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def is_reached(client, host, port):
    with socket.create_connection(("127.0.0.1", client), cores.PATIENCE_S) as sock:
        sock.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        told = b""
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1_024):
                told += data
        return told.endswith(b"hello")


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("core", ["sing-box", "xray"])
def test_no_private_network_is_reached_unless_said_so(core, is_open, tmp_path):
    if core == "xray" and cores.v2ray() is None:
        pytest.skip(cores.NO_V2RAY)

    async def scenario():
        with client_of(proxies.vmess(), tmp_path, core=core, reach_private=is_open) as client, everywhere() as port:
            # The positive control: a public address of this host, which docs/system-plugins/proxy.md speaks of.
            assert is_reached(client, PUBLIC, port)
            reached = [host for host in PRIVATE if is_reached(client, host, port)]
            assert set(reached) >= {"127.0.0.1", "10.1.1.1", "198.18.0.1"} if is_open else reached == []

    netns.run((f"{PUBLIC}/32", *OF_IT, "64:ff9b::a01:101/128"), scenario)


NAME = "evil.example.org"


def resolver():
    """The address that this host's programs ask for names."""
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return next((one.split()[1] for one in lines if one.startswith("nameserver ")), "127.0.0.1")


@contextlib.contextmanager
def names(address, *answers):
    """A server of names there: each question for the IPv4 address of NAME gets the next answer, then the last; an
    empty one is none.
    """
    left = list(answers)

    def answered(question):
        place, labels = 12, []
        while size := question[place]:
            labels.append(question[place + 1 : place + 1 + size].decode())
            place += size + 1
        head, asked = question[:2], question[12 : place + 5]
        is_a = struct.unpack(">H", question[place + 1 : place + 3])[0] == 1
        if ".".join(labels) != NAME:
            return head + b"\x81\x83\0\1\0\0\0\0\0\0" + asked
        answer = (left.pop(0) if len(left) > 1 else left[0]) if is_a else ""
        if not answer:
            return head + b"\x81\x80\0\1\0\0\0\0\0\0" + asked
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + ipaddress.ip_address(answer).packed
        return head + b"\x81\x80\0\1\0\1\0\0\0\0" + asked + record

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))

        def serve():
            while (found := sock.recvfrom(2_000))[0]:
                sock.sendto(answered(found[0]), found[1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(family, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (address, 53))
            thread.join()


@pytest.mark.parametrize("core", ["sing-box", "xray"])
@pytest.mark.parametrize("answers", [[PUBLIC], ["", PUBLIC], ["", "", PUBLIC]])
def test_a_user_leaves_by_the_outbound_of_his_inbound_or_not_at_all(core, answers, tmp_path):
    """Also where a name is found only when it is asked for again."""
    if core == "xray" and cores.v2ray() is None:
        pytest.skip(cores.NO_V2RAY)

    async def scenario():
        with (
            names(resolver(), *answers),
            client_of(
                proxies.vmess(outbound="second"),
                tmp_path,
                core=core,
                outbounds=[{"tag": "second", "source": SECOND}],
            ) as client,
            sources() as (port, came_from),
        ):
            reached = is_reached(client, NAME, port)
            assert (reached or len(answers) > 1, set(came_from) - {SECOND}) == (True, set())

    own = resolver()
    netns.run((f"{PUBLIC}/32", f"{SECOND}/32", *([f"{own}/32"] if not own.startswith("127.") else [])), scenario)


@contextlib.contextmanager
def sources():
    """The port of a server at PUBLIC that greets whoever comes, and the addresses that came."""
    came_from = []
    with socket.create_server((PUBLIC, 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, address = listener.accept()
                    with connection:
                        came_from.append(address[0])
                        connection.sendall(b"hello")

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1], came_from
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("core", ["sing-box", "xray"])
@pytest.mark.parametrize(
    ("answers", "is_there"),
    [(["127.0.0.1"], False), (["", "127.0.0.1"], False), (["", "", "127.0.0.1"], False), ([PUBLIC], True)],
)
def test_a_name_that_is_not_found_at_first_leads_to_no_private_network(core, answers, is_there, tmp_path):
    if core == "xray" and cores.v2ray() is None:
        pytest.skip(cores.NO_V2RAY)

    async def scenario():
        with (
            names(resolver(), *answers),
            client_of(proxies.vmess(), tmp_path, core=core) as client,
            everywhere() as port,
        ):
            assert is_reached(client, NAME, port) == is_there
            assert is_reached(client, PUBLIC, port)
            assert not is_reached(client, "127.0.0.1", port)

    own = resolver()
    netns.run(
        (f"{PUBLIC}/32", *([f"{own}/{128 if ':' in own else 32}"] if not own.startswith("127.") else [])), scenario
    )

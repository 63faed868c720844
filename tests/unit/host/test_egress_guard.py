"""The guard: addresses it resolves, targets it refuses, connections it makes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from latticed.host.call import HostError
from latticed.host.ddns import source
from latticed.host.egress import resolver
from latticed.host.egress.guard import Guard
from latticed.kit import interfaces
from latticed.kit.interfaces import own_addresses
from latticed.model import egress
from latticed.model.egress import EgressRights
from latticed.model.hostcall import Denial
from tests.house import dials, nameservers, origins, ports, processes

ANYWHERE = EgressRights(hosts=("*",))
PUBLIC = "93.184.215.14"


def bound(*texts) -> EgressRights:
    """Rights to these origins and to nothing else."""
    return EgressRights(origins=tuple(egress.origin(text) for text in texts))


@contextlib.asynccontextmanager
async def guarding(zone, **named):
    """(guard, nameserver, what is dialled)"""
    async with nameservers.serving(zone) as names:
        with dials.watched() as dialled:
            yield Guard(resolver=nameservers.AskingResolver(names.address), **named), names, dialled


async def refusal(awaitable) -> str:
    """`code: message`."""
    with pytest.raises(HostError) as caught:
        await awaitable
    return str(caught.value)


async def test_resolve_gives_all_public_addresses_of_a_name():
    """IPv4 and IPv6; case and a trailing dot of the name do not matter."""
    async with guarding({"a.example": [[PUBLIC, "1.1.1.1", "2606:4700::1111"]]}) as (guard, _, dialled):
        found = await guard.resolve("A.example.", 443, ANYWHERE, scheme="https")
        assert {str(one) for one in found} == {PUBLIC, "1.1.1.1", "2606:4700::1111"}
        assert dialled == []


async def test_bound_origin_is_not_looked_up():
    """Its address is pinned; the same name with another port or scheme is judged as a public target."""
    async with guarding({"backend.lan": [["1.1.1.1"]]}) as (guard, names, _):
        rights = bound("http://backend.lan:80=10.0.0.5", "http://backend.lan:80=10.0.0.6")
        found = await guard.resolve("backend.lan", 80, rights, scheme="http")
        assert [str(one) for one in found] == ["10.0.0.5", "10.0.0.6"]
        assert names.lookups.total() == 0
        assert "host not granted" in await refusal(guard.resolve("backend.lan", 81, rights, scheme="http"))
        assert "host not granted" in await refusal(guard.resolve("backend.lan", 80, rights, scheme="https"))


@pytest.mark.parametrize("rights", [EgressRights(hosts=(), declared=("a.example:443",)), EgressRights(), ANYWHERE])
async def test_a_private_address_that_is_not_bound_is_told_with_the_origin_to_grant(rights):
    """Whatever the manifest declares: declaring it would not help."""
    async with guarding({}) as (guard, _, dialled):
        with pytest.raises(HostError, match=r"address not public: 192\.168\.7\.5 has one that is private") as caught:
            await guard.resolve("192.168.7.5", 8080, rights, scheme="http")
        assert (caught.value.fault.fix, dialled) == ("origin=http://192.168.7.5:8080", [])


async def test_what_only_this_host_knows_of_an_address_is_not_told_who_may_not_go_there():
    named = {"blocked": (ip_network("9.9.9.0/24"),), "own_addresses": lambda: frozenset({ip_address("8.8.4.4")})}
    async with guarding({}, **named) as (guard, _, dialled):
        for host in ("8.8.4.4", "9.9.9.9", "1.1.1.1"):
            assert "host not granted" in await refusal(guard.resolve(host, 443, EgressRights()))
        assert dialled == []


async def test_host_that_is_not_granted_is_refused_without_dns_lookup():
    """A DNS query alone can carry data out."""
    async with guarding({"a.example": [[PUBLIC]]}) as (guard, names, _):
        rights = EgressRights(hosts=("b.example:443",))
        assert "host not granted" in await refusal(guard.resolve("a.example", 443, rights))
        assert names.lookups.total() == 0


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("nothing.example", "service_unavailable: the address of nothing.example cannot be found"),
        ("empty.example", "service_unavailable: empty.example has no address"),
        ("crowd.example", "egress_blocked: crowd.example has more than 64 addresses"),
        ("operator.example", "egress_blocked: address not public: operator.example has one that is blocked by"),
        ("own.example", "egress_blocked: address not public: own.example has one that is this host's own"),
        ("127.1", "egress_blocked: host not understood"),
        ("::1", "egress_blocked: address not public: ::1 has one that is loopback"),
        ("fe80::1%lo", "egress_blocked: host not understood"),
    ],
)
async def test_refusal_names_the_rule_it_breaks(host, code):
    """It does not show an address that is not public."""
    zone = {
        "empty.example": [[]],
        "crowd.example": [[f"1.1.1.{number}" for number in range(65)]],
        "operator.example": [["9.9.9.9"]],
        "own.example": [["8.8.4.4"]],
    }
    named = {"blocked": (ip_network("9.9.9.0/24"),), "own_addresses": lambda: frozenset({ip_address("8.8.4.4")})}
    async with guarding(zone, **named) as (guard, _, dialled):
        assert (await refusal(guard.resolve(host, 443, ANYWHERE))).startswith(code)
        assert "host not understood" in code or dialled == []


async def test_silent_nameserver_is_deadline_exceeded():
    """A lookup has its own time limit."""
    async with guarding({"slow.example": [nameservers.SILENT]}, lookup_s=0.05) as (guard, _, _):
        message = await refusal(guard.resolve("slow.example", 443, ANYWHERE))
        assert message == "deadline_exceeded: no address of slow.example within 0.05 s"


async def test_guard_connects_to_bound_origin_at_its_pinned_address():
    """TCP monitors and mail connect in this way."""
    async with origins.serving(origins.answer(b"hello")) as server, guarding({}) as (guard, _, dialled):
        rights = bound(f"tcp://mail.lan:{server.port}=127.0.0.1")
        reader, writer = await guard.connect("mail.lan", server.port, rights)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"hello")
        writer.close()
        await writer.wait_closed()
        assert dialled == [("127.0.0.1", server.port)]


async def test_tls_verifies_the_name_of_the_bound_origin():
    """The certificate must be for the name, not the address, and of an authority that the passed context trusts."""
    authority = origins.Authority()
    async with (
        origins.serving(origins.answer(), tls=authority.server("mail.lan")) as server,
        guarding({}) as (guard, _, dialled),
    ):
        port = server.port
        rights = bound(f"smtps://mail.lan:{port}=127.0.0.1", f"smtps://other.lan:{port}=127.0.0.1")
        _, writer = await guard.connect("mail.lan", port, rights, scheme="smtps", tls=authority.trust())
        assert writer.get_extra_info("peercert")["subjectAltName"] == (("DNS", "mail.lan"),)
        writer.close()
        await writer.wait_closed()
        for name, trust in (("other.lan", authority.trust()), ("mail.lan", origins.Authority().trust())):
            message = await refusal(guard.connect(name, port, rights, scheme="smtps", tls=trust))
            assert message == f"service_unavailable: no TLS connection that can be trusted to {name}:{port}"
        assert dialled == [("127.0.0.1", port)] * 3


async def test_connect_tries_next_address_after_timeout_or_refusal():
    port = ports.free()
    with socket.create_server(("127.0.0.2", port), backlog=0):
        async with (
            origins.serving(origins.answer(), at=(("127.0.0.1", port),)),
            guarding({}, connect_s=0.4) as (guard, _, dialled),
        ):
            # A full backlog: the kernel answers no further connection.
            waiting = [socket.socket() for _ in range(3)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(("127.0.0.2", port))
            del dialled[:]
            rights = bound(*(f"tcp://a.lan:{port}={one}" for one in ("127.0.0.2", "127.0.0.3", "127.0.0.1")))
            _, writer = await guard.connect("a.lan", port, rights)
            writer.close()
            await writer.wait_closed()
            assert [address for address, _ in dialled] == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
            only = bound(f"tcp://a.lan:{port}=127.0.0.2")
            assert "deadline_exceeded: no connection to a.lan" in await refusal(guard.connect("a.lan", port, only))
            for one in waiting:
                one.close()
    gone = bound(f"tcp://a.lan:{port}=127.0.0.2")
    assert "service_unavailable: cannot connect" in await refusal(Guard().connect("a.lan", port, gone))


async def test_blocked_target_gets_no_connection():
    async with origins.serving(origins.answer()) as server, guarding({}) as (guard, _, dialled):
        for host in ("127.0.0.1", "localhost", "::ffff:127.0.0.1", "0x7f.1"):
            assert "egress_blocked" in await refusal(guard.connect(host, server.port, ANYWHERE))
        assert (server.connections, dialled) == (0, [])


def test_own_addresses_are_those_of_all_interfaces():
    """They are IPv4 and IPv6, and include loopback."""
    found = own_addresses()
    assert ip_address("127.0.0.1") in found
    with open("/proc/net/if_inet6") as lines:
        assert sum(isinstance(one, IPv6Address) for one in found) == len({line[:32] for line in lines})
    for one in found:
        if isinstance(one, IPv4Address):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((str(one), 0))  # only an address of this host can be bound


def test_addresses_are_found_despite_interface_name_that_is_not_utf8(tmp_path, monkeypatch):
    """Those on its line and on the lines after it are found."""
    listed = tmp_path / "if_inet6"
    address = b"fd000000000000000000000000000001 01 40 00 80    "
    listed.write_bytes(address + b"wl\xff\xe2\x80\xa8\n" + address.replace(b"1 01", b"2 02") + b"eth0\n")
    monkeypatch.setattr(interfaces, "ipv6", functools.partial(interfaces.ipv6, listed))
    assert {ip_address("fd00::1"), ip_address("fd00::2")} <= own_addresses()
    assert source.addresses_of("eth0")[-1] == ip_address("fd00::2")


async def test_system_resolver_resolves_localhost():
    """It uses getaddrinfo, and so /etc/hosts."""
    found = await resolver.SystemResolver().lookup("localhost")
    assert found
    assert all(address.is_loopback for address in found)


async def test_hanging_lookups_block_only_their_owner(monkeypatch):
    """A lookup that times out frees its slot but not its thread; an owner with too many such threads is refused."""
    release, asked = threading.Event(), []

    def hang(host, *_args, **_named):
        asked.append(host)
        if host != b"fast.example":
            release.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    names = resolver.SystemResolver(concurrent=2, max_abandoned=3)
    guard = Guard(resolver=names, lookup_s=0.05, own_addresses=frozenset)

    async def codes(owner, *wanted):
        rights = replace(ANYWHERE, owner=owner)
        waiting = (guard.resolve(f"{one}.example", 443, rights) for one in wanted)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        return [one.code if isinstance(one, HostError) else "found" for one in found]

    assert await codes("acme.bad", "a", "b") == [Denial.DEADLINE_EXCEEDED] * 2
    assert await codes("acme.bad", "fast") == ["found"], "its own places are free again"
    assert await codes("acme.bad", "c") == [Denial.DEADLINE_EXCEEDED]
    assert await codes("acme.bad", "fast") == [Denial.RATE_LIMITED], "three of its threads hang"
    assert await codes("acme.good", "fast") == ["found"]
    assert len(asked) == 5
    release.set()
    async with asyncio.timeout(processes.PATIENCE_S):
        while (await codes("acme.bad", "fast")) != ["found"]:  # noqa: ASYNC110 - threads end, nothing tells
            await asyncio.sleep(0.01)


async def test_lookup_without_thread_is_refused(monkeypatch):
    """The limit of threads is reached, or the system cannot start one."""
    with pytest.raises(resolver.TooManyLookups):
        await resolver.SystemResolver(max_threads=0).lookup("localhost")

    def refused(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    names = resolver.SystemResolver(max_threads=1)
    for _ in range(2):
        with pytest.raises(resolver.TooManyLookups, match="new thread"):
            await names.lookup("localhost")

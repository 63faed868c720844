"""A DNS server of the tests, and a resolver that asks it: real packets over loopback, answers as scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

SILENT = "silent"
"""In place of addresses: the server does not answer."""


class Nameserver(asyncio.DatagramProtocol):
    """Answers from `zone`: for each name the answer of each lookup in turn, then the last one again and again."""

    def __init__(self, zone: dict[str, list[list[str] | str]]) -> None:
        self.zone = zone
        self.lookups: Counter[str] = Counter()
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport):
        self.transport = transport

    @property
    def address(self) -> tuple[str, int]:
        return self.transport.get_extra_info("sockname")

    def datagram_received(self, data, addr):
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        if question.rdtype == dns.rdatatype.A:  # the resolver asks for A first
            self.lookups[name] += 1
        answers = self.zone.get(name)
        found = answers[min(self.lookups[name], len(answers)) - 1] if answers else []
        if found == SILENT:
            return
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if answers is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        version = 4 if question.rdtype == dns.rdatatype.A else 6
        texts = [text for text in found if ip_address(text).version == version]
        if texts:
            reply.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", question.rdtype, texts))
        self.transport.sendto(reply.to_wire(), addr)


class AskingResolver(asyncio.DatagramProtocol):
    """`host.egress.resolver.Resolver` over UDP to one server; it dials nothing (no connect on its socket)."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._waiting: dict[int, asyncio.Future] = {}

    async def lookup(self, host: str, owner: str = "") -> tuple[IPv4Address | IPv6Address, ...]:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        try:
            found = [await self._asked(transport, host, kind) for kind in ("A", "AAAA")]
        finally:
            transport.close()
        return tuple(address for some in found for address in some)

    def datagram_received(self, data, addr):
        reply = dns.message.from_wire(data)
        waiting = self._waiting.get(reply.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def _asked(self, transport, host, kind):
        query = dns.message.make_query(host, kind)
        self._waiting[query.id] = asyncio.get_running_loop().create_future()
        transport.sendto(query.to_wire(), self._server)
        try:
            reply = await self._waiting[query.id]
        finally:
            del self._waiting[query.id]
        if reply.rcode() != dns.rcode.NOERROR:
            raise OSError(dns.rcode.to_text(reply.rcode()))
        return [ip_address(record.address) for rrset in reply.answer for record in rrset]


@contextlib.asynccontextmanager
async def serving(zone: dict[str, list[list[str] | str]]) -> AsyncIterator[Nameserver]:
    """The server on a free port of loopback."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Nameserver(zone), local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
        await asyncio.sleep(0)

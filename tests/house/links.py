"""A link with a real engine, and the node's end of its socketpair."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from latticed.fleet import messages
from latticed.fleet.link import Link, LinkPeriods
from latticed.fleet.nats_connection import NatsConnection
from latticed.fleet.nats_engine import NatsEngine
from latticed.fleet.spool import Spool
from tests.house import nats_servers

QUICK = LinkPeriods(reconcile_s=0.2, beat_s=0.1, status_s=60, quota_s=0.2)


class NodesEnd:
    """What a node would be to its link: it decodes what comes and sends what it is told to."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._decoder = messages.Decoder(messages.ToNode)
        self.received = []

    def send(self, message):
        self._writer.write(messages.encode(message))

    async def following(self, kind, wanted=lambda _: True):
        """The next message of this kind; others are passed over."""
        while True:
            while self.received:
                message = self.received.pop(0)
                if isinstance(message, kind) and wanted(message):
                    return message
            data = await self._reader.read(1 << 16)
            assert data, "the link has ended"
            self.received += self._decoder.feed(data)

    def close(self):
        self._writer.close()


@contextlib.asynccontextmanager
async def linked(fleet, node, directory, urls=None, https=None, hosts=(), engine=NatsEngine, spool_mib=12):
    """The node's end of a link, and the link itself. `hosts`: of https servers that it may ask; `engine`: its class."""
    directory.mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    mine = NodesEnd(*await asyncio.open_connection(sock=theirs))
    told = []
    connection = NatsConnection(
        fleet.endpoint(fleet.node(node), node, urls),
        pauses=nats_servers.QUICK,
        on_change=lambda up, reason: [one(up, reason) for one in told],
    )
    spool = Spool(directory, most_bytes=spool_mib << 20, bundle_bytes=4 << 20)
    async with connection:
        link = Link(
            connection,
            engine(connection, node),
            spool,
            await asyncio.open_connection(sock=ours),
            periods=QUICK,
            https=https,
            https_hosts=hosts,
        )
        told.append(link.connection_changed)
        async with link:
            try:
                yield mine, link
            finally:
                mine.close()

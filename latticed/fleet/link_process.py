"""The agent's process with the connection, as a program: one end of the socketpair is the descriptor that it is given.

    python -P -m latticed.fleet.link_process --settings FILE --socket FD

    node = "web-1"
    servers = ["tls://fleet.example.org:4222"]
    ca = "/etc/latticed/fleet/ca.pem"                          # of the servers; no other authority counts
    credentials = "/var/lib/latticed-link/nats.creds"          # read at each connection
    spool = "/var/lib/latticed-link/spool"                     # the daemon's market.import_dir
    https_hosts = ["bundles.example.org"]                      # beside the message system; none by default

It ends when the node does, by SIGTERM, or when the node sends what is no message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import messages, subjects
from latticed.fleet.link import Link
from latticed.fleet.nats_connection import CREDENTIALS_ENDED, NatsConnection, NatsEndpoint
from latticed.fleet.nats_engine import NatsEngine
from latticed.fleet.spool import Spool
from latticed.kit import logs, os_signals, process_start, trusted_files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latticed.fleet.renewing import Renewing

log = logs.get_logger()

_SETTINGS_BYTES: Final = 64 << 10
_DATA_BYTES: Final = 256 << 20
"""Most memory of the process: NATS' client holds a message until it is whole, of whatever size a server says it is."""
_BEAT_S: Final = 5.0
_SERVER: Final = r"^tls://[A-Za-z0-9.:\[\]-]{1,255}\Z"
_HOST: Final = r"^[A-Za-z0-9.:\[\]-]{1,255}\Z"


class LinkSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process is told; sizes in bytes."""

    node: str
    servers: Annotated[tuple[Annotated[str, Meta(pattern=_SERVER)], ...], Meta(min_length=1, max_length=16)]
    ca: str
    credentials: str
    spool: str
    spool_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 512 << 20
    bundle_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 66 << 20
    """A little more than the daemon's largest manifest and artifact."""
    https_hosts: Annotated[tuple[Annotated[str, Meta(pattern=_HOST)], ...], Meta(max_length=16)] = ()
    """Servers that a controller may have bundles fetched from, by https: each a name, with `:port` unless it is 443."""


def read(path: Path) -> LinkSettings:
    """The settings in the file `path`, which nobody but root and this process's user may change; Problem
    settings_invalid.
    """
    try:
        data = trusted_files.read(path, _SETTINGS_BYTES, owners=frozenset({0, os.geteuid()}))
        found = msgspec.convert(tomllib.loads(data.decode()), LinkSettings)
    except (OSError, ValueError, trusted_files.ForeignFile) as error:  # of msgspec and tomllib too
        raise Problem("settings_invalid", f"{path}: {error}") from error
    subjects.node_name(found.node)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the node ends. The exit code: 0 then and by SIGTERM, 1 when the node sent what is no message, 78
    (EX_CONFIG) for settings that are not valid.
    """
    if argv is None:
        process_start.reset_for_server()
    import argparse  # here alone: the agent has both halves load this module, and needs none

    parser = argparse.ArgumentParser(prog="latticed-link", description="Connect a fleet's node to its message system.")
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE")
    parser.add_argument("--socket", type=int, required=True, metavar="FD", help="one end of a socketpair")
    options = parser.parse_args(argv)
    try:
        settings = read(options.settings)
        tls = ssl.create_default_context(cafile=settings.ca)
    except (Problem, OSError) as error:
        sys.stderr.write(f"latticed-link: {error}\n")
        return os.EX_CONFIG
    logs.configure("info")
    try:
        return run(settings, tls, socket.socket(fileno=options.socket))
    finally:
        logs.reset()


def run(
    settings: LinkSettings,
    tls: ssl.SSLContext,
    end: socket.socket,
    *,
    renewing: Renewing | None = None,
    tell: Callable[[str], None] = lambda _said: None,
) -> int:
    """Be the link until the node ends, or SIGTERM; 0 then, 1 when the node sent what is no message.

    `renewing`: whose word renews the credentials; without it they are not renewed. `tell` is called with how the
    connection is, and with nothing every few seconds.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
    # asyncio warns of each connection that a server closes, because nats-py starts TLS on a plain stream.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with end:
        try:
            return asyncio.run(_run(settings, tls, end, renewing, tell))
        except messages.BadMessage as error:
            sys.stderr.write(f"latticed-link: expected messages of a node, found something else: {error}\n")
            return 1


async def _run(
    settings: LinkSettings,
    tls: ssl.SSLContext,
    end: socket.socket,
    renewing: Renewing | None,
    tell: Callable[[str], None],
) -> int:
    endpoint = NatsEndpoint(
        servers=settings.servers,
        tls=tls,
        credentials=Path(settings.credentials),
        name=settings.node,
        inbox=subjects.inbox(settings.node),
    )
    told: list[Link] = []

    def changed(up: bool, reason: str) -> None:  # noqa: FBT001 - what a connection calls
        log.info("connected" if up else "connection_lost", reason=reason)
        # Nothing but another invitation helps a host that was off for longer than its credentials last.
        ended = "invite this host anew, then latticed-fleet join; " if reason.startswith(CREDENTIALS_ENDED) else ""
        tell("connected" if up else f"not connected: {ended}{reason}")
        for link in told:
            link.connection_changed(up, reason)

    spool = Spool(Path(settings.spool), most_bytes=settings.spool_bytes, bundle_bytes=settings.bundle_bytes)
    stream = await asyncio.open_connection(sock=end)
    stopping = asyncio.Event()
    os_signals.act_on({signal.SIGTERM: stopping.set})
    tell("not connected yet")
    async with (
        NatsConnection(endpoint, on_change=changed) as connection,
        Link(
            connection,
            NatsEngine(connection, settings.node),
            spool,
            stream,
            https_hosts=settings.https_hosts,
            renewing=renewing,
        ) as link,
    ):
        told.append(link)
        ended = asyncio.create_task(link.ended())
        others = [asyncio.create_task(stopping.wait()), asyncio.create_task(_beat(tell))]
        await asyncio.wait({ended, *others}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, *others):
            task.cancel()
        await asyncio.wait({ended, *others})
        if not ended.cancelled():
            ended.result()
    return 0


async def _beat(tell: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(_BEAT_S)
        tell("")


if __name__ == "__main__":
    sys.exit(main())

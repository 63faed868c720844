"""A node that publishes as fast as its connection takes it, as a process of its own.

with nats_floods.flooding(fleet, "hostile", subjects.by_node("hostile", "status"), 2_000):
    ...

It waits for no answer and keeps to nothing but what the server enforces: whole buffers of the protocol's own lines.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.house.nats_servers import Fleet

_AT_ONCE = 256 << 10


async def _flood(url: str, ca: str, credentials: str, name: str, subject: str, size: int, reply: str) -> None:
    from nats.aio.client import Client

    from latticed.fleet import nkeys

    mine = nkeys.UserCredentials.parse(Path(credentials).read_bytes())

    async def quiet(_: Exception) -> None:
        pass

    client = Client()
    await client.connect(
        [url],
        tls=ssl.create_default_context(cafile=ca),
        tls_handshake_first=True,
        signature_cb=lambda nonce: base64.b64encode(mine.key.sign(nonce.encode())),
        user_jwt_cb=mine.token.encode,
        inbox_prefix=f"_INBOX_{name}",
        error_cb=quiet,
        allow_reconnect=False,
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    answer = f" _INBOX_{name}.x" if reply else ""
    line = f"PUB {subject}{answer} {size}\r\n".encode() + b"x" * size + b"\r\n"
    batch = max(1, _AT_ONCE // len(line))
    sent = 0
    sys.stdout.write("flooding\n")
    sys.stdout.flush()
    while not stopped.is_set() and client.is_connected:
        client._transport.write(line * batch)
        await client._transport.drain()
        await asyncio.sleep(0)
        sent += batch
    sys.stdout.write(f"{sent}\n")
    sys.stdout.flush()
    with contextlib.suppress(Exception):
        await client.close()


@contextlib.contextmanager
def flooding(fleet: Fleet, name: str, subject: str, size: int, *, reply: bool = False) -> Iterator[list[int]]:
    """Publish as the node `name` during the block; afterwards the list has how many messages were sent."""
    sent: list[int] = []
    words = [fleet.urls[0], str(fleet.ca), str(fleet.node(name)), name, subject, str(size), "1" if reply else ""]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "import sys; from tests.house import nats_floods; nats_floods.main()", *words],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "flooding\n"
        yield sent
        assert process.poll() is None, "the server has thrown it out"
    finally:
        process.terminate()
        told, _ = process.communicate(timeout=60)
        sent.extend(map(int, told.split()))


def main() -> None:
    url, ca, credentials, name, subject, size, reply = sys.argv[1:]
    asyncio.run(_flood(url, ca, credentials, name, subject, int(size), reply))

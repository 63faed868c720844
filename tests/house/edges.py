"""The provider's edge for the tests' cloudflared: connectors register, and requests go to any that is registered.

A request is handed out once, as the real edge does: where its connector goes before it has answered, it fails.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.house import targets

PROGRAM = Path(__file__).with_name("cloudflared.py")
TUNNEL = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
SECRET = base64.b64encode(b"thirty-two bytes of very secret!").decode()
NOBODY = 530
"""What the provider's visitors get where no connector is registered."""
LOST = 520
"""What they get where the connector went away with their request."""


@dataclass(eq=False)
class Wire:
    """One connection of a connector. `open`: it takes new requests."""

    writer: asyncio.StreamWriter
    open: bool = True
    waiting: dict[int, asyncio.Future[tuple[int, str]]] = field(default_factory=dict)


@dataclass(eq=False)
class Edge:
    """`address`: host:port for connectors. `registered`: how often one has registered."""

    address: str = ""
    wires: list[Wire] = field(default_factory=list)
    registered: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _turn: int = 0

    async def ask(self, host: str, path: str = "/") -> tuple[int, str]:
        """(status, body) of one visitor's GET."""
        takers = [one for one in self.wires if one.open]
        if not takers:
            return NOBODY, ""
        self._turn += 1
        wire, number = takers[self._turn % len(takers)], next(self._numbers)
        answer = wire.waiting[number] = asyncio.get_running_loop().create_future()
        wire.writer.write(json.dumps({"id": number, "host": host, "path": path}).encode() + b"\n")
        try:
            return await answer
        finally:
            wire.waiting.pop(number, None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(writer)
        try:
            hello = json.loads(await reader.readline())
            if (hello["tunnel"], hello["secret"]) != (TUNNEL, SECRET):
                writer.write(b'{"refused": true}\n')
                return
            writer.write(b'{"ok": true}\n')
            self.wires.append(wire)
            self.registered += 1
            while line := await reader.readline():
                said = json.loads(line)
                if said.get("unregister"):
                    wire.open = False
                    # Behind the requests that were handed out before.
                    writer.write(b'{"bye": true}\n')
                elif (answer := wire.waiting.get(said["id"])) is not None and not answer.done():
                    answer.set_result((said["status"], said["body"]))
        except (OSError, ValueError):
            pass
        finally:
            wire.open = False
            for answer in wire.waiting.values():
                if not answer.done():
                    answer.set_result((LOST, ""))
            with contextlib.suppress(ValueError):
                self.wires.remove(wire)
            writer.close()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Edge]:
    """An edge on loopback."""
    edge, tasks = Edge(), set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        try:
            await edge._connected(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    edge.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield edge
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def install(directory: Path, *, edge: str = "", version: str = "2025.11.1", name: str = "cloudflared") -> Path:
    """The tests' cloudflared as a program in `directory`, which connects to `edge`."""
    text = PROGRAM.read_text(encoding="utf-8")
    for line, value in (('VERSION = "2025.11.1"\n', f"VERSION = {version!r}\n"), ('EDGE = ""\n', f"EDGE = {edge!r}\n")):
        assert text.count(line) == 1
        text = text.replace(line, value)
    program = directory / name
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


def write_keys(directory: Path) -> Path:
    """A new directory with credentials that the edge takes: `main.json`, and the same as a token, `main.token`."""
    directory.mkdir(mode=0o700)
    write_credentials(directory / "main.json")
    token = {"a": "a" * 32, "t": TUNNEL, "s": SECRET}
    write_private(directory / "main.token", base64.b64encode(json.dumps(token).encode()) + b"\n")
    return directory


def write_credentials(path: Path, *, secret: str = SECRET, tunnel: str = TUNNEL) -> None:
    """A credentials file as cloudflared writes it."""
    plain = {"AccountTag": "a" * 32, "TunnelSecret": secret, "TunnelID": tunnel, "Endpoint": ""}
    write_private(path, json.dumps(plain).encode())


def write_private(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


@dataclass(eq=False)
class Visited:
    """An edge and an origin in a thread of their own, for tests of a daemon in another process."""

    edge: Edge
    site: targets.Site
    loop: asyncio.AbstractEventLoop
    over: asyncio.Event

    @property
    def service(self) -> str:
        return f"http://127.0.0.1:{self.site.port}"

    def ask(self, host: str, path: str = "/") -> tuple[int, str]:
        return asyncio.run_coroutine_threadsafe(self.edge.ask(host, path), self.loop).result(60)

    @contextlib.contextmanager
    def visiting(self, host: str, *, every_s: float = 0.1) -> Iterator[list[tuple[int, str]]]:
        """A visitor every `every_s` while the block runs; the list of their answers."""
        answers: list[tuple[int, str]] = []

        async def arrive() -> None:
            asking: set[asyncio.Task[None]] = set()

            async def visit() -> None:
                answers.append(await self.edge.ask(host))

            try:
                while True:
                    one = asyncio.create_task(visit())
                    asking.add(one)
                    one.add_done_callback(asking.discard)
                    await asyncio.sleep(every_s)
            finally:
                await asyncio.gather(*asking)

        arriving = asyncio.run_coroutine_threadsafe(arrive(), self.loop)
        try:
            yield answers
        finally:
            arriving.cancel()


@contextlib.contextmanager
def in_thread() -> Iterator[Visited]:
    """An edge and an origin that answers `hello`, until the end of the block."""
    ready: queue.Queue[Visited] = queue.Queue()

    async def serve() -> None:
        async with serving() as edge, targets.site() as site:
            made = Visited(edge, site, asyncio.get_running_loop(), asyncio.Event())
            ready.put(made)
            await made.over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="edge")
    thread.start()
    made = ready.get(timeout=30)
    try:
        yield made
    finally:
        made.loop.call_soon_threadsafe(made.over.set)
        thread.join()

"""Runs confined children as whoever it is run as, and reports: see `confined.py`. Its source is passed with -c."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from latticed.processes import child
from latticed.processes.exits import Exit
from latticed.sandbox import artifact, host_facts, launch_calls, levels, probe, rlimits, spec

INTERPRETERS = {"python3": "/usr/bin/python3", "sh": "/bin/sh", "node": "/usr/bin/node"}
KEPT_BYTES = 1 << 20
launchers: dict[str, Any] = {}
"""The module `launchers`, whose source is in the orders: the tests cannot be imported here."""
CLONE_NEWUSER = 0x10000000


class Collected(asyncio.Protocol):
    """Keeps up to KEPT_BYTES and then stops reading."""

    def __init__(self) -> None:
        self.data = b""
        self.transport: asyncio.ReadTransport | None = None
        self.full = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > KEPT_BYTES and self.transport is not None:
            self.transport.pause_reading()
            self.full.set()


@contextlib.contextmanager
def victim() -> Iterator[dict[str, str]]:
    """What a child might want to reach: a file, and sockets that would answer."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
        os.chmod(home, 0o755)  # noqa: S103 - a child of another uid is to find it
        with open(f"{home}/ledger", "w") as ledger:
            ledger.write("secret")
        os.symlink("nowhere", f"{home}/ledger.link")

        def listening(family: int, kind: int, address: Any) -> Any:
            sock = stack.enter_context(socket.socket(family, kind))
            sock.bind(address)
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            return sock.getsockname()

        tcp = listening(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        udp = listening(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        # Of the directory's name: pids are not unique where some runs have pid namespaces of their own.
        abstract = listening(socket.AF_UNIX, socket.SOCK_STREAM, f"\0latticed-escape-{os.path.basename(home)}")
        listening(socket.AF_UNIX, socket.SOCK_STREAM, f"{home}/socket")
        yield {
            "parent": str(os.getpid()),
            "ledger": f"{home}/ledger",
            "tcp": str(tcp[1]),
            "udp": str(udp[1]),
            "abstract": abstract[1:].decode(),
            "socket": f"{home}/socket",
        }


def refuse_user_namespaces(how: str) -> None:
    """Refuse user namespaces as a unit with RestrictNamespaces= (seccomp) does, or a host with
    user.max_user_namespaces=0 (sysctl).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if how == "seccomp":
        refuse(CLONE_NEWUSER)
        return
    assert libc.unshare(CLONE_NEWUSER) == 0
    files = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in files.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    assert libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", 0, 0, 0, 0, 0, 0)) == 0


def refuse(namespace: int) -> None:
    """Refuse this kind of namespace (a flag of clone(2)) to this process from now on, as RestrictNamespaces= does.

    unshare and clone fail with EPERM, clone3 with ENOSYS, as its flags cannot be seen.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    unshare, clone = {"x86_64": (272, 56), "aarch64": (97, 220)}[os.uname().machine]
    code = [(0x20, 0, 0, 0), (0x15, 5, 0, 435), (0x15, 1, 0, unshare), (0x15, 0, 2, clone)]
    code += [(0x20, 0, 0, 16), (0x45, 2, 0, namespace), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50026)]
    code += [(0x06, 0, 0, 0x50001)]
    held = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *row) for row in code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(held)), 0, 0) == 0


async def run(order: dict[str, Any], program: bytes, probed: probe.Probed, words: dict[str, str]) -> dict[str, Any]:
    level = levels.Level.of(order["level"])
    own = probed.standing.uid == 0
    uid = order.get("uid", 65502)
    with artifact.of_bytes(program, interpreters=INTERPRETERS) as sealed:
        request = spec.ChildRequest(
            program=sealed,
            environment={"PATH": "/usr/bin:/bin"},
            limits=rlimits.ResourceLimits(**order.get("limits", {})),
            ids=spec.Ids(uid=uid, gid=uid) if own else None,
            interpreters=INTERPRETERS,
            network=order.get("network", "none"),
        )
        chosen = levels.Chosen(level=level, features=frozenset(order.get("features", ())))
        # Of the launcher, which is the same whatever the arguments are.
        words = {**words, "path": hex(launchers["launchers_path"](spec.build(request, chosen, probed)))}
        args = tuple(word.format(**words) for word in order.get("args", ()))
        made = spec.build(dataclasses.replace(request, args=args), chosen, probed)
        out, err, ended = Collected(), Collected(), asyncio.get_running_loop().create_future()
        started = await child.spawn(made, on_exit=ended.set_result, stdout=out, stderr=err)
    started.stdin.close()
    full = asyncio.ensure_future(out.full.wait())
    await asyncio.wait({ended, full}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    full.cancel()
    exit_: Exit = ended.result() if ended.done() else await started.stop(0)
    return {
        "code": exit_.code,
        "message": exit_.message,
        "stdout": out.data[:KEPT_BYTES].decode(errors="replace"),
        "bytes": len(out.data),
        "stderr": err.data.decode(errors="replace"),
    }


async def main(orders: dict[str, Any], program: bytes) -> dict[str, Any]:
    exec(orders["launchers"], launchers)  # noqa: S102 - see there
    if orders.get("cgroup"):
        with open(f"{orders['cgroup']}/cgroup.procs", "w") as file:
            file.write("0")
    if orders.get("refuse"):
        refuse_user_namespaces(orders["refuse"])
    host_facts.hide_memory()  # as the daemon does
    probed = probe.probe()
    provided = probed.provided
    async with contextlib.AsyncExitStack() as stack:
        words = stack.enter_context(victim())
        if orders["stub"]:
            launch_calls.possible = lambda _: False
        runs = [run(order, program, probed, words) for order in orders["runs"]]
        results = await asyncio.gather(*runs) if orders.get("together") else [await one for one in runs]
    return {
        "level": provided.level.token,
        "features": sorted(provided.features),
        "failures": {failure.token: [failure.words, failure.fix] for failure in provided.failures},
        "delegated": probed.delegation is not None,
        "groups": sorted(path.name for path in probed.delegation.base.glob("child-*")) if probed.delegation else [],
        "results": results,
    }


if __name__ == "__main__":
    found = asyncio.run(main(json.loads(sys.argv[1]), sys.stdin.buffer.read()))
    json.dump(found, sys.stdout)

"""WG: a WireGuard peer from its commit to its first ping, beside a bare `wg set`; and 2,000 members as text.

As root, in network namespaces of its own, with Debian's wireguard-tools and wireguard-go.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks import rows
from benchmarks.bench import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench
    from latticed.plans.kind import Live

MANY: Final = 2_000
WITHIN_S: Final = 1.0
"""In which 2,000 members are to be checked and rendered."""
_PROGRAMS: Final = ("ip", "wg", "nft", "ss", "ping")
_NEWNET: Final = 0x40000000  # CLONE_NEWNET (setns(2))
_SERVER: Final = "${secret:SERVER}"


def measure(bench: Bench) -> list[rows.Row]:
    found = [_large(bench)]
    if os.geteuid() or not all(map(shutil.which, _PROGRAMS)):
        say(f"WG: peers are added as root alone, with {', '.join(_PROGRAMS)} and WireGuard: left out")
        return found
    with _network() as net:
        return [*found, *_added(bench, net)]


# Text


def _large(bench: Bench) -> rows.Row:
    from latticed.system.wireguard import check, decode, render

    members = [
        {"id": f"d{n:04}", "public_key": _key(n), "addresses": [f"10.80.{n // 250}.{n % 250 + 2}"]} for n in range(MANY)
    ]
    document = _document("wg-many", members, addresses=["10.80.0.1/16"])

    def once() -> float:
        began_s = time.thread_time()
        intent = decode.read(document)
        if check.check(intent):
            raise RuntimeError("expected an intent without findings")
        render.render(intent, {"SERVER": _key("server")})
        return time.thread_time() - began_s

    taken = sorted(once() for _ in range(bench.pairs))
    median = rows.percentile(taken, 0.5)
    return rows.Row(
        target="WG",
        what=f"CPU to check and render a network of {MANY:,} members",
        ours=rows.seconds(median),
        wanted="≤ 1 s",
        met=median <= WITHIN_S,
        samples={"ours": taken},
    )


# Peers


def _added(bench: Bench, net: _Net) -> list[rows.Row]:
    """Ours is what the root helper runs between its dead-man and its answer: the commit of one more peer."""
    from latticed.plans.programs import ProgramTools
    from latticed.plans.wireguard import WireguardKind

    kind = WireguardKind()
    tools = ProgramTools(kind.programs)
    members = [{"id": f"d{n}", "public_key": _key(n), "addresses": [f"10.80.1.{n + 2}"]} for n in range(20)]

    def rendering(*more: dict[str, Any]) -> bytes:
        intent = _document(net.name, [*members, *more])
        return kind.render(intent, None, {"SERVER": net.server_key})

    def to_ping(add: Any) -> float:
        """From the change to the answer of a device that has never been here."""
        kind.commit(rendering(), tools)
        if add is bare:
            # It knows no table, which would drop what comes from an address that is not named.
            _run("nft", "delete", "table", "inet", "latticed_wireguard")
        public = net.fresh_device()
        # As the helper does it: what is committed, and to what, is known before it arms its dead-man.
        fresh = {"id": "fresh", "public_key": public, "addresses": ["10.80.0.2"]}
        wanted, live = rendering(fresh), kind.observe(tools)
        began_s = time.perf_counter()
        add(public, wanted, live)
        net.ping()
        return time.perf_counter() - began_s

    def ours(public: str, wanted: bytes, live: Live) -> None:
        del public
        kind.commit(wanted, tools, live=live)

    def bare(public: str, wanted: bytes, live: Live) -> None:
        del wanted, live
        _run("wg", "set", net.name, "peer", public, "allowed-ips", "10.80.0.2/32")

    pairs = rows.interleave(lambda: to_ping(ours), lambda: to_ping(bare), count=bench.pairs)
    ratio, met = rows.at_most(pairs, 2.0)
    return [
        rows.Row(
            target="WG",
            what="a peer, from its commit to its first ping, table and checks included",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} wg set",
            ratio=ratio,
            wanted="≤ 2×",
            met=met,
            samples=rows.samples(pairs),
        )
    ]


class _Net:
    """Two namespaces, a server in one, which this process is in, and a device in the other."""

    def __init__(self, prefix: str) -> None:
        self.name = f"{prefix}s"
        self.device = f"{prefix}d"
        self.there = f"{prefix}there"
        self.server_key = _run("wg", "genkey").decode().strip()
        self._public = _run("wg", "pubkey", stdin=self.server_key.encode()).decode().strip()

    def fresh_device(self) -> str:
        """A device with a new key; its public one."""
        private = _run("wg", "genkey")
        conf = f"[Interface]\nPrivateKey = {private.decode().strip()}\n[Peer]\nPublicKey = {self._public}\n"
        conf += "AllowedIPs = 10.80.0.1/32\nEndpoint = 10.99.0.1:51820\n"
        self._over_there("wg", "setconf", self.device, "/dev/stdin", stdin=conf.encode())
        return _run("wg", "pubkey", stdin=private).decode().strip()

    def ping(self) -> None:
        self._over_there("ping", "-n", "-q", "-c", "1", "-W", "10", "10.80.0.1")

    def _over_there(self, *command: str, stdin: bytes = b"") -> None:
        _run("ip", "netns", "exec", self.there, *command, stdin=stdin)


@contextlib.contextmanager
def _network() -> Iterator[_Net]:
    prefix = f"lb{os.getpid() % 100_000}"
    net, here = _Net(prefix), f"{prefix}here"
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, back)
        for name in (here, net.there):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        _run("ip", "link", "add", f"{prefix}a", "netns", here, "type", "veth", "peer", f"{prefix}b", "netns", net.there)
        for where, link, address in ((here, f"{prefix}a", "10.99.0.1"), (net.there, f"{prefix}b", "10.99.0.2")):
            _run("ip", "-n", where, "address", "add", f"{address}/24", "dev", link)
            _run("ip", "-n", where, "link", "set", link, "up")
        _interface(net.there, net.device)
        stack.callback(_run, "ip", "-n", net.there, "link", "delete", net.device)
        _run("ip", "-n", net.there, "address", "add", "10.80.0.2/32", "dev", net.device)
        _run("ip", "-n", net.there, "link", "set", net.device, "up")
        _run("ip", "-n", net.there, "route", "add", "10.80.0.1/32", "dev", net.device)
        _enter(f"/run/netns/{here}")
        stack.callback(_enter, back)
        _interface("", net.name)
        stack.callback(_run, "ip", "link", "delete", net.name)
        _run("ip", "link", "set", "dev", net.name, "alias", "latticed-wireguard")
        yield net


def _interface(namespace: str, name: str) -> None:
    inside = ("ip", "netns", "exec", namespace) if namespace else ()
    made = subprocess.run([*inside, "ip", "link", "add", name, "type", "wireguard"], check=False, capture_output=True)
    if made.returncode:
        _run(*inside, "wireguard-go", name)


def _enter(namespace: str | int) -> None:
    """Have this thread, and what it starts, in a network namespace, by path or descriptor."""
    fd = os.open(namespace, os.O_RDONLY) if isinstance(namespace, str) else namespace
    if ctypes.CDLL(None, use_errno=True).setns(fd, _NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    if fd != namespace:
        os.close(fd)


def _run(*command: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(command, check=True, input=stdin, stdout=subprocess.PIPE).stdout


def _document(name: str, members: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    network = {
        "name": name,
        "listen_port": 51_820,
        "endpoint": "vpn.example.org:51820",
        "private_key": _SERVER,
        "addresses": ["10.80.0.1/16"],
        "may_reach": ["server"],
        "members": members,
    }
    return {"networks": [{**network, **changes}]}


def _key(seed: int | str) -> str:
    """32 bytes in base64, the same for the same seed."""
    import hashlib

    return base64.b64encode(hashlib.sha256(f"key {seed}".encode()).digest()).decode()

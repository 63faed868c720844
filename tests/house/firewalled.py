"""Network namespaces around a firewall: clients `a` and `b`, the firewall `r` between them and a server `c`.

    a (10.9.0.2-9, fd09:0:0:a::2-9, fd09:0:0:aa::2-9) ── r0 ┐
                                                            r ── r2 ── c (10.9.2.2, fd09:0:0:c::2)
    b (10.9.1.2-9, fd09:0:0:b::2-9) ─────────────────── r1 ┘

Nothing outside of the namespaces is touched.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import itertools
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.house import intents

CLONE_NEWNET = 0x40000000
WAIT_S = 0.4
"""After which what has not come is taken for dropped; within the namespaces a round trip takes under a millisecond."""
PATIENCE_S = 10
"""For answers that are expected: a busy machine is no firewall."""
TABLE = ("inet", "latticed_guard")
ROUTER = {
    "a": ("10.9.0.1", "fd09:0:0:a::1", "fd09:0:0:aa::1"),
    "b": ("10.9.1.1", "fd09:0:0:b::1"),
    "c": ("10.9.2.1", "fd09:0:0:c::1"),
}
CLIENTS = {
    "a": tuple(f"{net}{n}" for net in ("10.9.0.", "fd09:0:0:a::", "fd09:0:0:aa::") for n in range(2, 10)),
    "b": tuple(f"{net}{n}" for net in ("10.9.1.", "fd09:0:0:b::") for n in range(2, 10)),
    "c": ("10.9.2.2", "fd09:0:0:c::2"),
}
INTERFACES = {"a": "r0", "b": "r1", "c": "r2"}
_libc = ctypes.CDLL(None, use_errno=True)
_ports = itertools.count(20_000)
_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Flow:
    """One attempt to reach a port: from an address in one namespace to one in another."""

    start: str
    source: str
    destination: str
    proto: str
    port: int


@dataclass(slots=True)
class Net:
    """The namespaces by letter; `r` has the firewall."""

    prefix: str
    stack: ExitStack = field(repr=False)

    def name(self, letter: str) -> str:
        return f"{self.prefix}{letter}"

    @contextmanager
    def inside(self, letter: str) -> Iterator[None]:
        """This thread, and what it starts and opens, in a namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entered = os.open(f"/run/netns/{self.name(letter)}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(entered)
            finally:
                os.close(entered)
            yield
            _enter(before)
        finally:
            os.close(before)

    def run(self, letter: str, *command: str, stdin: bytes = b"") -> bytes:
        """A command in a namespace; its output, or AssertionError with what it said."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name(letter), *command], input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()[:2_000]}"
        return done.stdout

    def set(self, letter: str, name: str, value: int) -> None:
        """A setting of the namespace's network, by its path below /proc/sys/net."""
        with self.inside(letter):
            Path("/proc/sys/net", name).write_text(str(value))

    def load(self, rules: bytes) -> None:
        """Check and load a file in the firewall, as it is done for real."""
        self.run("r", "nft", "-c", "-f", "-", stdin=rules)
        self.run("r", "nft", "-f", "-", stdin=rules)

    def listing(self) -> Any:
        return json.loads(self.run("r", "nft", "-j", "list", "table", *TABLE))

    def stateless(self) -> bytes:
        return self.run("r", "nft", "-s", "list", "table", *TABLE)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def network() -> Iterator[Net]:
    """The four namespaces, connected, and gone afterwards."""
    with ExitStack() as stack:
        net = Net(f"lg{os.getpid()}x{next(_names)}", stack)
        for letter in "abcr":
            subprocess.run(["ip", "netns", "add", net.name(letter)], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", net.name(letter)], check=True)
            net.run(letter, "ip", "link", "set", "lo", "up")
            # Until a link-local address has passed duplicate detection, a router cannot ask for its neighbours.
            net.set(letter, "ipv6/conf/all/accept_dad", 0)
            net.set(letter, "ipv6/conf/default/accept_dad", 0)
        for letter, interface in INTERFACES.items():
            _connect(net, letter, interface)
        net.set("r", "ipv4/ip_forward", 1)
        net.set("r", "ipv6/conf/all/forwarding", 1)
        net.set("r", "ipv4/conf/all/rp_filter", 0)
        yield net


def _connect(net: Net, letter: str, interface: str) -> None:
    pair = ["ip", "link", "add", interface, "netns", net.name("r"), "type", "veth"]
    subprocess.run([*pair, "peer", "name", "eth0", "netns", net.name(letter)], check=True)
    lines = [f"address add {_with_length(one)} dev {interface}{_nodad(one)}" for one in ROUTER[letter]]
    net.run("r", "ip", "-batch", "-", stdin="\n".join([*lines, f"link set {interface} up"]).encode())
    lines = [f"address add {_with_length(one)} dev eth0{_nodad(one)}" for one in CLIENTS[letter]]
    gateways = [f"route add default via {one} dev eth0" for one in ROUTER[letter][:2]]
    net.run(letter, "ip", "-batch", "-", stdin="\n".join([*lines, "link set eth0 up", *gateways]).encode())


def _with_length(address: str) -> str:
    return f"{address}/{64 if ':' in address else 24}"


def _nodad(address: str) -> str:
    return " nodad" if ":" in address else ""


@contextmanager
def servers(net: Net, letters: Sequence[str] = ("r", "a", "b", "c")) -> Iterator[None]:
    """TCP and UDP at every port of `intents.PORTS` of every address; UDP answers what it gets."""
    with ExitStack() as stack:
        opened: dict[int, socket.socket] = {}
        poll = select.poll()
        for letter in letters:
            addresses = [one for own in ROUTER.values() for one in own] if letter == "r" else CLIENTS[letter]
            with net.inside(letter):
                for address, port in itertools.product(addresses, intents.PORTS):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        listener = stack.enter_context(listening(address, port, kind))
                        opened[listener.fileno()] = listener
                        poll.register(listener, select.POLLIN)
        over, end = socket.socketpair()
        stack.enter_context(over)
        poll.register(end, select.POLLIN)
        stack.enter_context(end)
        thread = threading.Thread(target=_serve, args=(poll, opened, end.fileno()))
        thread.start()
        try:
            yield
        finally:
            over.send(b".")
            thread.join()


def listening(address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket bound in the namespace that the thread is in."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = socket.socket(family, kind)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((address, port))
    if kind == socket.SOCK_STREAM:
        opened.listen(64)
    return opened


def _serve(poll: select.poll, opened: dict[int, socket.socket], end: int) -> None:
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == end:
                return
            one = opened[descriptor]
            try:
                if one.type == socket.SOCK_STREAM:
                    one.accept()[0].close()
                else:
                    data, peer = one.recvfrom(16)
                    one.sendto(data, peer)
            except OSError:  # a rejected answer, or a client that is gone
                continue


def outcomes(net: Net, flows: Sequence[Flow], expected: Sequence[str] = ()) -> list[str]:
    """What became of each flow, all sent at once: accept, drop or reject.

    Where `expected` says that there is an answer, it is waited for longer.
    """
    answered = {index for index, verdict in enumerate(expected) if verdict != "drop"}
    waiting: dict[int, tuple[int, socket.socket]] = {}
    found = ["drop"] * len(flows)
    poll = select.poll()
    with ExitStack() as stack:
        for index, flow in enumerate(flows):
            with net.inside(flow.start):
                kind = socket.SOCK_STREAM if flow.proto == "tcp" else socket.SOCK_DGRAM
                sender = stack.enter_context(_bound(flow.source, kind))
            verdict = _start(sender, flow)
            if verdict:
                found[index] = verdict
                continue
            waiting[sender.fileno()] = (index, sender)
            poll.register(sender, select.POLLOUT if kind == socket.SOCK_STREAM else select.POLLIN)
        start = time.monotonic()
        while waiting:
            missing = answered.intersection(index for index, _ in waiting.values())
            left = start + (PATIENCE_S if missing else WAIT_S) - time.monotonic()
            if left <= 0:
                break
            for descriptor, _ in poll.poll(left * 1_000):
                index, sender = waiting.pop(descriptor)
                poll.unregister(descriptor)
                found[index] = _ended(sender)
    return found


def _bound(source: str, kind: socket.SocketKind) -> socket.socket:
    """From a port that no flow had before: to connection tracking every flow is new."""
    opened = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, kind)
    opened.setblocking(False)
    opened.bind((source, next(_ports)))
    return opened


def _start(sender: socket.socket, flow: Flow) -> str:
    """Send the first packet; the verdict if it is clear at once."""
    try:
        failed = sender.connect_ex((flow.destination, flow.port))
        if failed not in (0, errno.EINPROGRESS):
            return _verdict(failed)
        if sender.type == socket.SOCK_DGRAM:
            sender.send(b"x")
    except PermissionError:
        return ""  # its own table stopped it; a reject's message comes through the loopback interface
    except OSError as error:
        return _verdict(error.errno)
    return ""


def _ended(sender: socket.socket) -> str:
    failed = sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        return _verdict(failed)
    if sender.type == socket.SOCK_DGRAM:
        try:
            sender.recv(16)
        except OSError as error:
            return _verdict(error.errno)
    return "accept"


def _verdict(failed: int | None) -> str:
    """EPERM: a packet of this host that its own table drops (`connect`(2))."""
    assert failed in {errno.EPERM, errno.ECONNREFUSED, errno.EHOSTUNREACH}, os.strerror(failed or 0)
    return "drop" if failed == errno.EPERM else "reject"


def reaches(net: Net, start: str, destination: str, port: int, *, expected: bool, proto: str = "tcp") -> bool:
    """Whether a new connection (or UDP message) from the first address of a namespace is answered."""
    source = next(one for one in (*CLIENTS.get(start, ()), *ROUTER["c"]) if version(one) == version(destination))
    flow = Flow(start, source, destination, proto, port)
    return outcomes(net, [flow], ["accept" if expected else "drop"]) == ["accept"]


def version(address: str) -> int:
    return ipaddress.ip_address(address).version

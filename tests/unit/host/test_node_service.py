"""node.*: facts and metrics of this machine, labels, the journal; what is shown only with node:admin."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed import settings as settings_module
from latticed.host.call import Caller, HostError, NoParams
from latticed.host.node import calls as node
from latticed.host.node import facts as node_reading
from latticed.host.node import interfaces as node_network
from latticed.host.node import journal_client
from latticed.host.node.calls import CachedReading, NodeCalls, ReadJournal, SetLabels
from latticed.kit.clock import SystemClock
from latticed.ledger import Ledger, open_ledger
from latticed.model.hostcall import Denial
from tests.house import processes
from tests.house.clocks import ManualClock

PLAIN, ADMIN = Caller(plugin_id="acme.plain"), Caller(plugin_id="acme.admin")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with open_ledger(tmp_path / "state", clock=clock) as found:
        yield found


class Desk:
    """The service, called as the broker does; acme.admin holds node:admin."""

    def __init__(self, ledger: Ledger, clock: ManualClock, home: Path, root: Path = Path("/")) -> None:
        file = home / "latticed.toml"
        file.write_text(f'runtime_dir = "{home}"\n[node]\njournal_units = ["web.service", "latticed-apply.service"]\n')
        self.settings = settings = settings_module.load(file, {"HOME": str(home)}, os.geteuid())
        self.asked: list[tuple[str, str]] = []
        self.service = NodeCalls(ledger, settings=settings, may=self.may, clock=clock, root=root)
        self._serve = {call.method: call for call in self.service.calls()}

    def may(self, plugin_id: str, capability: str) -> bool:
        self.asked.append((plugin_id, capability))
        return plugin_id == ADMIN.plugin_id

    async def call(self, method: str, caller: Caller = PLAIN, **params):
        served = self._serve[method]
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def refused(self, method: str, **params) -> HostError:
        with pytest.raises(HostError) as caught:
            await self.call(method, **params)
        return caught.value


@pytest.fixture
def desk(ledger: Ledger, clock: ManualClock, tmp_path: Path) -> Desk:
    return Desk(ledger, clock, tmp_path)


async def test_node_facts_agree_with_the_system(desk: Desk) -> None:
    """They are compared with what Python and the kernel report."""
    facts = await desk.call("node.facts")
    assert facts["hostname"] == socket.gethostname()
    assert facts["kernel"]["release"] == platform.release()
    assert facts["machine"] == platform.machine()
    assert facts["cpus"]["count"] == os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts["memory"]["total_bytes"] == pytest.approx(pages, rel=0.01)
    assert {found["name"] for found in facts["interfaces"]} == {name for _, name in socket.if_nameindex()}
    loopback = next(found for found in facts["interfaces"] if found["name"] == "lo")
    assert loopback["addresses"][0] == "127.0.0.1/8"
    assert facts["boot_time"].endswith("Z")
    assert facts["labels"] == {}
    root = os.statvfs("/")
    sizes = {disk["mount"]: disk["total_bytes"] for disk in facts["disks"]}
    assert sizes.get("/", root.f_blocks * root.f_frsize) == root.f_blocks * root.f_frsize


async def test_serial_numbers_and_macs_need_node_admin(desk: Desk, clock: ManualClock) -> None:
    """IPv6 addresses that are made from a MAC do, too."""
    plain, admin = await desk.call("node.facts"), await desk.call("node.facts", ADMIN)
    assert plain["hardware"] is None
    assert admin["hardware"].keys() == {"product_serial", "product_uuid", "board_serial", "machine_id"}
    assert {found["mac"] for found in plain["interfaces"]} == {None}
    assert {found["mac"] for found in admin["interfaces"]} != {None}
    shown = [ip_interface(one).ip for found in plain["interfaces"] for one in found["addresses"]]
    assert not any(map(node_network._reveals_mac, shown))
    assert desk.asked == [("acme.plain", "node:admin"), ("acme.admin", "node:admin")]


@pytest.mark.parametrize(
    ("address", "reveals"),
    [("fe80::fc:ff:fe00:1", True), ("2001:db8::211:22ff:fe33:4455", True), ("fd00::2", False), ("10.0.0.1", False)],
)
def test_ipv6_address_made_from_a_mac_is_recognised(address: str, *, reveals: bool) -> None:
    """Modified EUI-64 interface identifiers have ff:fe in the middle (RFC 4291, appendix A)."""
    assert node_network._reveals_mac(ip_address(address)) is reveals


SHOW = """
import json
from pathlib import Path
from latticed.host.node.interfaces import interfaces
print(json.dumps(interfaces(Path("/"), hardware=True)))
"""
LINKS = """
set -e
mount -t sysfs none /sys
ip link add one type veth peer name two
ip link set one address 02:00:00:00:00:07 mtu 1300
ip addr add 192.0.2.5/24 dev one
ip addr add 192.0.2.6/32 dev one label one:alias
ip addr add 198.51.100.7/30 dev one
ip link set one up
ip addr add 2001:db8::5/48 dev one
exec "$@"
"""


@pytest.mark.root
def test_all_addresses_of_an_interface_are_listed() -> None:
    """Several per family, each with its prefix length; aliases under their interface. In a network namespace."""
    if os.getuid() != 0:
        pytest.skip("needs uid 0 to make a network namespace")
    if shutil.which("ip") is None:
        pytest.skip("needs ip(8) to make a network namespace")
    command = ["unshare", "-n", "-m", "sh", "-c", LINKS, "sh", sys.executable, "-c", SHOW]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ran.returncode == 0, ran.stderr
    found = {one["name"]: one for one in json.loads(ran.stdout)}
    expected = ["192.0.2.5/24", "192.0.2.6/32", "198.51.100.7/30", "2001:db8::5/48"]
    assert [one for one in found["one"]["addresses"] if not one.startswith("fe80::")] == expected
    assert (found["one"]["mtu"], found["one"]["mac"]) == (1300, "02:00:00:00:00:07")
    assert found["two"]["addresses"] == []


async def test_node_metrics_are_cached_for_a_second(desk: Desk, clock: ManualClock) -> None:
    """Counters grow between two readings."""
    first = await desk.call("node.metrics")
    assert first["memory"]["available_bytes"] <= first["memory"]["total_bytes"]
    assert len(first["load"]) == 3
    assert sum(first["cpu"].values()) > 0
    assert {found["name"] for found in first["network"]} >= {"lo"}
    assert await desk.call("node.metrics") is first
    clock.advance(2)
    second = await desk.call("node.metrics")
    assert second is not first
    assert second["uptime_s"] >= first["uptime_s"]
    assert sum(second["cpu"].values()) >= sum(first["cpu"].values())
    for disk in second["disks"]:
        assert 0 <= disk["available_bytes"] <= disk["free_bytes"] <= disk["total_bytes"]


async def test_facts_and_metrics_are_null_where_files_are_missing(
    ledger: Ledger, clock: ManualClock, tmp_path: Path
) -> None:
    """The root has no file at all, and no call fails."""
    (tmp_path / "empty").mkdir()
    desk = Desk(ledger, clock, tmp_path, root=tmp_path / "empty")
    facts, metrics = await desk.call("node.facts", ADMIN), await desk.call("node.metrics")
    assert facts["os"] == {"id": None, "version_id": None, "name": None, "pretty_name": None}
    assert (facts["boot_time"], facts["uptime_s"], facts["memory"]) == (
        None,
        None,
        {"total_bytes": None, "swap_bytes": None},
    )
    assert set(facts["hardware"].values()) == {None}
    assert (metrics["load"], metrics["cpu"], metrics["disks"], metrics["network"]) == (None, None, [], [])
    assert set(metrics["memory"].values()) == {None}


def made_up(root: Path) -> None:
    """Files of a machine, with control characters and malformed lines in them."""
    for path, content in {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME=\'Evil \x1b[2J\'\nNAME="unclosed\n#X=1\n\n=\n',
        "proc/cpuinfo": "processor : 0\nmodel name\t: Some CPU @ 3 GHz\n",
        "proc/meminfo": "MemTotal:  1000 kB\nMemAvailable: 500 kB\nBroken\nOdd: x kB\n",
        "proc/uptime": "123.45 99.0\n",
        "proc/loadavg": "0.50 1.25 2.00 1/100 42\n",
        "proc/stat": "cpu  100 0 200 300 0 0 0 50 0 0\nbtime 1767323045\n",
        "proc/net/dev": "a\nb\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n bad: 1 2\n",
        "proc/self/mounts": f"x {root}/a\\040b tmpfs rw 0 0\nx /gone ext4 rw\nnfs:/ / nfs4 rw\nx /sys/fs tmpfs rw\nx\n",
        "etc/machine-id": "0123456789abcdef\n",
    }.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (root / "a b").mkdir()


def test_facts_and_metrics_are_parsed_from_proc_and_etc(tmp_path: Path) -> None:
    """Text is escaped, units are bytes and seconds; remote file systems are left out: statvfs on one may hang."""
    made_up(tmp_path)
    facts, metrics = node_reading.facts(tmp_path, hardware=True), node_reading.metrics(tmp_path)
    assert facts["os"] == {"id": "debian", "version_id": "12", "name": None, "pretty_name": "Evil \\x1b[2J"}
    assert facts["cpus"]["model"] == "Some CPU @ 3 GHz"
    assert facts["memory"]["total_bytes"] == 1_024_000
    assert facts["boot_time"] == "2026-01-02T03:04:05.000000Z"
    assert facts["hardware"]["machine_id"] == "0123456789abcdef"
    assert [disk["mount"] for disk in facts["disks"]] == [f"{tmp_path}/a b"]
    ticks = os.sysconf("SC_CLK_TCK")
    assert metrics["cpu"]["system"] == 200 / ticks
    assert metrics["load"] == [0.5, 1.25, 2.0]
    assert metrics["network"] == [
        {
            "name": "eth0",
            **{f"received_{what}": number for number, what in enumerate(("bytes", "packets", "errors", "dropped"), 1)},
            **{f"sent_{what}": number for number, what in enumerate(("bytes", "packets", "errors", "dropped"), 9)},
        }
    ]


def test_mount_and_interface_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    """The lines after them are still read."""
    disk = os.fsencode(tmp_path) + b"/\xffa\xe2\x80\xa8b"
    os.mkdir(disk)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/net").mkdir()
    (tmp_path / "sys/class/net").mkdir(parents=True)
    os.mkdir(os.fsencode(tmp_path) + b"/sys/class/net/wl\xff")
    (tmp_path / "proc/self/mounts").write_bytes(b"x " + disk + b" tmpfs rw 0 0\n")
    (tmp_path / "proc/net/dev").write_bytes(b"a\nb\n wl\xff: " + b" ".join([b"1"] * 16) + b"\n")
    address = b"fd000000000000000000000000000001"
    (tmp_path / "proc/net/if_inet6").write_bytes(address + b" 01 40 00 80    wl\xff\n")
    facts, metrics = node_reading.facts(tmp_path), node_reading.metrics(tmp_path)
    assert [one["mount"] for one in facts["disks"]] == [f"{tmp_path}/\\xffa\\u2028b"]
    assert [(one["name"], one["addresses"]) for one in facts["interfaces"]] == [("wl\\xff", ["fd00::1/64"])]
    assert [one["received_bytes"] for one in metrics["network"]] == [1]
    msgspec.json.encode((facts, metrics))


@given(st.binary(max_size=200))
def test_any_bytes_in_proc_are_accepted(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """The kernel, or a container, may put anything there."""
    root = tmp_path_factory.mktemp("junk")
    for name in ("meminfo", "uptime", "loadavg", "stat", "cpuinfo", "net/dev", "net/if_inet6", "self/mounts"):
        (root / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "proc" / name).write_bytes(junk)
    (root / "etc").mkdir()
    (root / "etc/os-release").write_bytes(junk)
    msgspec.json.encode((node_reading.facts(root, hardware=True), node_reading.metrics(root)))


# Labels.


async def test_set_labels_merges_with_existing_labels(desk: Desk) -> None:
    """null removes a label; node.facts shows them."""
    assert await desk.call("node.set_labels", labels={"role": "web", "rack/unit": "7 b"}) == {
        "ok": True,
        "labels": {"rack/unit": "7 b", "role": "web"},
    }
    await desk.call("node.set_labels", labels={"role": None, "zone": "ä"})
    assert (await desk.call("node.facts"))["labels"] == {"rack/unit": "7 b", "zone": "ä"}


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"A": "x"}, {"-a": "x"}, {"a-": "x"}, {"a" * 64: "x"}, {"a\n": "x"}, {"a": "x\n"}, {"a": "x" * 257}],
)
async def test_bad_node_labels_are_refused(desk: Desk, labels: dict[str, str]) -> None:
    """One bad label refuses the whole call."""
    assert (await desk.refused("node.set_labels", labels={"good": "x", **labels})).code is Denial.BAD_PARAMS
    assert (await desk.call("node.facts"))["labels"] == {}


async def test_node_labels_over_the_limit_are_refused(desk: Desk) -> None:
    """The code is quota_exceeded, and no label is changed."""
    most = {f"l{number}": "x" for number in range(node.MAX_LABELS)}
    await desk.call("node.set_labels", labels=most)
    assert (await desk.refused("node.set_labels", labels={"more": "x", "l0": "changed"})).code is Denial.QUOTA_EXCEEDED
    assert (await desk.call("node.facts"))["labels"] == most
    await desk.call("node.set_labels", labels={"more": "x", "l0": None})


@pytest.mark.parametrize("value", ["x", None])
async def test_call_with_too_many_labels_is_refused_before_any_is_written(tmp_path: Path, value: str | None) -> None:
    """Here the ledger could not be: it is closed."""
    async with open_ledger(tmp_path / "state", clock=SystemClock()) as ledger:
        desk = Desk(ledger, ManualClock(), tmp_path)
        all_anew = {f"a{n}": None for n in range(node.MAX_LABELS)} | {f"b{n}": "x" for n in range(node.MAX_LABELS)}
        assert len((await desk.call("node.set_labels", labels=all_anew))["labels"]) == node.MAX_LABELS
    many = dict.fromkeys((f"l{number}" for number in range(node.MAX_CHANGES + 1)), value)
    error = await desk.refused("node.set_labels", labels=many)
    assert (error.code, "found 129" in error.reason) == (Denial.QUOTA_EXCEEDED, True)


# The journal: the reader itself is tested in tests/unit/journal and tests/systemd.


async def test_journal_filter_must_be_a_listed_unit(desk: Desk) -> None:
    """The daemon's own units never are; without a reader the call is service_unavailable."""
    for wanted in ("ssh.service", "latticed.service", "latticed-apply.service", "sshd.service", "\x1b"):
        error = await desk.refused("node.journal", filter=wanted)
        assert error.code is Denial.BAD_PARAMS
        assert error.reason.isprintable()
    for wanted in ("sshd", "web.service"):
        error = await desk.refused("node.journal", filter=wanted)
        assert error.code is Denial.SERVICE_UNAVAILABLE
        assert "latticed-journal" in error.reason
    for params in ({}, {"filter": ""}, {"filter": "sshd", "limit": 501}, {"filter": "sshd", "limit": -1}):
        with pytest.raises(msgspec.ValidationError):
            await desk.call("node.journal", **params)


async def test_journal_reader_may_run_as_root_own_user_or_journal_user(desk: Desk, tmp_path: Path) -> None:
    """`node.journal_user` is a name or a number."""
    assert journal_client.readers(desk.settings) == {0, os.geteuid()}
    for name, uid in (("nobody", 65534), ("4711", 4711)):
        desk.settings = settings_module.load(
            write(tmp_path, f'[node]\njournal_user = "{name}"\n'), {"HOME": "/"}, os.geteuid()
        )
        assert journal_client.readers(desk.settings) == {0, os.geteuid(), uid}
    desk.settings = settings_module.load(
        write(tmp_path, '[node]\njournal_user = "no such"\n'), {"HOME": "/"}, os.geteuid()
    )
    with pytest.raises(HostError, match="journal_user"):
        journal_client.readers(desk.settings)
    other = settings_module.load(write(tmp_path, '[node]\njournal_socket = "/x/y.sock"\n'), {"HOME": "/"}, os.geteuid())
    assert journal_client.socket_path(other) == Path("/x/y.sock")


async def test_one_plugin_does_not_keep_others_from_the_journal(desk: Desk, tmp_path: Path) -> None:
    """It has one question at a time under way, however many it asks."""
    asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asked.put(writer)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"entries": [], "cursor": "j", "gap": false}\n')
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(connected, tmp_path / "journal.sock"):
        flood = [asyncio.ensure_future(desk.call("node.journal", filter="sshd")) for _ in range(50)]
        other = asyncio.ensure_future(desk.call("node.journal", ADMIN, filter="sshd"))
        async with asyncio.timeout(processes.PATIENCE_S):
            # Both before either is answered: then one is of each plugin.
            for writer in (await asked.get(), await asked.get()):
                await answer(writer)
            assert (await other)["cursor"] == "j"
            third = await asked.get()
            # The next question may be under way before the answer to the first one is on record.
            await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
            assert sum(one.done() for one in flood) == 1
            assert asked.empty()
        for one in flood:
            one.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        third.close()


def write(place: Path, text: str) -> Path:
    file = place / "other.toml"
    file.write_text(text)
    return file


def test_parameters_have_defaults_and_no_unknown_fields() -> None:
    """`limit` is optional, null is a label value."""
    assert msgspec.convert({"filter": "sshd"}, ReadJournal, strict=True).limit == 100
    assert msgspec.convert({"labels": {"a": None}}, SetLabels, strict=True).labels == {"a": None}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"x": 1}, NoParams, strict=True)


# CachedReading.


async def test_concurrent_node_calls_share_one_reading(clock: ManualClock) -> None:
    """Cancelling one caller does not cancel the reading; a failed reading is repeated by the next call."""
    go_on, readings = threading.Event(), []

    def read() -> dict[str, int]:
        readings.append(1)
        assert go_on.wait(10)
        if len(readings) == 2:
            raise RuntimeError("once")
        return {"n": len(readings)}

    fresh = CachedReading(read, 5, clock)
    asking = [asyncio.ensure_future(fresh.get()) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    go_on.set()
    assert await asyncio.gather(*asking[1:]) == [{"n": 1}] * 19
    assert asking[0].cancelled()
    clock.advance(5)
    with pytest.raises(RuntimeError):
        await fresh.get()
    assert await fresh.get() == {"n": 3}
    assert await fresh.get() == {"n": 3}

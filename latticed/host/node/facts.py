"""Facts and metrics of this host, read from /proc, /sys and /etc beneath a root; what cannot be read is None.

All of it blocks (statvfs may wait for a disk). Sources: proc(5), os-release(5), statvfs(3).
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.host.node.interfaces import interfaces
from latticed.kit import text
from latticed.kit.clock import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path("/")
# A host of containers may have thousands of mounts, each of which costs a system call.
MAX_DISKS: Final = 64
# Bounds of one text in an answer, and of one file that is read.
_MAX_TEXT_CHARACTERS: Final = 256
_MAX_BYTES: Final = 1 << 20
_LOCAL_FILE_SYSTEMS: Final = frozenset(
    "bcachefs btrfs erofs exfat ext2 ext3 ext4 f2fs jfs ntfs3 overlay tmpfs vfat xfs zfs".split()
)
"""Local file systems: statvfs(3) on a remote one whose server is gone may block the thread for ever."""
# What is mounted below these is the system's own (tmpfs and the like), no disk.
_NOT_DISKS: Final = (b"/dev/", b"/proc/", b"/run/", b"/sys/")
# White space and backslashes in /proc/self/mounts are octal (getmntent(3)).
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")
# By the names in /sys/class/dmi/id, which only root can read: None for a daemon of another user.
_SERIALS: Final = {"product_serial": "product_serial", "product_uuid": "product_uuid", "board_serial": "board_serial"}
# Columns of the line `cpu` of /proc/stat, and of one direction in /proc/net/dev (proc(5)).
_CPU: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_TRAFFIC: Final = ("bytes", "packets", "errors", "dropped")


def facts(root: Path = ROOT, *, hardware: bool = False) -> dict[str, Any]:
    """Facts, which rarely change: names, versions, sizes, addresses; serial numbers and MACs only with `hardware`.

    A value that cannot be read is None. The keys are those of `node.facts` (docs/write/services.md). Blocks.
    """
    kernel = os.uname()
    uptime_s = _uptime_s(root)
    boot = _fields(root / "proc/stat").get("btime")
    memory = _memory(root)
    return {
        "hostname": text.sanitise(kernel.nodename, _MAX_TEXT_CHARACTERS) or None,
        "os": _os_release(root),
        "kernel": {"name": kernel.sysname, "release": kernel.release, "version": kernel.version},
        "machine": kernel.machine,
        "cpus": {"count": os.cpu_count(), "model": _cpu_model(root)},
        "memory": {"total_bytes": memory.get("MemTotal"), "swap_bytes": memory.get("SwapTotal")},
        "boot_time": rfc3339(int(boot) * 1_000_000) if boot and boot.isdigit() else None,
        "uptime_s": uptime_s,
        "disks": [{key: disk[key] for key in ("mount", "type", "total_bytes")} for disk in disks(root)],
        "interfaces": interfaces(root, hardware=hardware),
        "hardware": _hardware(root) if hardware else None,
    }


def metrics(root: Path = ROOT) -> dict[str, Any]:
    """Load, memory and disks in bytes, processor time in seconds, network counters since boot.

    A value that cannot be read is None. The keys are those of `node.metrics` (docs/write/services.md). Blocks.
    """
    memory = _memory(root)
    return {
        "uptime_s": _uptime_s(root),
        "load": _load(root),
        "memory": {
            "total_bytes": memory.get("MemTotal"),
            "available_bytes": memory.get("MemAvailable"),
            "free_bytes": memory.get("MemFree"),
            "cached_bytes": memory.get("Cached"),
            "swap_total_bytes": memory.get("SwapTotal"),
            "swap_free_bytes": memory.get("SwapFree"),
        },
        "cpu": _cpu_s(root),
        "disks": list(disks(root)),
        "network": list(_network(root)),
    }


def disks(root: Path = ROOT) -> Iterator[dict[str, Any]]:
    """The mounted local file systems, each once and at most MAX_DISKS: mount point, type, bytes and inodes. The list of
    mounts is read beneath `root`; the file systems themselves are always those of this host.
    """
    seen: set[int] = set()
    for line in _bytes(root / "proc/self/mounts").split(b"\n"):
        parts = line.split(b" ")
        if (
            len(parts) < 3
            or (kind := parts[2].decode("utf-8", "replace")) not in _LOCAL_FILE_SYSTEMS
            or len(seen) >= MAX_DISKS
        ):
            continue
        mount = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), parts[1])  # \040 is a space
        if mount.startswith(_NOT_DISKS):
            continue
        try:
            device, found = os.stat(mount).st_dev, os.statvfs(mount)
        # Not accessible for this user, or unmounted meanwhile; ValueError: a NUL in the path.
        except (OSError, ValueError):
            continue
        # A bind mount shows the same device again.
        if device in seen or not found.f_blocks:
            continue
        seen.add(device)
        yield {
            "mount": text.sanitise(mount.decode("utf-8", "backslashreplace"), _MAX_TEXT_CHARACTERS),
            "type": kind,
            "total_bytes": found.f_blocks * found.f_frsize,
            "free_bytes": found.f_bfree * found.f_frsize,
            # Without what is reserved for root, unlike f_bfree (statvfs(3)).
            "available_bytes": found.f_bavail * found.f_frsize,
            "inodes": found.f_files,
            "inodes_free": found.f_ffree,
        }


def _os_release(root: Path) -> dict[str, str | None]:
    """The distribution, by the keys that node.facts has; each None when missing."""
    # In this order, os-release(5).
    found = _read(root / "etc/os-release") or _read(root / "usr/lib/os-release")
    values: dict[str, str] = {}
    for line in found.splitlines():
        name, assigned, value = line.partition("=")
        if assigned and not name.startswith("#"):
            try:
                # Values are quoted as in a shell (os-release(5)).
                values[name.strip()] = text.sanitise("".join(shlex.split(value)[:1]), _MAX_TEXT_CHARACTERS)
            except ValueError:  # no closing quotation
                continue
    return {key: values.get(key.upper()) for key in ("id", "version_id", "name", "pretty_name")}


def _cpu_model(root: Path) -> str | None:
    """The name of the processor: `model name` on x86, `Model` and `cpu model` on other architectures; None without
    either.
    """
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "cpu model"}:
            return text.sanitise(value.strip(), _MAX_TEXT_CHARACTERS)
    return None


def _memory(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes (the file has KiB), by its names, such as `MemTotal`; empty when it cannot be read."""
    found: dict[str, int] = {}
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def _uptime_s(root: Path) -> float | None:
    """Seconds since boot, or None."""
    words = _read(root / "proc/uptime").split()
    return _float(words[0]) if words else None


def _load(root: Path) -> list[float] | None:
    """The load averages of 1, 5 and 15 minutes, or None."""
    found = [_float(word) for word in _read(root / "proc/loadavg").split()[:3]]
    known = [value for value in found if value is not None]
    return known if len(known) == 3 else None


def _cpu_s(root: Path) -> dict[str, float] | None:
    """Seconds since boot that all processors together spent in each state, or None."""
    words = _fields(root / "proc/stat").get("cpu", "").split()
    if len(words) < len(_CPU) or not all(word.isdigit() for word in words):
        return None
    # /proc/stat counts in USER_HZ (proc(5)).
    ticks = os.sysconf("SC_CLK_TCK")
    return {name: int(word) / ticks for name, word in zip(_CPU, words, strict=False)}


def _network(root: Path) -> Iterator[dict[str, Any]]:
    """Counters since boot by interface: receive in columns 0 to 3, transmit in 8 to 11 of /proc/net/dev."""
    # Two lines of headings come first.
    for line in _read(root / "proc/net/dev").split("\n")[2:]:
        name, _, rest = line.rpartition(":")  # a name may hold anything but white space and a slash
        words = rest.split()
        if len(words) < 16 or not all(word.isdigit() for word in words):
            continue
        received = {f"received_{what}": int(word) for what, word in zip(_TRAFFIC, words, strict=False)}
        yield {
            "name": text.sanitise(name.strip(" "), _MAX_TEXT_CHARACTERS),
            **received,
            **{f"sent_{what}": int(word) for what, word in zip(_TRAFFIC, words[8:], strict=False)},
        }


def _hardware(root: Path) -> dict[str, str | None]:
    """Serial numbers and the machine id (machine-id(5)); each None where it cannot be read."""
    places = {name: root / "sys/class/dmi/id" / file for name, file in _SERIALS.items()}
    places["machine_id"] = root / "etc/machine-id"
    return {name: text.sanitise(_read(place).strip(), _MAX_TEXT_CHARACTERS) or None for name, place in places.items()}


def _fields(path: Path) -> dict[str, str]:
    """First word to the rest, of each line; empty when the file cannot be read."""
    parts = (line.partition(" ") for line in _read(path).splitlines())
    return {name: value.strip() for name, _, value in parts}


def _float(word: str) -> float | None:
    """The number, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def _read(path: Path) -> str:
    """At most _MAX_BYTES of a file, as text; empty when it cannot be read."""
    return _bytes(path).decode("utf-8", "replace")


def _bytes(path: Path) -> bytes:
    """At most _MAX_BYTES of a file; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return b""

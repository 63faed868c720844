"""A Debian machine in QEMU: the same files as a machine of `machines`, under a kernel of its own with all controllers.

    report = virtual.run(machine.home / "upper", "python3 /root/check.py", tmp_path)

What the machine writes stays in its disk image, below the directory that is given.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house import machines

SUITE = "trixie"
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mkfs.ext4": "e2fsprogs"}
DEADLINE_S = 5_000.0
"""An emulated processor beside other load: it takes three minutes of one processor."""
_MEMORY_MIB = 1_024
_DISK_MIB = 1_536
# The kernel has NVMe and ext4 built in: no initial file system, no modules. Its check of the timer counts turns
# of a loop, and fails where these are emulated. Nobody logs in: without udev each login would be waited for.
_KERNEL_LINE = (
    "root=/dev/nvme0n1 rw fsck.mode=skip console=ttyS0 panic=-1 no_timer_check mitigations=off psi=1"
    " systemd.getty_auto=0 systemd.mask=systemd-modules-load.service"
    " systemd.journald.forward_to_console=1 systemd.journald.max_level_console=info"
)
_UNIT = """[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh -c '{command} >/dev/ttyS1 2>&1'
TimeoutStartSec=infinity
"""
# $1 what is in the image, lower layers of an overlay; $2 a directory for the rest of it; $3 the image; $4 its size.
# What is not compiled here is compiled at each start there, which then takes more than the unit has time for.
_IMAGE = """
set -eu
mkdir "$2/upper" "$2/work" "$2/merged"
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/merged"
chroot "$2/merged" python3 -m compileall -q /usr/lib/python3* /usr/local/lib/python3* >"$2/compiled" || true
mkfs.ext4 -q -F -d "$2/merged" "$3" "$4"
"""


def missing() -> list[str]:
    """Packages of Debian that this host needs besides."""
    return [package for name, package in TOOLS.items() if shutil.which(name) is None]


def run(upper: Path, command: str, place: Path) -> str:
    """What a command prints as root in the machine, once that is up; `upper`: what it has besides its suite's files."""
    report, image = place / "report", _image(upper, command, place)
    with open(place / "serial", "wb") as console:
        subprocess.run(_command(image, report), stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                       check=True, timeout=DEADLINE_S)  # fmt: skip
    said = report.read_text(errors="replace").replace("\r", "")
    if not said:
        pytest.fail((place / "serial").read_text(errors="replace")[-4_000:], pytrace=False)
    image.unlink()
    return said


def _image(upper: Path, command: str, place: Path) -> Path:
    extra = place / "extra"
    packages = extra / f"usr/local/lib/python{machines.SUITES[SUITE]}/dist-packages"
    shutil.copytree(machines.site(SUITE), packages, symlinks=True)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(machines.CHECKOUT / "latticed", packages / "latticed", dirs_exist_ok=True, ignore=unwanted)
    # Other machines write there meanwhile: what vanishes is compiled below.
    kept = extra / machines.COMPILED.lstrip("/")
    kept.parent.mkdir(parents=True)
    subprocess.run(["cp", "-a", machines.compiled(SUITE), kept], check=False, capture_output=True)
    wanted = extra / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(parents=True)
    (wanted.parent / "check.service").write_text(_UNIT.format(command=command))
    (wanted / "check.service").symlink_to("../check.service")
    for one in (extra, *extra.rglob("*")):
        os.chown(one, 0, 0, follow_symlinks=False)
    image, made = place / "disk", place / "made"
    made.mkdir()
    # What is in a layer further left counts.
    layers = ":".join(map(str, (extra, upper, machines.root(SUITE))))
    words = ["unshare", "--mount", "sh", "-c", _IMAGE, "sh", layers, str(made), str(image), f"{_DISK_MIB}M"]
    subprocess.run(words, check=True, capture_output=True, timeout=machines.BUILD_S)
    for one in (extra, made):
        shutil.rmtree(one)
    return image


def _command(image: Path, report: Path) -> list[str]:
    return [
        "setpriv", "--pdeathsig", "KILL",
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-nic", "none",
        # Emulated everywhere alike: KVM is not on each machine, and fails within others.
        "-accel", "tcg", "-cpu", "Nehalem,-cx16", "-m", str(_MEMORY_MIB),
        # Its clock counts instructions, two nanoseconds each, and skips what it would sleep: whatever else this host
        # does, no deadline passes there because of it.
        "-icount", "shift=1,sleep=off", "-rtc", "clock=vm",
        "-kernel", str(kernel()), "-append", _KERNEL_LINE,
        "-drive", f"file={image},format=raw,if=none,id=disk,cache=unsafe", "-device", "nvme,drive=disk,serial=disk",
        "-serial", "stdio", "-serial", f"file:{report}",
    ]  # fmt: skip


def kernel() -> Path:
    """Debian's kernel for virtual machines, as this host's mirror has it."""
    package = _kernel_package()
    place = machines._kept(f"kernel-{package}", package, lambda place: _download(package, place))
    return next(place.glob("boot/vmlinuz-*"))


def _kernel_package() -> str:
    words = ["apt-cache", "depends", "linux-image-cloud-amd64"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"Depends: (linux-image-[0-9]\S*)", shown.stdout)
    if not found:
        pytest.fail(f"apt knows no kernel for virtual machines (apt-get update): {shown.stderr}", pytrace=False)
    return found[1]


def _download(package: str, place: Path) -> None:
    place.mkdir()
    subprocess.run(["apt-get", "download", package], cwd=place, check=True, timeout=machines.BUILD_S)
    (archive,) = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, place], check=True)
    archive.unlink()

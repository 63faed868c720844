"""Writes the tree of an installed latticed, as the package has it: python packaging/tree.py SUITE ROOT

    usr/lib/latticed        a virtual environment of the suite's own Python, with the wheels that
                            packaging/requirements/SUITE.txt pins by hash
    usr/bin                 links to its programs
    usr/lib/systemd …       units, users, directories
    usr/share               completions, man pages, documentation with examples, the bill of materials
    etc/latticed            settings

packaging/container/Dockerfile makes two parts of it one after the other: `--libraries`, then `--programs`.

No interpreter of the suite is needed: wheels are unpacked, not built, and a virtual environment is three files (PEP
405; docs/adr/0032). The same source and SOURCE_DATE_EPOCH give the same bytes.
"""

# ruff: noqa: INP001, S603 - a program of the build, no package, that starts pip and latticectl
from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from email.message import Message

SOURCE: Final = Path(__file__).resolve().parents[1]
PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}
"""Of each Debian that is packaged for. Its systemd: 252 and 257."""
NEWER_SYSTEMD: Final = frozenset({"trixie"})
"""Those that get the drop-in for systemd 257."""
GLIBC: Final = ("_2_17", "2014", "_2_28", "_2_34")
"""manylinux tags of wheels that run on both."""
PROGRAMS: Final = {
    "latticed": "daemon",
    "latticectl": "ctl.main",
    "latticed-apply": "apply",
    "latticed-journal": "journal",
    "latticed-fleet": "fleet.agent",
    "latticed-controller": "fleet.controller.process",
}
# -I: neither the caller's directory nor PYTHON* variables count, of root's least of all.
PROGRAM: Final = """#!/usr/lib/latticed/bin/python3 -I
import sys
{guard}from latticed.{module} import main
sys.exit(main())
"""
GUARD: Final = """import os
if os.path.exists("/usr/lib/latticed/upgrading"):
    sys.stderr.write("latticed: package_unpacked: an upgrade was broken off (dpkg --configure -a)\\n")
    sys.exit(os.EX_TEMPFAIL)
"""
"""After a power cut in an upgrade modules are of two versions until the package is configured."""
GUARDED: Final = frozenset({"latticed", "latticed-fleet", "latticed-controller"})
"""What does not start then. The root helper is not kept from putting back a firewall."""
COMPLETIONS: Final = {
    "bash": "usr/share/bash-completion/completions/latticectl",
    "zsh": "usr/share/zsh/vendor-completions/_latticectl",
    "fish": "usr/share/fish/vendor_completions.d/latticectl.fish",
}


def write(suite: str, root: Path) -> None:
    write_libraries(suite, root)
    write_programs(suite, root)
    _units(suite, root)
    _documents(root)
    _settings(root)


def _settings(root: Path) -> None:
    """Those that are there are an operator's, and stay: `make install` once more is an upgrade."""
    path = root / "etc/latticed/latticed.toml"
    if not path.exists():
        _put(path, (SOURCE / "packaging/latticed.toml").read_text(encoding="utf-8"))


def write_libraries(suite: str, root: Path) -> None:
    """The environment with the wheels that are pinned, and their bill of materials. Takes no Python but pip's."""
    home = root / "usr/lib/latticed"
    packages = home / _packages(suite)
    _environment(home, f"python{PYTHONS[suite]}")
    # Those of before stay until the new ones are complete: without a network pip fails.
    fresh = packages.with_name("site-packages.new")
    shutil.rmtree(fresh, ignore_errors=True)
    wheels = _wheels(suite, fresh)
    bill = json.dumps(bill_of_materials(suite, wheels, fresh), indent=1, sort_keys=True)
    shutil.rmtree(packages, ignore_errors=True)
    fresh.rename(packages)
    _put(root / "usr/share/doc/latticed/latticed.cdx.json", bill + "\n")


def write_programs(suite: str, root: Path) -> None:
    """Latticed itself, into that environment."""
    home = root / "usr/lib/latticed"
    _own_package(home / _packages(suite) / "latticed")
    for name, module in PROGRAMS.items():
        _put(home / "bin" / name, PROGRAM.format(module=module, guard=GUARD if name in GUARDED else ""), mode=0o755)
        _link(root / "usr/bin" / name, f"../lib/latticed/bin/{name}")


def _packages(suite: str) -> str:
    return f"lib/python{PYTHONS[suite]}/site-packages"


def _environment(home: Path, python: str) -> None:
    _put(
        home / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nexecutable = /usr/bin/{python}\n"
    )
    _link(home / "bin/python3", f"/usr/bin/{python}")


def _wheels(suite: str, packages: Path) -> list[dict[str, Any]]:
    """Unpack what is pinned, after pip checked the hashes; pip's report of each wheel.

    WHEELS names a directory that has them (`pip download`), for a build without a network.
    """
    machine = platform.machine()
    here = ["--no-index", "--find-links", os.environ["WHEELS"]] if os.environ.get("WHEELS") else []
    platforms = [f"--platform=manylinux{one}_{machine}" for one in GLIBC]
    with tempfile.NamedTemporaryFile() as report:
        subprocess.run(
            [
                *(sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"),
                *("--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:", "--ignore-installed"),
                *("--implementation=cp", f"--python-version={PYTHONS[suite]}", *platforms),
                *here,
                *("--target", str(packages), "--report", report.name),
                *("--requirement", str(SOURCE / f"packaging/requirements/{suite}.txt")),
            ],
            check=True,
        )
        told: list[dict[str, Any]] = json.load(report)["install"]
    # Programs of the libraries, for whoever installs them by themselves, and their manuals.
    shutil.rmtree(packages / "bin", ignore_errors=True)
    shutil.rmtree(packages / "share", ignore_errors=True)
    for path in packages.glob("*.dist-info/*"):
        # Of this pip and this command: they say nothing about the wheel.
        if path.name in {"INSTALLER", "REQUESTED", "direct_url.json"}:
            path.unlink()
    return told


def _own_package(place: Path) -> None:
    """What a wheel of latticed has: see setup.cfg, packages and package_data."""
    kept = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(SOURCE / "latticed", place, ignore=kept)
    # Not those of the checkout: with a umask of 077 the daemon's user could not read it.
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _units(suite: str, root: Path) -> None:
    systemd, source = root / "usr/lib/systemd", SOURCE / "systemd"
    for path in sorted((*source.glob("*.service"), *source.glob("*.socket"))):
        _put(systemd / "system" / path.name, _unit(path))
    if suite in NEWER_SYSTEMD:
        for path in sorted(source.glob("*-257.conf")):
            drop_in = f"{path.name.removesuffix('-257.conf')}.service.d/257.conf"
            _put(systemd / "system" / drop_in, _unit(path))
    for path in sorted(source.glob("*.catalog")):
        _put(systemd / "catalog" / path.name, path.read_text(encoding="utf-8"))
    for kind in ("sysusers", "tmpfiles"):
        text = (source / f"latticed.{kind}").read_text(encoding="utf-8")
        _put(root / f"usr/lib/{kind}.d/latticed.conf", text)


def _unit(path: Path) -> str:
    """A unit or drop-in with the programs where a package has them."""
    return path.read_text(encoding="utf-8").replace("/usr/local/bin", "/usr/bin")


def _documents(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [sys.executable, "-P"]
    # What writes man pages reads the code that it belongs to: see packaging/deb, which may package another source.
    described = Path(os.environ.get("MANUALS", SOURCE))
    command = [*python, described / "packaging/manual.py", root / "usr/share/man"]
    subprocess.run(command, check=True, env={**environment, "PYTHONPATH": str(described)})
    for shell, place in COMPLETIONS.items():
        command = [*python, "-m", "latticed.ctl.main", "completion", shell]
        _put(root / place, subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)
    shared = root / "usr/share/doc/latticed"
    pages = (path for kind in ("md", "svg", "png") for path in SOURCE.glob(f"docs/**/*.{kind}"))
    for page in (*pages, SOURCE / "README.md"):
        _put(shared / page.relative_to(SOURCE), page.read_bytes())
    for example in (*SOURCE.glob("packaging/prometheus/*"), *SOURCE.glob("packaging/grafana/*")):
        _put(shared / "examples" / example.name, example.read_bytes())


def bill_of_materials(suite: str, wheels: list[dict[str, Any]], packages: Path) -> dict[str, Any]:
    """CycloneDX 1.6: each wheel that the package brings, with its hash and licence."""
    # Not of pip's report: only newer pips tell licence expressions.
    infos = [message_from_string(one.read_text("utf-8")) for one in packages.glob("*.dist-info/METADATA")]
    hashes = {
        _normal(one["metadata"]["name"]): one["download_info"]["archive_info"]["hash"].partition("=")[2]
        for one in wheels
    }
    components = [
        _component(one, hashes[_normal(one["Name"])]) for one in sorted(infos, key=lambda one: _normal(one["Name"]))
    ]
    version = own_version()
    # Of the content, so that it is another one when anything changes, and the same when nothing does.
    digest = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()
    own = {"type": "application", "bom-ref": "latticed", "name": "latticed", "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'latticed {version} {suite} {digest}')}",
        "version": 1,
        "metadata": {"component": {**own, "licenses": [{"license": {"id": "MIT"}}]}},
        "components": components,
        "dependencies": [{"ref": "latticed", "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _component(info: Message, sha256: str) -> dict[str, Any]:
    name, version = _normal(info["Name"]), info["Version"]
    purl = f"pkg:pypi/{name}@{version}"
    named = [one.rpartition(" :: ")[2] for one in info.get_all("Classifier", []) if one.startswith("License :: ")]
    said = named or [" ".join(one.split())[:80] for one in info.get_all("License", [])]
    expression = info["License-Expression"]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "licenses": [{"expression": expression}] if expression else [{"license": {"name": one}} for one in said],
    }


def _normal(name: str) -> str:
    """As purls have names of PyPI."""
    return re.sub("[-_.]+", "-", name).lower()


def own_version() -> str:
    """Of the source, not of what may be installed besides."""
    found = re.search(r'^__version__ = "([^"]+)"$', (SOURCE / "latticed/__init__.py").read_text("utf-8"), re.MULTILINE)
    assert found  # noqa: S101 - a test compares it with setup.cfg
    return found[1]


def _put(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


if __name__ == "__main__":
    os.umask(0o022)
    parts = {"--libraries": write_libraries, "--programs": write_programs}
    words = sys.argv[1:]
    made = parts[words.pop(0)] if words and words[0] in parts else write
    if len(words) != 2 or words[0] not in PYTHONS:
        sys.exit(f"usage: tree.py [--libraries|--programs] {'|'.join(PYTHONS)} ROOT")
    made(words[0], Path(words[1]))

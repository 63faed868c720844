"""Packages of others for an artifact: pinned by hash in a requirements file, fetched by the author's pip, pure wheels.

    requests==2.32.3 --hash=sha256:70761cfe03c7…      a line of the file, as pip-compile and `uv export` write it

A wheel (PEP 427) is a ZIP file; what it would install is put beside the plugin's own modules. Nothing of a package is
run: no sdist is built, no script is taken. A module in C cannot be imported from a ZIP file: such wheels are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.bundle import pack
from latticed.kit import files, text
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE: Final = "requirement_refused"
MAX_FILE_BYTES: Final = 1 << 20
_PINNED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*==\s*([A-Za-z0-9.!+_-]+)\s*(?:;[^-]*)?")
_HASH: Final = re.compile(r"--hash[= ](sha256|sha384|sha512):[0-9a-fA-F]{64,128}")
# Names as PEP 503 compares them.
_OF_THE_HOST: Final = frozenset({"latticed", "latticed-sdk"})
_COMPRESSED: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""Others are unpacked whole by zipfile, without a bound."""
_IN_C: Final = (".so", ".pyd", ".dylib")
_HASHES: Final = "pip-compile --generate-hashes, or uv export, writes a file of that form"
_TOLD_CHARACTERS: Final = 1_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The wheels that were taken, as (file name, SHA-256), sorted, and their files by the path that Python imports."""

    wheels: tuple[tuple[str, str], ...]
    tree: dict[str, bytes]


def packed(path: Path) -> Packed:
    """What the requirements file at `path` names, fetched and checked.

    Problem requirement_refused names the package and says what to do: no pin, no hash, an sdist, a module in C, a
    package that the host brings; also with pip's own words when it refuses. Problem not_found, io_error.
    """
    asked = _read(path)
    check(asked)
    with tempfile.TemporaryDirectory(prefix="latticed-wheels-") as place:
        # pip is given the lines that were checked. It reads a file in its own way (an encoding that a comment names,
        # comments that end in a backslash), and would find options in it that were not.
        pinned, wheels_of = Path(place, "requirements.txt"), Path(place, "wheels")
        pinned.write_text("".join(f"{line}\n" for line in _lines(asked)), encoding="utf-8")
        _fetch(pinned, wheels_of)
        found = sorted(wheels_of.iterdir()) if wheels_of.exists() else []
        tree: dict[str, bytes] = {}
        origin: dict[str, str] = {}
        wheels = []
        for wheel in found:
            data = wheel.read_bytes()
            wheels.append((wheel.name, hashlib.sha256(data).hexdigest()))
            for name, content in _contents(wheel.name, data):
                if tree.get(name, content) != content:
                    raise _refused(f"{wheel.name} and {origin[name]} both have {name}", "a ZIP file holds one of them")
                tree[name], origin[name] = content, wheel.name
    return Packed(wheels=tuple(wheels), tree=tree)


def joined(own: dict[str, bytes], theirs: Packed) -> dict[str, bytes]:
    """The plugin's own files and those of its packages; Problem requirement_refused when one is there twice."""
    if twice := sorted(own.keys() & theirs.tree.keys()):
        raise _refused(f"the source and a required package both have {twice[0]}", "rename the plugin's own module")
    return {**own, **theirs.tree}


def check(content: str) -> None:
    """Problem requirement_refused unless each line pins one package, with a hash."""
    for line in _lines(content):
        shown = text.sanitise(line.partition("--hash")[0].strip(), 80)
        if line.startswith("-"):
            help_ = "name packages alone; where pip finds them is said in its own settings (PIP_INDEX_URL, pip.conf)"
            raise _refused(f"expected NAME==VERSION --hash=sha256:…, found the option {shown}", help_)
        pin = _PINNED.match(line)
        # `@` begins a URL; `${NAME}` is a variable of the environment, which pip puts in.
        if pin is None or {"@", "$"} & {*line.partition("--hash")[0]}:
            raise _refused(f"expected NAME==VERSION --hash=sha256:…, found {shown}", f"pin it; {_HASHES}")
        if re.sub(r"[-_.]+", "-", pin[1]).lower() in _OF_THE_HOST:
            raise _refused(f"{pin[1]}: each host brings its own latticed.sdk", "take the line out")
        rest = line[pin.end() :]
        if not _HASH.search(rest):
            raise _refused(f"{pin[1]} {pin[2]} has no hash", f"add --hash=sha256:…; {_HASHES}")
        if left := _HASH.sub("", rest).strip():
            raise _refused(f"{pin[1]} {pin[2]}: expected hashes, found {text.sanitise(left, 80)}", _HASHES)


def _lines(content: str) -> Iterator[str]:
    """The lines of a requirements file, those joined that end in a backslash, without comments."""
    for line in content.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if bare:
            yield bare


def _read(path: Path) -> str:
    """The text of the file; Problem."""
    try:
        return files.read_at_most(path, MAX_FILE_BYTES).decode("utf-8")
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected a requirements file at {path}, found nothing") from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise _refused(f"{path}: expected a text of at most {MAX_FILE_BYTES >> 20} MiB in UTF-8", _HASHES) from error


def _fetch(path: Path, place: Path) -> None:
    """Have pip put the wheels into the new directory `place`; Problem requirement_refused, with its words."""
    # With dependencies: pip refuses those that the file does not pin, as it has to know the hash of each.
    command = [*_pip(), "download", "--require-hashes", "--only-binary", ":all:", "--dest", str(place)]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    try:
        done = subprocess.run(  # noqa: S603 - the author's own pip
            [*command, *quiet, "--requirement", str(path)], check=False, capture_output=True, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise _refused(f"cannot run pip: {error.strerror}", "install it") from error
    if done.returncode:
        said = text.sanitise(" ".join(done.stderr.decode("utf-8", "replace").split()), _TOLD_CHARACTERS)
        missing = re.search(r"No matching distribution found for (\S+)", said)
        if missing:
            name = missing[1].rstrip(";.,")
            found = f"there is no wheel of {name} that this Python takes; an sdist is not built, as that runs its code"
            raise _refused(
                found, f"build a wheel yourself, `pip wheel --no-deps {name}`, and name its hash (`pip hash`)"
            )
        raise _refused(f"pip could not fetch the packages: {said or 'it said nothing'}", _HASHES)


def _pip() -> list[str]:
    """The command of the author's pip: of this Python, or else of the first `python3`; Problem."""
    with contextlib.suppress(ImportError):
        import importlib.util

        if importlib.util.find_spec("pip") is not None:
            return [sys.executable, "-P", "-m", "pip"]  # not the pip.py of the directory that this is run in
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise _refused(
        "expected pip, found none", "install it (Debian: apt install python3-pip), or use a venv that has it"
    )


def _contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of what a wheel installs where Python imports from; Problem requirement_refused."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        with archive:
            if sum(entry.file_size for entry in archive.infolist()) > pack.MAX_BYTES:
                raise _refused(f"{name} has more than {pack.MAX_BYTES >> 20} MiB", "no artifact can hold it")
            for entry in archive.infolist():
                path = _place(name, entry.filename)
                if path is not None and not entry.is_dir():
                    if entry.compress_type not in _COMPRESSED:
                        raise _refused(f"{name} is compressed in a way that wheels are not", "fetch it again")
                    with archive.open(entry) as file:
                        # So much at most is unpacked, however much there is: ZipFile.read looks at the size afterwards.
                        yield path, file.read(entry.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise _refused(f"{name} is no wheel: {error}", "fetch it again") from error


def _place(wheel: str, path: str) -> str | None:
    """Where Python imports a wheel's file from; None for what is not imported. Problem for what cannot be."""
    parts = path.split("/")
    if path.endswith(_IN_C) or not wheel.endswith("-none-any.whl"):
        help_ = "a module in C cannot be imported from an artifact: take a package in Python alone, or a plugin in C"
        raise _refused(f"{wheel} is not pure Python", help_)
    if (
        {"", ".", ".."} & {*path.removesuffix("/").split("/")}
        or "\\" in path
        or any(text.is_control(one) for one in path)
    ):
        raise _refused(f"{wheel} has a file {text.sanitise(path, 80)}", "it is no wheel that pip would install")
    # NAME-VERSION.data/purelib is put beside the rest, its scripts and headers elsewhere (PEP 427).
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in {"purelib", "platlib"}:
            return None
        parts = parts[2:]
    if parts[0].endswith(".dist-info") and parts[-1] in {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}:
        return None
    if parts[0] == "latticed":
        found = f"{wheel} has {text.sanitise(path, 80)}, which would hide latticed.sdk of the host"
        raise _refused(found, "take a package without it")
    return None if "__pycache__" in parts or path.endswith(".pyc") else "/".join(parts)


def _refused(found: str, help_: str) -> Problem:
    """The Problem that names what is wrong with a requirement, and what to do."""
    return Problem(CODE, found, help_)

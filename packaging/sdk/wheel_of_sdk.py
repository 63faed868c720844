"""Builds the wheel latticed-sdk (PEP 517): `latticed/sdk` of this tree, in a directory that is put on Python's path.

`latticed.sdk` is a part of the distribution latticed, too. If both wheels had files of the same names, installing one
would overwrite, and removing it delete, what the other has. So this one has them below `latticed_sdk_only`, which
`latticed-sdk.pth` puts behind everything else on `sys.path` (site, Python's library): where latticed is installed, its
own SDK is found first, and elsewhere this one. It needs no setuptools, and makes the same bytes of the same tree.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
PLACE = "latticed_sdk_only"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: {summary}
License: MIT
Requires-Python: {python}
Classifier: Development Status :: 3 - Alpha
Classifier: Intended Audience :: Developers
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Python :: 3 :: Only
Classifier: Typing :: Typed
Description-Content-Type: text/markdown

{text}"""
_WHEEL = "Wheel-Version: 1.0\nGenerator: latticed\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    """Write the wheel into the directory, and return its name."""
    del config_settings, metadata_directory
    files = {f"{PLACE}/latticed/sdk/{path.name}": path.read_bytes() for path in sdk_files()}
    files["latticed-sdk.pth"] = f"{PLACE}\n".encode()
    return write_wheel(
        Path(wheel_directory),
        name="latticed-sdk",
        version=version(),
        summary="What plugins of latticed import, and a harness to test them without a daemon",
        python=">=3.9",
        files=files,
    )


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """There is none: what is here is the tree of latticed."""
    raise NotImplementedError("latticed-sdk is built as a wheel alone: python3 -m build --wheel")


def sdk_files() -> list[Path]:
    """The files of the SDK, sorted."""
    return sorted(
        path for path in (TREE / "latticed" / "sdk").iterdir() if path.suffix == ".py" or path.name == "py.typed"
    )


def version() -> str:
    """That of latticed."""
    found = configparser.ConfigParser()
    found.read(TREE / "setup.cfg")
    return found["metadata"]["version"]


def write_wheel(place: Path, *, name: str, version: str, summary: str, python: str, files: dict[str, bytes]) -> str:
    """Write a wheel of these files (PEP 427), which is the same for the same ones; its name."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = _METADATA.format(
        name=name,
        version=version,
        summary=summary,
        python=python,
        text=(HERE / "README.md").read_text(encoding="utf-8"),
    )
    whole = {
        **files,
        f"{stem}.dist-info/METADATA": about.encode(),
        f"{stem}.dist-info/WHEEL": _WHEEL.encode(),
        f"{stem}.dist-info/licenses/LICENSE": (TREE / "LICENSE").read_bytes(),
    }
    record = "".join(f"{path},sha256={_hash(data)},{len(data)}\n" for path, data in sorted(whole.items()))
    whole[f"{stem}.dist-info/RECORD"] = f"{record}{stem}.dist-info/RECORD,,\n".encode()
    with zipfile.ZipFile(place / f"{stem}-py3-none-any.whl", "w", zipfile.ZIP_STORED) as archive:
        for path, data in whole.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.create_system, entry.external_attr = 3, _MODE
            archive.writestr(entry, data)
    return f"{stem}-py3-none-any.whl"


def _hash(data: bytes) -> str:
    """As RECORD has it: base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

"""The published files of a plugin as a text, and the name of their copy: its SHA-256.

    acme/acme.site                                                       whose they are, as the daemon keeps them
    2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae  index.html

So the copy that a site is served from is named by what is in it, and is another one when a file is.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.model import ids, published

if TYPE_CHECKING:
    from latticed.system.nginx.intent import FileSet

_LINE: Final = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._/-]+)")


@dataclass(frozen=True, slots=True)
class Listed:
    """What to copy: `files` are (path, SHA-256) below the two parts of `owner`; `digest` names the copy."""

    owner: tuple[str, str]
    files: tuple[tuple[str, str], ...]
    digest: str


def text(one: FileSet) -> str:
    """A set as a text, ASCII."""
    lines = [published.directory(one.publisher, one.plugin), *(f"{digest}  {path}" for path, digest in one.files)]
    return "".join(f"{line}\n" for line in lines)


def digest(listing: str) -> str:
    return hashlib.sha256(listing.encode("ascii")).hexdigest()


def read(listing: str) -> Listed:
    """What `text` wrote; ValueError for anything else."""
    owner, *lines = listing.splitlines()
    publisher, _, plugin = owner.partition("/")
    found = [_LINE.fullmatch(line) for line in lines]
    files = [(one[2], one[1]) for one in found if one is not None and published.path_fault(one[2]) is None]
    sound = ids.is_valid(plugin) and (publisher == published.UNSIGNED or ids.is_valid(publisher))
    if not sound or len(files) != len(lines) or not listing.endswith("\n"):
        raise ValueError("no listing of published files")
    return Listed((publisher, plugin), tuple(files), digest(listing))

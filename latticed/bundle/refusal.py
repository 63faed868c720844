"""What can be wrong with the two files of a bundle, in words, each with its verdict code (contracts §5)."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.model.errors import FaultError
from latticed.model.verdict import Code, Refused

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest

MANIFEST: Final = "manifest.json"
ARTIFACT: Final = "artifact"


class BundleRefused(FaultError):
    """Raised when a bundle cannot be read, decoded or trusted; `fault` is the verdict on it."""

    code: Code

    def __init__(self, code: Code, reason: str, hint: str = "", *, manifest: Manifest | None = None) -> None:
        super().__init__(code, reason, hint)
        self.fault = Refused(code, reason, hint, manifest)


class _Codes(Value, frozen=True, kw_only=True):
    """The verdict codes of one of the two files."""

    missing: Code
    not_regular: Code
    too_large: Code


_CODES: Final = {
    MANIFEST: _Codes(
        missing=Code.MANIFEST_MISSING, not_regular=Code.MANIFEST_NOT_REGULAR, too_large=Code.MANIFEST_TOO_LARGE
    ),
    ARTIFACT: _Codes(
        missing=Code.ARTIFACT_MISSING, not_regular=Code.ARTIFACT_NOT_REGULAR, too_large=Code.ARTIFACT_TOO_LARGE
    ),
}


def missing(name: str) -> BundleRefused:
    """The refusal when one of the two files is not there."""
    return BundleRefused(
        _CODES[name].missing,
        f"expected a file {name} in the bundle, found none",
        "a bundle is a directory with the two files manifest.json and artifact",
    )


def foreign_owner(name: str, owners: frozenset[int], found: int) -> BundleRefused:
    """The refusal of a file that belongs to uid `found`, not to one of `owners`."""
    expected = " or ".join(map(str, sorted(owners)))
    return BundleRefused(
        Code.FOREIGN_OWNER,
        f"expected {name} to belong to uid {expected}, found uid {found}",
        "chown the file to root, to the daemon's user or to the plugin directory's owner",
    )


def changed(name: str) -> BundleRefused:
    """The refusal when a file was written to, or replaced, while it was read."""
    return BundleRefused(
        Code.CHANGED_WHILE_READING,
        f"expected {name} to stay as it was, found it changed while it was read",
        "copy bundles under a name starting with a dot and rename them; the next scan tries again",
    )


def too_slow(name: str, deadline_s: float) -> BundleRefused:
    """The refusal when the deadline passed before all was read."""
    return BundleRefused(
        Code.UNREADABLE,
        f"expected to read the bundle within {deadline_s:g} s, found {name} still being read",
        "the disk is too slow or the machine overloaded; the next scan tries again",
    )


def unreadable(name: str, error: OSError) -> BundleRefused:
    """The refusal when the system did not let the file be read; names errno only, never a path."""
    return BundleRefused(
        Code.UNREADABLE,
        f"expected to read {name}, found: {os.strerror(error.errno or errno.EIO)}",
        "check permissions and the disk: the daemon's user must be able to read both files",
    )


def not_regular(name: str, mode: int) -> BundleRefused:
    """The refusal of anything but a regular file; `mode` is st_mode."""
    return BundleRefused(
        _CODES[name].not_regular,
        f"expected {name} to be a regular file, found {_kind(mode)}",
        "put the file itself there; links, pipes, devices and directories are not followed or opened",
    )


def _kind(mode: int) -> str:
    """The kind of a file (`st_mode`) in words, such as `a FIFO`."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device",
    }
    return kinds.get(stat.S_IFMT(mode), "another kind of file")


def too_large(name: str, limit: int, found: int) -> BundleRefused:
    """The refusal of a file of `found` bytes where `limit` are allowed."""
    return BundleRefused(
        _CODES[name].too_large,
        f"expected {name} to be at most {limit} bytes, found {found}",
        f"make it smaller, or raise the limit for {name} in the settings",
    )

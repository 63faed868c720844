"""The plugins that latticed brings itself, as they were when it was started: verdicts by name, pairs by identity.

The manifest of such a pair is the package's manifest.json with version, publisher and digest put in; in place of an
artifact it has the list of the package's files, as sha256sum(1) prints it (contracts §3). So its identity is made as
that of a bundle, and covers manifest and files.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.bundle import decode, refusal
from latticed.bundle.read import BundleDirectory, ReadLimits
from latticed.bundle.refusal import BundleRefused
from latticed.kit import files, strict_json
from latticed.kit.value import Value
from latticed.model import ids
from latticed.model.verdict import Code
from latticed.system import builtin as packages
from latticed.trust import payload, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from latticed.model.verdict import Verdict
    from latticed.system.builtin import Builtin
    from latticed.system.plugin import SystemPlugin
    from latticed.trust.policy import TrustPolicy

LABEL: Final = "system"
"""What the names of built-ins begin with, as those of bundles do with the label of their directory."""
_PUT_IN: Final = ("version", "publisher", "digest_sha256", "signature_ed25519")
_CACHE: Final = b"__pycache__"  # made by Python, differs from one interpreter to the next


class BuiltinPair(BundleDirectory):
    """The pair of one built-in, read from its package at each call; blocks."""

    def __init__(self, builtin: Builtin, *, version: str) -> None:
        super().__init__(-1, limits=ReadLimits(), owners=frozenset())
        self._builtin = builtin
        self._version = version

    def manifest(self) -> bytes:
        """The manifest as JSON, or BundleRefused."""
        return self.manifest_with(self.hash_artifact()[0])

    def manifest_with(self, sha256: str) -> bytes:
        """As `manifest`, of a list of files whose SHA-256 is known."""
        path = self._builtin.folder / packages.MANIFEST
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise refusal.missing(packages.MANIFEST) from error
        except OSError as error:
            raise refusal.unreadable(packages.MANIFEST, error) from error
        return _completed(
            data, {"version": self._version, "publisher": ids.RESERVED_PUBLISHER, "digest_sha256": sha256}
        )

    def hash_artifact(self, buffer: bytearray | None = None, *, copy_to: int | None = None) -> tuple[str, int]:
        """SHA-256 and size of the list of files as they are now."""
        del buffer
        listed = listing(self._builtin.folder)
        if copy_to is not None:
            files.write_all(copy_to, listed)
        return hashlib.sha256(listed).hexdigest(), len(listed)

    def copy_artifact(self, copy_to: int) -> int:
        return self.hash_artifact(copy_to=copy_to)[1]


def listing(folder: Path) -> bytes:
    """`<SHA-256>  <name>` and a newline for each file below `folder`, sorted by name; BundleRefused when unreadable.

    Names are relative, with `/`; what Python caches is left out.
    """
    top = os.fsencode(folder)
    try:
        found = {name: _sha256(os.path.join(top, name)) for name in _names(top)}
    except OSError as error:
        raise refusal.unreadable("the files of a built-in plugin", error) from error
    return b"".join(b"%s  %s\n" % (found[name].encode(), name) for name in sorted(found))


def _sha256(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _names(folder: bytes) -> Iterator[bytes]:
    """The files below `folder`, relative to it."""
    # Not pathlib, at each start: it took twice as long as reading and hashing the files.
    for place, folders, names in os.walk(folder):
        if _CACHE in folders:
            folders.remove(_CACHE)
        for path in (os.path.join(place, name) for name in names):
            if os.path.isfile(path):
                yield path[len(folder) + 1 :]


def _completed(data: bytes, own: dict[str, str]) -> bytes:
    try:
        raw: Any = strict_json.loads(data, integers_only=True)
    except strict_json.InvalidJson:
        return data  # refused when it is decoded
    if not isinstance(raw, dict):
        return data
    if stated := [name for name in _PUT_IN if name in raw]:
        reason = f"expected a built-in plugin's manifest without what latticed puts in, found {', '.join(stated)}"
        raise BundleRefused(Code.MANIFEST_INVALID, reason, "take it out of manifest.json")
    return json.dumps({**raw, **own}, ensure_ascii=False).encode()


class _Found(Value, frozen=True, kw_only=True):
    """One built-in as it was read at the start; a `verify.Source`. `refused`: why its pair could not be read."""

    builtin: Builtin
    data: bytes = b""
    listed: tuple[str, int] = ("", 0)
    plugin_id: str = ""
    identity: str = ""
    refused: BundleRefused | None = None
    interpreter: str = ""

    @classmethod
    def read(cls, builtin: Builtin, version: str) -> Self:
        pair = BuiltinPair(builtin, version=version)
        try:
            listed = pair.hash_artifact()
            data = pair.manifest_with(listed[0])
            raw, manifest = decode.decode(data, builtin=True)
        except BundleRefused as refused:
            return cls(builtin=builtin, refused=refused)
        identity = payload.identity(payload.signing_payload(raw, manifest))
        return cls(
            builtin=builtin,
            data=data,
            listed=listed,
            plugin_id=manifest.id,
            identity=identity,
        )

    def manifest(self) -> bytes:
        if self.refused is not None:
            raise self.refused
        return self.data

    def hash_artifact(self) -> tuple[str, int]:
        return self.listed


class Builtins:
    """The built-in plugins of a latticed of `version`, as read when this is made; blocks.

    ValueError when two have the same id or folder name.
    """

    def __init__(self, builtins: Iterable[Builtin] = (), *, version: str = "") -> None:
        self._version = version
        self._found: dict[str, _Found] = {}
        for builtin in builtins:
            name, one = builtin.folder.name, _Found.read(builtin, version)
            if name in self._found or (one.plugin_id and one.plugin_id in self._by_id()):
                raise ValueError(f"expected each built-in plugin once, found {one.plugin_id or name} again")
            self._found[name] = one
        self._identities = {one.identity: one for one in self._found.values() if one.identity}

    def verdicts(self, policy: Callable[[], TrustPolicy]) -> Iterator[tuple[str, Verdict]]:
        """The verdict on each, by folder name; `policy` is called for each, as by the judge of bundles."""
        return ((name, self._judged(one, policy())) for name, one in self._found.items())

    def verify(self, identity: str, policy: TrustPolicy) -> Verdict | None:
        """The verdict on the built-in of this identity; None when it is none."""
        found = self._identities.get(identity)
        return None if found is None else self._judged(found, policy)

    def pair(self, identity: str) -> BuiltinPair | None:
        """The pair of this identity; None when it is no built-in's."""
        found = self._identities.get(identity)
        return None if found is None else BuiltinPair(found.builtin, version=self._version)

    def identities(self) -> list[str]:
        """The identities of those that could be read."""
        return list(self._identities)

    def identity_of(self, plugin_id: str) -> str:
        """The identity that this latticed brings under an id; empty for an id that it does not bring."""
        found = self._by_id().get(plugin_id)
        return found.identity if found is not None else ""

    def load(self, plugin_id: str) -> type[SystemPlugin]:
        """The class of a built-in, whose code is imported: blocks, may raise anything. KeyError for an unknown id."""
        return self._by_id()[plugin_id].builtin.load()

    def _by_id(self) -> dict[str, _Found]:
        return {one.plugin_id: one for one in self._found.values() if one.plugin_id}

    def _judged(self, found: _Found, policy: TrustPolicy) -> Verdict:
        return verify.verify_builtin(found, policy, host_version=self._version)

"""TUF repositories with real signatures, made with python-tuf's own classes: no code of latticed.

repository = tuf_repositories.Repository()
repository.put("plugins.json", data)
repository.publish()
repository.files["metadata/timestamp.json"], repository.root  # what a server has, and what an operator pins
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

ROLES = ("root", "timestamp", "snapshot", "targets")
DAY_S = 86_400


def signer() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


# Once for all repositories of a run: what tells them apart is what they say.
KEYS = {name: signer() for name in ROLES}
OTHER = signer()


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


@dataclass
class Repository:
    """What its server has in `files` by path; `signers` sign a role the next time, `holds_s` is how long each role
    holds from `now` on.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    signers: dict[str, list[CryptoSigner]] = field(default_factory=lambda: {name: [KEYS[name]] for name in ROLES})
    holds_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 10 * DAY_S))
    now: float | None = None
    targets: Targets = field(default_factory=Targets)
    delegated: dict[str, tuple[Targets, CryptoSigner]] = field(default_factory=dict)
    prefix: str = ""

    def __post_init__(self) -> None:
        self.top = Root(consistent_snapshot=True)
        self.snapshot = Snapshot()
        self.timestamp = Timestamp()
        for role in ROLES:
            for one in self.signers[role]:
                self.top.add_key(one.public_key, role)
        self.targets.version = 0
        self.snapshot.version = self.timestamp.version = 0
        self.root = self.new_root(bump=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Repository:
        """Another repository that goes on from here; its keys are the same objects, as not all versions of them can be
        copied.
        """
        other = copy.copy(self)
        for name, value in vars(self).items():
            if name == "delegated":
                other.delegated = {role: (copy.deepcopy(signed), key) for role, (signed, key) in value.items()}
            elif name == "signers":
                other.signers = {role: list(keys) for role, keys in value.items()}
            else:
                setattr(other, name, copy.deepcopy(value, memo))
        return other

    def write(self, name: str, signed: Any, signers: list[CryptoSigner]) -> bytes:
        """Sign and serve one file of metadata."""
        made = Metadata(copy.deepcopy(signed))
        for number, one in enumerate(signers):
            made.sign(one, append=number > 0)
        data = made.to_bytes()
        self.files[f"{self.prefix}metadata/{name}"] = data
        return data

    def new_root(
        self,
        change: Callable[[Root], None] | None = None,
        *,
        signers: list[CryptoSigner] | None = None,
        bump: bool = True,
    ) -> bytes:
        """Serve the next root, after `change`, signed by those of before and after unless `signers` are given."""
        before = list(self.signers["root"])
        if bump:
            self.top.version += 1
        if change is not None:
            change(self.top)
        self.top.expires = self._until("root")
        both = {one.public_key.keyid: one for one in (*before, *self.signers["root"])}
        return self.write(
            f"{self.top.version}.root.json", self.top, list(both.values()) if signers is None else signers
        )

    def rotate(self, role: str, *fresh: CryptoSigner, threshold: int = 1, **fields: Any) -> bytes:
        """The next root, in which `fresh` keys sign `role` in place of all that did."""

        def change(root: Root) -> None:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            for one in fresh:
                root.add_key(one.public_key, role)
            root.roles[role].threshold = threshold

        before = list(self.signers["root"])
        self.signers[role] = list(fresh)
        if role == "root" and "signers" not in fields:
            fields["signers"] = [*before, *fresh]
        return self.new_root(change, **fields)

    def put(self, path: str, data: bytes) -> str:
        """Have `data` be a target; the path below the server's root that it is served at."""
        described = TargetFile.from_data(path, data, ["sha256"])
        self._role_of(path).targets[path] = described
        served = f"{self.prefix}targets/{described.get_prefixed_paths()[0]}"
        self.files[served] = data
        return served

    def delegate(self, role: str, pattern: str, key: CryptoSigner) -> None:
        """Have `key` sign targets of this pattern from now on."""
        if self.targets.delegations is None:
            self.targets.delegations = Delegations(keys={}, roles={})
        made = DelegatedRole(role, [], 1, True, paths=[pattern])
        self.targets.delegations.roles[role] = made
        self.targets.add_key(key.public_key, role)
        signed = Targets()
        signed.version = 0
        self.delegated[role] = (signed, key)

    def publish(self) -> None:
        """Sign and serve targets, snapshot and timestamp, each of the next version."""
        meta = {}
        for role, (signed, key) in self.delegated.items():
            signed.version += 1
            signed.expires = self._until("targets")
            data = self.write(f"{signed.version}.{role}.json", signed, [key])
            meta[f"{role}.json"] = MetaFile.from_data(signed.version, data, ["sha256"])
        self.targets.version += 1
        self.targets.expires = self._until("targets")
        data = self.write(f"{self.targets.version}.targets.json", self.targets, self.signers["targets"])
        self.snapshot.meta = {"targets.json": MetaFile.from_data(self.targets.version, data, ["sha256"]), **meta}
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        """Sign and serve snapshot and timestamp."""
        self.snapshot.version += 1
        self.snapshot.expires = self._until("snapshot")
        data = self.write(f"{self.snapshot.version}.snapshot.json", self.snapshot, self.signers["snapshot"])
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        """Sign and serve the timestamp."""
        self.timestamp.version += 1
        self.timestamp.expires = self._until("timestamp")
        self.write("timestamp.json", self.timestamp, self.signers["timestamp"])

    def _until(self, role: str) -> datetime:
        return moment((time.time() if self.now is None else self.now) + self.holds_s[role])

    def _role_of(self, path: str) -> Targets:
        if self.targets.delegations is not None:
            for name, role in self.targets.delegations.roles.items():
                if role.is_delegated_path(path):
                    return self.delegated[name][0]
        return self.targets

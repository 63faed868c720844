"""The controller's settings: /etc/latticed/controller.toml, which nobody but root and its own user may change.

    fleet = "home"
    controller = "c1"
    operators = ["MCowBQ…"]                                    # public keys, base64: whose signatures count

    [engine]
    servers = ["tls://fleet.example.org:4222"]

Beside it, in /etc/latticed-controller, are the files that `latticectl fleet init` makes for each controller: its key,
credentials, the servers' authority, and what signs nodes' credentials. They are root's alone: the service manager hands
them over, these settings too (systemd.exec(5), LoadCredential=).
"""

from __future__ import annotations

import grp
import os
import pwd
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import documents
from latticed.fleet.rollout import WAVES, GatePolicy
from latticed.kit import trusted_files
from latticed.kit.peers import NOBODY, Peer
from latticed.model.errors import Problem
from latticed.trust import keys

DEFAULT: Final = Path("/etc/latticed/controller.toml")
FILES: Final = "/etc/latticed-controller"
BESIDE: Final = Path(f"{FILES}/controller.toml")
"""Where it is read when there is none at `DEFAULT`."""
_BYTES: Final = 256 << 10
_SETTINGS: Final = "man latticed-controller says what may be there; then: systemctl restart latticed-controller"
_SERVER: Final = r"^tls://[A-Za-z0-9.:\[\]-]{1,255}\Z"
_Path = Annotated[str, Meta(pattern=r"^/[^\x00]{0,1023}\Z")]
_Words = Annotated[tuple[Literal["read", "operate"], ...], Meta(max_length=2)]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown keys are refused."""


class EngineSettings(_Section, frozen=True, kw_only=True):
    """`[engine]`: the message system."""

    servers: Annotated[tuple[Annotated[str, Meta(pattern=_SERVER)], ...], Meta(min_length=1, max_length=16)]
    """One of these is tried at each connection."""
    ca: _Path = f"{FILES}/ca.pem"
    """The authority of the servers' certificates; no other one counts."""
    credentials: _Path = f"{FILES}/nats.creds"
    """What it connects with; read at each connection."""
    revoking: _Path = f"{FILES}/revoking.creds"
    """By which nodes that are revoked are cut off at once: it may hand tokens of accounts to the servers and nothing
    else. Where there is none, a revoked node stays connected until its credentials end."""
    provide: bool = True
    """Make the streams that are not there; off where somebody else does."""
    replicas: Literal[1, 3] = 1
    """Servers that keep each stream: 3 in a cluster of three."""
    nodes: Annotated[int, Meta(ge=1, le=100_000)] = 1_000
    """For how many nodes there is to be space."""
    bundles_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 44)] = 4 << 30
    """Most space that bundles take, in the engine and here."""


class GateSettings(_Section, frozen=True, kw_only=True):
    """`[rollout]`: what a rollout has that is begun without saying otherwise."""

    sizes: Annotated[tuple[Annotated[int, Meta(ge=1, le=1_000_000)], ...], Meta(min_length=1, max_length=64)] = WAVES
    """Nodes of each wave; the last size again for those that are left."""
    unwell_share: Annotated[float, Meta(ge=0, le=1)] = 0.02
    """More than this share of the nodes that were touched are not well: back."""
    away_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """More than this share of a wave is away: the gate stays shut."""
    settle_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """A node is well once it has been so for this long."""
    patience_s: Annotated[float, Meta(ge=1, le=604_800)] = 900.0
    """How long a node that is there may take until it has the release."""
    denials_per_minute: Annotated[float, Meta(ge=0, le=1e9)] = 60.0
    """More refused calls of a node's plugins in a minute, and it is not well."""
    restarts: Annotated[int, Meta(ge=0, le=1_000_000)] = 2
    """More restarts since a node has the release, and it is not well."""

    @property
    def policy(self) -> GatePolicy:
        """As rollouts have it."""
        return GatePolicy(
            unwell_share=self.unwell_share,
            away_share=self.away_share,
            settle_s=self.settle_s,
            patience_s=self.patience_s,
            denials_per_minute=self.denials_per_minute,
            restarts=self.restarts,
        )


class ApiAccess(_Section, frozen=True, kw_only=True):
    """`[access]`: who may ask what on the controller's socket, besides root and its own user, who may ask everything.

    `read` shows; `operate` gives releases to nodes, takes documents and bundles, and has actions carried out.
    """

    users: dict[str, _Words] = {}
    """By name, or by number."""
    groups: dict[str, _Words] = {}
    socket_group: Annotated[str, Meta(max_length=64)] = ""
    """Of the socket's file: who is not in it cannot connect. Empty: the controller's own."""


class EnrolmentSettings(_Section, frozen=True, kw_only=True):
    """`[enrolment]`: what this controller needs to let hosts join, and renew their credentials; empty: another does."""

    node_signer: Annotated[str, Meta(max_length=1024)] = ""
    """File with the seed of the signing key of the account NODES (SA…)."""
    account: Annotated[str, Meta(pattern=r"^(A[A-Z2-7]{55})?\Z")] = ""
    """Public key of the account NODES."""
    credentials_s: Annotated[int, Meta(ge=3_600, le=366 * 86_400)] = 14 * 86_400
    """How long a node's credentials last."""


class ControllerSettings(_Section, frozen=True, kw_only=True):
    """All of them."""

    fleet: documents.Name
    """The fleet's name: documents of others do not count."""
    controller: documents.Name
    """This controller's name, which its certificate has."""
    operators: Annotated[tuple[documents.Key, ...], Meta(min_length=1, max_length=8)]
    """Public keys of the operators whose documents are taken."""
    engine: EngineSettings
    key: _Path = f"{FILES}/key"
    """Signs assignments. Where there is none, one is made in the state directory."""
    certificate: _Path = f"{FILES}/certificate.json"
    """The operator's certificate for that key, looked at each minute; what the service manager hands over is of its
    start. Where there is none it is sent (`latticectl fleet send`)."""
    state_dir: _Path = "/var/lib/latticed-controller"
    """Database, key and bundles."""
    runtime_dir: _Path = "/run/latticed-controller"
    """Where the socket is."""
    backup_dir: Annotated[str, Meta(pattern=r"^(/[^\x00]{0,1023})?\Z")] = ""
    """Where backups are written; empty: beneath the state directory."""
    assignment_s: Annotated[int, Meta(ge=3_600, le=366 * 86_400)] = 7 * 86_400
    """How long a node may take up what it is assigned; renewed while it has not."""
    keep_s: Annotated[int, Meta(ge=3_600, le=3_660 * 86_400)] = 90 * 86_400
    """How long what is over is kept: rollouts, invitations that have expired, bundles that no intent needs any more."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is written to the log from: debug, info, warning or error."""
    rollout: GateSettings = GateSettings()
    access: ApiAccess = ApiAccess()
    enrolment: EnrolmentSettings = EnrolmentSettings()

    @property
    def socket(self) -> Path:
        """The control socket's path."""
        return Path(self.runtime_dir) / "control.sock"

    @property
    def bundles(self) -> Path:
        """The directory of bundles' files."""
        return Path(self.state_dir) / "bundles"

    @property
    def backups(self) -> Path:
        """The directory of backups."""
        return Path(self.backup_dir or f"{self.state_dir}/backups")


class Peers(Struct, frozen=True, kw_only=True):
    """`[access]` by number. Root and the controller's own user have all."""

    own: int
    users: dict[int, frozenset[str]]
    groups: dict[int, frozenset[str]]

    def words(self, peer: Peer) -> frozenset[str]:
        """What a peer may: `read`, `operate`, which includes it, or nothing."""
        if peer.uid == NOBODY:
            return frozenset()
        if peer.uid in {0, self.own}:
            return frozenset({"read", "operate"})
        found = self.users.get(peer.uid, frozenset())
        for gid in {peer.gid, *peer.groups}:
            found |= self.groups.get(gid, frozenset())
        return found | {"read"} if "operate" in found else found


def place(named: Path | None) -> Path:
    """The settings file: the one that is named, or the first that there is. Blocks."""
    if named is not None:
        return named
    beside = secret(str(BESIDE))
    return beside if is_there(beside) and not is_there(DEFAULT) else DEFAULT


def is_there(path: Path) -> bool:
    """Whether there is a file that this process can get at. Blocks."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def secret(path: str) -> Path:
    """Where a file of root's directory is: at its own path, or handed over by the service manager with all of that
    directory (`LoadCredential=fleet:/etc/latticed-controller`). Blocks.
    """
    given, own = os.environ.get("CREDENTIALS_DIRECTORY"), Path(path)
    handed = Path(given) / f"fleet_{own.name}" if given and own.parent == Path(FILES) else None
    return handed if handed is not None and is_there(handed) else own


def read(path: Path) -> ControllerSettings:
    """The settings in the file `path`; Problem settings_invalid."""
    try:
        data = trusted_files.read(path, _BYTES, owners=frozenset({0, os.geteuid()}))
        found = msgspec.convert(tomllib.loads(data.decode()), ControllerSettings)
        for key in found.operators:
            if keys.encode_base64(keys.decode_base64(key, size=keys.KEY_BYTES)) != key:
                raise ValueError(f"operators: expected keys in base64 with their padding, found {key}")
    except (OSError, ValueError, trusted_files.ForeignFile) as error:  # of msgspec, tomllib and keys too
        raise Problem("settings_invalid", f"{path}: {error}", _SETTINGS) from error
    return found


def resolved(access: ApiAccess) -> Peers:
    """`[access]` by number; Problem settings_invalid for a name that this host does not know. Blocks."""
    return Peers(
        own=os.geteuid(),
        users={_uid(name): frozenset(words) for name, words in access.users.items()},
        groups={gid(name): frozenset(words) for name, words in access.groups.items()},
    )


def gid(name: str) -> int:
    """The number of a group; -1 for none named. Problem settings_invalid. Blocks."""
    if not name:
        return -1
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        reason = f"[access]: expected a group of this host, found {name!r}"
        raise Problem("settings_invalid", reason, "getent group shows them") from error


def _uid(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError as error:
        reason = f"[access]: expected a user of this host, found {name!r}"
        raise Problem("settings_invalid", reason, "getent passwd shows them") from error

"""Where the agent of a host finds and keeps things, and its settings.

All in /etc/latticed/fleet.toml has a default:

socket = "/run/latticed/control.sock"    # the daemon's
servers = ["tls://other.example.org:4222"]    # in place of those of the invitation
spool_mib = 512
bundle_mib = 66
reconcile_s = 60
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import documents
from latticed.kit import trusted_files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.fleet.documents import EnrolmentToken

SETTINGS: Final = Path("/etc/latticed/fleet.toml")
PINNED: Final = Path("/etc/latticed/fleet/token")
"""The token that this host joined by: root's alone to change. The unit starts only when it is there."""
STATE: Final = Path("/var/lib/latticed-fleet")
USER: Final = "latticed-fleet"
CONTROL: Final = "/run/latticed/control.sock"
_ROOT: Final = frozenset({0})
_ANEW: Final = "remove it; then latticed-fleet join, with another invitation, writes it anew"
_FILE_BYTES: Final = 64 << 10
_HOST: Final = r"^[A-Za-z0-9.:\[\]-]{1,255}\Z"
_SERVER: Final = r"^tls://[A-Za-z0-9.:\[\]-]{1,255}\Z"


class AgentSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file has."""

    socket: Annotated[str, Meta(pattern=r"^/", max_length=107)] = CONTROL
    """The daemon's control socket."""
    daemon_user: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,31}\Z")] = "latticed"
    """Who serves that socket, by name or uid; nobody else but root is asked there."""
    servers: Annotated[tuple[Annotated[str, Meta(pattern=_SERVER)], ...], Meta(max_length=16)] = ()
    """Of the message system, in place of those of the invitation."""
    spool_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 512
    """Room for bundles until the daemon has taken them, for one for each `bundle_mib`: others wait."""
    bundle_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 66
    """Largest bundle, unless `spool_mib` is less: a little more than the daemon's largest manifest and artifact."""
    https_hosts: Annotated[tuple[Annotated[str, Meta(pattern=_HOST)], ...], Meta(max_length=16)] = ()
    """Servers that bundles may be fetched from, beside the message system."""
    reconcile_s: Annotated[float, Meta(ge=1, le=3_600)] = 60.0
    """Between two looks at the daemon while nothing new comes."""


class AgentState:
    """What lies where beneath the state's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = directory / "node"
        """Of the half without network: key, state, events (`kept_state`)."""
        self.link = directory / "link"
        """Of the half with the connection: its credentials."""
        self.spool = directory / "spool"
        """Bundles on their way: the daemon's `market.import_dir`."""
        self.credentials = self.link / "nats.creds"
        self.seed = self.link / "user.seed"
        """The key that the credentials are for, while they are asked for."""


def read(path: Path) -> AgentSettings:
    """The settings in a file that root alone may change; the defaults where there is none. Problem settings_invalid."""
    try:
        data = trusted_files.read(path, _FILE_BYTES, owners=_ROOT)
    except FileNotFoundError:
        return AgentSettings()
    except (OSError, ValueError, trusted_files.ForeignFile) as error:
        raise Problem("settings_invalid", f"{path}: {error}") from error
    try:
        return msgspec.convert(tomllib.loads(data.decode()), AgentSettings)
    except ValueError as error:  # of msgspec and tomllib too
        raise Problem("settings_invalid", f"{path}: {error}") from error


def pinned(path: Path) -> EnrolmentToken:
    """The token that this host joined by; Problem not_enrolled, fleet_state_invalid."""
    try:
        data = trusted_files.read(path, documents.MAX_BYTES, owners=_ROOT)
        signed = documents.read(data.strip(), documents.EnrolmentToken)
    except FileNotFoundError as error:
        hint = "the operator invites it by latticectl fleet enroll, then: latticed-fleet join INVITATION"
        raise Problem("not_enrolled", f"expected a host that is of a fleet, found no {path}", hint) from error
    except (OSError, ValueError, trusted_files.ForeignFile) as error:
        raise Problem("fleet_state_invalid", f"{path}: {error}", _ANEW) from error
    found: EnrolmentToken = signed.document
    if signed.key not in found.operators:
        reason = f"{path}: expected a token signed by one of the operators that it names"
        raise Problem("fleet_state_invalid", reason, _ANEW)
    return found

"""Status of plugins by operators' decisions, and the record of each (architecture, Lifecycle)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from latticed.model import ids

if TYPE_CHECKING:
    from latticed.model.accepted import Accepted


class Status(StrEnum):
    """What the operator decided (`verified`: nothing yet)."""

    VERIFIED = "verified"
    INSTALLED = "installed"
    ACTIVE = "active"
    DISABLED = "disabled"


TRANSITIONS: Final = MappingProxyType(
    {
        Status.VERIFIED: frozenset({Status.INSTALLED}),
        Status.INSTALLED: frozenset({Status.ACTIVE, Status.DISABLED}),
        Status.ACTIVE: frozenset({Status.DISABLED}),
        Status.DISABLED: frozenset({Status.ACTIVE}),
    }
)
"""The only transitions there are (architecture, Lifecycle); a test holds them to that table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFacts:
    """What the manifest of a verified bundle states, kept in the record after the bundle is gone.

    `identity` is the SHA-256 of the signing payload, `artifact_sha256` lowercase hex, `manifest` the manifest
    as JSON once the plugin is accepted: until then the record follows the disk, and it is empty. `interpreter` is what
    a system plugin's artifact is run by (`model.accepted.interpreter_of`), empty while that is not known.
    """

    name: str
    type: str
    version: str
    publisher: str
    signed: bool
    capabilities: tuple[str, ...]
    identity: str
    artifact_sha256: str
    manifest: bytes
    interpreter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known and decided of one plugin id. Times are whole microseconds since the epoch, 0 for never.

    `source` is the bundle's key in the catalog (`<label>/<directory name>`), `masked` the declared capabilities that
    the operator has not granted, `unasked` those of them that an upgrade asked for and nobody has answered, `permits`
    what else it may (`model.permits`), `terms` what else was accepted of its manifest (None: nothing yet, so an install
    accepts it whole), `floor` the highest version ever accepted, `forgotten` a tombstone: only the pin and the floor
    count.
    """

    id: str
    status: Status
    facts: RecordFacts
    source: str
    masked: frozenset[str] = frozenset()
    unasked: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()
    permits: tuple[str, ...] = ()
    terms: Accepted | None = None
    floor: str = ""
    forgotten: bool = False
    verified_at: int = 0
    installed_at: int = 0
    activated_at: int = 0
    disabled_at: int = 0
    created_at: int = 0
    updated_at: int = 0

    @property
    def builtin(self) -> bool:
        """Whether it is a plugin that latticed itself brings: no directory can claim such an id (contracts §2)."""
        return ids.is_reserved_plugin(self.id)

    @property
    def granted(self) -> tuple[str, ...]:
        """The granted capabilities: declared and not masked."""
        return tuple(c for c in self.facts.capabilities if c not in self.masked)

    @property
    def accepted(self) -> bool:
        """Whether an operator has ever installed this plugin; its facts are then those that were accepted."""
        return self.status is not Status.VERIFIED

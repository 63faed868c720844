"""What an intent is checked and rendered against besides itself: where nginx lives on this host, and what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Address
    from latticed.system.nginx.intent import Own

CERTIFICATE_ROOTS: Final = ("/etc/letsencrypt", "/etc/ssl", "/etc/latticed/certificates", "/var/lib/acme")
FILE_ROOTS: Final = ("/srv", "/var/www")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where our nginx has its files, and as whom its workers run.

    `own`: address and port of those of latticed's two HTTP listeners that there are. `certificates` and `files`:
    directories that certificates and keys, and files to be served, may lie below.
    """

    directory: str = "/var/lib/latticed-nginx"
    user: str = "www-data"
    own: Mapping[Own, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    certificates: tuple[str, ...] = CERTIFICATE_ROOTS
    files: tuple[str, ...] = FILE_ROOTS

    @property
    def published(self) -> str:
        """The directory that holds the files of plugins, by digest."""
        return f"{self.directory}/published"


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that something has bound; `0.0.0.0` and `::` for all addresses."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`addresses`: this host's. `taken`: listeners of others than our nginx. `ours`: those of latticed, all of them.

    `published`: digests that can be served.
    """

    addresses: tuple[Address, ...] = ()
    taken: tuple[Listener, ...] = ()
    ours: tuple[Listener, ...] = ()
    published: frozenset[str] = frozenset()

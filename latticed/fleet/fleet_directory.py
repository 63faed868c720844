"""The operator's directory of a fleet, as `latticectl fleet init` made it: what is known of it without a network.

`signed/` has a copy of everything that the operator signed there, so that generations and serials go on from it.
Functions block.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import deployment, documents
from latticed.fleet.documents import (
    ControllerCertificate,
    Intent,
    Malformed,
    NodeCertificate,
    Revocations,
    Signed,
    UserRevocations,
)
from latticed.fleet.signers import Identities, Signers
from latticed.kit import files, strict_json
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

SIGNED: Final = "signed"
IDENTITIES: Final = "secret/identities.json"
SIGNERS: Final = "secret/signers.json"
"""In place of the identities, where the message system has an operator of its own."""
REVOCATIONS: Final = "revocations.json"
"""The first list; those that follow it are `revocations-2.json` and so on."""
USERS: Final = "users.json"
_FILE_BYTES: Final = 64 << 10
_SIGNED_BYTES: Final = documents.MAX_BYTES


class FleetFacts(Struct, frozen=True, kw_only=True):
    """`fleet.json`. Operators' keys are base64, addresses `tls://HOST:PORT`."""

    fleet: documents.Name
    addresses: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    operators: Annotated[tuple[documents.Key, ...], Meta(min_length=1, max_length=8)]
    nodes: Annotated[int, Meta(ge=1)] = deployment.SIZES.nodes


@dataclass(frozen=True, slots=True)
class FleetDirectory:
    """A directory that was read; `facts` are those of its `fleet.json`."""

    path: Path
    facts: FleetFacts

    def authority(self) -> str:
        """PEM of the authority of the servers' certificates; Problem fleet_directory_invalid."""
        path = self.path / "ca.pem"
        found = _read(path).decode("ascii", "replace")
        if fault := authority_fault(found):
            raise _invalid(path, fault)
        return found

    def identities(self) -> Identities | None:
        """The message system's; None where it is somebody else's. Problem fleet_directory_invalid, key_invalid."""
        path = self.path / IDENTITIES
        return Identities.parse(_read(path)) if os.path.lexists(path) else None

    def signers(self) -> Signers:
        """What signs users of the accounts; Problem not_found, fleet_directory_invalid, key_invalid."""
        identities = self.identities()
        if identities is not None:
            return identities.signers
        return Signers.parse(_read(self.path / SIGNERS))

    def intents(self) -> list[Signed]:
        """Those that were signed here, in the order of their generations."""
        return sorted(self._signed("intent-*.json", Intent), key=lambda one: one.document.generation)

    def certificates(self) -> list[Signed]:
        """Of controllers, as they were signed here."""
        return self._signed("controller-*.json", ControllerCertificate)

    def node_certificates(self, node: str) -> list[Signed]:
        """Of the node of this name."""
        # `node-web-*` is also that of a node `web-1`.
        found = self._signed(f"node-{node}-*.json", NodeCertificate)
        return [one for one in found if one.document.node == node]

    def revocations(self) -> dict[str, Signed]:
        """The lists by the names of their files, in the order of their serials: all but the last are full."""
        found = self._found("revocations*.json", Revocations)
        return dict(sorted(found.items(), key=lambda one: int(one[1].document.serial)))

    def operators(self) -> tuple[str, ...]:
        """The keys of the fleet's operators who were not revoked here."""
        revoked = {key for one in self.revocations().values() for key in one.document.keys}
        return tuple(one for one in self.facts.operators if one not in revoked)

    def users(self) -> Signed | None:
        """The newest list of users of the message system who were revoked; None before the first."""
        found = self._signed(USERS, UserRevocations)
        return found[0] if found else None

    def keep(self, name: str, envelope: bytes) -> Path:
        """Keep what was signed as `signed/name`; Problem io_error."""
        place = self.path / SIGNED / name
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            files.replace(place, envelope + b"\n", mode=0o644)
        except OSError as error:
            raise Problem("io_error", f"cannot write {place}: {error.strerror}") from error
        return place

    def _signed(self, pattern: str, kind: type[documents.D]) -> list[Signed]:
        return list(self._found(pattern, kind).values())

    def _found(self, pattern: str, kind: type[documents.D]) -> dict[str, Signed]:
        """The documents in the files of these names, which an operator of the fleet signed; Problem."""
        found = {}
        for path in sorted((self.path / SIGNED).glob(pattern)):
            try:
                signed = documents.read(files.read_at_most(path, _SIGNED_BYTES).strip(), kind)
            except (Malformed, OSError, ValueError) as error:
                raise _invalid(path, str(error)) from error
            if signed.key not in self.facts.operators or signed.document.fleet != self.facts.fleet:
                raise _invalid(path, "a document of another operator or fleet")
            found[path.name] = signed
        return found


def authority_fault(pem: str) -> str:
    """What is wrong with the certificates of an authority, empty for nothing."""
    import ssl  # only where they are read

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError) as error:  # TypeError: not in ASCII
        return f"no certificates in PEM: {error}"
    return ""


def opened(path: Path) -> FleetDirectory:
    """The directory of a fleet; Problem not_found, fleet_directory_invalid."""
    data = _read(path / "fleet.json")
    try:
        facts = msgspec.convert(strict_json.loads(data), FleetFacts)
    except (strict_json.InvalidJson, msgspec.ValidationError) as error:
        raise _invalid(path / "fleet.json", str(error)) from error
    return FleetDirectory(path, facts)


def found_above(path: Path) -> FleetDirectory | None:
    """The fleet's directory that `path` lies in, or None."""
    for one in (path, *path.parents):
        with contextlib.suppress(OSError):
            if os.path.isfile(one / "fleet.json"):
                return opened(one)
    return None


def _read(path: Path) -> bytes:
    try:
        return files.read_at_most(path, _FILE_BYTES)
    except FileNotFoundError as error:
        hint = "latticectl fleet init makes the directory of a fleet; --fleet DIR names it"
        raise Problem("not_found", f"expected {path.name} of a fleet in {path.parent}, found none", hint) from error
    except (OSError, ValueError) as error:
        raise _invalid(path, str(error)) from error


def _invalid(path: Path, found: str) -> Problem:
    return Problem("fleet_directory_invalid", f"{path}: expected a file of a fleet's directory, found: {found[:300]}")

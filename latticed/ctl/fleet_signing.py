"""What the actions of `latticectl fleet` share that sign with the operator's key: the directory, the key, consent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latticed.ctl import author_key, signed_file
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import contextlib

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.ctl.arguments import Parser
    from latticed.ctl.session import CtlSession
    from latticed.fleet.fleet_directory import FleetDirectory


def add_arguments(parser: Parser) -> None:
    """The options of an action that signs."""
    parser.add_argument("--fleet", metavar="DIR", type=str, help="the fleet's directory (default: the one around here)")
    author_key.add_arguments(parser)


def directory(session: CtlSession) -> FleetDirectory:
    """The fleet's directory: of --fleet, or the one that the working directory lies in; Problem not_found."""
    from latticed.fleet import fleet_directory

    given = session.args.fleet
    if given is not None:
        return fleet_directory.opened(Path(given))
    found = fleet_directory.found_above(Path.cwd())
    if found is None:
        hint = "name it: --fleet DIR; latticectl fleet init makes one"
        raise Problem("not_found", "expected the directory of a fleet around here, found none", hint)
    return found


def alone(fleet: FleetDirectory) -> contextlib.AbstractContextManager[None]:
    """While no other latticectl signs in this directory: two intents would have one generation. Problem busy."""
    return signed_file.locked(fleet.path)


def operator_key(session: CtlSession, fleet: FleetDirectory) -> Ed25519PrivateKey:
    """The key of --key or --key-fd, which is an operator's of this fleet; Problem operator_unknown,
    operator_revoked.
    """
    from latticed.trust import key_files

    key = author_key.read(session.args)
    public = key_files.public_text(key)
    if public not in fleet.facts.operators:
        expected = f"expected a key of an operator of the fleet {fleet.facts.fleet}"
        hint = f"its operators: {', '.join(fleet.facts.operators)}"
        raise Problem("operator_unknown", f"{expected}, found {public}", hint)
    operators = fleet.operators()
    if public not in operators:
        hint = f"those who are not: {', '.join(operators) or 'none'}"
        raise Problem("operator_revoked", f"expected an operator who is not revoked, found {public}", hint)
    return key


def agreed(session: CtlSession, what: str) -> None:
    """Return if the operator agrees to sign: by --yes, or on the terminal; Problem not_agreed otherwise."""
    args, screen = session.args, session.screen
    if args.yes:
        return
    if screen.json_wanted or not sys.stdin.isatty():
        raise Problem("not_agreed", f"{what} was looked at and not signed", "add --yes to sign it")
    screen.flush()
    screen.err.write(f"sign {what}? [y/N] ")
    screen.err.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Problem("not_agreed", f"{what} was not signed")


def write(path: Path, data: bytes, *, secret: bool = False, new: bool = False) -> None:
    """Write what was made; Problem exists (`new`), io_error."""
    import os

    from latticed.kit import files

    if new and os.path.lexists(path):
        raise Problem("exists", f"expected no file at {path}, found one", "choose another name, or remove it")
    try:
        files.replace(path, data, mode=0o600 if secret else 0o644)
    except OSError as error:
        raise Problem("io_error", f"cannot write {path}: {error.strerror}") from error

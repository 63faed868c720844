"""latticectl fleet revoke: keys and documents that count no more, for good; offline."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from latticed.ctl import fleet_signing
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession
    from latticed.fleet.documents import Revocations
    from latticed.fleet.fleet_directory import FleetDirectory

EXAMPLES: Final = examples(
    "latticectl fleet revoke fS2hP0…= --key operator.key                 # a node's, controller's or operator's key",
    "latticectl fleet revoke 3f9c2a… --key operator.key                  # an intent or an invitation, by its SHA-256",
    "latticectl fleet revoke c1 --key operator.key                       # a controller that was certified here",
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MOST: Final = 1_000


def arguments(parser: Parser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="+",
        help="a public key (base64), the SHA-256 of an intent or invitation, or the name of a controller",
    )
    parser.add_argument("--yes", action="store_true", help="sign without asking")
    fleet_signing.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Sign a list with all that was revoked before and what is named now; nothing ever takes one back."""
    from latticed.fleet import documents, fleet_directory

    args, screen = session.args, session.screen
    fleet = fleet_signing.directory(session)
    with fleet_signing.alone(fleet):
        list_, added = _list(fleet, args.what)
        key = fleet_signing.operator_key(session, fleet)
        if not screen.json_wanted:
            for one in added:
                screen.line(f"revoked for good: {_named(fleet, one)}")
        fleet_signing.agreed(session, f"these revocations ({len(list_.keys) + len(list_.intents)} in all)")
        envelope = documents.sign(list_, key)
        place = fleet.keep(fleet_directory.REVOCATIONS, envelope)
    if screen.json_wanted:
        told = {"path": str(place), "serial": list_.serial, "added": added}
        screen.json({**told, "keys": list(list_.keys), "documents": list(list_.intents)})
        return ExitCode.OK
    screen.line(f"{place}: signed, serial {list_.serial}")
    screen.hint(f"hosts learn of it by a controller: latticectl fleet send {place}")
    epoch = max((one.document.epoch for one in fleet.certificates()), default=1)
    if any(one.document.controller_key in added for one in fleet.certificates()):
        screen.hint(
            f"certify the others anew, with epoch = {epoch + 1} in their request: it may have used up generations"
        )
    return ExitCode.OK


def _list(fleet: FleetDirectory, named: list[str]) -> tuple[Revocations, list[str]]:
    """The next list, and what is new in it; Problem usage, already_revoked, revocations_too_many."""
    from latticed.fleet import documents

    before = fleet.revocations()
    keys = list(before.document.keys) if before else []
    documents_ = list(before.document.intents) if before else []
    added = []
    for one in named:
        value = _value(fleet, one)
        place = documents_ if _SHA256.fullmatch(value) else keys
        if value not in place:
            place.append(value)
            added.append(value)
    if not added:
        raise Problem("already_revoked", f"expected something that counts still, found {', '.join(named)[:200]}")
    if len(keys) > _MOST or len(documents_) > _MOST:
        raise Problem("revocations_too_many", f"expected at most {_MOST} keys and {_MOST} documents in all, found more")
    serial = before.document.serial + 1 if before else 1
    made = documents.Revocations(fleet=fleet.facts.fleet, serial=serial, keys=tuple(keys), intents=tuple(documents_))
    return made, added


def _value(fleet: FleetDirectory, given: str) -> str:
    """The key or SHA-256 that is meant; Problem usage."""
    from latticed.trust import policy

    if _SHA256.fullmatch(given):
        return given
    known = {one.document.controller: one.document.controller_key for one in fleet.certificates()}
    if given in known:
        return str(known[given])
    try:
        return policy.public_key(given, "WHAT")
    except Problem as problem:
        hint = "latticectl fleet node NAME shows a node's key; latticectl fleet status that of the controller"
        expected = "expected a public key, a SHA-256, or the name of a controller that was certified here"
        raise Problem("usage", f"{expected}, found {given[:80]!r}", hint) from problem


def _named(fleet: FleetDirectory, value: str) -> str:
    """What is revoked, in words, as far as it is known here."""
    for certificate in fleet.certificates():
        if certificate.document.controller_key == value:
            return f"{value}, the controller {certificate.document.controller}"
    for intent in fleet.intents():
        if intent.sha256 == value:
            return f"{value}, the intent {intent.document.generation}"
    return f"{value}, an operator's key" if value in fleet.facts.operators else value

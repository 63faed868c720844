"""latticectl fleet revoke: keys and documents that count no more, for good; offline."""

from __future__ import annotations

import itertools
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_signing
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession
    from latticed.fleet.documents import FleetDocument, Revocations
    from latticed.fleet.fleet_directory import FleetDirectory

EXAMPLES: Final = examples(
    "latticectl fleet node web-3 --format json > web-3.json",
    "latticectl fleet revoke web-3.json --key operator.key               # that host: its keys, and its connection",
    "latticectl fleet revoke fS2hP0…= --key operator.key                 # a node's, controller's or operator's key",
    "latticectl fleet revoke 3f9c2a… --key operator.key                  # an intent or an invitation, by its SHA-256",
    "latticectl fleet revoke c1 --key operator.key                       # a controller that was certified here",
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_USER: Final = re.compile(r"U[A-Z2-7]{55}")
_MOST_USERS: Final = 1_000
_NODE_BYTES: Final = 4 << 20


@dataclass(slots=True)
class RevokedNames:
    """All that is revoked, as lists have it, and what of it is `added` now."""

    keys: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def add(self, value: str) -> None:
        """Revoke what is meant by `value`, unless it is revoked already."""
        place = self.documents if _SHA256.fullmatch(value) else self.users if _USER.fullmatch(value) else self.keys
        if value not in place:
            place.append(value)
            self.added.append(value)


def arguments(parser: Parser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="+",
        help="a file that latticectl fleet node NODE --format json wrote; a public key (base64), a user of the message "
        "system (U…), the SHA-256 of an intent or invitation, or the name of a controller",
    )
    parser.add_argument("--yes", action="store_true", help="sign without asking")
    fleet_signing.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Sign what is named now into the lists of what was revoked before; nothing ever takes one back."""
    args, screen = session.args, session.screen
    fleet = fleet_signing.directory(session)
    with fleet_signing.alone(fleet):
        names = _names(fleet, args.what)
        made = _lists(fleet, names)
        key = fleet_signing.operator_key(session, fleet)
        if not screen.json_wanted:
            for one in names.added:
                screen.line(f"revoked for good: {_named(fleet, one)}")
        total = len(names.keys) + len(names.documents) + len(names.users)
        fleet_signing.agreed(session, f"these revocations ({total} in all)")
        places = [str(fleet.keep(name, _envelope(document, key))) for name, document in made.items()]
    _tell(session, fleet, names, places, made)
    return ExitCode.OK


def _tell(
    session: CtlSession, fleet: FleetDirectory, names: RevokedNames, places: list[str], made: dict[str, Any]
) -> None:
    screen = session.screen
    own = fleet.identities() is not None
    if screen.json_wanted:
        told: dict[str, Any] = {"paths": places, "added": names.added, "keys": names.keys}
        screen.json({**told, "documents": names.documents, "users": names.users})
        return
    for place, document in zip(places, made.values(), strict=True):
        screen.line(f"{place}: signed, serial {document.serial}")
    if places:
        screen.hint(f"hosts learn of it by a controller: latticectl fleet send {' '.join(places)}")
    users = [one for one in names.added if _USER.fullmatch(one)]
    if users and not own:
        screen.hint(f"have your servers revoke these users of the account NODES: {' '.join(users)}")
    certified = {one.document.controller_key for one in fleet.certificates()}
    unnamed = [one for one in names.added if one in names.keys and one not in certified | set(fleet.facts.operators)]
    if unnamed and not users:
        screen.note("a host whose key alone is revoked stays connected until its credentials end")
        screen.hint(
            "to cut it off at once: latticectl fleet node NODE --format json > FILE, latticectl fleet revoke FILE"
        )
    if certified & set(names.added):
        epoch = max((one.document.epoch for one in fleet.certificates()), default=1)
        screen.hint(
            f"certify the others anew, with epoch = {epoch + 1} in their request: it may have used up generations"
        )


def _names(fleet: FleetDirectory, named: list[str]) -> RevokedNames:
    """All that is revoked from now on; Problem usage, already_revoked, revocations_too_many, node_unproven."""
    from latticed.fleet import judging

    before, users = fleet.revocations(), fleet.users()
    names = RevokedNames(
        keys=[key for one in before.values() for key in one.document.keys],
        documents=[sha256 for one in before.values() for sha256 in one.document.intents],
        users=list(users.document.users if users else ()),
    )
    for one in named:
        for value in _values(fleet, one, names.keys):
            names.add(value)
    if not names.added:
        raise Problem(
            "already_revoked",
            f"expected something that counts still, found {', '.join(named)[:200]}",
            f"latticectl fleet send {fleet.path}/signed/*.json, if a controller does not know it yet",
        )
    if len(names.keys) + len(names.documents) > judging.MAX_REVOKED:
        raise Problem("revocations_too_many", f"expected at most {judging.MAX_REVOKED} in all, found more")
    if len(names.users) > _MOST_USERS:
        hint = "revoke the key of such a host alone (latticectl fleet revoke KEY): its credentials end by themselves"
        raise Problem("revocations_too_many", f"expected at most {_MOST_USERS} users in all, found more", hint)
    return names


def _lists(fleet: FleetDirectory, names: RevokedNames) -> dict[str, Any]:
    """The next lists, by the names of their files: those in which something is new."""
    from latticed.fleet import deployment, documents, fleet_directory, nkeys

    users = [one for one in names.added if _USER.fullmatch(one)]
    kept, identities = fleet.users(), fleet.identities()
    made: dict[str, Any] = _revocations(fleet, [one for one in names.added if one not in users])
    if users and identities is not None:
        now_s = int(time.time())
        if kept is not None:  # servers take the one of the later moment
            now_s = max(now_s, int(nkeys.unverified(kept.document.account)["iat"]) + 1)
        revoked = dict.fromkeys(names.users, deployment.FOR_GOOD)
        tokens = deployment.account_tokens(
            identities, now_s=now_s, revoked=revoked, sizes=deployment.Sizes(nodes=fleet.facts.nodes)
        )
        made[fleet_directory.USERS] = documents.UserRevocations(
            fleet=fleet.facts.fleet,
            serial=kept.document.serial + 1 if kept else 1,
            users=tuple(names.users),
            account=tokens[identities.nodes.public],
        )
    return made


def _revocations(fleet: FleetDirectory, added: list[str]) -> dict[str, Revocations]:
    """The lists that are to be signed for `added`, by the names of their files: the last one, while it has room for
    more, and others after it.
    """
    from latticed.fleet import documents, fleet_directory

    lists = fleet.revocations()
    name, last = next(reversed(lists.items()), (fleet_directory.REVOCATIONS, None))
    serial = last.document.serial if last is not None else 0
    keys, intents = (list(last.document.keys), list(last.document.intents)) if last is not None else ([], [])
    made: dict[str, Revocations] = {}

    def listed() -> Revocations:
        number = serial + len({*made, name})
        return documents.Revocations(fleet=fleet.facts.fleet, serial=number, keys=tuple(keys), intents=tuple(intents))

    for one in added:
        where = intents if _SHA256.fullmatch(one) else keys
        where.append(one)
        if not documents.fits(listed()):
            taken = {*lists, *made, name}
            name = next(file for n in itertools.count(2) if (file := f"revocations-{n}.json") not in taken)
            keys, intents = ([], [one]) if where is intents else ([one], [])
        made[name] = listed()
    return made


def _envelope(document: FleetDocument, key: Any) -> bytes:
    from latticed.fleet import documents

    try:
        return documents.sign(document, key)
    except documents.Malformed as error:
        raise documents.problem(error, "revocations_too_many") from error


def _values(fleet: FleetDirectory, given: str, revoked: list[str]) -> list[str]:
    """The keys, users or SHA-256 that are meant; Problem usage, node_unproven."""
    from latticed.trust import policy

    if _SHA256.fullmatch(given) or _USER.fullmatch(given):
        return [given]
    if os.path.isfile(given):
        return _of_node(fleet, given, revoked)
    known = {one.document.controller: one.document.controller_key for one in fleet.certificates()}
    if given in known:
        return [str(known[given])]
    try:
        return [policy.public_key(given, "WHAT")]
    except Problem as problem:
        hint = "latticectl fleet node NAME shows a node's key; latticectl fleet status that of the controller"
        expected = "expected a public key, a SHA-256, a file, or the name of a controller that was certified here"
        raise Problem("usage", f"{expected}, found {given[:80]!r}", hint) from problem


def _of_node(fleet: FleetDirectory, path: str, revoked: list[str]) -> list[str]:
    """The key of the node whose view is in this file, and its users, by the requests with which it joined: a controller
    cannot have another host's cut off instead. Problem usage, node_unproven.
    """
    from latticed.fleet import enrolment, judging
    from latticed.kit import files, strict_json

    try:
        view = strict_json.loads(files.read_at_most(Path(path), _NODE_BYTES))
        key, name, requests = view["key"], view["node"]["name"], view["enrolments"]
        asked = [enrolment.read_request(str(one).encode()) for one in requests]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = f"expected what latticectl fleet node NODE --format json writes in {path}"
        raise Problem("usage", f"{expected}, found something else: {str(error)[:200]}") from error
    found = [str(key)]
    for one in asked:
        if isinstance(one, judging.Refusal) or (one.token.key not in fleet.facts.operators):
            raise Problem(
                "node_unproven",
                f"expected the controller to prove with which keys {name} has joined, found that it does not",
                "name them yourself: latticectl fleet revoke KEY USER",
            )
        if one.document.node == name and one.request.node_key in {key, *revoked}:
            found.append(one.request.user)
    return found


def _named(fleet: FleetDirectory, value: str) -> str:
    """What is revoked, in words, as far as it is known here."""
    if _USER.fullmatch(value):
        return f"{value}, a user of the message system"
    for certificate in fleet.certificates():
        if certificate.document.controller_key == value:
            return f"{value}, the controller {certificate.document.controller}"
    for intent in fleet.intents():
        if intent.sha256 == value:
            return f"{value}, the intent {intent.document.generation}"
    return f"{value}, an operator's key" if value in fleet.facts.operators else value

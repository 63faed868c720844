"""What a node keeps in its own directory: its key, the token that it joined by, what it believed, events under way.

`key` (PEM), `token` (an envelope), `state` (JSON), `events/NUMBER` (JSON). The first never changes, the second when the
host joins again. `state` is replaced in one step and synced before anything that follows from it is done; a directory
whose state is gone is refused rather than begun anew, because the floor of generations would be gone with it. `said` (a
number, not synced) need not be there. Functions block.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from latticed.fleet import documents, judging, messages
from latticed.kit import files
from latticed.model.errors import Problem
from latticed.trust import key_files

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.decisions import Followed
    from latticed.fleet.documents import EnrolmentToken

KEY: Final = "key"
TOKEN: Final = "token"  # noqa: S105 - the name of a file
STATE: Final = "state"
EVENTS: Final = "events"
SAID: Final = "said"
_STATE_BYTES: Final = 16 << 20
_ANEW: Final = (
    "to join anew, under another key: systemctl stop latticed-fleet, remove {}, have the operator revoke the key of "
    "before and invite this host, then latticed-fleet join"
)
_MOST_EVENTS: Final = 256
"""Events that wait for the engine; further ones are counted in the chain's numbers, and not kept."""


class _KeptEvent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    message_id: str
    document: bytes


class EventSaid(Struct, frozen=True, kw_only=True):
    """What an event says, as `documents.NodeEvent` has it."""

    at: int
    action: str
    target: str
    code: str = ""
    reason: str = ""
    decision: str = "-"
    actor: str = ""
    seq: int = 0


class KeptState:
    """The directory of one node, and what is in it. `state` is what was kept last; who makes the next state of it holds
    `lock` from the one to the other.
    """

    def __init__(self, directory: Path, key: Ed25519PrivateKey, state: judging.NodeState) -> None:
        self.lock = threading.RLock()
        self.key = key
        self.state = state
        self._directory = directory

    def keep(self, state: judging.NodeState) -> None:
        """Have `state` count from now on, also after a kill or power cut. OSError: the one of before counts."""
        files.replace(self._directory / STATE, msgspec.json.encode(state), mode=0o600)
        self.state = state

    def add_event(self, said: EventSaid, *, followed: Followed | None = None) -> messages.NewEvent | None:
        """Sign and keep the next event of the chain; None when too many wait already: its number is then missing in
        what is published, which tells that there was one. With `followed` in the same step, when given. OSError.
        """
        with self.lock:
            return self._add_event(said, followed or self.state.followed)

    def said_s(self) -> int:
        """When the last status was made, by this host's clock of then; 0 where that is not known."""
        with contextlib.suppress(OSError, ValueError):
            return int(files.read_at_most(self._directory / SAID, 32))
        return 0

    def keep_said(self, at_s: int) -> None:
        """A status is made. Not synced, as there is one each minute: after a power cut the clock's word counts."""
        with contextlib.suppress(OSError):
            (self._directory / SAID).write_text(str(at_s))

    def waiting(self) -> int:
        """How many events the engine has not acknowledged."""
        return len(os.listdir(self._directory / EVENTS))

    def _add_event(self, said: EventSaid, followed: Followed | None) -> messages.NewEvent | None:
        number = self.state.events + 1
        event = documents.NodeEvent(
            fleet=self.state.fleet,
            node=self.state.node,
            number=number,
            prev=self.state.head,
            **msgspec.structs.asdict(said),
        )
        envelope = documents.sign(event, self.key)
        place = self._directory / EVENTS
        waits = self.waiting() < _MOST_EVENTS
        made = _KeptEvent(message_id=secrets.token_hex(16), document=envelope)
        if waits:
            # First the event: of a head without it nobody could tell what it was.
            files.replace(place / str(number), msgspec.json.encode(made), mode=0o600)
        state = msgspec.structs.replace(self.state, events=number, head=documents.name_of(event), followed=followed)
        self.keep(state)
        if not waits:
            return None
        return messages.NewEvent(number=number, message_id=made.message_id, document=envelope)

    def events(self) -> list[messages.NewEvent]:
        """Those that the engine has not acknowledged, oldest first."""
        place, found = self._directory / EVENTS, []
        with self.lock:  # one that another thread is adding has its file before the chain counts it
            for name in sorted((one for one in os.listdir(place) if one.isdecimal()), key=int):
                # One that the chain does not count yet was being added when the process was killed.
                if int(name) > self.state.events:
                    (place / name).unlink(missing_ok=True)
                    continue
                with contextlib.suppress(FileNotFoundError):  # acknowledged meanwhile
                    kept = msgspec.json.decode((place / name).read_bytes(), type=_KeptEvent)
                    found.append(
                        messages.NewEvent(number=int(name), message_id=kept.message_id, document=kept.document)
                    )
        return found

    def forget_event(self, number: int) -> None:
        """The engine has it."""
        (self._directory / EVENTS / str(number)).unlink(missing_ok=True)


def enrol(directory: Path, token: bytes, *, now_s: int) -> str:
    """Make the directory of a node that joins by this token, with a key of its own; the public key.

    Problem enrolment_invalid, enrolment_expired, exists, io_error; no directory is left then. That the token is the
    operator's is the caller's word: by it a host begins to trust.
    """
    found = _token(token)
    if now_s >= found.expires:
        detail = f"expected a token that is valid now ({now_s}), found one that expired at {found.expires}"
        raise Problem("enrolment_expired", detail, "latticectl fleet sign makes another one")
    fresh = directory.with_name(f".{directory.name}.new.{os.getpid()}")
    if directory.exists() or directory.is_symlink():
        raise key_files.exists(directory)
    key = key_files.generate()
    first = _first(found, key_files.public_text(key))
    try:
        fresh.mkdir(mode=0o700)
        key_files.create(fresh / KEY, key)
        files.replace(fresh / TOKEN, token, mode=0o600)
        (fresh / EVENTS).mkdir(mode=0o700)
        KeptState(fresh, key, first).keep(first)
        fresh.rename(directory)
        files.sync_directory(directory.parent)
    except OSError as error:
        raise Problem("io_error", f"cannot write {directory}: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return first.node_key


def opened(directory: Path, pinned: EnrolmentToken | None = None) -> KeptState:
    """What is kept in the directory of a node that was enrolled; Problem not_enrolled, fleet_state_invalid.

    `pinned`: the token that counts, which nobody but root may change, in place of the one in the directory.
    """
    try:
        found = directory.stat()
        if found.st_uid not in {0, os.geteuid()} or stat.S_IMODE(found.st_mode) & 0o077:
            detail = f"expected {directory} to be this user's alone, found mode {stat.S_IMODE(found.st_mode):04o}"
            raise _invalid(detail, directory)
        token = pinned or _token(files.read_at_most(directory / TOKEN, documents.MAX_BYTES))
        key = key_files.read(directory / KEY)
        data = files.read_at_most(directory / STATE, _STATE_BYTES)
    except FileNotFoundError as error:
        raise Problem(
            "not_enrolled",
            f"expected key, token and state in {directory}, found no {os.path.basename(error.filename or '')}",
            _ANEW.format(directory),
        ) from error
    except (OSError, ValueError) as error:
        raise _invalid(str(error), directory) from error
    try:
        state = msgspec.json.decode(data, type=judging.NodeState)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise _invalid(str(error), directory) from error
    public = key_files.public_text(key)
    # From what cannot have changed, whatever the state says.
    pinned_fields: dict[str, Any] = {
        "fleet": token.fleet,
        "operators": token.operators,
        "node": token.node,
        "node_key": public,
    }
    if state.node_key != public:
        raise _invalid("the state is of another key", directory)
    if not state.serial or (state.certified_by and state.certified_by not in token.operators):
        # No operator who counts has certified other labels than those of the token.
        pinned_fields |= {"labels": token.labels, "serial": 0, "certified_by": ""}
    return KeptState(directory, key, msgspec.structs.replace(state, **pinned_fields))


def renew_token(directory: Path, token: bytes) -> None:
    """Have the node of this directory be one that joined by this token; Problem io_error."""
    try:
        files.replace(directory / TOKEN, token, mode=0o600)
    except OSError as error:
        raise Problem("io_error", f"cannot write {directory / TOKEN}: {error.strerror}") from error


def _token(data: bytes) -> EnrolmentToken:
    try:
        signed = documents.read(data, documents.EnrolmentToken)
    except documents.Malformed as error:
        raise Problem("enrolment_invalid", f"expected an enrolment token, found none: {error}") from error
    token: EnrolmentToken = signed.document
    if signed.key not in token.operators:
        detail = "expected a token signed by one of the operators that it names, found another key"
        raise Problem("enrolment_invalid", detail, "ask the operator for another one")
    return token


def _first(token: EnrolmentToken, public: str) -> judging.NodeState:
    return judging.NodeState(
        fleet=token.fleet, operators=token.operators, node=token.node, node_key=public, labels=token.labels
    )


def _invalid(found: str, directory: Path) -> Problem:
    reason = f"expected the state of a node, found: {found[:300]}"
    return Problem("fleet_state_invalid", reason, _ANEW.format(directory))

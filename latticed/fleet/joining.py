"""`latticed-fleet join INVITATION`: a host becomes a node of a fleet. Run as root; may be run again at any moment.

    1  node/        key of its own, token, first state      (the agent's user)
    2  link/        key to connect with
    3  ask a controller by the invitation's credentials      (the same keys at each try)
    4  link/nats.creds, then /etc/latticed/fleet/token       (root's alone: from here on the unit starts)

Killed between two of these, it goes on with the keys that are there. A host that is of the fleet already keeps its key
and its state, and gets new credentials: so one that was off for longer than they last is mended. One whose state is
gone gets another key, once the one before is revoked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import ssl
import sys
import time
from typing import TYPE_CHECKING, Final

from latticed.fleet import agent_settings, enrolment, kept_state, nkeys, renewing, subjects
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_connection import NatsConnection, NatsEndpoint
from latticed.kit import files, trusted_files
from latticed.model.errors import Problem
from latticed.model.restart import Backoff

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from latticed.fleet.agent_settings import AgentState
    from latticed.fleet.documents import EnrolmentToken, NodeCredentials
    from latticed.fleet.enrolment import Invitation

_PAUSES: Final = Backoff(base_s=0.5, ceiling_s=3.0, jitter=0.3)
_AGAIN_S: Final = 1.0
_SEED_BYTES: Final = 4 << 10
_CREDENTIALS_BYTES: Final = 64 << 10
_AGAIN: Final = "run this again: it goes on with the keys that it has made"


def run(options: argparse.Namespace) -> int:
    """Join, and say what is left to do; 0. Problem."""
    if os.geteuid() != 0:
        raise Problem(
            "not_root", "expected root, who alone pins what this host is to believe", "sudo latticed-fleet join"
        )
    # It warns of each connection that a server closes, because nats-py starts TLS on a plain stream.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    invited = enrolment.read_invitation(_data(options.invitation), now_s=int(time.time()))
    token = invited.document
    if options.operator is not None and options.operator != invited.token.key:
        expected = f"expected an invitation by the operator {options.operator}"
        raise Problem("operator_unknown", f"{expected}, found one by {invited.token.key}", "do not use it")
    before = _pinned(options.pinned)
    _check_same(before, invited, options.pinned)
    settings = agent_settings.read(options.settings)
    state = agent_settings.AgentState(options.state)
    user = _user(options.user)
    _directories(state, user)
    with _as(user):
        kept = before is not None and os.path.lexists(state.node)
        node_key = _node(state, invited, joined=before is not None)
        credentials = _asked(
            state,
            invited,
            node_key,
            settings.servers or token.addresses,
            wait_s=options.wait,
            same=_same(before, invited),
        )
    _pin(options.pinned, invited)
    with _as(user):
        kept_state.renew_token(state.node, invited.token.envelope)
        state.seed.unlink(missing_ok=True)
    _tell(invited, node_key, credentials, state, again=kept)
    return 0


def _data(path: Path) -> bytes:
    """The invitation's bytes; Problem not_found, io_error, enrolment_invalid."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(enrolment.INVITATION_BYTES + 1)
        return files.read_at_most(path, enrolment.INVITATION_BYTES)
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected an invitation at {path}, found no file") from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Problem("enrolment_invalid", f"{path}: {error}") from error


def _pinned(path: Path) -> EnrolmentToken | None:
    """The token that this host has joined by; None for a host of no fleet."""
    return agent_settings.pinned(path) if os.path.lexists(path) else None


def _check_same(before: EnrolmentToken | None, invited: Invitation, path: Path) -> None:
    """Problem enrolled_already, operator_unknown unless a host that is of a fleet is invited as the node that it is."""
    if before is None:
        return
    token = invited.document
    if (before.fleet, before.node) != (token.fleet, token.node):
        expected = f"expected an invitation for {before.node} of the fleet {before.fleet}, which this host is"
        hint = f"to leave that fleet: systemctl disable --now latticed-fleet, and remove {path}"
        raise Problem("enrolled_already", f"{expected}; found one for {token.node} of {token.fleet}", hint)
    if invited.token.key not in before.operators:
        expected = "expected an invitation by an operator whom this host knows"
        raise Problem("operator_unknown", f"{expected}, found one by {invited.token.key}", f"they are in {path}")


def _same(before: EnrolmentToken | None, invited: Invitation) -> bool:
    return before is not None and before.token == invited.document.token


def _user(name: str) -> tuple[int, int]:
    """(uid, gid) of the agent's user, who is named or given as UID:GID; Problem not_found."""
    uid, colon, gid = name.partition(":")
    if colon and uid.isdecimal() and gid.isdecimal() and int(uid) > 0:
        return int(uid), int(gid)
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        hint = "the package makes it; by hand: systemd-sysusers with systemd/latticed.sysusers"
        raise Problem("not_found", f"expected the user {name}, found none", hint) from error
    return found.pw_uid, found.pw_gid


def _directories(state: AgentState, user: tuple[int, int]) -> None:
    """The state's directory and those of link and spool; Problem io_error, fleet_state_invalid.

    Made by root: of what lies in them nothing is ever opened by root.
    """
    try:
        # The daemon reads what is in the spool.
        for path, mode in ((state.directory, 0o711), (state.link, 0o700), (state.spool, 0o755)):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700, parents=path is state.directory)
            fd = files.open_directory(path)
            try:
                found = os.fstat(fd)
                if found.st_uid not in {0, user[0]}:
                    raise Problem("fleet_state_invalid", f"{path} belongs to uid {found.st_uid}, expected {user[0]}")
                os.fchown(fd, *user)
                os.fchmod(fd, mode)
            finally:
                os.close(fd)
    except OSError as error:
        raise Problem("io_error", f"cannot make {error.filename or state.directory}: {error.strerror}") from error


@contextlib.contextmanager
def _as(user: tuple[int, int]) -> Iterator[None]:
    """Act as the agent's user while the block runs: it owns these directories, and could lay links there for root."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user[1])
    os.seteuid(user[0])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _node(state: AgentState, invited: Invitation, *, joined: bool) -> str:
    """The node's public key, made now unless it is there. Problem io_error, fleet_state_invalid, operator_revoked.

    `joined`: the host is of this fleet, so key and state stay as they are. Where both are gone it is another node to
    the fleet, for which nothing of before counts: the controller lets it have the name once the old key is revoked.
    """
    _clear(state)
    if not joined and os.path.lexists(state.node) and not _made_for(state, invited):
        # Of another node, whose join never came to be or that has left, or of one that believes others.
        shutil.rmtree(state.node)
    if not os.path.lexists(state.node):
        return kept_state.enrol(state.node, invited.token.envelope, now_s=int(time.time()))
    found = kept_state.opened(state.node, invited.document).state
    if invited.token.key in found.revoked:
        expected = "expected an invitation by an operator whom this host was not told to believe no more"
        hint = "have another operator of the fleet invite this host (latticectl fleet enroll)"
        raise Problem("operator_revoked", f"{expected}, found one by {invited.token.key}", hint)
    return found.node_key


def _clear(state: AgentState) -> None:
    """Remove what attempts that were killed left half made."""
    for one in state.directory.glob(f".{state.node.name}.new.*"):
        shutil.rmtree(one, ignore_errors=True)
    for path in (state.credentials, state.seed):
        files.clear_remains(path)


def _made_for(state: AgentState, invited: Invitation) -> bool:
    """Whether the directory of the node is whole and of the node that is invited, by an operator whom it believes: a
    fleet of the same name may be another one, whose operator certified none of its labels.
    """
    try:
        found = kept_state.opened(state.node).state
    except Problem:
        return False
    token = invited.document
    return (found.fleet, found.node) == (token.fleet, token.node) and invited.token.key in found.operators


def _asked(
    state: AgentState, invited: Invitation, node_key: str, servers: tuple[str, ...], *, wait_s: float, same: bool
) -> NodeCredentials:
    """Ask a controller, and keep the credentials that it gives. Problem of its refusal, controller_unreachable.

    `same`: the host has joined by this very invitation, which is for one key to connect with.
    """
    token = invited.document
    key = _seed(state, same=same)
    request = enrolment.request(invited, node_key, key.public)
    with _file(state.link / "invitation.creds", invited.credentials.text()) as credentials:
        try:
            tls = ssl.create_default_context(cadata=token.certificates)
        except ssl.SSLError as error:
            raise Problem("enrolment_invalid", f"expected certificates in the invitation, found: {error}") from error
        endpoint = NatsEndpoint(
            servers=servers,
            tls=tls,
            credentials=credentials,
            name=token.token,
            inbox=subjects.inbox(token.token),
        )
        answer = asyncio.run(_answer(endpoint, subjects.enrolment(token.token), request, wait_s))
    found = enrolment.answered(
        answer,
        fleet=token.fleet,
        operators=token.operators,
        node=token.node,
        node_key=node_key,
        user=key.public,
        now_s=int(time.time()),
    )
    try:
        renewing.keep(
            state.credentials,
            nkeys.UserCredentials(token=found.jwt, key=key, name=token.node, expires_s=found.expires),
        )
    except OSError as error:
        raise Problem("io_error", f"cannot write {state.credentials}: {error.strerror}", _AGAIN) from error
    return found


def _seed(state: AgentState, *, same: bool) -> nkeys.Key:
    """The key to connect with: the one of an attempt before this one, that of the credentials that came by the `same`
    invitation, or a new one: by another invitation a host whose user was cut off is mended. Problem io_error.
    """
    with contextlib.suppress(OSError, ValueError):
        return nkeys.Key.from_seed(files.read_at_most(state.seed, _SEED_BYTES).decode("ascii", "replace").strip())
    if same:
        with contextlib.suppress(OSError, ValueError):
            return nkeys.UserCredentials.parse(files.read_at_most(state.credentials, _CREDENTIALS_BYTES)).key
    key = nkeys.Key.generate(nkeys.KeyKind.USER)
    try:
        files.replace(state.seed, key.seed.encode() + b"\n", mode=0o600)
    except OSError as error:
        raise Problem("io_error", f"cannot write {state.seed}: {error.strerror}", _AGAIN) from error
    return key


@contextlib.contextmanager
def _file(path: Path, data: bytes) -> Iterator[Path]:
    """A file that is there while the block runs; Problem io_error."""
    try:
        files.replace(path, data, mode=0o600)
    except OSError as error:
        raise Problem("io_error", f"cannot write {path}: {error.strerror}", _AGAIN) from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _answer(endpoint: NatsEndpoint, subject: str, request: bytes, wait_s: float) -> bytes:
    """What a controller answers, asked again and again for `wait_s`; Problem controller_unreachable."""
    why = "no answer"
    try:
        async with asyncio.timeout(wait_s), NatsConnection(endpoint, pauses=_PAUSES) as connection:
            while True:
                try:
                    if connection.up:
                        return (await connection.request(subject, request)).data
                    why = connection.reason
                except EngineUnavailable as error:
                    why = f"no controller answers: {error}"
                await asyncio.sleep(_AGAIN_S if connection.up else _AGAIN_S / 10)
    except TimeoutError as error:
        where = ", ".join(endpoint.servers)
        reason = f"expected a controller's answer by {where} within {wait_s:g} s, found none: {why}"
        raise Problem("controller_unreachable", reason, _AGAIN) from error


def _pin(path: Path, invited: Invitation) -> None:
    """Have this host believe the invitation's operators, and nobody else, from now on; Problem io_error."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        trusted_files.check_directory(path.parent)
        files.replace(path, invited.token.envelope + b"\n", mode=0o644)
    except OSError as error:
        raise Problem("io_error", f"cannot write {path}: {error.strerror}", _AGAIN) from error
    except trusted_files.ForeignFile as error:
        raise Problem("settings_invalid", f"{path.parent}: {error}", "only root may be able to change it") from error


def _tell(invited: Invitation, node_key: str, credentials: NodeCredentials, state: AgentState, *, again: bool) -> None:
    token = invited.document
    days = (credentials.expires - int(time.time())) // 86_400
    labels = ", ".join(f"{name}={value}" for name, value in sorted(token.labels.items())) or "no labels"
    lines = [
        f"this host is {token.node} of the fleet {token.fleet} ({labels})",
        f"it believes the operators {', '.join(token.operators)}",
        f"its key is {node_key}; its credentials last {days} days, and are renewed before they end",
    ]
    if again:
        lines.append("its key and its state are those that it had: systemctl restart latticed-fleet")
    else:
        lines += [
            "left to do: in /etc/latticed/latticed.toml",
            f'    [access.users]\n    {agent_settings.USER} = ["operate", "host"]',
            f'    [market]\n    import_dir = "{state.spool}"',
            "then: systemctl restart latticed && systemctl enable --now latticed-fleet",
        ]
    sys.stdout.write("\n".join(lines) + "\n")

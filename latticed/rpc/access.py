"""Who may ask what: scopes by the peer's credentials, resolved when settings are loaded (contracts §7)."""

from __future__ import annotations

import grp
import pwd
from enum import Flag, auto
from typing import TYPE_CHECKING, Final

from latticed.kit.peers import NOBODY
from latticed.kit.value import Value
from latticed.model.audit import Actor
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from latticed.kit.peers import Peer
    from latticed.settings import AccessSettings as Wanted


class Scope(Flag):
    """What a peer is granted. `operate` includes `read`; `host` and `trust` include nothing else."""

    NONE = 0
    READ = auto()
    """List, inspect, read health, trust, metrics and events."""
    OPERATE = auto()
    """All of `read`; install, activate, disable, upgrade, restart, invoke, forget; values, logs and the audit
    record.
    """
    HOST = auto()
    """Grant host-risk capabilities and hosts, accept a downgrade or another publisher; secrets; configurations;
    approve scripts.
    """
    TRUST = auto()
    """Lift remembered revocations."""
    ALL = READ | OPERATE | HOST | TRUST


BY_WORD: Final = {
    "read": Scope.READ,
    "operate": Scope.OPERATE | Scope.READ,
    "host": Scope.HOST,
    "trust": Scope.TRUST,
}
"""What each word under `[access]` grants."""


class Access(Value, frozen=True, kw_only=True):
    """Scopes by uid and gid. Root has all; uid 65534, which stands for peers of another user namespace, has none.

    `names`: user names by uid, for audit events. `without_effect`: a sentence for each entry of the settings that gives
    nobody anything. Nothing here asks the system's user database.
    """

    users: Mapping[int, Scope]
    groups: Mapping[int, Scope]
    names: Mapping[int, str]
    without_effect: tuple[str, ...] = ()

    def scopes(self, peer: Peer) -> Scope:
        """The scopes of `peer`: its uid's and all its groups' together."""
        # First, so that no setting can give it a scope.
        if peer.uid == NOBODY:
            return Scope.NONE
        if peer.uid == 0:
            return Scope.ALL
        granted = self.users.get(peer.uid, Scope.NONE)
        # The primary group need not be among the supplementary ones (credentials(7)).
        for gid in {peer.gid, *peer.groups}:
            granted |= self.groups.get(gid, Scope.NONE)
        return granted

    def actor(self, peer: Peer) -> Actor:
        """`peer` as audit events name it; names are those known when settings were loaded."""
        return Actor(kind="peer", uid=peer.uid, pid=peer.pid, name=self.names.get(peer.uid, "-"))


def resolve(wanted: Wanted, *, own_uid: int) -> Access:
    """The scopes of `[access]` by number; Problem settings_invalid for a user or group that does not exist.

    Blocking: it asks the system's user database, so it is called when settings are loaded. With `own_user` the daemon's
    own uid (`own_uid`) has all scopes.
    """
    users, groups = _by_number(_uid, wanted.users), _by_number(_gid, wanted.groups)
    if wanted.own_user:
        users[own_uid] = Scope.ALL
    # Names are looked up here, not for each request: NSS may ask a server over the network (nsswitch.conf(5)).
    names = {uid: _name(uid) for uid in {0, own_uid, *users}}
    return Access(users=users, groups=groups, names=names, without_effect=tuple(_without_effect(wanted, own_uid)))


def _without_effect(wanted: Wanted, own_uid: int) -> Iterator[str]:
    """A sentence for each entry that gives nobody anything."""
    for section, entries in (("users", wanted.users), ("groups", wanted.groups)):
        for name, words in entries.items():
            why = _of_no_use(_uid(name), own_uid if wanted.own_user else -1) if section == "users" else ""
            if not words:
                why = f"expected some of {', '.join(BY_WORD)}, found none"
            if why:
                yield f"access.{section}.{name} has no effect: {why}"


def _of_no_use(uid: int, own_uid: int) -> str:
    """Why whatever is given to this user changes nothing; empty when it may. `own_uid`: has all scopes besides root."""
    if uid == NOBODY:
        return f"uid {NOBODY} is what the kernel shows for everybody whom it cannot name; give it to a user of its own"
    if uid == 0:
        return "root has all scopes whatever is said here"
    return "the daemon's own user has all scopes unless access.own_user = false" if uid == own_uid else ""


def socket_gid(group: str) -> int:
    """The gid of the control socket's group, -1 for none named; Problem settings_invalid. Blocking, as `resolve`."""
    return _gid(group) if group else -1


def _by_number(number: Callable[[str], int], wanted: Mapping[str, Iterable[str]]) -> dict[int, Scope]:
    """The scopes by number; what is given to one number under two names is added up."""
    found: dict[int, Scope] = {}
    for name, words in wanted.items():
        found[number(name)] = found.get(number(name), Scope.NONE) | _scopes(words)
    return found


def _scopes(words: Iterable[str]) -> Scope:
    """The scopes that these words grant together."""
    granted = Scope.NONE
    for word in words:
        granted |= BY_WORD[word]
    return granted


def _uid(name: str) -> int:
    """The uid of a name; a number stands for itself, as it need not be a user of this host."""
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise Problem("settings_invalid", f"access.users: expected a user of this host, found {name!r}") from error


def _gid(name: str) -> int:
    """The gid of a name; a number stands for itself."""
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise Problem("settings_invalid", f"[access]: expected a group of this host, found {name!r}") from error


def _name(uid: int) -> str:
    """The user's name, or the uid as text: a number in the settings need not be a user of this host."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

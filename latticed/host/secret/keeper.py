"""Secrets: values that operators store and plugins refer to as `${secret:NAME}` (contracts §9).

Encrypted with AES-256-GCM, a fresh nonce at each write, and owner, name and version as associated data. A value is in
memory only while it is used, and in no list, log, audit event or error.
"""

from __future__ import annotations

import functools
import hmac
import json
import os
import re
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.host.secret import key as secret_key
from latticed.host.secret.references import MIN_REDACTED, PluginSecrets
from latticed.kit import logs
from latticed.kit import text as texts
from latticed.kit.value import Value
from latticed.ledger import secrets as rows
from latticed.model import ids
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.secret.key import KeyLocation, SealingKeys
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction

OPERATOR: Final = "operator"
"""The owner of secrets that operators set."""
MAX_VALUE_BYTES: Final = 64 << 10
"""Of one value in UTF-8."""

_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_NONCE_BYTES: Final = 12  # 96 bits, NIST SP 800-38D section 8.2.2

log = logs.get_logger()


class KnownSecret(Value, frozen=True, kw_only=True):
    """A secret as lists show it, without its value. `usable` is False when another key encrypted it."""

    name: str
    version: int
    plugins: tuple[str, ...]
    created_at: int
    updated_at: int
    usable: bool


class SecretKeeper:
    """Stores, seals and opens secrets. Methods for operators raise Problem, those for plugins HostError.

    `owner`: whose secrets these are; those of others are not seen. The key is read at its first use.
    """

    def __init__(self, ledger: Ledger, place: KeyLocation, *, clock: Clock, owner: str = OPERATOR) -> None:
        self._ledger = ledger
        self._location = place
        self._key_reader = secret_key.KeyReader(place)
        self._clock = clock
        self._owner = owner
        self._keys: SealingKeys | None = None
        self._logged = ""

    def forget_key(self) -> None:
        """Read the key again on its next use; called on a reload."""
        self._keys = None

    # For operators. The caller authorises them, and writes the audit event.

    async def set(self, name: str, value: str) -> int:
        """Store `value` and return its version, 1 for a new name; bindings stay. On disk when it returns.

        Problems: bad_request, too_large, quota_exceeded, secret_unavailable, ledger_unavailable.
        """
        _check_name(name)
        data = _encoded(value)
        # Before the transaction, which runs on the ledger's thread: reading the key may block.
        keys = self._key(make=True)

        def change(tx: Transaction) -> int:
            old = rows.get(tx, self._owner, name)
            # The version is part of what is sealed: no value can be passed off as that of another version.
            version, now_us = (old.version + 1 if old else 1), self._clock.wall_us()
            created_at = old.created_at if old else now_us
            rows.put(tx, _sealed(keys, self._owner, name, version, data, created_at=created_at, updated_at=now_us))
            return version

        return await self._ledger.write(change, durable=True)

    async def delete(self, name: str, *, unbind: bool = False) -> tuple[str, ...]:
        """Delete a secret; returns the plugins it was bound to. Problems not_found, secret_bound unless `unbind`."""
        _check_name(name)

        def change(tx: Transaction) -> tuple[str, ...]:
            bound = tuple(rows.bound_to(tx, self._owner, name))
            if bound and not unbind:
                hint = f"it would fail there: latticectl secret delete --unbind {name} takes it from them too"
                raise Problem("secret_bound", f"{name} is bound to {', '.join(bound)}", hint)
            if not rows.delete(tx, self._owner, name):
                raise Problem("not_found", f"there is no secret {name}")
            return bound

        return await self._ledger.write(change, durable=True)

    async def bind(self, name: str, plugin_id: str) -> None:
        """Let `plugin_id` use the secret, whether there is such a plugin or not; no effect if it is bound already.

        Problems: bad_request, not_found, quota_exceeded, secret_unavailable, ledger_unavailable.
        """
        _check_name(name)
        if not ids.is_valid(plugin_id):
            raise Problem("bad_request", f"expected a plugin's id, found {texts.sanitise(plugin_id, 80)!r}")
        if self._ledger.read(lambda db: rows.get(db, self._owner, name)) is None:  # before the key is read
            raise Problem("not_found", f"there is no secret {name}")
        # With a MAC, so that a row that was written into the database without the key binds nothing.
        mac = self._key().mac(_binding_message(self._owner, name, plugin_id))
        binding = rows.Binding(owner=self._owner, name=name, plugin_id=plugin_id, mac=mac)
        await self._ledger.write(lambda tx: rows.bind(tx, binding), durable=True)

    async def unbind(self, name: str, plugin_id: str) -> None:
        """Remove a binding; Problem not_found when there is none."""
        _check_name(name)
        if not await self._ledger.write(lambda tx: rows.unbind(tx, self._owner, name, plugin_id), durable=True):
            raise Problem("not_found", f"{name} is not bound to {texts.sanitise(plugin_id, 130)}")

    def known(self) -> tuple[KnownSecret, ...]:
        """All secrets by name, without values; if the key cannot be read, none is `usable`."""
        try:
            key_id = self._key().id
        except Problem:
            key_id = ""
        plugins: dict[str, list[str]] = {}
        for name, plugin_id in self._ledger.read(lambda db: rows.bindings(db, self._owner)):
            plugins.setdefault(name, []).append(plugin_id)
        return tuple(
            KnownSecret(
                name=row.name,
                version=row.version,
                plugins=tuple(plugins.get(row.name, ())),
                created_at=row.created_at,
                updated_at=row.updated_at,
                usable=row.key_id == key_id,
            )
            for row in self._stored()
        )

    # For plugins.

    def for_plugin(self, plugin_id: str) -> PluginSecrets:
        """The secrets bound to a plugin, for one host call; each value is read when it is first used."""
        return PluginSecrets(functools.partial(self.value_for, plugin_id))

    def value_for(self, plugin_id: str, name: str) -> str:
        """The value of a secret bound to a plugin, read now; HostError bad_params when none of that name is bound to
        it, service_unavailable when it cannot be opened.
        """
        try:
            row = self._ledger.read(lambda db: rows.get(db, self._owner, name)) if _NAME.fullmatch(name) else None
            # The binding first: nothing is decrypted for a plugin that may not have it.
            if row is not None and self._is_bound(row, plugin_id):
                return self._open(row)
        except Problem as problem:
            self._log_once(name, problem)
            message = f"{problem.code}: {name} cannot be opened, the daemon's log says why"
            raise HostError(Denial.SERVICE_UNAVAILABLE, message) from problem
        # The same error whether or not the secret exists: a plugin must not find out the names of others.
        shown = texts.sanitise(name, 64)
        fix = f"secret={name}" if _NAME.fullmatch(name) else ""
        raise HostError(Denial.BAD_PARAMS, f"the operator has bound no secret {shown!r} to this plugin", fix=fix)

    def _stored(self) -> list[rows.SecretRow]:
        """The rows of all secrets of this owner, by name."""
        return [row for row in self._ledger.read(rows.load_all) if row.owner == self._owner]

    def _log_once(self, name: str, problem: Problem) -> None:
        """Log the cause, which the plugin does not get (paths, key ids); not at each call."""
        if self._logged != problem.reason:
            self._logged = problem.reason
            log.error("secret_unavailable", secret=name, reason=problem.reason, hint=problem.hint)

    def _is_bound(self, row: rows.SecretRow, plugin_id: str) -> bool:
        """Whether a binding with a valid MAC is stored. Problem secret_unavailable when the MAC is of another key."""
        mac = self._ledger.read(lambda db: rows.binding(db, row.owner, row.name, plugin_id))
        if mac is None:
            return False
        if hmac.compare_digest(mac, self._key_of(row).mac(_binding_message(row.owner, row.name, plugin_id))):
            return True
        raise _unavailable(f"the binding of {row.name} was not made with the key that is here", "bind it again")

    def _open(self, row: rows.SecretRow) -> str:
        """The value; Problem secret_unavailable says whether the key is another one or the row is damaged."""
        from cryptography.exceptions import InvalidTag

        # A sealed value that was copied to another owner or name does not decrypt.
        aad = _associated(row.owner, row.name, row.version)
        try:
            return self._key_of(row).cipher.decrypt(row.nonce, row.sealed, aad).decode("utf-8")
        except (InvalidTag, ValueError) as error:
            raise _unavailable(f"what is stored of {row.name} is damaged", "set it again") from error

    def _key_of(self, row: rows.SecretRow) -> SealingKeys:
        """The key, if it encrypted `row`. The file is read again first: the operator may have restored the old key."""
        if self._key().id != row.key_id:
            self._keys = None
        if (keys := self._key()).id != row.key_id:
            raise _unavailable(
                f"{row.name} was sealed with another key (expected {row.key_id}, found {keys.id})",
                "put the key back that it was set with, or set it again",
            )
        return keys

    def _key(self, *, make: bool = False) -> SealingKeys:
        """The key, cached; with `make`, a new one is made if there is none and no secret is stored."""
        if self._keys is None:
            self._keys = self._key_reader.get()
        # Never when anything is stored: a new key would hide that the old one was lost, and with it those secrets.
        if self._keys is None and make and self._location.ours and not self._ledger.read(rows.count):
            self._keys = secret_key.make(self._location)
        if self._keys is None:
            raise _unavailable(
                f"expected the key of secrets at {self._location.path}, found no file",
                "put the key back; without it what was sealed is lost: delete those secrets, then set them anew",
            )
        return self._keys


def _sealed(
    keys: SealingKeys, owner: str, name: str, version: int, data: bytes, *, created_at: int, updated_at: int
) -> rows.SecretRow:
    """A row with `data` encrypted under a fresh nonce."""
    nonce = os.urandom(_NONCE_BYTES)
    return rows.SecretRow(
        owner=owner,
        name=name,
        version=version,
        key_id=keys.id,
        nonce=nonce,
        sealed=keys.cipher.encrypt(nonce, data, _associated(owner, name, version)),
        created_at=created_at,
        updated_at=updated_at,
    )


def _associated(owner: str, name: str, version: int) -> bytes:
    """What a sealed value is bound to. As JSON, so that no two different lists give the same bytes."""
    return json.dumps(["latticed-secret-v1", owner, name, version]).encode("ascii")


def _binding_message(owner: str, name: str, plugin_id: str) -> bytes:
    """What the MAC of a binding is made of; its first word keeps it apart from other uses of the key."""
    return json.dumps(["latticed-binding-v1", owner, name, plugin_id]).encode("ascii")


def _check_name(name: str) -> None:
    """Problem bad_request unless it is a name that references can have."""
    if not _NAME.fullmatch(name):
        shown = texts.sanitise(name, 64)
        raise Problem("bad_request", f"expected a name of A-Z, 0-9 and _ (1 to 64, a letter first), found {shown!r}")


def _encoded(value: str) -> bytes:
    """The value in UTF-8; Problem bad_request, too_large. Messages do not contain it."""
    try:
        data = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Problem("bad_request", "expected a value that is text, found a lone surrogate") from error
    if not data:
        raise Problem("bad_request", "expected a value, found none", "delete the secret instead")
    if len(value.strip()) < MIN_REDACTED:  # redaction would replace unrelated text
        found = f"expected a value of at least {MIN_REDACTED} characters, found {len(value.strip())}"
        raise Problem("bad_request", found, "a secret that short is guessed in no time: use a longer one")
    if len(data) > MAX_VALUE_BYTES:
        raise Problem("too_large", f"expected a value of at most {MAX_VALUE_BYTES} bytes, found {len(data)}")
    return data


def _unavailable(detail: str, hint: str = "") -> Problem:
    return Problem("secret_unavailable", detail, hint)

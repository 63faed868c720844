"""Logins to proxied services: checks passwords, keeps sessions in memory only, so a restart ends them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.ingress.upstream_connection import SESSION_COOKIES
from latticed.kit import logs, passwords
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.kit.value import Value
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latticed.host.route.targets import Proxied
    from latticed.kit.clock import Clock
    from latticed.model.audit import Decision

LIFE_S: Final = 12 * 3_600.0
"""Seconds after which a login ends in any case: its password is asked for again."""
IDLE_S: Final = 2 * 3_600.0
"""Seconds without a request after which a session ends; an answer that still runs is no request."""
MOST: Final = 512
"""Most sessions; the least recently used one is dropped for a new one."""
ATTEMPTS: Final = Rate(burst=10, per_second=0.1)
"""Passwords that may be tried for one login: ten in a row, then one every ten seconds."""

log = logs.get_logger()


class _Login(Value, frozen=True):
    """A password that was given: its fingerprint, and when. Times are on the monotonic clock."""

    fingerprint: bytes
    began_s: float


@dataclass(slots=True, eq=False)
class LoginSession:
    """One session. `opened`: its logins, by (plugin id, secret name); `used_s`: when a request came with it last.

    `secure`: made over https, so its cookie has the `__Host-` name.
    """

    secure: bool
    used_s: float
    opened: dict[tuple[str, str], _Login]


class Sessions:
    """Logins and sessions of all proxied services; used on the event loop only.

    `secret(plugin_id, name)` returns the present password or its hash, HostError when not bound; `record` takes events.
    """

    def __init__(self, *, secret: Callable[[str, str], str], record: Callable[[Event], None], clock: Clock) -> None:
        self._secret = secret
        self._record = record
        self._clock = clock
        self._buckets = TokenBuckets()
        self._checking = asyncio.Semaphore(1)  # one at a time: the password hash is costly in memory and CPU
        # For `_fingerprint`. Sessions, and so fingerprints, end with the process.
        self._key = os.urandom(32)
        self._all: dict[bytes, LoginSession] = {}  # by the hash of the session id: the id itself is not kept

    def find(self, target: Proxied, cookies: Iterable[tuple[str, str]]) -> LoginSession | None:
        """The valid session for `target` among `cookies` ((name, value) each), or None; it counts as used now."""
        now_s = self._clock.monotonic_s()
        for name, value in cookies:
            session = self._all.get(_hash(value))
            # A session made over https only counts from the `__Host-` cookie, which cannot be set over http.
            if session is not None and session.secure == (name == SESSION_COOKIES[0]) and self.holds(session, target):
                session.used_s = now_s
                return session
        return None

    def holds(self, session: LoginSession, target: Proxied) -> bool:
        """Whether `session` is valid for `target`: not ended or expired, and the password has not changed."""
        known = session.opened.get((target.plugin_id, target.login))
        if known is None or not _lasts(session, known, self._clock.monotonic_s()):
            return False
        try:
            value = self._secret(target.plugin_id, target.login)
            return hmac.compare_digest(known.fingerprint, self._fingerprint(value))
        except HostError:  # the secret was unbound or deleted, or cannot be decrypted
            return False

    async def enter(self, target: Proxied, password: str, cookies: Iterable[tuple[str, str]], *, secure: bool) -> str:
        """Check the password and make a session, which keeps the logins of those in `cookies`; returns its id.

        `secure`: the browser uses https. Problems: login_failed, login_throttled (hint: seconds to wait),
        service_unavailable. Right and wrong passwords are recorded.
        """
        # For each login and not for each client: all connections come from a loopback address.
        wait_s = self._buckets.take(f"{target.plugin_id}/{target.login}", ATTEMPTS, self._clock.monotonic_s())
        if wait_s:
            raise Problem("login_throttled", "too many attempts, try again later", str(int(wait_s) + 1))
        try:
            value = self._secret(target.plugin_id, target.login)
        except HostError as error:
            log.error("login_unavailable", plugin_id=target.plugin_id, reason=error.reason)
            raise Problem("service_unavailable", "there is no password to compare with") from error
        async with self._checking:
            # In a thread: scrypt takes about 50 ms and 32 MiB by default (`kit.passwords`).
            right = await asyncio.to_thread(passwords.verify, value, password)
        self._tell(target, "allow" if right else "deny", "" if right else "login_failed")
        if not right:
            raise Problem("login_failed", "this is not the password")
        # With the value that was checked: if the password was changed meanwhile, `holds` refuses the session at once.
        return self._made(target, value, self._ended(cookies), secure=secure)

    def leave(self, cookies: Iterable[tuple[str, str]]) -> None:
        """End the sessions of these cookies, for every service that they were logged in to."""
        self._ended(cookies)

    def _made(self, target: Proxied, value: str, before: list[LoginSession], *, secure: bool) -> str:
        """Make a session that keeps the logins of `before`; its id is new at every login, against session fixation.

        At MOST sessions the least recently used one is removed. No login passes between http and https, and none
        lasts longer than it would have in the session that it comes from.
        """
        now_s = self._clock.monotonic_s()
        same = (one for one in before if one.secure == secure)
        opened = {key: known for one in same for key, known in one.opened.items() if _lasts(one, known, now_s)}
        opened[target.plugin_id, target.login] = _Login(self._fingerprint(value), now_s)
        while len(self._all) >= MOST:
            del self._all[min(self._all, key=lambda one: self._all[one].used_s)]
        made = secrets.token_urlsafe(32)
        self._all[_hash(made)] = LoginSession(secure, now_s, opened)
        return made

    def _ended(self, cookies: Iterable[tuple[str, str]]) -> list[LoginSession]:
        """End the sessions of these cookies; copies of them, for `_made`."""
        ended = [found for _, value in cookies if (found := self._all.pop(_hash(value), None)) is not None]
        copies = [replace(one, opened=dict(one.opened)) for one in ended]
        for one in ended:
            one.opened.clear()  # ends answers under way, which hold this object: see `holds`
        return copies

    def _fingerprint(self, value: str) -> bytes:
        """A hash of a password, equal for equal ones while the daemon runs: its key is never stored."""
        return hmac.digest(self._key, value.encode("utf-8"), "sha256")

    def _tell(self, target: Proxied, decision: Decision, code: str) -> None:
        """Record the event of an attempt to log in; it does not contain the password."""
        detail: dict[str, str | int | bool] = {"path": target.prefix}
        self._record(
            Event(
                actor=str(DAEMON),
                action="route.login",
                target=target.plugin_id,
                decision=decision,
                code=code,
                detail=detail,
            )
        )


def _lasts(session: LoginSession, login: _Login, now_s: float) -> bool:
    """Whether a login of a session has not ended by itself."""
    return now_s - login.began_s <= LIFE_S and now_s - session.used_s <= IDLE_S


def _hash(value: str) -> bytes:
    """SHA-256 of a session's id; the id itself is not kept."""
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()

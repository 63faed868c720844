"""One-time links and the sessions that they become: for this process, in memory alone.

    link = keys.link(now_s)              # for the terminal
    session = keys.opened(link, now_s)   # the cookie; None the second time

Only digests are kept, so that comparing takes no secret-dependent time. Times are monotonic: clocks that are set do not
matter.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeVar

LINK_S: Final = 600.0
"""For how long a link can be opened."""
IDLE_S: Final = 12 * 3600.0
"""A session ends when nothing was asked for that long."""
MOST_LINKS: Final = 16
MOST_SESSIONS: Final = 32
"""Beyond, the oldest goes: one forgotten link, or tab, never keeps anybody out."""
_BYTES: Final = 32
_LONGEST: Final = 128
MOST_NOTES: Final = 4

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class UiSession:
    """What is kept for one browser. `notes`: what acts came to, until a page shows them."""

    seen_s: float
    notes: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MOST_NOTES))

    def take_notes(self) -> list[tuple[str, str]]:
        """The notes, which no other page shows then."""
        taken = list(self.notes)
        self.notes.clear()
        return taken


class SessionKeys:
    """Links and sessions of one start."""

    def __init__(self) -> None:
        self._links: dict[bytes, float] = {}
        self._sessions: dict[bytes, UiSession] = {}

    def link(self, now_s: float) -> str:
        """A new link's secret."""
        return _added(self._links, now_s, MOST_LINKS)

    def opened(self, link: str, now_s: float) -> str | None:
        """The secret of a new session for a link, which is used up; None for one that is not known, or no longer."""
        made_s = self._links.pop(_digest(link), None)
        if made_s is None or now_s - made_s > LINK_S:
            return None
        return _added(self._sessions, UiSession(seen_s=now_s), MOST_SESSIONS)

    def session(self, cookie: str | None, now_s: float) -> UiSession | None:
        """The session of a cookie; None without one. A value that this process did not give is none."""
        digest = _digest(cookie or "")
        found = self._sessions.get(digest)
        if found is None:
            return None
        if now_s - found.seen_s > IDLE_S:
            del self._sessions[digest]
            return None
        found.seen_s = now_s
        return found

    def holds(self, session: UiSession) -> bool:
        """Whether a session goes on: it was not ended, and no newer one has taken its place."""
        return any(one is session for one in self._sessions.values())

    def close(self, cookie: str | None) -> None:
        """End a session, if it is one."""
        self._sessions.pop(_digest(cookie or ""), None)


def _added(kept: dict[bytes, T], value: T, most: int) -> str:
    """Keep `value` under the digest of a new secret; the secret."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
    secret = secrets.token_urlsafe(_BYTES)
    kept[_digest(secret)] = value
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret[:_LONGEST].encode("utf-8", "surrogatepass")).digest()

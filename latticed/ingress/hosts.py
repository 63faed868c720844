"""Checks the Host header against the allowed names: a page may have its own name resolve to us (DNS rebinding)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from latticed.settings import HttpSettings


MAX_CHARACTERS: Final = 300
"""Of a Host header. A domain name has at most 253 (RFC 1035, section 2.3.4, without the root); a port is added."""


class Hosts:
    """The allowed names: `http.hosts`, else the listen address and localhost. One without a port allows any port."""

    def __init__(self, settings: HttpSettings) -> None:
        address, _, _ = settings.listen.rpartition(":")
        named = settings.hosts or (address, "localhost")
        self._allowed = frozenset(found for one in named if (found := endpoints.host(one)) is not None)
        # Bounded: clients choose the header. For each instance, so that changed settings do not meet old answers.
        self._judged = functools.lru_cache(maxsize=64)(self._judge)

    def check(self, said: str) -> None:
        """Raise Problem `bad_request` when the Host header `said` is malformed, `host_not_allowed` when not allowed."""
        if len(said) > MAX_CHARACTERS or (allowed := self._judged(said)) is None:
            raise Problem("bad_request", "expected one Host")
        if not allowed:
            raise Problem("host_not_allowed", "this host is not served here")

    def _judge(self, said: str) -> bool | None:
        """Whether a Host header names an allowed host; None when it is malformed."""
        found = endpoints.host(said)
        return None if found is None else found in self._allowed or (found[0], None) in self._allowed

"""Checks the Host header against the allowed names: a page may have its own name resolve to us (DNS rebinding)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from latticed.settings import HttpSettings


MAX_CHARACTERS: Final = 300


class Hosts:
    """The allowed names: those of the settings, else the listen address and localhost. Without a port: any port."""

    def __init__(self, settings: HttpSettings) -> None:
        address, _, _ = settings.listen.rpartition(":")
        named = settings.hosts or (address, "localhost")
        self._allowed = frozenset(found for one in named if (found := endpoints.host(one)) is not None)
        self._judged = functools.lru_cache(maxsize=64)(self._judge)

    def check(self, said: str) -> None:
        """Raise Problem `bad_request` when the Host header `said` is malformed, `host_not_allowed` when not allowed."""
        if len(said) > MAX_CHARACTERS or (allowed := self._judged(said)) is None:
            raise Problem("bad_request", "expected one Host")
        if not allowed:
            raise Problem("host_not_allowed", "this host is not served here")

    def _judge(self, said: str) -> bool | None:
        found = endpoints.host(said)
        return None if found is None else found in self._allowed or (found[0], None) in self._allowed

"""Judges stored pairs under the policy in force, off the event loop."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from latticed.kit.one_by_one import OneByOne

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latticed.catalog.store import Store
    from latticed.model.verdict import Verdict
    from latticed.trust.policy import TrustPolicy


class PairJudge:
    """Calls of `Store.verify` on threads; `policy` is asked for each, so that a change counts at once."""

    def __init__(self, store: Store, policy: Callable[[], TrustPolicy], *, host_version: str) -> None:
        self._store = store
        self._policy = policy
        self._host_version = host_version
        self._calls = OneByOne()

    async def __call__(self, identity: str, sha256: str | None = None) -> Verdict:
        """The verdict on the pair of `identity`; `sha256`, when known already, is its artifact's, which is not read."""
        return await self._calls.run(functools.partial(self._verify, identity, sha256))

    async def many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """The verdicts on some dozens of pairs, by (identity, sha256), in one call: a thread for each takes longer than
        its work.
        """
        return await self._calls.run(lambda: [self._verify(identity, sha256) for identity, sha256 in pairs])

    def _verify(self, identity: str, sha256: str | None) -> Verdict:
        return self._store.verify(identity, self._policy(), host_version=self._host_version, sha256=sha256)

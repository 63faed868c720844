"""What the parts of the market work with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latticed.model.audit import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from latticed.bundle.read import BundleDirectory, ReadLimits
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.ledger.revocations import RevocationRows
    from latticed.ledger.versions import BadVersion
    from latticed.market.shelf import MarketShelf
    from latticed.model.audit import Actor
    from latticed.model.errors import Problem
    from latticed.model.lifecycle import Record
    from latticed.model.manifest import Manifest
    from latticed.settings.market import MarketSettings
    from latticed.trust.policy import TrustPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketDeps:
    """See the module. `settings`, `policy` and `record` are asked at each use.

    `bad(plugin_id)`: versions that were given up, by identity. `admit(manifest, identity, pair)`: Problem when this
    host cannot run it. `revoke(rows, source)` stops what a source has taken back, for good; all of it before a write.
    """

    ledger: Ledger
    shelf: MarketShelf
    clock: Clock
    settings: Callable[[], MarketSettings]
    policy: Callable[[], TrustPolicy]
    record: Callable[[str], Record | None]
    bad: Callable[[str], Mapping[str, BadVersion]]
    admit: Callable[[Manifest, str, BundleDirectory], Awaitable[None]]
    revoke: Callable[[RevocationRows, str], Awaitable[None]]
    host_version: str
    limits: ReadLimits

    def now_s(self) -> int:
        """Whole seconds since 1970."""
        return self.clock.wall_us() // 1_000_000

    async def audit(
        self,
        actor: Actor,
        action: str,
        target: str,
        *,
        detail: dict[str, str | int | bool] | None = None,
        problem: Problem | None = None,
    ) -> None:
        """Put on record what was done or refused."""
        event = Event(actor=str(actor), action=action, target=target, decision="allow", detail=detail or {})
        if problem is not None:
            event = replace(event, decision="deny", code=problem.code, reason=problem.reason)
        await self.ledger.record(event)

"""What the lifecycle stands on, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latticed.lifecycle import manifest_defaults as usual

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.catalog.catalog import Catalog
    from latticed.catalog.store import Store
    from latticed.host.static.calls import StaticCalls
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.model.accepted import Usual
    from latticed.model.verdict import Verdict
    from latticed.supervisor.supervisor import Supervisor
    from latticed.trust.policy import TrustPolicy


async def _nobody(*_: str) -> None:
    """For houses without host services."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleDeps:
    """The rooms that the lifecycle stands on."""

    ledger: Ledger
    catalog: Catalog
    supervisor: Supervisor
    clock: Clock
    judge: Callable[[str], Awaitable[Verdict]]
    store: Store
    revocations: RevocationKeeper
    glance: Callable[[str, str], Awaitable[Verdict]]
    """Judges a stored pair (identity, SHA-256 of its artifact) by manifest, signature and policy alone."""
    policy: Callable[[], TrustPolicy]
    static: StaticCalls | None = None
    usual: Usual = usual.DEFAULTS
    """What the settings give where a manifest is silent."""
    tell_changed: Callable[[str], None] = lambda _: None
    """Called whenever a plugin may stand otherwise (`Lifecycle.standing`): what it may no longer do ends with that."""
    drained: Callable[[str], Awaitable[None]] = _nobody
    """Returns once nothing goes on for a plugin that it may no longer do."""
    tell_gone: Callable[[str], Awaitable[None]] = _nobody
    """Called with an id that was forgotten, or came into other hands: before anything of the new one is started."""

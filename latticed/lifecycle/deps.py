"""What the lifecycle works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latticed.lifecycle import manifest_defaults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.catalog.catalog import Catalog
    from latticed.catalog.store import Store
    from latticed.host.services import HostServices
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.lifecycle.policy import PolicyKeeper
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.model.accepted import Usual
    from latticed.model.verdict import Verdict
    from latticed.supervisor.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleDeps:
    """See the module."""

    ledger: Ledger
    catalog: Catalog
    supervisor: Supervisor
    clock: Clock
    judge: Callable[[str], Awaitable[Verdict]]
    store: Store
    revocations: RevocationKeeper
    glance: Callable[[str, str], Awaitable[Verdict]]
    """Judges a stored pair (identity, SHA-256 of its artifact) by manifest, signature and policy alone."""
    policy: PolicyKeeper
    services: HostServices
    """Learns how each plugin stands (`update`) before anything else comes of a decision or a verdict."""
    defaults: Usual = manifest_defaults.DEFAULTS
    """What the settings give where a manifest is silent."""

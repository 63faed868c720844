"""The dependencies of the lifecycle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.kit.value import Value

if TYPE_CHECKING:
    from latticed.catalog.catalog import Catalog
    from latticed.catalog.pair_judge import PairJudge
    from latticed.catalog.store import Store
    from latticed.host.services import HostServices
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.lifecycle.configurations import Configurations
    from latticed.lifecycle.policy import PolicyKeeper
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.model.accepted import Usual
    from latticed.supervisor.supervisor import Supervisor


class LifecycleDeps(Value, frozen=True, kw_only=True):
    """What the lifecycle works with; `app` makes it.

    `defaults` are the settings' values for what a manifest leaves out, `gate_s` how long an upgrade is watched.
    """

    ledger: Ledger
    catalog: Catalog
    store: Store
    supervisor: Supervisor
    services: HostServices
    configurations: Configurations
    policy: PolicyKeeper
    revocations: RevocationKeeper
    judge: PairJudge
    clock: Clock
    defaults: Usual
    gate_s: float

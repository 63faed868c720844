"""`GET /metrics` of the controller, in the Prometheus text format 0.0.4: numbers of the fleet, names of no node."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.fleet.controller import views

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.controller.views import LinkFacts
    from latticed.fleet.controller_view import AlarmView

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_STATES: Final = ("settled", "pending", "unwell", "refused", "waiting", "unassigned", "away")


def text(
    core: FleetCore,
    facts: LinkFacts,
    *,
    alarms: Sequence[AlarmView],
    rollouts: Mapping[str, int],
    heard: Mapping[str, int],
    now_s: float,
) -> bytes:
    """All lines."""
    return "".join(_lines(core, facts, alarms=alarms, rollouts=rollouts, heard=heard, now_s=now_s)).encode("ascii")


def _lines(
    core: FleetCore,
    facts: LinkFacts,
    *,
    alarms: Sequence[AlarmView],
    rollouts: Mapping[str, int],
    heard: Mapping[str, int],
    now_s: float,
) -> Iterator[str]:
    counted = msgspec.structs.asdict(views.counts(core))
    states = {f'state="{name}"': counted[name] for name in _STATES}
    yield from _family("latticed_fleet_nodes", "gauge", "nodes by state", states)
    yield from _family("latticed_fleet_nodes_present", "gauge", "nodes that beat lately", {"": counted["present"]})
    yield from _family(
        "latticed_fleet_rollouts",
        "gauge",
        "rollouts that are not over, by state",
        {f'state="{state!s}"': count for state, count in rollouts.items()},
    )
    yield from _family("latticed_fleet_leader", "gauge", "1 when this controller acts", {"": int(facts.leader)})
    yield from _family("latticed_fleet_lease_lost_total", "counter", "times that the lease was lost", {"": facts.lost})
    yield from _family(
        "latticed_fleet_engine_connected", "gauge", "1 while the message system is there", {"": int(facts.connected)}
    )
    known = views.certificate(core)
    yield from _family(
        "latticed_fleet_certificate_seconds",
        "gauge",
        "until this controller's certificate ends; negative after it, 0 without one",
        {"": round(known.expires - now_s, 1) if known.state in {"valid", "expired"} else 0},
    )
    yield from _family(
        "latticed_fleet_heard_total",
        "counter",
        "messages of nodes that were read",
        {f'kind="{name}"': count for name, count in heard.items()},
    )
    missed = sum(one.missed for one in core.heads.values())
    yield from _family("latticed_fleet_events_missed", "gauge", "events that never came", {"": missed})
    codes = Counter(one.code for one in alarms)
    yield from _family(
        "latticed_fleet_alarms", "gauge", "alarms by code", {f'code="{code}"': codes[code] for code in sorted(codes)}
    )
    yield from _family("latticed_fleet_bundles", "gauge", "bundles that are kept", {"": len(core.bundles)})
    yield from _family(
        "latticed_fleet_bundle_bytes", "gauge", "their size", {"": sum(one.size for one in core.bundles.values())}
    )
    yield from _family(
        "latticed_fleet_store_writable", "gauge", "0 while the disk does not take it", {"": int(not core.full)}
    )


def _family(name: str, kind: str, says: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {says}\n# TYPE {name} {kind}\n"
    for labels, value in values.items():
        yield f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n"

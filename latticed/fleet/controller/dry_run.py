"""What a rollout would do, without doing it: per node what would change, and what it is asked to consent to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.fleet import controller_view as view
from latticed.fleet import rollout
from latticed.fleet.controller import views
from latticed.model import ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.documents import BundleSource, Intent

MOST_NODES = 10_000


def plan(
    core: FleetCore,
    intent: str,
    *,
    name: str,
    targets: Sequence[str],
    asked: Iterable[str] | None,
    ways_back: Mapping[str, str],
    sizes: Sequence[int],
    sources: Sequence[BundleSource],
) -> view.PlanView:
    """The dry run. `targets` would be given it; of `asked`, those that would not be are told why."""
    document: Intent = core.shelf.intents[intent].document
    waves = rollout.waves(name, targets, sizes)
    wave_of = {node: number for number, nodes in enumerate(waves) for node in nodes}
    versions = {
        one.id: kept.version if (kept := core.bundles.get(one.sha256)) is not None else "from elsewhere"
        for one in sources
    }
    planned = [
        view.NodePlan(
            node=node,
            wave=wave_of[node],
            present=node in core.present,
            way_back=node in ways_back,
            changes=tuple(
                views.change(core, node, wanted, _before(core, node), versions) for wanted in document.plugins
            ),
        )
        for node in targets
    ]
    planned += _others(core, intent, [] if asked is None else [one for one in asked if one not in wave_of])
    planned.sort(key=lambda one: (one.wave, one.node))
    return view.PlanView(
        intent=intent,
        nodes=tuple(planned[:MOST_NODES]),
        sizes=tuple(len(nodes) for nodes in waves),
        notes=tuple(_notes(core, intent, targets=targets, ways_back=ways_back, sources=sources)),
    )


def _others(core: FleetCore, intent: str, nodes: Iterable[str]) -> Iterator[view.NodePlan]:
    """Nodes that were asked about and would be given nothing."""
    selector = core.shelf.intents[intent].document.selector
    for name in nodes:
        node, kept = core.nodes.get(name), core.assignments.get(name)
        if node is None:
            refused, reason = "node_unknown", f"expected a node of this fleet, found none that is {name}"
        elif node.key in core.shelf.revoked:
            refused, reason = "node_revoked", "its key was revoked"
        elif not selector.selects(name, node.labels):
            refused, reason = "not_selected", "the intent's selector does not have this node by its certified labels"
        else:
            refused, reason = (
                "assigned",
                f"it is assigned this intent already, as generation {kept.generation if kept else 0}",
            )
        yield view.NodePlan(node=name, wave=0, present=name in core.present, refused=refused, reason=reason)


def _before(core: FleetCore, node: str) -> Intent | None:
    """The intent that a node has now, as far as it is known here."""
    kept, status = core.assignments.get(node), core.statuses.get(node)
    name = status.intent if status is not None and status.intent else kept.intent if kept is not None else ""
    signed = core.shelf.intents.get(name)
    return signed.document if signed is not None else None


def _notes(
    core: FleetCore,
    intent: str,
    *,
    targets: Sequence[str],
    ways_back: Mapping[str, str],
    sources: Sequence[BundleSource],
) -> Iterator[str]:
    document: Intent = core.shelf.intents[intent].document
    here = {one.id for one in sources}
    missing = [one.id for one in document.plugins if one.id not in here and not ids.is_reserved_plugin(one.id)]
    if missing:
        yield f"no bundle is here for {', '.join(missing[:5])}: hosts that lack it cannot have it"
    if stuck := len(targets) - len(ways_back):
        yield f"{stuck} of {len(targets)} nodes have no way back: back_to of the intent does not name what they have"
    if away := sum(node not in core.present for node in targets):
        yield f"{away} of {len(targets)} nodes are away now"
    newest = max((one.document.generation for one in core.shelf.intents.values()), default=0)
    if document.generation < newest:
        yield f"an intent of generation {newest} is here: nodes that took it up refuse generation {document.generation}"

"""What the API shows, made of what the controller knows. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.fleet import controller_view as view
from latticed.fleet import enrolment, rollout
from latticed.fleet.controller import assigning, observing, shelf
from latticed.fleet.rollout import NodeOutcome, RolloutState
from latticed.kit.value import Value
from latticed.model import ids, semver_range

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from latticed.fleet.controller.assigning import KeptBundle
    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.controller.lease import LeaseWords
    from latticed.fleet.controller.records import RolloutRecord
    from latticed.fleet.controller.store import EventRow, KeptAlarm
    from latticed.fleet.documents import Intent, PluginStatus, Signed, WantedPlugin
    from latticed.fleet.rollout import NodeReport

EXPIRES_SOON_S: Final = 2 * 86_400
"""A certificate that ends within that time is an alarm; so is one of whose life a quarter is left."""
AWAY_S: Final = 60.0
"""The message system may be away for so long without an alarm."""
LEADERLESS_S: Final = 60.0
CLOCKS_S: Final = 60
"""By so much the clocks of two controllers may differ."""
_NAMED: Final = 20
_UNCERTIFIED: Final = {
    "missing": "controller_uncertified",
    "expired": "controller_expired",
    "revoked": "controller_revoked",
}
_STUCK: Final = {RolloutState.HALTED: "rollout_halted", RolloutState.RETURNING: "rollout_returning"}


class LinkFacts(Value, frozen=True, kw_only=True):
    """What is known of the connection and the lease, for alarms and views; `..._s` are seconds since then."""

    connected: bool
    reason: str
    away_s: float
    leader: bool
    held: bool
    lost: int
    seen: LeaseWords | None
    unseen_s: float
    troubles: Mapping[str, str]
    cuts_off: bool
    not_cut_off: str
    credentials_s: int


def certificate(core: FleetCore) -> view.CertificateView:
    """The operator's word for this controller's key."""
    if core.signer in core.shelf.revoked:
        return view.CertificateView(state="revoked", key=core.signer)
    found = core.shelf.certificate(core.signer)
    if found is None:
        return view.CertificateView(state="missing", key=core.signer)
    expires = int(found.document.expires)
    state = "expired" if core.now_s() >= expires else "valid"
    epoch = int(found.document.epoch)
    return view.CertificateView(state=state, key=core.signer, expires=expires, operator=found.key, epoch=epoch)


def alarms(core: FleetCore, facts: LinkFacts) -> tuple[view.AlarmView, ...]:
    """What somebody has to look at now, that of the fleet first."""
    now_s, hearing = core.now_s(), core.hearing()
    found = [
        view.AlarmView(code=code, reason=reason, hint=hint, since=now_s) for code, reason, hint in _own(core, facts)
    ]
    for node, status in core.statuses.items():
        if core.nodes[node].key in core.shelf.revoked:
            continue  # it is given nothing, and what it said last stays
        if status.refused:
            reason = f"{status.refused}: {status.reason}"[:400]
            found.append(view.AlarmView(code="node_refuses", reason=reason, node=node, since=int(status.at)))
        seen = core.seen[node]
        if node in core.present and observing.silent(core.heard.get(node), hearing):
            reason = f"expected a status within {observing.SILENT_S:.0f} s, found none since {seen.received}"
            found.append(view.AlarmView(code="node_silent", reason=reason, node=node, since=seen.received))
    for record in core.rollouts.values():
        if not record.over and record.state in _STUCK:
            code, reason, hint = _STUCK[record.state], f"{record.name}: {record.reason}", "latticectl fleet status"
            found.append(view.AlarmView(code=code, reason=reason, hint=hint, since=record.changed))
    found += _still_connecting(core, facts)
    found += [_alarm(one) for one in core.alarms.values()]
    return tuple(sorted(found, key=lambda one: (one.node, one.code)))


def _own(core: FleetCore, facts: LinkFacts) -> Iterable[tuple[str, str, str]]:
    """Code, reason and hint of what is about this controller or the fleet as a whole."""
    if not facts.connected and facts.away_s >= AWAY_S:
        yield "engine_away", f"no connection for {facts.away_s:.0f} s: {facts.reason}", "hosts go on by themselves"
    known = certificate(core)
    hint = "latticectl fleet sign request.json, with the operator's key; then latticectl fleet send certificate.json"
    match known.state:
        case "missing" | "expired" | "revoked":
            yield _UNCERTIFIED[known.state], f"nodes take nothing of this controller: key {known.key}", hint
        case _ if known.expires - core.now_s() < EXPIRES_SOON_S:
            yield "certificate_expires", f"this controller's certificate ends at {known.expires}", hint
    yield from _lease(core, facts)
    if core.full:
        yield "store_unavailable", core.full, "free some space; nothing new is decided meanwhile"
    if core.rebuilt:
        yield "state_rebuilt", core.rebuilt, "look at the rollouts that are halted, and resume or take them back"
    if facts.not_cut_off:
        hint = "latticectl fleet check --fleet DIR says what the controller's credentials for it lack"
        yield "users_not_revoked", facts.not_cut_off, hint
    if left := shelf.untold(core.shelf):
        reason = f"{len(left)} revocations are by operators who are revoked"
        yield "revocations_untold", reason, "sign a list that has all"
    for about, reason in facts.troubles.items():
        yield "not_done", f"{about}: {reason}", ""


def _still_connecting(core: FleetCore, facts: LinkFacts) -> Iterable[view.AlarmView]:
    """Nodes that were revoked, and that servers let in for as long as their credentials last."""
    refused, now_s = core.shelf.cut_off, core.now_s()
    for one in core.tokens.values():
        since = core.revoked_since.get(one.key)
        if since is None or not one.request or now_s >= since + facts.credentials_s:
            continue
        if (user := enrolment.user_of(one.request)) in refused:
            continue
        reason = f"expected {one.node} to be let in no more, found no word of an operator that refuses its user {user}"
        days = (since + facts.credentials_s - now_s) // 86_400
        hint = (
            f"latticectl fleet revoke {user}, then latticectl fleet send the list that it writes"
            if facts.cuts_off
            else f"have your servers revoke that user of the account NODES; its credentials end in {days} days"
        )
        yield view.AlarmView(code="node_not_cut_off", reason=reason, hint=hint, node=one.node, since=since)


def _lease(core: FleetCore, facts: LinkFacts) -> Iterable[tuple[str, str, str]]:
    if facts.lost and not facts.held:
        yield "lease_lost", "this controller has lost the lease and does not act", "another one does, or none can"
    if facts.connected and not facts.held and facts.seen is None and facts.unseen_s >= LEADERLESS_S:
        yield "no_leader", f"no controller holds the lease for {facts.unseen_s:.0f} s", ""
    if facts.seen is not None and not facts.held:
        apart = abs(core.now_s() - facts.seen.at - int(facts.unseen_s))
        if apart > CLOCKS_S:
            reason = f"the controller {facts.seen.holder} says that it is {facts.seen.at}, which is {apart} s off"
            yield "controller_clock", reason, "set the clocks of both"


def counts(core: FleetCore) -> view.NodeCounts:
    """How many nodes are in which state."""
    states = Counter(state(core, node) for node in core.nodes)
    return view.NodeCounts(
        nodes=len(core.nodes),
        present=len(core.present & core.nodes.keys()),
        alarmed=len({node for _, node in core.alarms if node}),
        **states,
    )


def state(core: FleetCore, node: str) -> str:
    """A node in one word."""
    return observing.state(
        core.assignments.get(node),
        core.seen.get(node),
        core.statuses.get(node),
        present=node in core.present,
        silent=observing.silent(core.heard.get(node), core.hearing()),
    )


def node_row(core: FleetCore, name: str) -> view.NodeRow:
    """A node in a list."""
    node, kept, status = core.nodes[name], core.assignments.get(name), core.statuses.get(name)
    row = view.NodeRow(
        name=name,
        labels=node.labels,
        state=state(core, name),
        present=name in core.present,
        assigned=kept.intent if kept is not None else "",
        generation=kept.generation if kept is not None else 0,
    )
    if status is None:
        return row
    bad = observing.troubles(status)
    return msgspec.structs.replace(
        row,
        intent=status.intent,
        settled=status.settled,
        refused=status.refused,
        reason=status.reason or "; ".join(bad[:3])[:400],
        seen=core.seen[name].received,
        plugins=len(status.plugins),
        unhealthy=len(bad),
        plans=len(status.plans),
    )


def node_view(core: FleetCore, name: str) -> view.NodeView:
    """A node with all that is known of it."""
    node, kept, status, head = (
        core.nodes[name],
        core.assignments.get(name),
        core.statuses.get(name),
        core.heads.get(name),
    )
    seen = core.seen.get(name)
    active = [one for one in core.rollouts.values() if not one.over and name in one.nodes]
    return view.NodeView(
        node=node_row(core, name),
        key=node.key,
        serial=node.serial,
        epoch=kept.epoch if kept is not None else 0,
        reported=status.generation if status is not None else 0,
        reported_epoch=status.epoch if status is not None else 0,
        status_at=int(status.at) if status is not None else 0,
        expires=kept.expires if kept is not None else 0,
        rollout=max(active, key=lambda one: one.began).name if active else "",
        plugins=tuple(_plugin(one, seen.rates if seen is not None else {}) for one in status.plugins) if status else (),
        plans=status.plans if status is not None else (),
        events=head.number if head is not None else 0,
        head=head.hash if head is not None else "",
        missed=head.missed if head is not None else 0,
        enrolment=next((one.request for one in core.tokens.values() if one.key == node.key and one.node == name), ""),
        enrolments=tuple(one.request for one in core.tokens.values() if one.node == name and one.request),
        alarms=tuple(_alarm(one) for (_, about), one in core.alarms.items() if about == name),
    )


def event(row: EventRow) -> view.EventView:
    """An event as it is kept."""
    number, node, own, at, seq, actor, decision, action, target, code, reason, received, found, prev = row
    return view.EventView(
        id=number,
        node=node,
        number=own,
        at=at,
        seq=seq,
        actor=actor,
        decision=decision,
        action=action,
        target=target,
        code=code,
        reason=reason,
        received=received,
        hash=found,
        prev=prev,
    )


def intents(core: FleetCore) -> view.IntentsPage:
    """All intents, the highest generation first."""
    assigned = Counter(one.intent for one in core.assignments.values())
    taken = Counter(one.intent for one in core.statuses.values())
    found = sorted(core.shelf.intents.values(), key=lambda one: (-one.document.generation, one.sha256))
    return view.IntentsPage(intents=tuple(_intent(core, one, assigned, taken) for one in found))


def bundle(kept: KeptBundle, *, new: bool = False, here: bool = True) -> view.BundleView:
    """A bundle that is kept."""
    return view.BundleView(
        sha256=kept.sha256,
        id=kept.plugin,
        version=kept.version,
        identity=kept.identity,
        publisher=kept.publisher,
        size=kept.size,
        new=new,
        here=here,
    )


def rollout_view(
    record: RolloutRecord, reports: Mapping[str, NodeReport], *, waited_s: float, gone: Collection[str]
) -> view.RolloutView:
    """A rollout with its nodes as they are now. `gone`: those that no gate waits for."""
    plain = record.rollout()
    touched = plain.touched
    outcomes = {
        node: rollout.outcome(plain, reports.get(node), waited_s=waited_s) for node in touched if node not in gone
    }
    waves = []
    for number, nodes in enumerate(plain.waves):
        given = number <= plain.wave
        found = Counter(str(outcomes[node]) for node in nodes if node in outcomes)
        waves.append(view.WaveView(nodes=len(nodes), given=given, **found))
    policy = view.PolicyView(
        unwell_share=record.policy.unwell_share,
        away_share=record.policy.away_share,
        settle_s=record.policy.settle_s,
        patience_s=record.policy.patience_s,
        denials_per_minute=record.policy.denials_per_minute,
        restarts=record.policy.restarts,
    )
    return view.RolloutView(
        name=record.name,
        intent=record.release,
        state=str(record.state),
        reason=record.reason,
        policy=policy,
        waves=tuple(waves),
        wave=record.wave,
        wave_began=int(record.wave_began_s),
        began=record.began,
        changed=record.changed,
        before=dict(Counter(plain.back(node) for node in record.nodes)),
        nodes=len(record.nodes),
        touched=len(touched),
        unwell=_some(outcomes, NodeOutcome.UNWELL),
        away=_some(outcomes, NodeOutcome.AWAY),
        stuck=tuple(node for node in outcomes if not plain.back(node))[:_NAMED],
    )


def change(
    core: FleetCore, node: str, wanted: WantedPlugin, before: Intent | None, sources: Mapping[str, str]
) -> view.PlannedChange:
    """What one plugin of one node would become. `sources`: versions of the bundles to be assigned, by plugin."""
    status = core.statuses.get(node)
    now = next((one for one in status.plugins if one.id == wanted.id), None) if status is not None else None
    past = next((one for one in before.plugins if one.id == wanted.id), None) if before is not None else None
    known = frozenset(past.accept) if past is not None else frozenset[str]()
    word, reason, version = _changed(now, wanted, past, sources)
    return view.PlannedChange(
        plugin=wanted.id,
        change=word,
        from_version=now.version if now is not None else "",
        to_version=version,
        from_status=now.status if now is not None else "",
        to_status=wanted.status,
        accept=wanted.accept,
        added=tuple(one for one in wanted.accept if one not in known),
        secrets=wanted.secrets,
        reason=reason,
    )


def _changed(
    now: PluginStatus | None, wanted: WantedPlugin, past: WantedPlugin | None, sources: Mapping[str, str]
) -> tuple[str, str, str]:
    """The word for a change, why it cannot be, and the version that there would be."""
    here = now is not None and now.status not in {"", "verified"}
    there = sources.get(wanted.id, "")
    fits = now is not None and (
        now.identity == wanted.identity
        if wanted.identity is not None
        else wanted.versions is None or assigning.within(wanted.versions, now.version)
    )
    if now is not None and here and fits:
        if now.status == wanted.status or (wanted.status == "installed" and now.status == "active"):
            same = past is not None and (past.config, past.accept, past.secrets) == (
                wanted.config,
                wanted.accept,
                wanted.secrets,
            )
            return ("none" if same else "configure"), "", now.version
        return ("disable" if wanted.status == "disabled" else "activate"), "", now.version
    if wanted.status == "disabled":
        return ("disable" if here else "none"), "", now.version if now is not None else ""
    if not there and not ids.is_reserved_plugin(wanted.id):
        return "blocked", "no bundle of it is here: latticectl fleet roll --bundle gives one", ""
    if now is None or not here:
        return "install", "", there
    order = semver_range.compare(there, now.version) if there and now.version else None
    return ("replace" if not order else "upgrade" if order > 0 else "downgrade"), "", there


def _intent(core: FleetCore, signed: Signed, assigned: Counter[str], taken: Counter[str]) -> view.IntentView:
    document: Intent = signed.document
    sources = {one.id: one.sha256 for one in core.sources_for(signed.sha256)}
    plugins = tuple(
        view.WantedView(
            id=one.id,
            status=one.status,
            identity=one.identity or "",
            versions=one.versions or "",
            publisher=one.publisher or "",
            accept=one.accept,
            secrets=one.secrets,
            config=one.config,
            bundle=sources.get(one.id, ""),
            version=kept.version if (kept := core.bundles.get(sources.get(one.id, ""))) is not None else "",
        )
        for one in document.plugins
    )
    return view.IntentView(
        sha256=signed.sha256,
        generation=document.generation,
        labels=document.selector.labels,
        nodes=document.selector.nodes,
        plugins=plugins,
        back_to=document.back_to,
        expires=int(document.expires),
        operator=signed.key,
        revoked=core.shelf.counts(signed.sha256, now_s=0) != "",
        selected=len(core.selected(signed.sha256)),
        assigned=assigned[signed.sha256],
        taken=taken[signed.sha256],
    )


def _plugin(one: PluginStatus, rates: Mapping[str, float]) -> view.PluginView:
    return view.PluginView(
        id=one.id,
        version=one.version,
        identity=one.identity,
        status=one.status,
        state=one.state,
        health=one.health,
        restarts=one.restarts,
        denied=one.denied,
        code=one.code,
        reason=one.reason,
        denials_per_minute=round(rates.get(one.id, 0.0), 2),
    )


def _alarm(one: KeptAlarm) -> view.AlarmView:
    return view.AlarmView(code=one.code, reason=one.reason, hint=one.hint, node=one.node, since=one.since)


def _some(outcomes: Mapping[str, NodeOutcome], which: NodeOutcome) -> tuple[str, ...]:
    found: Sequence[str] = [node for node, outcome in outcomes.items() if outcome is which]
    return tuple(found[:_NAMED])

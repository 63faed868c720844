"""What a node asks its daemon for next, so that it has what is wanted: one step at a time, then it looks again. Pure.

    has (as the daemon answers) + wanted (signed by an operator) ──► Request | Take | Blocked, or nothing: settled

What was settled once and is otherwise now was altered by hand, on the host: that stays, and is told. A plugin that the
intent does not name is left alone. All that widens what a plugin may do comes from the intent's `accept`, so from an
operator's signature; a plan is never approved, as there is no step for it.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from latticed.fleet import messages
from latticed.model import consents, egress, ids, semver_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from latticed.fleet.documents import BundleSource, WantedPlugin

_ROLLED_BACK: Final = "rolled_back"
"""Why a version was given up: somebody went back from it."""
_UNTAKEN: Final = frozenset({"", "verified"})
"""Status of what no operator has decided about yet; empty: there is no record."""


class Version(Struct, frozen=True, kw_only=True):
    """One version of a plugin that the daemon has or could have."""

    version: str
    identity: str
    publisher: str


class Candidate(Version, frozen=True, kw_only=True):
    """What an upgrade would take. `bad`: why it was given up before, empty if it was not; `left`: when somebody went
    back from it, in seconds since 1970, and 0 where it was not well.
    """

    adds: tuple[str, ...]
    drops: tuple[str, ...]
    needs_downgrade: bool
    bad: str
    left: int = 0


class Has(Struct, frozen=True, kw_only=True):
    """What the daemon has of one plugin; `status` is empty without a record. `config` is null where none is set, or it
    cannot have one; `secrets` are those bound to it. `withheld` (`kind=value`) and `withheld_hosts`: what its manifest
    asks for and was not accepted; `declares_hosts`: whether no others can be granted. `features`, `level` and `limits`
    were; `usual_level` and `usual_limits` are the settings' own, for those that are left to them.
    """

    id: str
    status: str = ""
    now: Version = Version(version="", identity="", publisher="")
    available: bool = False
    gating: bool = False
    """Whether a change of versions is still being watched: it may be undone yet."""
    candidate: Candidate | None = None
    kept: tuple[Version, ...] = ()
    declared: tuple[str, ...] = ()
    granted: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    permits: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    withheld_hosts: tuple[str, ...] = ()
    declares_hosts: bool = True
    features: frozenset[str] = frozenset()
    level: str = ""
    limits: dict[str, int] = {}
    usual_level: str = "isolated"
    usual_limits: dict[str, int] = {}
    config: dict[str, Any] | None = None
    secrets: frozenset[str] = frozenset()


class Request(Struct, frozen=True, kw_only=True):
    """One request to the daemon: `parts` of the path below /api."""

    plugin: str
    method: str
    parts: tuple[str, ...]
    body: dict[str, Any]

    @property
    def binds(self) -> bool:
        """Whether it gives a secret to the plugin."""
        return self.parts[0] == "secrets"


class Take(Struct, frozen=True, kw_only=True):
    """Its bundle has to be in the spool first; `then` imports it."""

    plugin: str
    sha256: str
    urls: tuple[str, ...]
    then: Request


class Blocked(Struct, frozen=True, kw_only=True):
    """Nothing can be done about it from here, and why."""

    plugin: str
    code: str
    reason: str


Step = Request | Take | Blocked


def next_step(
    has: Has,
    wanted: WantedPlugin,
    *,
    source: BundleSource | None,
    settled: bool,
    secrets: frozenset[str],
    since: int = 0,
) -> Step | None:
    """What is to be done next about one plugin; None when it is as wanted.

    `settled`: it was as wanted once, under the present assignment. `secrets`: names of all that the host has. `since`:
    when the intent was taken up.
    """
    step = _status_step(has, wanted) if wanted.status == "disabled" else _step(has, wanted, source, secrets, since)
    if settled and isinstance(step, Request | Take):
        return Blocked(plugin=wanted.id, code="changed_here", reason=f"altered on the host since: {_words(step)}")
    return step


def matches(found: Version, wanted: WantedPlugin) -> bool:
    """Whether this version is one that is wanted. Of a built-in plugin the one that latticed brings always is."""
    if wanted.identity is not None:
        return found.identity == wanted.identity
    if wanted.versions is not None:
        return found.publisher == wanted.publisher and semver_range.contains(wanted.versions, found.version)
    return ids.is_reserved_plugin(wanted.id)


def _step(
    has: Has, wanted: WantedPlugin, source: BundleSource | None, secrets: frozenset[str], since: int
) -> Step | None:
    """Bundle, version, decision to install, secrets, configuration, grants, and only then: activate."""
    if not matches(has.now, wanted) or not has.status:
        return _version_step(has, wanted, source, since)
    accept = _accept(has.declared, wanted)
    if has.status == "verified":
        return _decide(wanted.id, "installed", accept)
    if missing := sorted(set(wanted.secrets) - has.secrets):
        if missing[0] not in secrets:
            reason = f"expected the secret {missing[0]} on this host, found none: latticectl secret set {missing[0]}"
            return Blocked(plugin=wanted.id, code="secret_missing", reason=reason)
        return Request(plugin=wanted.id, method="PUT", parts=("secrets", missing[0], "plugins", wanted.id), body={})
    if wanted.config is not None and has.config != wanted.config:
        return Request(
            plugin=wanted.id,
            method="PUT",
            parts=("plugins", "by-id", wanted.id, "config"),
            body={"config": wanted.config},
        )
    if (grants := _grants(has, accept)) is not None:
        return grants
    return _status_step(has, wanted)


def _version_step(has: Has, wanted: WantedPlugin, source: BundleSource | None, since: int) -> Step:
    """How another version than the present one comes to be that one."""
    # An identity is one version and no other: that it is lower than what was here is then the operator's word.
    lower = wanted.identity is not None
    taken = has.status not in _UNTAKEN
    by_id = ("plugins", "by-id", wanted.id)
    if taken and (kept := next((one for one in has.kept if matches(one, wanted)), None)) is not None and lower:
        return Request(plugin=wanted.id, method="POST", parts=(*by_id, "rollback"), body={"to": kept.version})
    candidate = has.candidate
    if taken and candidate is not None and matches(candidate, wanted):
        # What somebody went back from before this intent came is wanted again by the operator's word.
        again = 0 < candidate.left <= since
        if candidate.bad and not again:
            return Blocked(plugin=wanted.id, code="candidate_bad", reason=f"given up on this host: {candidate.bad}")
        declared = {*has.declared, *candidate.adds} - set(candidate.drops)
        body: dict[str, Any] = {"accept": list(_accept(declared, wanted))}
        if candidate.needs_downgrade and lower:
            body["allow_downgrade"] = True
        if again:
            body["retry"] = True
        return Request(plugin=wanted.id, method="POST", parts=(*by_id, "upgrade"), body=body)
    if source is None:
        what = wanted.identity or f"{wanted.versions or 'any version'} by {wanted.publisher or 'latticed'}"
        reason = f"expected {what}, found {has.now.version or 'nothing'} here and no bundle assigned"
        return Blocked(plugin=wanted.id, code="bundle_unknown", reason=reason)
    # A controller chose the file: what it may hold is what the operator signed.
    body = {"name": messages.spool_name(source.sha256), "sha256": source.sha256, "id": wanted.id}
    signed = {"identity": wanted.identity, "publisher": wanted.publisher, "versions": wanted.versions}
    body |= {name: value for name, value in signed.items() if value is not None}
    body["accept"] = list(wanted.accept)
    if lower:
        body["allow_downgrade"] = True
    then = Request(plugin=wanted.id, method="POST", parts=("market", "import"), body=body)
    return Take(plugin=wanted.id, sha256=source.sha256, urls=source.urls, then=then)


def _status_step(has: Has, wanted: WantedPlugin) -> Step | None:
    match wanted.status, has.status:
        case "disabled", "installed" | "active":
            return _decide(wanted.id, "disabled", ())
        # What nobody has decided about does not run.
        case "disabled", _:
            return None
        case "active", "installed" | "disabled":
            return _decide(wanted.id, "active", _accept(has.declared, wanted))
        case "installed", "active":
            reason = "expected a plugin that is not active, found it active: an intent stops it by disabled"
            return Blocked(plugin=wanted.id, code="invalid_transition", reason=reason)
    return None


def _grants(has: Has, accept: tuple[str, ...]) -> Request | None:
    """What is consented to and not granted yet; nothing is taken away."""
    named = consents.parse(accept)
    grant = [*sorted(set(named.caps) - set(has.granted)), *_ungranted(has, named.terms)]
    hosts = {*named.hosts} - {*has.hosts}
    if has.declares_hosts and not egress.on_star_ports(has.withheld_hosts):
        hosts.discard(egress.ANY)  # which became the hosts that it covers
    permits = sorted({*named.permits} - {*has.permits})
    body: dict[str, Any] = {}
    if grant:
        body["grant"] = grant
    if hosts:
        body["hosts"] = sorted({*has.hosts, *hosts})
    if permits:
        body["permits"] = sorted({*has.permits, *permits})
    if not body:
        return None
    return Request(plugin=has.id, method="PUT", parts=("plugins", "by-id", has.id, "grants"), body=body)


def _ungranted(has: Has, terms: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Those of the terms, as `kind=value`, that can be granted alone, and would give the plugin more than it has."""
    prefixes, withheld = ({_slashed(one) for one in words} for words in (has.permits, has.withheld))
    for kind, value in terms:
        word = f"{kind}={value}"
        match kind:
            # Permits where the manifest does not ask for them; a prefix always.
            case "feature":
                missing = word not in has.permits and value not in has.features
            case "prefix":
                missing = _slashed(word) not in prefixes or _slashed(word) in withheld
            case "limit":
                missing = word in has.withheld or _raises(has, value)
            case "level":
                missing = word in has.withheld or _weakens(has, value)
            case _:
                missing = word in has.withheld and kind not in consents.AT_UPGRADE
        if missing:
            yield word


def _raises(has: Has, limit: str) -> bool:
    """Whether `name:number` is more than was accepted, and no more than what the manifest asks for."""
    name, _, number = limit.partition(":")
    usual = float(has.usual_limits.get(name, math.inf))
    now = has.limits.get(name, usual)
    asked = [one.removeprefix(f"limit={name}:") for one in has.withheld if one.startswith(f"limit={name}:")]
    return any(now < _bound(number, usual) <= _bound(one, usual) for one in asked)


def _bound(number: str, usual: float) -> float:
    return float(number) if number.isdecimal() else usual


def _weakens(has: Has, level: str) -> bool:
    """Whether a level is weaker than was accepted, and no weaker than what the manifest asks for."""
    asked = [one.removeprefix("level=") for one in has.withheld if one.startswith("level=")]
    return any(_rank(has, one) <= _rank(has, level) < _rank(has, has.level) for one in asked)


def _rank(has: Has, level: str) -> int:
    named = level if level not in {"", "default"} else has.usual_level
    return consents.LEVELS.index(named) if named in consents.LEVELS else -1


def _slashed(prefix: str) -> str:
    return prefix if prefix.endswith("/") else f"{prefix}/"


def _decide(plugin_id: str, status: str, accept: tuple[str, ...]) -> Request:
    body: dict[str, Any] = {"id": plugin_id, "status": status}
    if accept:
        body["accept"] = list(accept)
    return Request(plugin=plugin_id, method="POST", parts=("plugins", "lifecycle"), body=body)


def _accept(declared: Iterable[str], wanted: WantedPlugin) -> tuple[str, ...]:
    """What is consented to, without capabilities that this version does not declare: the daemon refuses those."""
    known = set(declared)
    return tuple(one for one in wanted.accept if "=" in one or one in known)


def _words(step: Step) -> str:
    match step:
        case Request():
            return f"{step.method} {'/'.join(step.parts)} would undo it"
        case Take():
            return "another version is here"
        case Blocked():
            return step.reason


def _seconds(moment: str) -> int:
    """Seconds since 1970; 0 for what is no time."""
    try:
        return int(datetime.fromisoformat(moment).timestamp())
    except ValueError:
        return 0


def view(
    plugin_id: str,
    report: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    secrets: Iterable[Mapping[str, Any]],
) -> Has:
    """What the daemon has of a plugin, by its answers; KeyError or TypeError for answers of another form."""
    plugin, grants = report["plugin"], report["grants"]
    accepted = grants["accepted"] or {"features": (), "level": "", "limits": {}}
    publisher = str(plugin.get("publisher") or "")
    found = plugin.get("candidate")
    candidate = None
    if found is not None:
        bad = found.get("bad") or {"code": "", "at": ""}
        candidate = Candidate(
            version=str(found.get("version") or ""),
            identity=str(found["identity"]),
            # An upgrade to another publisher's takes consent by name: here none is given.
            publisher=publisher,
            adds=tuple(found["adds"]),
            drops=tuple(found["drops"]),
            needs_downgrade=bool(found["needs_downgrade"]),
            bad=str(bad["code"]),
            left=_seconds(str(bad["at"])) if bad["code"] == _ROLLED_BACK else 0,
        )
    return Has(
        id=plugin_id,
        status=str(plugin["status"]),
        now=Version(version=str(plugin.get("version") or ""), identity=str(report["identity"]), publisher=publisher),
        available=bool(plugin["available"]),
        gating=(plugin.get("upgrade") or {}).get("state") == "gating",
        candidate=candidate,
        kept=tuple(
            Version(version=str(one["version"] or ""), identity=str(one["identity"]), publisher=publisher)
            for one in report["kept"]
        ),
        declared=tuple(plugin["capabilities"]),
        granted=tuple(grants["granted"]),
        hosts=tuple(grants["hosts"]),
        permits=tuple(grants["permits"]),
        withheld=tuple(grants["withheld"]),
        withheld_hosts=tuple(grants["withheld_hosts"]),
        declares_hosts=bool(grants["declares_hosts"]),
        features=frozenset(accepted["features"]),
        level=str(accepted["level"]),
        limits=dict(accepted["limits"]),
        usual_level=str(grants["usual"]["level"]),
        usual_limits=dict(grants["usual"]["limits"]),
        config=config["config"] if config is not None and config["is_set"] else None,
        secrets=frozenset(str(one["name"]) for one in secrets if plugin_id in one["plugins"]),
    )

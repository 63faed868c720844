"""Grants and their removal by name, as pure functions: the resulting record, or the Problem that refuses it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from latticed.lifecycle import presence
from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.model import accepted, capability, egress, permits
from latticed.model.consents import Named
from latticed.model.errors import Problem
from latticed.model.lifecycle import Status
from latticed.model.manifest import ManifestLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.accepted import Accepted, Usual
    from latticed.model.lifecycle import Record, RecordFacts
    from latticed.model.manifest import Manifest

NOTHING: Final = Named()


class _Unfit(Exception):  # its text becomes the reason of bad_request
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrant:
    """A change of grants.

    `grant` and `trim` are capabilities to unmask and to mask; `add` and `remove` name anything else; `hosts` and
    `permits` replace the present ones unless None. `force` allows origins that are cloud metadata addresses.
    """

    grant: frozenset[str] = frozenset()
    trim: frozenset[str] = frozenset()
    hosts: tuple[str, ...] | None = None
    permits: tuple[str, ...] | None = None
    add: Named = NOTHING
    remove: Named = NOTHING
    force: bool = False

    @property
    def needs_host_scope(self) -> bool:
        """Whether the caller needs the scope `host` for this change (contracts §7)."""
        risky = any(capability.RISKS.get(name) is capability.Risk.HOST for name in self.grant)
        return bool(risky or self.hosts or self.permits or self.add.needs_host_scope)


def regrant(
    record: Record, wanted: Regrant, manifest: Manifest | None, now: int, usual: Usual = DEFAULTS
) -> Record | Problem:
    """The record with other grants; `manifest` is None when neither record nor disk has one.

    Problems: bad_request, metadata_origin, needs_consent.
    """
    hosts = record.hosts if wanted.hosts is None else wanted.hosts
    allowed = record.permits if wanted.permits is None else wanted.permits
    named = Named(
        caps=tuple(wanted.grant | wanted.trim),
        hosts=(*(one for one in hosts if one not in record.hosts), *wanted.add.hosts),
        permits=(*(one for one in allowed if one not in record.permits), *wanted.add.permits),
        terms=wanted.add.terms,
    )
    kept = replace(
        record,
        hosts=tuple(one for one in dict.fromkeys(hosts) if one in record.hosts),
        permits=tuple(one for one in dict.fromkeys(allowed) if one in record.permits),
    )
    wider = widened(kept, manifest, named, usual, force=wanted.force)
    if isinstance(wider, Problem):
        return wider
    masked = (record.masked - wanted.grant) | wanted.trim
    try:
        after = _narrowed(replace(wider, masked=masked, updated_at=now), wanted.remove, usual)
    except _Unfit as unfit:
        return Problem("bad_request", str(unfit))
    return _startable(after, manifest) or after


def widened(
    record: Record, manifest: Manifest | None, named: Named, usual: Usual, *, force: bool = False
) -> Record | Problem:
    """`record` with `named` granted besides. Problems: bad_request for what is not declared, metadata_origin."""
    try:
        _declared(named.caps, record.facts)
        hosts = _joined(record.hosts, _hosts(named.hosts, manifest))
        allowed = _joined(record.permits, _permits(named.permits, record.permits, force=force))
        terms = record.terms
        for kind, value in named.terms:
            terms, permit = _term(terms, record, manifest, (kind, value), usual)
            allowed = _joined(allowed, permit)
    except _Unfit as unfit:
        return Problem("bad_request", str(unfit))
    except _Metadata as found:
        hint = f"if that is what you want: latticectl caps grant {record.id} {found} --force"
        detail = f"expected an origin other than a cloud's metadata service, which hands out credentials, found {found}"
        return Problem("metadata_origin", detail, hint)
    return replace(record, masked=record.masked - frozenset(named.caps), hosts=hosts, permits=allowed, terms=terms)


def needs_consent(record: Record, manifest: Manifest | None, verb: str) -> Problem | None:
    """Problem needs_consent listing all that must be accepted before `manifest` can start, or None."""
    if manifest is None or record.terms is None:
        return None
    needed = accepted.needed(manifest, record.facts.interpreter, record.terms)
    if not needed:
        return None
    detail = (
        f"cannot start {record.id} {record.facts.version}: expected what it cannot run without to be accepted, found"
        f" {', '.join(needed)} not accepted"
    )
    words = [word for one in needed for word in ("--accept", one)]
    return Problem("needs_consent", detail, shlex.join(["latticectl", verb, record.id, *words]))


def widens(before: Record, after: Record, usual: Usual) -> bool:
    """Whether `after` grants anything that `before` does not."""
    fewer = before.masked <= after.masked and set(after.hosts) <= set(before.hosts)
    return not (fewer and set(after.permits) <= set(before.permits)) or bool(_more(after.terms, before.terms, usual))


def ends_life(before: Record, after: Record, usual: Usual) -> bool:
    """Whether `after` takes away something that an instance keeps from its start, so that it must be restarted."""
    gone = permits.bound_to_a_life(set(before.permits) - set(after.permits))
    return gone or bool(_more(before.terms, after.terms, usual))


def withheld(record: Record, usual: Usual) -> tuple[str, ...]:
    """What an accepted plugin's manifest asks for and was not granted, as `kind=value`; without capabilities."""
    wants = presence.asked(record.facts)
    if wants is None or record.terms is None:
        return ()
    given = {f"{permits.FEATURE}={one}" for one in permits.of_kind(record.permits, permits.FEATURE)}
    return tuple(one for one in accepted.beyond(wants, record.terms, usual) if one not in given)


def hosts_after(record: Record, manifest: Manifest) -> tuple[str, ...]:
    """The granted hosts that remain after an upgrade: those still declared; all of them if `manifest` is v1."""
    return egress.meet(record.hosts, manifest.egress.hosts) if manifest.is_v2 else record.hosts


class _Metadata(Exception):  # its text is the permit that was refused
    pass


def _more(wants: Accepted | None, terms: Accepted | None, usual: Usual) -> tuple[str, ...]:
    return accepted.beyond(wants, terms, usual) if wants is not None and terms is not None else ()


def _declared(caps: Iterable[str], facts: RecordFacts) -> None:
    extra = sorted(set(caps) - set(facts.capabilities))
    if extra:
        declared = ", ".join(facts.capabilities)
        raise _Unfit(f"expected capabilities that the manifest declares ({declared}), found {extra[0][:80]}")


def _hosts(named: Iterable[str], manifest: Manifest | None) -> tuple[str, ...]:
    """Hosts in normal form; `*` granted to a v2 plugin becomes the hosts it declares now on ports 80 and 443."""
    found: list[str] = []
    for text in named:
        try:
            one = egress.consent(text)
        except ValueError as error:
            raise _Unfit(str(error)) from error
        if manifest is None or not manifest.is_v2:
            found.append(one)
        elif one == egress.ANY:
            found += egress.on_star_ports(manifest.egress.hosts)
        elif egress.within(one, manifest.egress.hosts):
            found.append(one)
        else:
            declared = ", ".join(manifest.egress.hosts) or "none"
            raise _Unfit(f"expected a host that the manifest declares ({declared}), found {one}")
    return tuple(found)


def _permits(named: Iterable[str], known: tuple[str, ...], *, force: bool) -> tuple[str, ...]:
    for permit in named:
        if unfit := permits.fault(permit):
            raise _Unfit(unfit)
        kind, _, value = permit.partition("=")
        if kind == permits.ORIGIN and permit not in known and not force and egress.is_metadata(egress.origin(value)):
            raise _Metadata(permit)
    return tuple(named)


def _term(
    terms: Accepted | None, record: Record, manifest: Manifest | None, named: tuple[str, str], usual: Usual
) -> tuple[Accepted | None, tuple[str, ...]]:
    """The terms with `named` accepted too, and the permits to add for it."""
    kind, value = named
    text = f"{kind}={value}"
    wants = accepted.asked(manifest, record.facts.interpreter) if manifest is not None else None
    if kind == permits.PREFIX:
        same = {one for one in wants.prefixes if _slashed(one) == _slashed(value)} if wants else set()
        return (replace(terms, prefixes=terms.prefixes | same) if terms else None), (text,)
    if kind == permits.FEATURE and (terms is None or wants is None or value not in wants.features):
        return terms, (text,)
    if terms is None or wants is None:
        raise _Unfit(f"expected {record.id} to be installed before {text[:80]} is accepted: found nothing accepted yet")
    return _accepting(terms, wants, kind, value, usual), ()


def _accepting(terms: Accepted, wants: Accepted, kind: str, value: str, usual: Usual) -> Accepted:
    match kind:
        case "limit":
            return _with_limit(terms, wants, value, usual)
        case "level":
            level = "" if value == accepted.DEFAULT else value
            if accepted.rank(level, usual.level) < accepted.rank(wants.level, usual.level):
                raise _Unfit(f"expected at least level={wants.level or usual.level}, which it asks for, found {value}")
            lower = accepted.rank(level, usual.level) < accepted.rank(terms.level, usual.level)
            return replace(terms, level=level) if lower else terms
        case "feature":
            return replace(terms, features=terms.features | {value})
        case "dependency":
            if value not in wants.dependencies:
                raise _Unfit(f"expected a plugin that it depends on ({_list(wants.dependencies)}), found {value[:80]}")
            return replace(terms, dependencies=terms.dependencies | {value})
        case "args":
            if _words(value) != wants.args:
                raise _Unfit(f"expected args={shlex.join(wants.args)}, which it asks for, found args={value[:80]}")
            return replace(terms, args=wants.args)
        case _:
            asked = getattr(wants, kind)
            if value != asked:
                raise _Unfit(f"expected {kind}={asked}, which it is, found {kind}={value[:80]}")
            is_other: dict[str, Any] = {kind: value}
            return replace(terms, **is_other)


def _with_limit(terms: Accepted, wants: Accepted, value: str, usual: Usual) -> Accepted:
    name, limits = _limit(value)
    most = accepted.bound(wants.limits, name, usual.limits)
    if accepted.bound(limits, name, usual.limits) > most:
        asked = getattr(wants.limits, name)
        found = f"limit={value}"
        raise _Unfit(f"expected at most limit={name}:{asked or accepted.DEFAULT}, which it asks for, found {found}")
    if accepted.bound(limits, name, usual.limits) <= accepted.bound(terms.limits, name, usual.limits):
        return terms
    return replace(terms, limits=structs.replace(terms.limits, **{name: getattr(limits, name)}))


def _narrowed(record: Record, removed: Named, usual: Usual) -> Record:
    terms, allowed, hosts = record.terms, list(record.permits), list(record.hosts)
    for host in removed.hosts:
        starred = set(egress.on_star_ports(hosts)) | {egress.ANY}
        hosts = [one for one in hosts if one != host and not (host == egress.ANY and one in starred)]
    gone = {*removed.permits, *(f"{kind}={value}" for kind, value in removed.terms)}
    for kind, value in removed.terms:
        terms = _without(terms, kind, value, usual) if terms is not None else None
    allowed = [one for one in allowed if one not in gone]
    return replace(record, hosts=tuple(hosts), permits=tuple(allowed), terms=terms)


def _without(terms: Accepted, kind: str, value: str, usual: Usual) -> Accepted:
    match kind:
        case "feature":
            return replace(terms, features=terms.features - {value})
        case "prefix":
            return replace(terms, prefixes=frozenset(p for p in terms.prefixes if _slashed(p) != _slashed(value)))
        case "limit":
            name, limit = _limit(value)
            lower = structs.replace(terms.limits, **{name: getattr(limit, name)})
            return accepted.meet(terms, replace(terms, limits=lower), usual)
        case "level":
            return accepted.meet(terms, replace(terms, level="" if value == accepted.DEFAULT else value), usual)
        case _:
            raise _Unfit(f"expected something that can be taken away alone, found {kind}={value[:80]}")


def _startable(record: Record, manifest: Manifest | None) -> Problem | None:
    return needs_consent(record, manifest, "activate") if record.status is Status.ACTIVE else None


def _limit(value: str) -> tuple[str, ManifestLimits]:
    """Limits with only this one set; those that are None come from the settings."""
    name, _, number = value.partition(":")
    return name, ManifestLimits(**{name: None if number == accepted.DEFAULT else int(number)})


def _words(value: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise _Unfit(f"expected args= as in a shell, found {value[:80]}: {error}") from error


def _slashed(prefix: str) -> str:
    return prefix if prefix.endswith("/") else f"{prefix}/"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _joined(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))

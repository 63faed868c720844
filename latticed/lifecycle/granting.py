"""Grants and their removal by name, as pure functions: the resulting record, or the Problem that refuses it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from latticed.kit.value import Value
from latticed.lifecycle import presence
from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.model import accepted, addresses, capability, egress, permits
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
"""Names nothing: the default of a Regrant."""


class _Unfit(Exception):  # its arguments become reason and hint of bad_request
    pass


class Regrant(Value, frozen=True, kw_only=True):
    """A change of grants, as the control API takes it.

    `grant` and `trim` are capabilities to unmask and to mask. `add` and `remove` name anything else (`model.consents`).
    `hosts` and `permits` replace the present ones; None leaves them. `force` allows origins that are cloud metadata
    addresses.
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
    """`record` with the grants changed as `wanted`, at `now` (microseconds since the epoch), or why that is refused.

    `manifest` is None when neither record nor disk has one. What is removed wins over what is added. Problems:
    bad_request, metadata_origin; needs_consent when an active plugin could not start any more.
    """
    hosts = record.hosts if wanted.hosts is None else wanted.hosts
    allowed = record.permits if wanted.permits is None else wanted.permits
    # New ones only: they are judged. One that is granted already may stay though the manifest no longer declares it.
    named = Named(
        caps=tuple(wanted.grant | wanted.trim),
        hosts=(*(one for one in hosts if one not in record.hosts), *wanted.add.hosts),
        permits=(*(one for one in allowed if one not in record.permits), *wanted.add.permits),
        terms=wanted.add.terms,
    )
    # Those that the lists drop are gone before the new ones are added, in the order of the lists.
    kept = replace(
        record,
        hosts=tuple(one for one in dict.fromkeys(hosts) if one in record.hosts),
        permits=tuple(one for one in dict.fromkeys(allowed) if one in record.permits),
    )
    wider = widened(kept, manifest, named, usual, force=wanted.force)
    if isinstance(wider, Problem):
        return wider
    # Trimmed last: a capability that is named in both is masked.
    masked = (record.masked - wanted.grant) | wanted.trim
    try:
        unasked = wider.unasked - wanted.trim
        after = _narrowed(replace(wider, masked=masked, unasked=unasked, updated_at=now), wanted.remove, usual)
    except _Unfit as unfit:
        return Problem("bad_request", *unfit.args)
    # An active plugin must be able to start again with what is left.
    return _startable(after, manifest) or after


def widened(
    record: Record, manifest: Manifest | None, named: Named, usual: Usual, *, force: bool = False
) -> Record | Problem:
    """`record` with `named` granted besides, or why that is refused.

    `usual` are the settings' values for what a manifest leaves out; `force` as in Regrant. Problems: bad_request for
    what the manifest does not declare or ask for, metadata_origin.
    """
    try:
        # In turn: capabilities, hosts, permits, then terms, of which some are kept as permits.
        _declared(named.caps, record.facts)
        hosts = _joined(record.hosts, _hosts(named.hosts, manifest))
        allowed = _joined(record.permits, _permits(named.permits, record.permits, force=force))
        terms = record.terms
        for kind, value in named.terms:
            terms, permit = _term(terms, record, manifest, (kind, value), usual)
            allowed = _joined(allowed, permit)
    except _Unfit as unfit:
        return Problem("bad_request", *unfit.args)
    except _Metadata as found:
        hint = f"if that is what you want: latticectl caps grant {record.id} {found} --force"
        detail = f"expected an origin other than a cloud's metadata service, which hands out credentials, found {found}"
        return Problem("metadata_origin", detail, hint)
    granted = frozenset(named.caps)
    return replace(
        record,
        masked=record.masked - granted,
        unasked=record.unasked - granted,
        hosts=hosts,
        permits=allowed,
        terms=terms,
    )


def needs_consent(record: Record, manifest: Manifest | None, verb: str) -> Problem | None:
    """Problem needs_consent listing all that must be accepted before `manifest` can start, or None.

    `verb` is the latticectl verb (`activate`, `upgrade`) that the hint repeats with the missing `--accept`s. A record
    without terms needs nothing: its first install accepts all.
    """
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
    """Whether `after` grants anything that `before` does not; then it has to be on disk before it takes effect."""
    fewer = before.masked <= after.masked and set(after.hosts) <= set(before.hosts)
    return not (fewer and set(after.permits) <= set(before.permits)) or bool(_more(after.terms, before.terms, usual))


def needs_restart(before: Record, after: Record, usual: Usual) -> bool:
    """Whether `after` takes away something that an instance got at its start, so that it must be restarted."""
    gone = permits.any_applied_at_start(set(before.permits) - set(after.permits))
    return gone or bool(_more(before.terms, after.terms, usual))


def withheld(record: Record, usual: Usual) -> tuple[str, ...]:
    """What an accepted plugin's manifest asks for and was not granted, as `kind=value`; without capabilities."""
    wants = presence.asked(record.facts)
    if wants is None or record.terms is None:
        return ()
    # A feature can be granted as a permit as well: then it is not withheld.
    given = {f"{permits.FEATURE}={one}" for one in permits.of_kind(record.permits, permits.FEATURE)}
    return tuple(one for one in accepted.beyond(wants, record.terms, usual) if one not in given)


def withheld_hosts(record: Record, manifest: Manifest | None) -> tuple[str, ...]:
    """The hosts that `manifest` declares and that were not granted, or not all that a pattern covers."""
    declared = manifest.declared_hosts if manifest is not None else None
    granted = egress.meet(record.hosts, declared or ())
    return tuple(one for one in declared or () if not egress.within(one, granted))


def hosts_after(record: Record, manifest: Manifest) -> tuple[str, ...]:
    """The granted hosts that remain after an upgrade: those that `manifest` declares; all of them if it declares none
    (`Manifest.declared_hosts`).
    """
    declared = manifest.declared_hosts
    return record.hosts if declared is None else egress.meet(record.hosts, declared)


class _Metadata(Exception):  # its text is the permit that was refused
    pass


def _more(wants: Accepted | None, terms: Accepted | None, usual: Usual) -> tuple[str, ...]:
    """What `wants` has beyond `terms`, as `kind=value`; nothing when one of them is None."""
    return accepted.beyond(wants, terms, usual) if wants is not None and terms is not None else ()


def _declared(caps: Iterable[str], facts: RecordFacts) -> None:
    """Raise _Unfit for a capability that the manifest does not declare: it cannot be granted."""
    extra = sorted(set(caps) - set(facts.capabilities))
    if extra:
        # Cut to 80 characters, here and below: the text comes from the caller and ends in logs and the audit record.
        declared = ", ".join(facts.capabilities)
        raise _Unfit(f"expected capabilities that the manifest declares ({declared}), found {extra[0][:80]}")


def _hosts(named: Iterable[str], manifest: Manifest | None) -> tuple[str, ...]:
    """Hosts in normal form, each checked against what the manifest declares; _Unfit otherwise.

    `*` becomes the hosts that it declares now on ports 80 and 443. Where it leaves hosts to the operator
    (`Manifest.declared_hosts`) any may be granted.
    """
    hosts = manifest.declared_hosts if manifest is not None else None
    found: list[str] = []
    for text in named:
        try:
            one = egress.consent(text)
        except ValueError as error:
            raise _Unfit(str(error)) from error
        if hosts is None:
            found.append(one)
        elif one == egress.ANY:
            found += egress.on_star_ports(hosts)
        elif egress.within(one, hosts):
            found.append(one)
        else:
            declared = ", ".join(hosts) or "none"
            raise _Unfit(
                f"expected a host that the manifest declares ({declared}), found {one}", _origin_of(one, manifest)
            )
    return tuple(found)


def _origin_of(pattern: str, manifest: Manifest | None) -> str:
    """The command that binds a private address, for who tries to grant it as a host; else empty."""
    address = egress.address_in(pattern)
    kind = addresses.blocked_class(address) if address is not None else None
    if kind is None or manifest is None:
        return ""
    return f"{pattern} is {kind}: latticectl caps grant {manifest.id} origin=http://{pattern}"


def _permits(named: Iterable[str], known: tuple[str, ...], *, force: bool) -> tuple[str, ...]:
    """`named` unchanged, each checked; _Unfit for bad syntax, _Metadata for a cloud's metadata service.

    Without `force` only those that are not `known`, that is granted already, are held to the second rule.
    """
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
    """The terms with `named` (kind, value) accepted too, and the permits to add for it.

    Some kinds are kept in two places: a prefix always as a permit, and as a term where the manifest asks for it; a
    feature as a term where the manifest asks for it, else as a permit. All other kinds are terms only, so they need a
    manifest and terms: _Unfit without.
    """
    kind, value = named
    text = f"{kind}={value}"
    wants = accepted.asked(manifest, record.facts.interpreter) if manifest is not None else None
    if kind == permits.PREFIX:
        # `/shop` and `/shop/` are the same prefix; the terms keep the manifest's spelling.
        same = {one for one in wants.prefixes if _slashed(one) == _slashed(value)} if wants else set()
        return (replace(terms, prefixes=terms.prefixes | same) if terms else None), (text,)
    if kind == permits.FEATURE and (terms is None or wants is None or value not in wants.features):
        return terms, (text,)
    if terms is None or wants is None:
        raise _Unfit(f"expected {record.id} to be installed before {text[:80]} is accepted: found nothing accepted yet")
    return _accepting(terms, wants, kind, value, usual), ()


def _accepting(terms: Accepted, wants: Accepted, kind: str, value: str, usual: Usual) -> Accepted:
    """`terms` with this value of this kind accepted, never more than `wants` asks for; _Unfit otherwise.

    A level or limit that is no wider than the accepted one changes nothing.
    """
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
        case "schedule":
            if value not in wants.schedules:
                raise _Unfit(f"expected a schedule that it asks for ({_list(wants.schedules)}), found {value[:80]}")
            return replace(terms, schedules=terms.schedules | {value})
        case "args":
            if _words(value) != wants.args:
                raise _Unfit(f"expected args={shlex.join(wants.args)}, which it asks for, found args={value[:80]}")
            return replace(terms, args=wants.args)
        # Single-valued kinds (type, protocol, interpreter): named in full, so that the operator accepts what is there.
        case _:
            asked = getattr(wants, kind)
            if value != asked:
                raise _Unfit(f"expected {kind}={asked}, which it is, found {kind}={value[:80]}")
            is_other: dict[str, Any] = {kind: value}
            return replace(terms, **is_other)


def _with_limit(terms: Accepted, wants: Accepted, value: str, usual: Usual) -> Accepted:
    """`terms` with the limit `value` (`name:number`) raised to it; unchanged if it is no higher."""
    name, limits = _limit(value)
    most = accepted.bound(wants.limits, name, usual.limits)
    if accepted.bound(limits, name, usual.limits) > most:
        asked = getattr(wants.limits, name)
        found = f"limit={value}"
        raise _Unfit(f"expected at most limit={name}:{asked or accepted.DEFAULT}, which it asks for, found {found}")
    if accepted.bound(limits, name, usual.limits) <= accepted.bound(terms.limits, name, usual.limits):
        # Granting never lowers: that is what removing does (`_without`).
        return terms
    return replace(terms, limits=structs.replace(terms.limits, **{name: getattr(limits, name)}))


def _narrowed(record: Record, removed: Named, usual: Usual) -> Record:
    """`record` without what `removed` names. What was not granted is no error, except for kinds that stay (_Unfit)."""
    terms, allowed, hosts = record.terms, list(record.permits), list(record.hosts)
    for host in removed.hosts:
        # `*` became the declared hosts on ports 80 and 443 when it was granted (`_hosts`): removing it takes those
        # away.
        starred = set(egress.on_star_ports(hosts)) | {egress.ANY}
        hosts = [one for one in hosts if one != host and not (host == egress.ANY and one in starred)]
    # Features and prefixes may be kept as permits too (`_term`).
    gone = {_spelled(one) for one in (*removed.permits, *(f"{kind}={value}" for kind, value in removed.terms))}
    for kind, value in removed.terms:
        terms = _without(terms, kind, value, usual) if terms is not None else None
    allowed = [one for one in allowed if _spelled(one) not in gone]
    return replace(record, hosts=tuple(hosts), permits=tuple(allowed), terms=terms)


def _spelled(permit: str) -> str:
    """`permit` in the spelling that is compared: `prefix=/shop` and `prefix=/shop/` are the same."""
    kind, _, value = permit.partition("=")
    return f"{kind}={_slashed(value)}" if kind == permits.PREFIX else permit


def _without(terms: Accepted, kind: str, value: str, usual: Usual) -> Accepted:
    """`terms` without this value of this kind; _Unfit for kinds that a plugin cannot run without.

    For a limit or level the value is what is left at most, so it can only tighten them.
    """
    match kind:
        case "feature":
            return replace(terms, features=terms.features - {value})
        case "prefix":
            return replace(terms, prefixes=frozenset(p for p in terms.prefixes if _slashed(p) != _slashed(value)))
        case "schedule":
            return replace(terms, schedules=terms.schedules - {value})
        case "limit":
            name, limit = _limit(value)
            lower = structs.replace(terms.limits, **{name: getattr(limit, name)})
            return accepted.meet(terms, replace(terms, limits=lower), usual)
        case "level":
            return accepted.meet(terms, replace(terms, level="" if value == accepted.DEFAULT else value), usual)
        case _:
            raise _Unfit(f"expected something that can be taken away alone, found {kind}={value[:80]}")


def _startable(record: Record, manifest: Manifest | None) -> Problem | None:
    """The Problem if `record` is active and could not start again with its terms, else None."""
    return needs_consent(record, manifest, "activate") if record.status is Status.ACTIVE else None


def _limit(value: str) -> tuple[str, ManifestLimits]:
    """`memory_mib:64` as (name, limits with only this one set). `memory_mib:default` sets None, which leaves it to the
    settings.
    """
    name, _, number = value.partition(":")
    return name, ManifestLimits(**{name: None if number == accepted.DEFAULT else int(number)})


def _words(value: str) -> tuple[str, ...]:
    """The arguments that `value` names, split as in a shell; _Unfit when it cannot be split."""
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise _Unfit(f"expected args= as in a shell, found {value[:80]}: {error}") from error


def _slashed(prefix: str) -> str:
    """`prefix` with a slash at its end, to compare prefixes."""
    return prefix if prefix.endswith("/") else f"{prefix}/"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _joined(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """`old` and `new`, each once and in order."""
    return tuple(dict.fromkeys((*old, *new)))

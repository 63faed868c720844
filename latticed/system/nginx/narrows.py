"""Whether a new intent only takes away from the one that an operator approved (contracts §12).

Such a change needs no approval: a site switched off, an access list with fewer networks, a list where there was none.
Less of anything else may be more for somebody: where a location goes, the site answers in its place; where a site
goes, another one's `*.` may have its names. When in doubt the answer is no, and the operator is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.model.addresses import Network
    from latticed.system.nginx.intent import NginxIntent, Site

Allowed = tuple["Network", ...] | None
"""Who may come in; None: everybody."""


def narrows(approved: NginxIntent, new: NginxIntent) -> bool:
    """True only when nobody is served by `new` what `approved` keeps from him. Both must have passed `check`."""
    if _bare(approved) != _bare(new):
        return False
    before = {one.name: one for one in approved.sites}
    # A site that is gone gives its names to nobody only as long as it is written, switched off.
    return before.keys() == {one.name for one in new.sites} and all(
        _site(approved, before[one.name], new, one) for one in new.sites
    )


def _site(before: NginxIntent, old: Site, after: NginxIntent, new: Site) -> bool:
    if _plain(old) != _plain(new) or (new.enabled and not old.enabled):
        return False
    if not new.enabled:
        return True
    pairs = zip(_open(before, old), _open(after, new), strict=True)
    return all(_covers(wide, narrow) for wide, narrow in pairs)


def _open(intent: NginxIntent, site: Site) -> list[Allowed]:
    """Who may come in, at each place of a site in an order of its own."""
    lists = {one.name: one.allow for one in intent.access}
    ordered = sorted(site.locations, key=lambda one: (one.path, one.match))
    names = [site.access, *(one.access or site.access for one in ordered)]
    return [lists[name] if name else None for name in names]


def _covers(wide: Allowed, narrow: Allowed) -> bool:
    if wide is None:
        return True
    if narrow is None:
        return False
    return all(any(one.version == each.version and one.subnet_of(each) for each in wide) for one in narrow)  # type: ignore[arg-type]


def _plain(site: Site) -> Site:
    locations = tuple(replace(one, access="") for one in sorted(site.locations, key=lambda one: (one.path, one.match)))
    return replace(site, domains=tuple(sorted(site.domains)), locations=locations, access="", enabled=True)


def _bare(intent: NginxIntent) -> NginxIntent:
    return replace(intent, sites=(), access=())

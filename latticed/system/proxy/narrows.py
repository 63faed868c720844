"""Whether a new intent only takes away from the one that an operator approved (contracts §12).

Such a change needs no approval: a user fewer, disabled, at fewer inbounds, with an earlier end or a smaller quota; an
inbound fewer; private networks out of reach. A name is nothing but a word. When in doubt the operator is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.system.proxy.intent import ProxyIntent, User


def narrows(approved: ProxyIntent, new: ProxyIntent) -> bool:
    """True only when nobody gets in with `new` whom `approved` keeps out. Both must have passed `check`."""
    if _bare(approved) != _bare(new) or (new.reach_private and not approved.reach_private):
        return False
    if not set(new.inbounds) <= set(approved.inbounds):
        return False
    before = {one.id: one for one in approved.users}
    return all(one.id in before and _user(approved, before[one.id], new, one) for one in new.users)


def _user(approved: ProxyIntent, old: User, changed: ProxyIntent, new: User) -> bool:
    bare_old, bare_new = (
        replace(one, name="", enabled=True, expires_at=None, quota_bytes=None, inbounds=None) for one in (old, new)
    )
    if bare_old != bare_new:
        return False
    if not new.enabled:
        return True
    return (
        old.enabled
        and _tags(changed, new) <= _tags(approved, old)
        and _at_most(new.expires_at, old.expires_at)
        and _at_most(new.quota_bytes, old.quota_bytes)
    )


def _tags(intent: ProxyIntent, user: User) -> set[str]:
    every = {one.tag for one in intent.inbounds}
    return every if user.inbounds is None else every & set(user.inbounds)


def _at_most(new: int | None, old: int | None) -> bool:
    return old is None or (new is not None and new <= old)


def _bare(intent: ProxyIntent) -> ProxyIntent:
    return replace(intent, inbounds=(), users=(), reach_private=False)

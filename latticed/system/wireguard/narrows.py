"""Whether a new intent only takes away from the one that an operator approved (contracts §12).

Such a change needs no approval: a member fewer, disabled, or with an earlier end; less that may be reached; a network
fewer. A name is nothing but a word. When in doubt the answer is no, and the operator is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latticed.system.nft_guard.intent import Proto
from latticed.system.wireguard import reach
from latticed.system.wireguard.intent import Place

if TYPE_CHECKING:
    from latticed.system.wireguard.intent import Intent, Reach, WgMember, WgNetwork


def narrows(approved: Intent, new: Intent) -> bool:
    """True only when nobody reaches with `new` what `approved` keeps from him. Both must have passed `check`."""
    before = {one.name: one for one in approved.networks}
    return all(one.name in before and _tunnel(before[one.name], one) for one in new.networks)


def _tunnel(old: WgNetwork, new: WgNetwork) -> bool:
    if _bare(old) != _bare(new):
        return False
    # What is released could be given to somebody else.
    if not set(old.held) <= set(new.held):
        return False
    before = {one.id: one for one in old.members}
    return all(one.id in before and _member(old, before[one.id], new, one) for one in new.members)


def _member(tunnel: WgNetwork, old: WgMember, changed: WgNetwork, new: WgMember) -> bool:
    bare_old, bare_new = (
        replace(one, name="", enabled=True, expires_at=None, may_reach=None, addresses=(), subnets=())
        for one in (old, new)
    )
    if bare_old != bare_new or not set(new.addresses) <= set(old.addresses):
        return False
    if not set(new.subnets) <= set(old.subnets):
        return False
    if old.expires_at is not None and (new.expires_at is None or new.expires_at > old.expires_at):
        return False
    if not new.enabled:
        return True
    allowed = reach.of(tunnel, old)
    return old.enabled and all(any(_covers(one, each) for one in allowed) for each in reach.of(changed, new))


def _covers(wide: Reach, narrow: Reach) -> bool:
    if wide.proto not in {Proto.ANY, narrow.proto}:
        return False
    if wide.ports and not (
        narrow.ports and all(any(a.low <= b.low and b.high <= a.high for a in wide.ports) for b in narrow.ports)
    ):
        return False
    if isinstance(wide.to, Place) or isinstance(narrow.to, Place):
        return wide.to == narrow.to
    return wide.to.version == narrow.to.version and narrow.to.subnet_of(wide.to)  # type: ignore[arg-type]


def _bare(tunnel: WgNetwork) -> WgNetwork:
    return replace(tunnel, members=(), held=(), may_reach=())

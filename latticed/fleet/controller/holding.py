"""Which host has a name, over all that is known of it, in whatever order that came: controllers that know the same say
the same. Pure.

The key that an operator certified comes first; then those that joined, who came first by the invitation's end: a name
that a host has is given to no other one. A revoked key has no name while there is another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.fleet.controller.assigning import FleetNodeKey

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from latticed.fleet.controller.records import JoinedRecord
    from latticed.fleet.documents import NodeCertificate


def holder(
    before: FleetNodeKey | None,
    certified: NodeCertificate | None,
    joined: Sequence[JoinedRecord],
    *,
    revoked: Collection[str],
    now_s: int,
) -> FleetNodeKey | None:
    """Who has the name that all of these are about; `before` as it is where nothing more is known of it."""
    key = _key(certified, joined, revoked)
    if not key:
        return before
    serial = certified.serial if certified is not None else 0
    own = [one for one in joined if one.key == key]
    if certified is not None and certified.node_key == key:
        name, labels = certified.node, certified.labels
    else:
        newest = max(own, key=age)
        name, labels = newest.node, newest.labels
    since = before.since if before is not None and before.key == key else now_s
    return FleetNodeKey(name=name, key=key, labels=dict(labels), serial=serial, since=since)


def age(joined: JoinedRecord) -> tuple[int, str]:
    """Which of a name's hosts, or of a host's invitations, came before which."""
    return joined.expires, joined.token


def _key(certified: NodeCertificate | None, joined: Sequence[JoinedRecord], revoked: Collection[str]) -> str:
    """Empty where nobody has joined or was certified."""
    if certified is not None and certified.node_key not in revoked:
        return certified.node_key
    counting = [one for one in joined if one.key not in revoked]
    if counting:
        return min(counting, key=age).key
    if joined:
        return max(joined, key=age).key
    return certified.node_key if certified is not None else ""

"""Which host has a name: the same in whatever order things became known, so that all controllers say the same. Pure.

If `web-1` joined with key K1, the name stays K1's, also where K2 joins by it later; once K1 is revoked it is K2's.
First comes the key that an operator certified; then, of those that joined, the one whose invitation ends first.
A revoked key has the name only while there is no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.fleet.controller.assigning import FleetNodeKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from latticed.fleet.controller.records import JoinedRecord
    from latticed.fleet.documents import EnrolmentToken, NodeCertificate


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


def lasting(
    asked: EnrolmentToken, key: str, certified: NodeCertificate | None, joined: Iterable[JoinedRecord]
) -> tuple[dict[str, str], int] | None:
    """The labels that the host of this key would keep though it joined by `asked`, and when the invitation ends that
    they are from; None where it would have those of `asked`, or has some that an operator certified.
    """
    if certified is not None and certified.node_key == key:
        return None
    newest = max((one for one in joined if (one.node, one.key) == (asked.node, key)), key=age, default=None)
    if newest is None or age(newest) <= (asked.expires, asked.token):
        return None
    return newest.labels, newest.expires


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

"""The differences between two trust policies: publishers, keys, switches. Without revocations, which only grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.trust.policy import Publisher, TrustPolicy

SWITCHES: Final = ("require_signature", "allow_unsigned_host_risk")
"""The yes-or-no fields of a policy."""


class Change(Value, frozen=True, kw_only=True):
    """One difference, as the audit record shows it.

    `kind`: added, removed or changed. `target`: a publisher or a switch. `what`: `key`, `ids`, `max_risk` or `switch`,
    with its new `value` (a key by its fingerprint).
    """

    kind: str
    target: str
    what: str
    value: str


def differences(old: TrustPolicy, new: TrustPolicy) -> tuple[Change, ...]:
    """From `old` to `new`, sorted by publisher, then the switches; empty when only revocations differ."""
    return tuple(_differences(old, new))


def _differences(old: TrustPolicy, new: TrustPolicy) -> Iterator[Change]:
    """As `differences`, one by one."""
    for name in sorted({*old.publishers, *new.publishers}):
        yield from _of_publisher(name, old.publishers.get(name), new.publishers.get(name))
    for switch in SWITCHES:
        if getattr(old, switch) is not getattr(new, switch):
            yield Change(kind="changed", target=switch, what="switch", value=str(getattr(new, switch)).lower())


def _of_publisher(name: str, before: Publisher | None, after: Publisher | None) -> Iterator[Change]:
    """What changed of one publisher: keys that went or came, ids, max_risk; a new or removed one shows by its keys."""
    had, has = before.keys if before else (), after.keys if after else ()
    for kind, found in (
        ("removed", [one for one in had if one not in has]),
        ("added", [one for one in has if one not in had]),
    ):
        for key in found:
            yield Change(kind=kind, target=name, what="key", value=keys.fingerprint(key))
    if before is not None and after is not None:
        if before.ids != after.ids:
            yield Change(kind="changed", target=name, what="ids", value=" ".join(after.ids) or "any")
        if before.max_risk != after.max_risk:
            risk = after.max_risk.word if after.max_risk is not None else "any"
            yield Change(kind="changed", target=name, what="max_risk", value=risk)

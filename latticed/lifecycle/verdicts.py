"""Audit events for verdicts that change, on plugins and on bundles that no record came from. Pure.

A bundle that verifies when first seen gives no event, its record shows it; one that was refused or gone before does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.model.audit import DAEMON, Event
from latticed.model.verdict import Refused

if TYPE_CHECKING:
    from latticed.lifecycle.presence import Presence
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Verdict


def is_told(before: Verdict | None, after: Verdict | None) -> bool:
    """Whether a refusal is, but for its words, the one before: the same code, and the same bundle by its identity."""
    match before, after:
        case Refused(), Refused():
            return (before.code, before.identity) == (after.code, after.identity)
        case _:
            return False


def of_plugin(record: Record, before: Presence | None, after: Presence) -> Event | None:
    """The event for a plugin whose fault code changed, or None; `before` is None at the first scan.

    `reason` says why it is not available; `detail.before` is the previous code, empty when it was available.
    """
    was = before.trouble if before is not None else None
    trouble = after.trouble
    if (trouble.code if trouble else "") == (was.code if was else "") or record.forgotten:
        return None
    return Event(
        actor=str(DAEMON),
        action="plugin.verdict",
        target=record.id,
        decision="deny" if trouble else "allow",
        code=trouble.code if trouble else "",
        reason=trouble.reason if trouble else "",
        detail={"before": was.code if was else "", "status": record.status.value},
    )


def of_bundle(name: str, before: Refused | None, refused: Refused | None, *, copies: int = 1) -> Event | None:
    """The event for a bundle that no record came from: newly refused, or no longer refused; None for neither.

    `name` is `<directory>/<bundle>`, of which the event names the bundle. `copies`: how many bundles it stands for.
    """
    if refused is None and before is None:
        return None
    return Event(
        actor=str(DAEMON),
        action="bundle.verdict",
        target=name.partition("/")[2],
        decision="deny" if refused else "allow",
        code=refused.code.value if refused else "",
        reason=refused.reason if refused else "",
        detail={"before": before.code.value if before else "", "copies": copies},
    )

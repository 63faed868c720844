"""Verdicts as audit events: what the disk says of a plugin or of a stranger's bundle, when that changes. Pure.

What verifies at first sight is no news: its record says so. What was refused or gone and verifies again is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.model.audit import DAEMON, Event

if TYPE_CHECKING:
    from latticed.lifecycle.presence import Presence
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Refused


def of_plugin(record: Record, before: Presence | None, after: Presence) -> Event | None:
    """What is new about a plugin on record; None when nothing is. Without `before`, it is looked at for the first time.

    `reason` says why it is not available; `detail.before` the code until now, empty when it was available.
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
    """What is new about the bundle `name` that no record came from: refused, or no longer so."""
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

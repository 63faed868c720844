"""What happens to a plugin's rows in the ledger when its id is forgotten or taken over by another publisher, and to
approvals when an older ledger comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.host.task import steps
from latticed.ledger import (
    audit_horizon,
    configs,
    contacts,
    ddns,
    kv,
    monitors,
    notification_upkeep,
    plans,
    programs,
    routes,
    schedules,
    secrets,
    tasks,
    versions,
)
from latticed.lifecycle import kept_data as leavings

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger import Transaction
    from latticed.model.lifecycle import Record


_AT_WORK: Final = (contacts, ddns, monitors, plans, programs, routes, schedules, tasks, versions)
"""Tables of ongoing work, and of earlier versions: removed in both cases, never inherited."""


def strip(plugin_id: str, *, purge: bool = False) -> Callable[[Transaction], None]:
    """A change for a plugin that is forgotten: removes secret bindings and ongoing work; its data only with `purge`.

    To be run in the transaction that writes its tombstone.
    """

    def strip(tx: Transaction) -> None:
        secrets.unbind_all(tx, plugin_id)
        _clear(tx, plugin_id)
        if purge:
            leavings.clear(tx, plugin_id)

    return strip


def set_aside(before: Record, after: Record) -> Callable[[Transaction], None] | None:
    """A change for a takeover: the old publisher's data is kept under its name, its ongoing work is removed.

    Data that the new publisher left under this id earlier becomes current again. None if the publisher stays. To be run
    in the transaction that writes the record: a crash between them would show one publisher's data to the other.
    """
    old, new = before.facts.publisher, after.facts.publisher
    if old == new:
        return None
    bucket = f"plugin:{before.id}"

    def swap(tx: Transaction) -> None:
        # Out of the way before the new publisher's own comes back, since both have the same current name.
        kv.rename(tx, bucket, f"{bucket}@{old}")
        kv.rename(tx, f"{bucket}@{new}", bucket)
        configs.rename_plugin(tx, before.id, f"{before.id}@{old}")
        configs.rename_plugin(tx, f"{before.id}@{new}", before.id)
        secrets.rename_plugin(tx, before.id, f"{before.id}@{old}")
        secrets.rename_plugin(tx, f"{before.id}@{new}", before.id)
        # What was recorded so far is about the other publisher's code.
        audit_horizon.draw(tx, before.id)
        # Not sent yet: the new publisher must not be taken for their sender.
        notification_upkeep.prune(tx, statuses=("queued", "delivering"), plugin_id=before.id)
        # The rest stays for operators: it makes nothing that the new publisher sends a repeat.
        notification_upkeep.forget_words(tx, before.id)
        _clear(tx, before.id)

    return swap


def config_of(before: Record, after: Record) -> str:
    """The id under which the ledger has, before `set_aside`, the configuration that `after` gets by it.

    Another publisher gets back its own, if it held the id earlier; there may be none under the id that is returned.
    """
    old, new = before.facts.publisher, after.facts.publisher
    return before.id if old == new else f"{before.id}@{new}"


def set_aside_lost(tx: Transaction, before: Record | None, after: Record) -> None:
    """As `set_aside`, after a loss, when the floors pin another publisher than the ledger's record.

    `before` is None for an id that the ledger did not know. Changes nothing if the publisher stays.
    """
    if before is not None and (swap := set_aside(before, after)) is not None:
        swap(tx)


def withdraw_approvals(tx: Transaction) -> None:
    """After a loss: take back the approvals of tasks that have not begun.

    Each may have run since, or been cancelled, and an approval is good for one run.
    """
    reason = "what was decided since is lost: it may have run already"
    for plugin_id in sorted({task.plugin_id for task in tasks.of_state(tx, "approved")}):
        steps.withdraw(tx, plugin_id, reason=reason)


def _clear(tx: Transaction, plugin_id: str) -> None:
    """Remove all rows of one plugin from the tables of ongoing work (_AT_WORK)."""
    for rows in _AT_WORK:
        rows.clear(tx, plugin_id)

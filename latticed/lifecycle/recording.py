"""Writes a decision to the ledger: the changed record and its event in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit import text
from latticed.ledger import records as rows
from latticed.model.audit import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger import Transaction
    from latticed.model.audit import Actor
    from latticed.model.consents import Named
    from latticed.model.lifecycle import Record

_WORDS: Final = 4_000
"""Characters of what was named, at most."""


def writing(record: Record, event: Event, also: Callable[[Transaction], None] | None) -> Callable[[Transaction], None]:
    """The change for `Ledger.write`: the record, its event and what `also` changes, in one transaction.

    So no record is on disk without the event that explains it, nor an event without its record.
    """

    def change(tx: Transaction) -> None:
        rows.put(tx, record)
        tx.append_audit(event)
        if also is not None:
            also(tx)

    return change


def event(actor: Actor, action: str, record: Record, detail: dict[str, str | int | bool]) -> Event:
    """The audit event of an allowed decision about `record`; it is hashed with its `detail`."""
    return Event(actor=str(actor), action=action, target=record.id, decision="allow", detail=detail)


def status_event(
    actor: Actor, before: Record, after: Record, withheld: tuple[str, ...] = (), named: Named | None = None
) -> Event:
    """The event of a change of status or version by `actor`.

    `withheld` is what the manifest asks for and was not granted, as `kind=value`; `named` what he accepted by name.
    """
    detail: dict[str, str | int | bool] = {
        "from": before.status.value,
        "to": after.status.value,
        "version": after.facts.version,
        "identity": after.facts.identity,
        "granted": ",".join(after.granted),
    }
    if withheld:
        detail["withheld"] = " ".join(withheld)
    if named is not None and named.words:
        detail["accepted"] = words(named)
    return event(actor, "plugin.status", after, detail)


def words(named: Named) -> str:
    """What was named besides capabilities, for an event's detail: `kind=value`, with `; ` between, as some have spaces.

    Cut, since what is taken away need not be there, so that any number of words can be named.
    """
    return text.clip("; ".join(named.words), _WORDS)

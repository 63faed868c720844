"""Writes a decision to the ledger: the changed record and its event in one transaction."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from latticed.ledger import records as rows
from latticed.ledger.audit_text import DETAIL_TEXT
from latticed.model.audit import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger import Transaction
    from latticed.model.audit import Actor
    from latticed.model.consents import Named
    from latticed.model.lifecycle import Record


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
    if named is not None:
        detail |= by_kind("accepted", named)
    return event(actor, "plugin.status", after, detail)


def by_kind(what: str, named: Named) -> dict[str, str]:
    """What was named besides capabilities, for an event's detail: `{"added_limit": "memory_mib:512", …}`, with `; `
    between those of one kind, as some have spaces.

    Of what is longer than a detail's text, its end is how many there are and the SHA-256 of the whole.
    """
    kinds: dict[str, list[str]] = {}
    for word in named.words:
        kind, _, value = word.partition("=")
        kinds.setdefault(kind, []).append(value)
    return {f"{what}_{kind}": _fitting("; ".join(values), len(values)) for kind, values in kinds.items()}


def _fitting(text: str, count: int) -> str:
    """`text` within what the ledger keeps of one."""
    if len(text) <= DETAIL_TEXT:
        return text
    end = f"... {count} in all, sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    return text[: DETAIL_TEXT - len(end)] + end

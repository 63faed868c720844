"""Audit events as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import render
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed import wire

_COLUMNS: Final = (
    Column(title="SEQ", right=True),
    Column(title="WHEN"),
    Column(title="ACTOR", shrinks=True),
    Column(title="ACTION"),
    Column(title="TARGET", shrinks=True),
    Column(title="DECISION"),
    Column(title="CODE"),
    Column(title="REASON", shrinks=True),
)


def show(screen: render.Screen, events: Iterable[wire.AuditRow]) -> None:
    """A table of `events`, in the order given."""
    screen.rows(
        _COLUMNS,
        (
            (
                str(event.seq),
                screen.when(event.ts),
                event.actor,
                event.action,
                event.target,
                render.word(event.decision),
                event.code,
                reason(event),
            )
            for event in events
        ),
    )


def reason(event: wire.AuditRow) -> str:
    """The reason, or the details when there is no reason."""
    if event.reason or not isinstance(event.detail, dict):
        return str(event.reason)
    return " ".join(f"{name}={value}" for name, value in event.detail.items())

"""Log lines and audit events for refused bundles: one for each, and a bounded number per batch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from latticed.lifecycle import verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latticed.model.audit import Event
    from latticed.model.verdict import Code, Refused

MOST_LINES: Final = 100
"""Most lines for one batch; one more counts the rest (`latticectl rejected` lists them all)."""


class WarningLogger(Protocol):
    """What this module needs of a logger."""

    def warning(self, event: str, **fields: Any) -> None: ...


class RefusedLog:
    """Collects bundles that newly claim an id, and logs those that are refused.

    `record` gets an audit event for each line. Of copies with the same refusal one stands for all.
    """

    def __init__(self, log: WarningLogger, record: Callable[[Event], None] = lambda _: None) -> None:
        self._log = log
        self._record = record
        self._newcomers: dict[str, list[str]] = {}
        self._left: int | None = None
        """Lines left in this batch; below 0 it counts what was left out, None outside of a batch."""

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """While the block runs, at most MOST_LINES lines are logged; at its end one line counts the rest."""
        self._left = MOST_LINES
        try:
            yield
        finally:
            left, self._left = self._left, None
            if left < 0:
                self._log.warning("verdicts_refused", more=-left)

    def newcomer(self, plugin_id: str, name: str) -> None:
        """Note that the bundle `name` verifies and claims this id; `settle` says what became of it."""
        self._newcomers.setdefault(plugin_id, []).append(name)

    def update(self, plugin_id: str, former: str | None, refusal: Callable[[str], Refused | None]) -> None:
        """Log which newcomers of `plugin_id` `refusal` refuses, and the `former` winner if it is refused now.

        Called once it is known who wins. One line and one event for each code: a thousand copies of a bundle give one
        line.
        """
        # Taken out: each bundle is logged once, not at every refresh of its id.
        names = self._newcomers.pop(plugin_id, [])
        # The former winner may be refused now; that is logged, too.
        if former is not None and former not in names:
            names.append(former)
        found: dict[Code, list[tuple[str, Refused]]] = {}
        for name in names:
            if (refused := refusal(name)) is not None:
                found.setdefault(refused.code, []).append((name, refused))
        for code, same in found.items():
            # The first stands for all copies.
            name, refused = same[0]
            self.tell(bundle=name, bundles=len(same), code=code, plugin_id=plugin_id)
            if (event := verdicts.of_bundle(name, None, refused, copies=len(same))) is not None:
                self._record(event)

    def tell(self, **fields: Any) -> None:
        """Log `verdict_refused` with these fields, unless the batch has reached its limit."""
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                return
        self._log.warning("verdict_refused", **fields)

"""node.*: facts, metrics and labels of this machine, and journal entries of units that operators list.

Rules: system-plugins.md, Host services. Facts and metrics are cached (FACTS_CACHE_S, METRICS_CACHE_S), so that calls in
a loop cost little.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from latticed.host.call import Caller, HostError, NoParams, Params, Served
from latticed.host.node import facts as node_reading
from latticed.host.node import journal_client
from latticed.kit import text
from latticed.ledger import labels as rows
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.settings import Settings

# Seconds that a reading is answered again, as docs/write/services.md promises.
FACTS_CACHE_S: Final = 10.0
METRICS_CACHE_S: Final = 1.0
# Labels of the machine in all, and characters of one text.
MAX_LABELS: Final = 64
MAX_LABEL_CHARACTERS: Final = 256
MAX_CHANGES: Final = 2 * MAX_LABELS
"""Labels named in one call: enough to remove all there are and set all anew."""
ADMIN: Final = "node:admin"
"""The capability with which serial numbers and MACs are shown."""

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")


class SetLabels(Params, frozen=True):
    """Parameters of node.set_labels."""

    labels: dict[str, str | None]
    """Text by name, null removes one; labels that are not named stay. A name is 1 to 63 of `a-z 0-9 . _ / -`, a
    text at most 256 visible characters, 64 in all. A call names 128 at most.
    """


class ReadJournal(Params, frozen=True):
    """Parameters of node.journal."""

    filter: Annotated[str, Meta(min_length=1, max_length=256)]
    """`sshd`, or a unit that `node.journal_units` names."""
    cursor: Annotated[str, Meta(max_length=1_024)] = ""
    """The cursor of the answer before; empty: the newest entries."""
    limit: Annotated[int, Meta(ge=0, le=500)] = 100
    """Most entries in the answer."""


class NodeCalls:
    """The host calls `node.facts`, `node.metrics`, `node.journal` and `node.set_labels`.

    `may(plugin_id, capability)`: whether the plugin has that capability, for node:admin. `root`: where /proc, /sys and
    /etc are.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        settings: Settings,
        may: Callable[[str, str], bool],
        clock: Clock,
        root: Path = node_reading.ROOT,
    ) -> None:
        self._ledger = ledger
        self.settings = settings
        """Those in force; a reload replaces them."""
        self._may = may
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by plugin id
        # One cache for each, so that no caller gets the other's.
        self._facts = {
            hardware: CachedReading(_facts_of(root, hardware=hardware), FACTS_CACHE_S, clock)
            for hardware in (False, True)
        }
        self._metrics = CachedReading(lambda: node_reading.metrics(root), METRICS_CACHE_S, clock)

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="node.facts", params=NoParams, serve=self._get_facts),
            Served(method="node.metrics", params=NoParams, serve=self._get_metrics),
            Served(method="node.journal", params=ReadJournal, serve=self._read_journal),
            Served(method="node.set_labels", params=SetLabels, serve=self._set_labels),
        )

    async def _get_facts(self, caller: Caller, _: NoParams) -> dict[str, Any]:
        """Facts, with the labels as they are now; serial numbers and MACs only for node:admin."""
        facts = await self._facts[self._may(caller.plugin_id, ADMIN)].get()
        return {**facts, "labels": self._ledger.read(rows.load)}

    async def _get_metrics(self, _caller: Caller, _: NoParams) -> dict[str, Any]:
        """Metrics as `facts.metrics`, at most METRICS_CACHE_S old."""
        return await self._metrics.get()

    async def _set_labels(self, _caller: Caller, asked: SetLabels) -> dict[str, Any]:
        """Change labels of the machine, all of them or none. `labels`: what the machine has then. HostError bad_params,
        quota_exceeded.
        """
        # First: each is checked, and a row of the ledger, whose one writer all others wait for.
        if len(asked.labels) > MAX_CHANGES:
            detail = f"expected at most {MAX_CHANGES} labels in one call, found {len(asked.labels)}"
            raise HostError(Denial.QUOTA_EXCEEDED, detail)
        for name, value in asked.labels.items():
            if fault := _label_fault(name, value):
                raise HostError(Denial.BAD_PARAMS, fault)
        labels = await self._ledger.write(lambda tx: rows.change(tx, asked.labels, most=MAX_LABELS))
        return {"ok": True, "labels": labels}

    async def _read_journal(self, caller: Caller, asked: ReadJournal) -> dict[str, Any]:
        """Entries, the next cursor and whether there is a gap, from the journal reader. HostError bad_params for a unit
        that is not listed, and as `journal_client.ask`.
        """
        settings = self.settings
        # Checked by the reader as well, against its own settings; here, so that the refusal does not depend on whether
        # it runs.
        if not journal_client.may_read(asked.filter, settings.node.journal_units):
            shown = text.sanitise(asked.filter, 80)
            raise HostError(Denial.BAD_PARAMS, f"expected sshd or a unit that the operator listed, found {shown!r}")
        request = {"filter": asked.filter, "cursor": asked.cursor, "limit": asked.limit}
        # One at a time of a plugin: the reader takes so many connections, and nobody may keep others out.
        async with self._asking[caller.plugin_id]:
            return await journal_client.ask(
                journal_client.socket_path(settings), request, readers=lambda: journal_client.readers(settings)
            )


class CachedReading:
    """The result of `read`, run in a thread, cached for `max_age_s` seconds; concurrent callers share one run."""

    def __init__(self, read: Callable[[], dict[str, Any]], max_age_s: float, clock: Clock) -> None:
        self._read = read
        self._max_age_s = max_age_s
        self._clock = clock
        self._reading: asyncio.Future[dict[str, Any]] | None = None
        self._since_s = 0.0

    async def get(self) -> dict[str, Any]:
        """A result at most `max_age_s` old; what `read` raises, which is not cached. Cancelling one caller does not
        cancel the others' reading.
        """
        reading = self._reading
        now_s = self._clock.monotonic_s()
        if reading is None or (
            reading.done() and (now_s - self._since_s >= self._max_age_s or reading.exception() is not None)
        ):
            # Counted from the beginning of the run: what is read may be as old as that.
            self._since_s = now_s
            self._reading = reading = asyncio.get_running_loop().run_in_executor(None, self._read)
        # Shielded: the reading belongs to all callers, and its thread could not be cancelled anyway.
        return await asyncio.shield(reading)


def _facts_of(root: Path, *, hardware: bool) -> Callable[[], dict[str, Any]]:
    """A function that reads the facts; a factory, since a lambda in the comprehension would see the last `hardware`
    only.
    """
    return lambda: node_reading.facts(root, hardware=hardware)


def _label_fault(name: str, value: str | None) -> str | None:
    """What is wrong with a label, as the text of an error, or None; `value` None is its removal."""
    if not _LABEL.fullmatch(name):
        shown = text.sanitise(name, 80)
        return f"expected a label of 1 to 63 of a-z 0-9 . _ / -, alphanumeric at both ends, found {shown!r}"
    if value is not None and (len(value) > MAX_LABEL_CHARACTERS or text.escape(value) != value):
        return f"{name}: expected at most {MAX_LABEL_CHARACTERS} visible characters"
    return None

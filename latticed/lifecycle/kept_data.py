"""The data of a plugin that outlives it: kept when it is forgotten, removed when an operator says so.

What went on for it is stripped either way (`handover`); what is on record in the audit stays either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latticed.host.call import HostError
from latticed.ledger import kv, notification_upkeep, secrets
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from latticed.host.static.calls import StaticCalls
    from latticed.ledger import Transaction
    from latticed.ledger.connection import RowReader


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptData:
    """How much there is under an id, also of publishers that held it before: kv values, static files, notifications."""

    values: int = 0
    files: int = 0
    notifications: int = 0


async def files_of(static: StaticCalls, plugin_id: str) -> int:
    """How many static files there are; Problem store_unavailable."""
    return await _said(static.count_files(plugin_id))


async def remove_files(static: StaticCalls, plugin_id: str) -> None:
    """Remove them all; done again after a crash it removes the rest. Problem store_unavailable."""
    await _said(static.purge(plugin_id))


def count(conn: RowReader, plugin_id: str, files: int) -> KeptData:
    """What is left besides `files`."""
    values = sum(kv.usage(conn, bucket)[0] for bucket in kv.of_plugin(conn, plugin_id))
    return KeptData(values=values, files=files, notifications=notification_upkeep.count_of(conn, plugin_id))


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove what of it is in the ledger."""
    for bucket in kv.of_plugin(tx, plugin_id):
        kv.clear(tx, bucket)
    notification_upkeep.clear(tx, plugin_id)
    secrets.unbind_set_aside(tx, plugin_id)


async def _said(work: Awaitable[int]) -> int:
    try:
        return await work
    except HostError as error:
        raise Problem("store_unavailable", error.reason, "mend the disk, then run the same command again") from error

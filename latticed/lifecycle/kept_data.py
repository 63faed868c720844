"""A plugin's data that outlives it, its configuration too: kept when it is forgotten, removed by `purge`.

Its ongoing work is removed either way (`handover`); its audit events always stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latticed.host.call import HostError
from latticed.kit.value import Value
from latticed.ledger import configs, kv, notification_upkeep, secrets
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from latticed.host.services import HostServices
    from latticed.ledger import Transaction
    from latticed.ledger.connection import RowReader


class KeptData(Value, frozen=True, kw_only=True):
    """Amount of data under an id, earlier publishers' included: kv values, static files, notifications, services that
    have kept something.
    """

    values: int = 0
    files: int = 0
    notifications: int = 0
    services: int = 0


async def on_disk(services: HostServices, plugin_id: str) -> KeptData:
    """What a plugin has in files: `files` and `services`. Problem store_unavailable when they cannot be listed."""
    return KeptData(
        files=await _said(services.static.count_files(plugin_id)),
        services=await _said(services.programs.data.count(plugin_id)),
    )


async def remove_files(services: HostServices, plugin_id: str) -> None:
    """Remove all that a plugin has in files. A call that was interrupted can be repeated. Problem store_unavailable."""
    await _said(services.static.purge(plugin_id))
    await _said(services.programs.data.purge(plugin_id))


def count(conn: RowReader, plugin_id: str, on_disk: KeptData) -> KeptData:
    """How much data is left under an id: what the ledger holds of it, and what is in files as given. Without copies of
    kept versions, which go with the record.
    """
    buckets = [one for one in kv.of_plugin(conn, plugin_id) if not kv.is_aside(one)]
    values = sum(kv.usage(conn, bucket)[0] for bucket in buckets)
    return replace(on_disk, values=values, notifications=notification_upkeep.count_of(conn, plugin_id))


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove a plugin's values, notifications and set-aside secret bindings from the ledger, in transaction `tx`."""
    for bucket in kv.of_plugin(tx, plugin_id):
        kv.clear(tx, bucket)
    configs.clear(tx, plugin_id)
    notification_upkeep.clear(tx, plugin_id)
    secrets.unbind_set_aside(tx, plugin_id)


async def _said(work: Awaitable[int]) -> int:
    """Await `work` and return its number. An error of the disk becomes Problem store_unavailable, as this is an
    operator's command.
    """
    try:
        return await work
    except (HostError, OSError, Problem) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "the disk refused"
        raise Problem("store_unavailable", reason, "mend the disk, then run the same command again") from error

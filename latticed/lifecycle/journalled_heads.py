"""The heads of the audit chains that the journal has: it outlives a ledger whose state directory was put back."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.host.node import journal_client
from latticed.kit import journalctl, logs
from latticed.ledger.rollback import MOST_HEADS
from latticed.model import chain

if TYPE_CHECKING:
    from latticed.settings import Settings

JOURNAL_S: Final = 2.0
"""Timeout of reading the journal, seconds: it delays the start."""

log = logs.get_logger()


async def newest(settings: Settings) -> list[chain.Head]:
    """The newest heads of all chains, oldest first; empty when the journal cannot be read, which is logged.

    A daemon that may not read it, as the packaged one, asks the journal reader. A plugin's processes may have the same
    user: the caller drops heads that this host did not sign.
    """
    if not journalctl.available():
        return []
    try:
        async with asyncio.timeout(JOURNAL_S):
            lines = await (_read() if journalctl.may_read() else _asked(settings))
    except (journalctl.JournalUnreadable, HostError, TimeoutError) as error:
        reason = getattr(error, "reason", "") or str(error) or f"no answer within {JOURNAL_S:g} s"
        # No error: the ledger was compared with the floors file already.
        log.info("journal_not_read", reason=reason)
        return []
    return [head for line in lines if (head := chain.logged_head(line)) is not None]


async def _read() -> list[str]:
    """Messages of the newest heads, from the journal itself. JournalUnreadable."""
    # By the user, which nobody can forge: a flood of lookalikes does not hide the genuine ones.
    matches = (f"_UID={os.geteuid()}", f"LATTICED_EVENT={chain.HEAD_EVENT}")
    entries, _ = await journalctl.newest(matches, lambda _: True, MOST_HEADS)
    return [entry.fields["MESSAGE"] for entry in entries]


async def _asked(settings: Settings) -> list[str]:
    """The same from the journal reader. HostError."""
    answer = await journal_client.ask(
        journal_client.socket_path(settings),
        {"filter": journal_client.HEADS, "limit": MOST_HEADS},
        readers=lambda: journal_client.readers(settings),
    )
    messages = [one.get("message") for one in answer["entries"] if isinstance(one, dict)]
    return [message for message in messages if isinstance(message, str)]

"""notify.send: a message to the operator, accepted once it is on disk in the queue; channels are the operator's choice.

The sender gets the id under which it is delivered, not whether it was.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import Caller, HostError, Params, Served
from latticed.kit import text
from latticed.ledger.notifications import NotificationRow, Severity
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.notify.keeper import NotificationQueue

MAX_TITLE_CHARACTERS: Final = 200
MAX_BODY_CHARACTERS: Final = 8_192
MAX_DEDUPE_CHARACTERS: Final = 128
_EVENT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BREAKS: Final = re.compile(r"\r\n?")


class NotifySend(Params, frozen=True):
    title: str
    body: str = ""
    severity: Severity = "info"
    event: str = "message"
    dedupe: str = ""


class NotifyCalls:
    """The service."""

    def __init__(self, queue: NotificationQueue) -> None:
        self._queue = queue

    def calls(self) -> tuple[Served, ...]:
        return (Served(method="notify.send", params=NotifySend, serve=self._send),)

    async def _send(self, caller: Caller, asked: NotifySend) -> dict[str, Any]:
        message = checked(asked)
        accepted = await self._queue.accept(caller.plugin_id, message)
        return {"ok": True, "id": accepted.id, "duplicate": accepted.duplicate}


def checked(asked: NotifySend) -> NotificationRow:
    """The message, its text escaped and cut; HostError bad_params."""
    if not asked.title.strip():
        raise HostError(Denial.BAD_PARAMS, "title: expected some text, found none")
    if not _EVENT.fullmatch(asked.event):
        raise HostError(
            Denial.BAD_PARAMS, "event: expected 1 to 64 of a-z, 0-9, '.', '_', '-', first a letter or digit"
        )
    if len(asked.dedupe) > MAX_DEDUPE_CHARACTERS or any(text.is_control(c) for c in asked.dedupe):
        expected = f"at most {MAX_DEDUPE_CHARACTERS} characters, none of them a control character"
        raise HostError(Denial.BAD_PARAMS, f"dedupe: expected {expected}")
    return NotificationRow(
        title=text.sanitise(asked.title.strip(), MAX_TITLE_CHARACTERS),
        body=body_text(asked.body),
        severity=asked.severity,
        event=asked.event,
        dedupe=f"plugin:{text.escape(asked.dedupe)}" if asked.dedupe else "",
    )


def body_text(body: str) -> str:
    """The body with control characters escaped, except line ends, and cut to MAX_BODY_CHARACTERS."""
    lines = _BREAKS.sub("\n", body[: MAX_BODY_CHARACTERS + 1]).split("\n")
    return text.clip("\n".join(text.escape(line) for line in lines), MAX_BODY_CHARACTERS)

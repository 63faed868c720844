"""notify.send: a message to the operator, accepted once it is on disk in the queue.

The operator chooses the channel. The sender gets the id under which it is delivered, and is not told whether it was.
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

# Longer titles and bodies are cut, with a mark. A longer `dedupe` is refused: once cut, it could equal another one.
MAX_TITLE_CHARACTERS: Final = 200
MAX_BODY_CHARACTERS: Final = 8_192
MAX_DEDUPE_CHARACTERS: Final = 128
_EVENT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BREAKS: Final = re.compile(r"\r\n?")


class NotifySend(Params, frozen=True):
    """Parameters of notify.send."""

    title: str
    """One line, not blank; longer than 200 characters it is cut, with a mark."""
    body: str = ""
    """Lines of text, never a template; longer than 8,192 characters they are cut."""
    severity: Severity = "info"
    """How bad it is."""
    event: str = "message"
    """What kind of thing happened, for the operator's rules: 1 to 64 of a-z, 0-9, `.`, `_`, `-`."""
    dedupe: str = ""
    """Up to 128 characters: a second message of the plugin with the same word is the first one, for as long as
    that is kept.
    """


class NotifyCalls:
    """The host call `notify.send`."""

    def __init__(self, queue: NotificationQueue) -> None:
        self._queue = queue

    def calls(self) -> tuple[Served, ...]:
        """The call with its parameters and handler, for `host.call.table`."""
        return (Served(method="notify.send", params=NotifySend, serve=self._send),)

    async def _send(self, caller: Caller, asked: NotifySend) -> dict[str, Any]:
        """Queue the message. It is delivered under `id`; `duplicate`: that is the id of an earlier message."""
        message = checked(asked)
        accepted = await self._queue.accept(caller.plugin_id, message)
        return {"ok": True, "id": accepted.id, "duplicate": accepted.duplicate}


def checked(asked: NotifySend) -> NotificationRow:
    """The message as it is queued: texts escaped and cut, `dedupe` with a prefix. HostError bad_params for a blank
    title, an event or a dedupe key that is not as documented.
    """
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
        # The prefix keeps keys that a plugin chooses apart from those that the host makes in its name
        # (`monitor.alerts`).
        dedupe=f"plugin:{text.escape(asked.dedupe)}" if asked.dedupe else "",
    )


def body_text(body: str) -> str:
    """The body with control characters escaped, except line ends, and cut to MAX_BODY_CHARACTERS."""
    # Cut before escaping, to bound the work; one character more, so that `clip` sees whether to put a mark.
    lines = _BREAKS.sub("\n", body[: MAX_BODY_CHARACTERS + 1]).split("\n")
    return text.clip("\n".join(text.escape(line) for line in lines), MAX_BODY_CHARACTERS)

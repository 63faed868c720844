"""log.write: lines of a plugin in the daemon's log, stamped with its id (system-plugins.md, Host services)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import Caller, Params, Served
from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Callable

# Longer texts are cut, with a mark, and further fields dropped: a line of the log is bounded, whatever a plugin sends.
MAX_MESSAGE_CHARACTERS: Final = 8_192
MAX_FIELDS: Final = 32
MAX_FIELD_CHARACTERS: Final = 512
LEVELS: Final = frozenset({"debug", "info", "warning", "error"})
ALIASES: Final = MappingProxyType({"warn": "warning"})
"""Names of other lattice hosts for a level. Case does not matter; an unknown level is info."""


class LogWrite(Params, frozen=True):
    """Parameters of log.write."""

    message: str
    """One line; longer than 8,192 characters it is cut, with a mark."""
    level: str = "info"
    """debug, info, warning or error; anything else is info."""
    fields: dict[str, Any] = {}
    """Further values, which become text: 32 at most, each of 512 characters."""


class LogCalls:
    """The host call `log.write`; `emit(level, plugin_id, message, fields)` writes one record of escaped, cut text."""

    def __init__(self, emit: Callable[[str, str, str, dict[str, str]], None]) -> None:
        self._emit = emit

    def calls(self) -> tuple[Served, ...]:
        """The call with its parameters and handler, for `host.call.table`."""
        return (Served(method="log.write", params=LogWrite, serve=self._write),)

    def _write(self, caller: Caller, asked: LogWrite) -> dict[str, Any]:
        """Write one record in the plugin's name. Nothing is refused for its level or length: it is a log."""
        # A line with an unknown level is worth more than an error that the plugin may not look at.
        given = asked.level.lower()
        level = ALIASES.get(given, given if given in LEVELS else "info")
        # Escaped: a line end in a name or value would let a plugin forge records of others.
        fields = {
            text.sanitise(name, 64): text.sanitise(str(value), MAX_FIELD_CHARACTERS)
            for name, value in list(asked.fields.items())[:MAX_FIELDS]
        }
        self._emit(level, caller.plugin_id, text.sanitise(asked.message, MAX_MESSAGE_CHARACTERS), fields)
        return {"ok": True}

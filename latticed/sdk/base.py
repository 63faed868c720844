"""The part of a plugin that the protocols call: actions, health, answers; `plugin.Plugin` adds the host calls."""

from __future__ import annotations

import sys
from types import MappingProxyType

from latticed.sdk.calls import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from latticed.sdk.calls import Ask


class PluginError(Exception):
    """Raised by an action: it fails with this message, without a traceback in the log."""


class Health:
    """`status` is healthy, degraded or unhealthy; `message` is for the operator."""

    def __init__(self, status: str = "healthy", message: str = "") -> None:
        self.status = status
        self.message = message

    def __repr__(self) -> str:
        return f"Health({self.status!r}, {self.message!r})"


class Reply:
    """What an action may return to add a message, or to fail without an exception."""

    def __init__(self, result: Any = None, *, message: str = "", ok: bool = True) -> None:
        self.result = result
        self.message = message
        self.ok = ok


def _unconnected(method: str, params: dict[str, Any]) -> Any:
    del params
    raise HostError("service_unavailable", f"{method}: not connected to a host")


class PluginBase:
    """A plugin's actions and health, and its answers to requests; the defaults of what `Plugin` documents."""

    id: str = ""
    capabilities: tuple[str, ...] = ()
    config: Mapping[str, Any] = MappingProxyType({})
    # staticmethod: a plain function of the class would be bound and given `self`.
    _ask: Ask = staticmethod(_unconnected)

    def started(self) -> None:
        """Called once, before anything else; if it raises, the plugin does not start."""

    def health(self) -> Health:
        """The plugin's health; called regularly. An exception counts as unhealthy."""
        return Health()

    def invoke(self, action: str, payload: Any) -> Any:
        """Carry out `action`; returns the result (any JSON, or a Reply). An exception fails the action.

        The payload is any JSON. Unless overridden, calls do_ACTION, with `_` for `-`.
        """
        found = getattr(self, f"do_{action.replace('-', '_')}", None)
        if found is None:
            raise PluginError(f"no such action: {action[:100]}")
        return found(payload)

    def stopping(self) -> None:
        """Called once, before the end, under latticed-stdio-1; the host does not wait long."""

    def describe(self) -> Any:
        """What the action `describe` answers under stdio-json-v1."""
        actions = sorted(name[3:] for name in dir(type(self)) if name.startswith("do_"))
        return {"name": type(self).__name__, "about": (type(self).__doc__ or "").strip(), "actions": actions}

    # Called by the protocols and the test harness.

    def connect(self, ask: Ask) -> None:
        """Send host calls through `ask`; `run` and the test harness do this."""
        self._ask = ask

    def answer(self, action: str, payload: Any) -> dict[str, Any]:
        """`{ok, message, result, error}` of one action; an exception becomes the error, and the plugin goes on."""
        try:
            found = self.invoke(action, payload)
        except PluginError as error:
            return failed(str(error))
        except HostError as error:
            return failed(str(error))
        except Exception as error:  # noqa: BLE001 - a failed action does not end the plugin
            show_traceback()
            return failed(f"{type(error).__name__}: {error}")
        reply = found if isinstance(found, Reply) else Reply(found)
        error_text = None if reply.ok else reply.message or "failed"
        return {"ok": reply.ok, "message": reply.message, "result": reply.result, "error": error_text}

    def check(self) -> Health:
        """What `health` returns, or unhealthy with its exception."""
        try:
            found = self.health()
            return Health(printable(found.status), printable(found.message))
        except Exception as error:  # noqa: BLE001 - see answer
            show_traceback()
            return Health("unhealthy", printable(f"{type(error).__name__}: {error}"))


def failed(message: str) -> dict[str, Any]:
    """The answer of an action that failed."""
    text = printable(message)
    return {"ok": False, "message": text, "result": None, "error": text}


def printable(text: object) -> str:
    """`text` with a mark for each lone surrogate: UTF-8 has no bytes for them."""
    return str(text).encode("utf-8", errors="replace").decode("utf-8")


def show_traceback() -> None:
    """The exception being handled, on stderr."""
    sys.excepthook(*sys.exc_info())

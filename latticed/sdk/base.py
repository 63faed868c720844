"""The part of a plugin that the protocols call: actions, health, answers; `plugin.Plugin` adds the host calls."""

from __future__ import annotations

import sys
import threading
from types import MappingProxyType

from latticed.sdk.calls import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from latticed.sdk.calls import Ask


class PluginError(Exception):
    """Raised by an action: it fails with this message, which its caller gets; no traceback is logged."""


class Health:
    """What `health` returns. `status` is healthy, degraded or unhealthy; `message` is for the operator."""

    def __init__(self, status: str = "healthy", message: str = "") -> None:
        self.status = status
        self.message = message

    def __repr__(self) -> str:
        return f"Health({self.status!r}, {self.message!r})"


class Reply:
    """What an action may return to add a message, or to fail without an exception.

    `result` is any JSON; with `ok` False the action has failed, and `message` is its error.
    """

    def __init__(self, result: Any = None, *, message: str = "", ok: bool = True) -> None:
        self.result = result
        self.message = message
        self.ok = ok


OVERRIDABLE = frozenset({"started", "health", "invoke", "stopping", "describe"})
"""Methods of the SDK's classes that a plugin's class may replace."""
SET_BY_HOST = frozenset({"id", "capabilities", "config"})
"""What the host sets on the plugin; a class may give each a value, for tests, and no method."""
MESSAGE_CHARACTERS = 2_000
"""Of a text for people: the host keeps no more, and refuses a line that is too long with all that it says."""
_HERE = "latticed.sdk."


def _unconnected(method: str, params: dict[str, Any]) -> Any:
    """The host call of a plugin that `connect` was not called for, such as one made in a test: HostError."""
    del params
    raise HostError("service_unavailable", f"{method}: not connected to a host")


class PluginBase:
    """A plugin's actions and health, and its answers to requests; the defaults of what `Plugin` documents.

    `id`, `capabilities` and `config` are set before `started` is called, under latticed-stdio-1.
    """

    id: str = ""
    capabilities: tuple[str, ...] = ()
    config: Mapping[str, Any] = MappingProxyType({})
    # staticmethod: a plain function of the class would be bound and given `self`.
    _ask: Ask = staticmethod(_unconnected)

    def __init_subclass__(cls, **more: Any) -> None:
        """Refuse a class that replaces what the SDK itself uses: TypeError with the name, and what to do."""
        super().__init_subclass__(**more)
        for owner in cls.__mro__:  # what is mixed in counts as well
            if not owner.__module__.startswith(_HERE):
                for name, value in vars(owner).items():
                    _check_name(cls, owner.__name__, name, value)

    def started(self) -> None:
        """Called once, before any action or health check; host calls work. If it raises, the plugin does not start."""

    def health(self) -> Health:
        """The plugin's health; called regularly, between actions. An exception counts as unhealthy."""
        return Health()

    def invoke(self, action: str, payload: Any) -> Any:
        """Carry out `action`; returns the result (any JSON, or a Reply). An exception fails the action.

        The payload is any JSON. Unless overridden, calls do_ACTION, with `_` for `-`; `describe`, where there is no
        do_describe, is answered by the method of that name. PluginError when there is none.
        """
        found = getattr(self, f"do_{action.replace('-', '_')}", None)
        if found is None and action == "describe":
            return self.describe()
        if found is None:
            # Cut, as the caller chooses the name.
            raise PluginError(f"no such action: {action[:100]}")
        return found(payload)

    def stopping(self) -> None:
        """Called once, before the end, under latticed-stdio-1; the host does not wait long."""

    def describe(self) -> Any:
        """What the action `describe` answers: by default class name, docstring and actions."""
        actions = sorted(name[3:] for name in dir(type(self)) if name.startswith("do_"))
        return {"name": type(self).__name__, "about": (type(self).__doc__ or "").strip(), "actions": actions}

    # Called by the protocols and the test harness.

    def connect(self, ask: Ask) -> None:
        """Send host calls through `ask(method, params)`, which returns the result or raises HostError; `run` and the
        test harness do this. TypeError for an attribute of this object that replaces what the SDK itself uses.
        """
        for name, value in vars(self).items():
            if name != "_ask":
                _check_name(type(self), type(self).__name__, name, value)
        self._ask = ask

    def answer(self, action: str, payload: Any) -> dict[str, Any]:
        """`{ok, message, result, error}` of one action; an exception becomes the error, and the plugin goes on."""
        try:
            found = self.invoke(action, payload)
        except PluginError as error:
            return failed(str(error))
        except HostError as error:
            return failed(str(error))
        # SystemExit and KeyboardInterrupt pass: `sys.exit()` in an action ends the plugin.
        except Exception as error:  # noqa: BLE001 - a failed action does not end the plugin
            show_traceback()
            return failed(f"{type(error).__name__}: {error}")
        reply = found if isinstance(found, Reply) else Reply(found)
        message = printable(reply.message or "")
        error_text = None if reply.ok else message or "failed"
        return {"ok": reply.ok, "message": message, "result": reply.result, "error": error_text}

    def check(self) -> Health:
        """What `health` returns, or unhealthy with its exception or with what is wrong about what it returned."""
        try:
            found = self.health()
            # Inside the `try`: what `health` returned may be no Health at all.
            return Health(printable(found.status), printable(found.message))
        except Exception as error:  # noqa: BLE001 - see answer
            show_traceback()
            return Health("unhealthy", printable(f"{type(error).__name__}: {error}"))


def _check_name(kind: type, owner: str, name: str, value: object) -> None:
    """TypeError when `owner`, a class of the plugin's author, has a `value` of a name that the SDK's classes use."""
    if name.startswith("__") or name in OVERRIDABLE:
        return
    used = [vars(one)[name] for one in kind.__mro__ if one.__module__.startswith(_HERE) and name in vars(one)]
    if not used or (name in SET_BY_HOST and not callable(value) and not hasattr(value, "__get__")):
        return
    about = "the host sets it" if name in SET_BY_HOST else _about(used[0])
    raise TypeError(
        f"{owner}.{name}: latticed.sdk.Plugin has a {name} of its own ({about}), which this would replace; call yours"
        f" something else: do_{name} if it is an action, else for example my_{name}"
    )


def _about(used: object) -> str:
    """The first sentence of what an SDK's name is for."""
    return (used.__doc__ or "").strip().partition("\n")[0].rstrip(".") or "for the SDK itself"


class TalkingThreads:
    """The threads that are talking to the host now.

    A signal handler runs in the main thread, in the middle of whatever that does (signal(7), Python's `signal`). A host
    call made there would wait for the very line that it keeps from being read or written.
    """

    def __init__(self) -> None:
        self._talking: set[int] = set()

    def talk(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; HostError service_unavailable in a handler that has interrupted this thread's talk."""
        thread = threading.get_ident()
        if thread in self._talking:
            raise HostError("service_unavailable", "a host call in a signal handler, which interrupted another")
        try:
            # Inside, as a handler may raise at any moment.
            self._talking.add(thread)
            return work()
        finally:
            self._talking.discard(thread)


def failed(message: str) -> dict[str, Any]:
    """The answer of an action that failed."""
    text = printable(message)
    return {"ok": False, "message": text, "result": None, "error": text}


def printable(text: object) -> str:
    """`text` of at most MESSAGE_CHARACTERS, with a question mark for each lone surrogate: UTF-8 has no bytes for it."""
    said = str(text)
    said = said if len(said) <= MESSAGE_CHARACTERS else said[: MESSAGE_CHARACTERS - 1] + "…"
    return said.encode("utf-8", errors="replace").decode("utf-8")


def show_traceback() -> None:
    """Print the exception being handled on stderr, the plugin's log."""
    sys.excepthook(*sys.exc_info())

"""A plugin as a class: actions and health to write, host calls at hand, `run` to live."""

from __future__ import annotations

import os
import sys
from types import MappingProxyType

from latticed.sdk.calls import Audit, HostError, Kv, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from latticed.sdk.calls import Ask
    from latticed.sdk.machine import Monitor, Node, Static
    from latticed.sdk.messages import Http, Mail, Notify
    from latticed.sdk.network import Ddns, Network, Route
    from latticed.sdk.work import Service, Task, Tunnel

RESPONSE_FD = "LATTICE_HOST_RESPONSE_FD"


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
    """What an action may return when it has more to say than its result."""

    def __init__(self, result: Any = None, *, message: str = "", ok: bool = True) -> None:
        self.result = result
        self.message = message
        self.ok = ok


def _unconnected(method: str, params: dict[str, Any]) -> Any:
    del params
    raise HostError("service_unavailable", f"{method}: not connected to a host")


class Plugin:
    """Write a method `do_ACTION(payload)` for each action, or `invoke` for all of them.

    Once started: `id`, `capabilities` (what the manifest declares) and `config` (what the operator set). Under
    stdio-json-v1 the host tells none of the three.
    """

    id: str = ""
    capabilities: tuple[str, ...] = ()
    config: Mapping[str, Any] = MappingProxyType({})
    _ask: Ask = staticmethod(_unconnected)

    # To write.

    def started(self) -> None:
        """Called once, before anything else; if it raises, the plugin does not start."""

    def health(self) -> Health:
        """How it is; called every so often. What it raises counts as unhealthy."""
        return Health()

    def invoke(self, action: str, payload: Any) -> Any:
        """Carry out `action`: what is returned is the result (any JSON, or a Reply). What is raised fails the action.

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

    # To call.

    def call(self, host_call: str, /, **params: Any) -> Any:
        """Any host call by its name, with exactly these parameters."""
        return self._ask(host_call, params)

    @property
    def kv(self) -> Kv:
        return Kv(self._ask)

    @property
    def log(self) -> Log:
        return Log(self._ask)

    @property
    def audit(self) -> Audit:
        return Audit(self._ask)

    # Imported when asked for: each start of each plugin would pay for them.

    @property
    def http(self) -> Http:
        from latticed.sdk.messages import Http

        return Http(self._ask)

    @property
    def mail(self) -> Mail:
        from latticed.sdk.messages import Mail

        return Mail(self._ask)

    @property
    def notify(self) -> Notify:
        from latticed.sdk.messages import Notify

        return Notify(self._ask)

    @property
    def node(self) -> Node:
        from latticed.sdk.machine import Node

        return Node(self._ask)

    @property
    def monitor(self) -> Monitor:
        from latticed.sdk.machine import Monitor

        return Monitor(self._ask)

    @property
    def static(self) -> Static:
        from latticed.sdk.machine import Static

        return Static(self._ask)

    @property
    def task(self) -> Task:
        from latticed.sdk.work import Task

        return Task(self._ask)

    @property
    def service(self) -> Service:
        from latticed.sdk.work import Service

        return Service(self._ask)

    @property
    def tunnel(self) -> Tunnel:
        from latticed.sdk.work import Tunnel

        return Tunnel(self._ask)

    @property
    def route(self) -> Route:
        from latticed.sdk.network import Route

        return Route(self._ask)

    @property
    def network(self) -> Network:
        from latticed.sdk.network import Network

        return Network(self._ask)

    @property
    def ddns(self) -> Ddns:
        from latticed.sdk.network import Ddns

        return Ddns(self._ask)

    # To live.

    def run(self) -> None:
        """Speak with the host until the work is done. SystemExit when the plugin could not start."""
        from latticed.sdk import wires

        if RESPONSE_FD in os.environ:
            from latticed.sdk import one_shot

            one_shot.run(self, wires.claim(), int(os.environ[RESPONSE_FD]))
        else:
            from latticed.sdk import session

            session.run(self, wires.claim())

    def connect(self, ask: Ask) -> None:
        """Send host calls through `ask`; `run` and the test harness do this."""
        self._ask = ask

    def answer(self, action: str, payload: Any) -> dict[str, Any]:
        """`{ok, message, result, error}` of one action; what it raises becomes the error, and the plugin lives on."""
        try:
            found = self.invoke(action, payload)
        except PluginError as error:
            return failed(str(error))
        except HostError as error:
            return failed(str(error))
        except Exception as error:  # noqa: BLE001 - one action's fault is not the end of the others
            show_traceback()
            return failed(f"{type(error).__name__}: {error}")
        reply = found if isinstance(found, Reply) else Reply(found)
        error_text = None if reply.ok else reply.message or "failed"
        return {"ok": reply.ok, "message": reply.message, "result": reply.result, "error": error_text}

    def check(self) -> Health:
        """What `health` says, or unhealthy with what it raised."""
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

"""A plugin as a class: the author writes actions and health, calls host calls, and starts it with `run`."""

from __future__ import annotations

import os

from latticed.sdk.base import PluginBase
from latticed.sdk.calls import Audit, Kv, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from latticed.sdk.machine import Monitor, Node, Static
    from latticed.sdk.messages import Http, Mail, Notify
    from latticed.sdk.network import Ddns, Network, Route
    from latticed.sdk.work import Service, Task, Tunnel

RESPONSE_FD = "LATTICE_HOST_RESPONSE_FD"


class Plugin(PluginBase):
    """Write a method `do_ACTION(payload)` for each action, or `invoke` for all of them.

    Once started: `id`, `capabilities` (what the manifest declares) and `config` (what the operator set). Under
    stdio-json-v1 they keep their defaults.
    """

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

    # Imported on use, to keep the start of a plugin fast.

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

    def run(self) -> None:
        """Serve the host until it ends the session, or one action (stdio-json-v1). SystemExit if it cannot start."""
        from latticed.sdk import lines

        if RESPONSE_FD in os.environ:
            from latticed.sdk import one_shot

            one_shot.run(self, lines.claim(), int(os.environ[RESPONSE_FD]))
        else:
            from latticed.sdk import session

            session.run(self, lines.claim())

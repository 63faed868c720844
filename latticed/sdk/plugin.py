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
"""The environment variable that the host sets under stdio-json-v1: the number of the descriptor with its answers."""


class Plugin(PluginBase):
    """A plugin: write a method `do_ACTION(payload)` for each action, or `invoke` for all of them.

    Once started: `id`, `capabilities` (what the manifest declares) and `config` (what the operator set). Under
    stdio-json-v1 they keep their defaults. Each property is a group of host calls; a refused one raises HostError.
    """

    def call(self, host_call: str, /, **params: Any) -> Any:
        """The result of any host call by its name, such as `kv.get`, with exactly these parameters; HostError.

        `host_call` is positional only: a call may have a parameter of that name.
        """
        return self._ask(host_call, params)

    @property
    def kv(self) -> Kv:
        """Small values that survive restarts."""
        return Kv(self._ask)

    @property
    def log(self) -> Log:
        """Lines in the daemon's log."""
        return Log(self._ask)

    @property
    def audit(self) -> Audit:
        """This plugin's own audit events."""
        return Audit(self._ask)

    # Imported on use, to keep the start of a plugin fast.

    @property
    def http(self) -> Http:
        """Requests to hosts that the operator granted."""
        from latticed.sdk.messages import Http

        return Http(self._ask)

    @property
    def mail(self) -> Mail:
        """Mail through the operator's relay."""
        from latticed.sdk.messages import Mail

        return Mail(self._ask)

    @property
    def notify(self) -> Notify:
        """Notifications to the operator."""
        from latticed.sdk.messages import Notify

        return Notify(self._ask)

    @property
    def node(self) -> Node:
        """Facts, metrics, journal and labels of the machine."""
        from latticed.sdk.machine import Node

        return Node(self._ask)

    @property
    def monitor(self) -> Monitor:
        """Checks that the host makes at intervals."""
        from latticed.sdk.machine import Monitor

        return Monitor(self._ask)

    @property
    def static(self) -> Static:
        """Files that the host publishes for this plugin."""
        from latticed.sdk.machine import Static

        return Static(self._ask)

    @property
    def task(self) -> Task:
        """Scripts that run once, after an operator has approved them."""
        from latticed.sdk.work import Task

        return Task(self._ask)

    @property
    def service(self) -> Service:
        """Long-lived programs."""
        from latticed.sdk.work import Service

        return Service(self._ask)

    @property
    def tunnel(self) -> Tunnel:
        """Tunnels from the internet to services on this host."""
        from latticed.sdk.work import Tunnel

        return Tunnel(self._ask)

    @property
    def route(self) -> Route:
        """HTTP paths that this plugin answers."""
        from latticed.sdk.network import Route

        return Route(self._ask)

    @property
    def network(self) -> Network:
        """Planned changes to the host's network."""
        from latticed.sdk.network import Network

        return Network(self._ask)

    @property
    def ddns(self) -> Ddns:
        """DNS records that follow this machine's addresses."""
        from latticed.sdk.network import Ddns

        return Ddns(self._ask)

    def run(self) -> None:
        """Serve the host until it ends the session, or one action (stdio-json-v1); SystemExit if it cannot start.

        Takes over descriptors 0 and 1 (see `lines.claim`): print nothing before it is called.
        """
        from latticed.sdk import lines

        if RESPONSE_FD in os.environ:
            from latticed.sdk import one_shot

            one_shot.run(self, lines.claim(), int(os.environ[RESPONSE_FD]))
        else:
            from latticed.sdk import session

            session.run(self, lines.claim())

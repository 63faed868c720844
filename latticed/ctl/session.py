"""The context of one run of a verb: arguments, screen, environment, client and settings."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.client.control import ControlClient
    from latticed.ctl.render import Screen
    from latticed.settings import Settings


PACKAGED: Final = "/run/latticed/control.sock"
"""Where the packaged unit listens."""


class CtlSession(NamedTuple):
    """The context of one run. A NamedTuple, because importing `dataclasses` would add 12 ms to every start (P8).

    `args`: of the verb and the common options; `environ`: the process's environment.
    """

    args: Namespace
    screen: Screen
    environ: Mapping[str, str]

    def client(self, *, read_s: float | None = None, until_s: float = math.inf) -> ControlClient:
        """A client for the socket of --socket, LATTICED_SOCKET, or the settings (contracts §8).

        `read_s`: seconds to wait for an answer; None for the default. `until_s`: of the monotonic clock, when nothing
        is waited for any more.
        """
        from latticed.client.control import READ_S, ControlClient

        given = getattr(self.args, "socket", None) or self.environ.get("LATTICED_SOCKET")
        path = given or self._settings_socket()
        read_s = READ_S if read_s is None else read_s
        return ControlClient(path, read_s=read_s, until_s=until_s, owner=self._socket_owner)

    def _socket_owner(self) -> str:
        """The configured user who may serve the socket besides root and the caller; empty without readable settings."""
        from latticed.model.errors import Problem

        try:
            return self.settings().access.socket_owner
        # Then root and the caller are the only ones to be trusted.
        except Problem:
            return ""

    def _settings_socket(self) -> str:
        """The socket's path by the settings, of which nothing else is looked at (contracts §6)."""
        from latticed.settings import places

        directory, origin = places.runtime_dir(self._config(), self.environ, os.geteuid())
        here = str(directory / "control.sock")
        if os.path.exists(here):
            return here
        self.settings()  # what is wrong with them is told first: it may be why there is no daemon
        if origin == "default" and os.path.exists(PACKAGED):
            return PACKAGED  # an ordinary user's defaults differ from those of the packaged daemon
        return here

    def settings(self) -> Settings:
        """The settings the daemon would use here; Problem("settings_invalid") when they are bad."""
        from latticed import settings

        return settings.load(self._config(), self.environ, os.geteuid())

    def _config(self) -> Path | None:
        """The settings file that was named."""
        from pathlib import Path

        config = getattr(self.args, "config", None)
        return Path(config) if config else None
